"""Answers and conversations in a terminal, a pipe or as JSON lines: what `pyflash run` does."""
