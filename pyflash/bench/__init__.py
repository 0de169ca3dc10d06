"""What `pyflash bench` does: speed at several depths of context, held against what the machine's memory allows."""
