"""DeepSeek-V4 checkpoints in Hugging Face's layout to GGUF files, and native GGUF files back."""
