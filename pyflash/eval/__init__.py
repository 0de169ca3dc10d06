"""Perplexity and KL divergence over texts, defined as in llama.cpp's perplexity tool."""
