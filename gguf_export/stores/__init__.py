"""GGUF files by the names that they have in local stores: Hugging Face's cache, LM Studio's folder, Ollama's.

A store is one object of STORES, with a prefix, find() and list(); nothing here uses the network or writes.
"""
