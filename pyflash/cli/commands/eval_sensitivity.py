"""`pyflash eval sensitivity`: how much errors of each group of tensors harm, for `pyflash quantize --size` and `--fit`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.outputs import Place, find_place
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.commands.eval import text_source
from pyflash.cli.commands.quantize import OBJECTIVES
from pyflash.cli.options import WITHOUT_DEVICE, converter_errors, open_model, option, processor_options
from pyflash.cli.output import Status, log_to_stderr, print_done, print_json
from pyflash.cli.paths import FilePath
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show
from pyflash.machine.units import format_seconds

if TYPE_CHECKING:  # imported where they are used: every other command starts without them
    from pyflash.engine.model import Model
    from pyflash.eval.sensitivity import Job, Measured, Progress

_DEFAULT_CONTEXT = 512


@click.command()
@click.argument("file", type=GGUFFile())
@click.option("--text", type=FilePath(allow_dash=True), required=True, help='UTF-8 text file; "-": stdin.')
@click.option("--out", "-o", type=FilePath(), required=True, help="JSON file to write.")
@option("--ctx", "-c", command="eval", type=click.IntRange(4), metavar="N",
        help="Tokens of a window, which the model sees at once.  [default: 512]")
@option("--chunks", command="eval", type=click.IntRange(1), metavar="N",
        help="Evaluate that many windows, from the beginning of the text.  [default: all]")
@option("--special", command="eval", is_flag=True,
        help="Text that spells a special token is that token, as in chats; llama.cpp's tool takes it for text.")
@click.option("--imatrix", type=FilePath(), help="Importance matrix that the groups are quantised with.")
@click.option("--objective", type=click.Choice(OBJECTIVES), default=OBJECTIVES[0], show_default=True,
              help="What is made least; see `pyflash quantize`.")
@click.option("--json", "as_json", is_flag=True, help='Print JSON objects, one a line, the last with "done": true.')
@processor_options
def sensitivity(
    file: str, text: str, out: str, ctx: int | None, chunks: int | None, special: bool, imatrix: str | None, objective: str,
    as_json: bool, **options: Any,
) -> None:
    """Measure how much errors of each group of FILE's tensors change its predictions for a text.

    A group is the gate and up projections of a layer's experts, their down projections, or attention, shared experts, head
    or embedding of all layers. One after another is quantised and the text evaluated, with experts and rows held to those
    that FILE chooses. Writes a table for `pyflash quantize --sensitivity`. A run that was ended goes on where it was when it
    is started again in the same way. Runs on the processor; takes as long as quantising FILE once and evaluating the text
    once for each group.
    """
    from gguf_export.quantize_source import open_source
    from gguf_export.quantizing import QuantizeOptions
    from pyflash.eval.sensitivity import Job
    from pyflash.eval.source import Subject, text_windows

    n_ctx = ctx or _DEFAULT_CONTEXT
    settings = {**options, **WITHOUT_DEVICE, "context": n_ctx}
    if options["verbose"]:
        log_to_stderr()
    with converter_errors(), leaving_on_signals():
        place = find_place(out, inputs=[file, *([] if text == "-" else [text]), *([imatrix] if imatrix else [])])
        source = open_source(file, mtp=False)
        with open_model(file, settings)[0] as model:
            windows = text_windows(Subject(model, file), text_source(text, special), n_ctx, chunks)

        def opened(overlay: Path | None) -> Model:
            return open_model(file, {**settings, "overlay": overlay})[0]

        wanted = QuantizeOptions(imatrix=imatrix, objective=objective, threads=options["threads"])
        name = "stdin" if text == "-" else Path(text).name
        found = _measure(Job(opened, source, wanted, windows, options["cache_type"], name), place, as_json)
    if as_json:
        print_done({"file": file, "text": text, "out": out, "n_ctx": n_ctx, "windows": windows.count,
                    "groups": {group: each.as_json() for group, each in found.items()}})
    else:
        show("\n".join(["group                type     loses      KL divergence   sensitivity", *map(_line, found.values())]))
    say(f"wrote {out}")


def _measure(job: Job, place: Place, as_json: bool) -> dict[str, Measured]:
    from pyflash.eval.sensitivity import measure_sensitivity

    status, started = Status(), time.monotonic()

    def note(progress: Progress) -> None:
        now = progress.done - progress.resumed
        latest = progress.latest
        if latest is None and now == 0 and progress.resumed:
            say(f"pyflash: goes on after {progress.resumed} of {progress.total} groups of an earlier run")
        elif as_json and latest is not None:
            print_json({"group": latest.group, "measured": progress.done, "groups": progress.total, **latest.as_json()})
        seconds = (time.monotonic() - started) / now * (progress.total - progress.done) if now else None
        left = "" if seconds is None else f"{format_seconds(seconds)} left, "
        status.show(f"{progress.step}, {left}groups", progress.done, progress.total)

    try:
        return measure_sensitivity(job, place, note)
    finally:
        status.clear()


def _line(found: Measured) -> str:
    kld = f"{found.kld:.4g}" + (f" ± {found.kld_error:.1g}" if found.kld_error is not None else "")
    return f"{found.group:20} {found.type:8} {found.error:<10.4g} {kld:15} {found.sensitivity:.4g}"
