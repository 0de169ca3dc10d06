"""Local runtime for DeepSeek-V4 models."""
