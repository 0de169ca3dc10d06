"""A model over several machines, on Ray."""
