"""Number formats of DeepSeek-V4 checkpoints and GGUF files, and the choice of what becomes what."""
