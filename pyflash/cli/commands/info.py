"""`pyflash info`: what a GGUF file is and costs."""

from __future__ import annotations

import sys
from typing import Any

import click

import pyflash
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.memory_advice import advice
from pyflash.cli.options import LayerRange, converter_errors, device_arguments, option, with_device_options
from pyflash.cli.output import print_done
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import show
from pyflash.engine.options import CACHES, PRECISIONS
from pyflash.machine import info as report


@click.command()
@click.argument("file", type=GGUFFile())
@option("--ctx", "-c", type=click.IntRange(1), metavar="N",
        help="Context in tokens to plan for.  [default: the model's, at most 65536]")
@option("--precision", type=click.Choice(list(PRECISIONS)), default="fast", show_default=True,
        help="Precision to plan for, as of run.")
@option("--cache-type", type=click.Choice(list(CACHES)), default="auto", show_default=True,
        help="Precision of the cache to plan for, as of run.")
@click.option("--layers", type=LayerRange(), metavar="FIRST-LAST",
              help="Plan for a stage of these layers alone, counted from 0, as one machine of several has it.")
@option("--mtp", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
        help="GGUF file that drafts for the model, as of run, to plan for too.")
@with_device_options
@click.option("--verify", is_flag=True,
              help="Instead read the whole file, with its shards, and compare every tensor with the checksum that "
              "`pyflash convert` wrote.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(
    file: str, ctx: int | None, precision: str, cache_type: str, mtp: str | None, layers: tuple[int, int] | None, verify: bool,
    as_json: bool, **device: Any,
) -> None:
    """Tell what a GGUF file is, what it costs, and whether it fits this machine.

    The memory plan is what a run comes close to when every weight has been read and the context is full: weights,
    cache, working buffers, checkpoints (what lets a chat go back without evaluating again) and the program itself. A
    container's limit counts as this machine's memory. Sizes are decimal: 1 GB is 1,000,000,000 bytes; contexts are
    binary: 64K are 65,536 tokens. With a GPU it tells what would lie there.
    """
    if verify:
        _verify(file, as_json)
        return
    with converter_errors():
        found = report.inspect(file, ctx, precision, cache_type,
                               {"mtp": mtp, **device_arguments({**device, "context": ctx, "cache_type": cache_type})},
                               layers)
    if as_json:
        print_done(report.as_json(found))
    else:
        show(report.describe(found, advice(found.plan)))


def _verify(file: str, as_json: bool) -> None:
    with converter_errors(), leaving_on_signals(), Progress("verifying", sys.stderr) as progress:
        from gguf_export import checksums

        found = checksums.verify(file, progress.update)
    if as_json:
        print_done({
            "file": file, "verified": found.state, "n_tensors": found.n_tensors, "bytes": found.n_bytes,
            "damaged": found.damaged, "metadata_changed": found.other_keys,
        })
    elif found.state != "damaged":
        show(f"{file}: {found.summary()}")
    if found.state == "damaged":
        raise pyflash.FormatError(f"{file} {found.summary()}")
