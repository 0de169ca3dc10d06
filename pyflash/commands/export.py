"""`pyflash export`: a GGUF file in another layout."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pyflash.commands.options import converter_errors, print_written
from pyflash.progress import Progress


@click.group()
def export() -> None:
    """Write a GGUF file in another layout."""


@export.command("hf")
@click.argument("file", type=click.Path())
@click.argument("dest", type=click.Path())
def export_hf(file: str, dest: str) -> None:
    """Turn a native-profile GGUF back into the safetensors it came from, in the new folder DEST."""
    with converter_errors():
        from gguf_export import convert as converter

        with Progress("exporting", sys.stderr) as progress:
            files = converter.export_hf(Path(file), Path(dest), progress=progress.update)
    print_written(files, sum(path.stat().st_size for path in files))
