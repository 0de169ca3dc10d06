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
def list_positions(as_json: bool) -> None:
    """List the positions from which conversations can go on: of which model, after how many tokens, their size without the
    rows that they share, and when they were used last."""
    from pyflash.serve import disk_folder

    stored = list(disk_folder.stored(serve_cache()))
    found = sorted((each for each in stored if each.tail is not None), key=lambda each: -each.used)
    names = {path: disk_folder.model_name(path) for path in {each.path.parent for each in found}}
    for each in found:
        name = names[each.path.parent]
        if as_json:
            print_json({"model": name, "tokens": each.end, "bytes": each.n_bytes, "used": int(each.used),
                        "file": str(each.path)})
        else:
            used = time.strftime("%Y-%m-%d %H:%M", time.localtime(each.used))
            click.echo(f"{used}  {each.end:>9,} tokens  {format_bytes(each.n_bytes):>10}  {visible(name)}")
    total = sum(each.n_bytes for each in stored)
    rows = total - sum(each.n_bytes for each in found)
    if as_json:
        print_done({"n": len(found), "bytes": total, "row_bytes": rows})
    else:
        say(f"{len(found)} positions and {format_bytes(rows)} of rows, {format_bytes(total)} in {serve_cache()}")


@cache.command("clear")
def clear_all() -> None:
    """Delete all that is kept."""
    from pyflash.serve import disk_folder

    say(f"freed {format_bytes(disk_folder.clear(serve_cache()))} in {serve_cache()}")
