"""The commands of `pyflash`, one module each."""
