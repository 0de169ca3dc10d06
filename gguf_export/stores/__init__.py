"""GGUF files by the names that they have in local stores: Hugging Face's cache, LM Studio's folder, Ollama's.

A store is one object of lookup.STORES, with a prefix, find() and walk(); nothing here uses the network or writes.
"""
