"""`pyflash cache`: the conversations that `pyflash serve` keeps on disk."""

from __future__ import annotations

import time
from pathlib import Path

import click

from pyflash.cli.output import print_done, print_json
from pyflash.cli.streams import say
from pyflash.machine.places import cache_dir
from pyflash.machine.units import format_bytes
from pyflash.native.text import visible


def serve_cache() -> Path:
    """The folder where `pyflash serve` keeps conversations."""
    return cache_dir() / "serve"


@click.group()
def cache() -> None:
    """Show or delete the conversations that `pyflash serve` keeps on disk."""


@cache.command("list")
@click.option("--json", "as_json", is_flag=True, help='Print JSON objects, one a line, the last with "done": true.')
def list_units(as_json: bool) -> None:
    """List what is kept: of which model, how many tokens, how large, and when it was used last."""
    from pyflash.serve.disk_cache import units

    found = sorted(units(serve_cache()), key=lambda unit: -unit.used)
    for unit in found:
        if as_json:
            print_json({"model": unit.name, "tokens": len(unit.tokens), "bytes": unit.n_bytes, "used": int(unit.used),
                        "file": str(unit.path)})
        else:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(unit.used))
            click.echo(f"{used}  {len(unit.tokens):>9,} tokens  {format_bytes(unit.n_bytes):>10}  {visible(unit.name)}")
    total = sum(unit.n_bytes for unit in found)
    if as_json:
        print_done({"n": len(found), "bytes": total})
    else:
        say(f"{len(found)} conversations, {format_bytes(total)} in {serve_cache()}")


@cache.command("clear")
def clear_units() -> None:
    """Delete all that is kept."""
    from pyflash.serve.disk_cache import clear

    say(f"freed {format_bytes(clear(serve_cache()))} in {serve_cache()}")
