"""`pyflash info`: what a GGUF file is and costs."""

from __future__ import annotations

import dataclasses
import json

import click

from pyflash import report
from pyflash.commands.options import converter_errors


@click.command()
@click.argument("file", type=click.Path())
@click.option("--ctx", type=click.IntRange(1), help="Context in tokens to reckon with.  [default: at most 65536]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(file: str, ctx: int | None, as_json: bool) -> None:
    """Tell what a GGUF file is, what it costs, and whether it fits this machine."""
    with converter_errors():
        found = report.inspect(file, ctx)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(found), "done": True}, ensure_ascii=False))
    else:
        click.echo(report.describe(found))
