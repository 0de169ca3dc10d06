"""libpyflash from Python: loading it, its errors, values on their way across. Imports nothing else of pyflash."""
