"""The command line: everything that knows click or a terminal."""
