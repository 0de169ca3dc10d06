"""`pyflash imatrix`: which columns of the weights matter, measured over a text."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gguf_export.outputs import Place, find_place
from gguf_export.reader import read_gguf
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.commands.eval import text_source
from pyflash.cli.options import WITHOUT_DEVICE, converter_errors, open_model, option, processor_options
from pyflash.cli.output import Status, log_to_stderr, print_done, print_json
from pyflash.cli.paths import FilePath
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show
from pyflash.machine.units import format_seconds

if TYPE_CHECKING:  # imported where they are used: every other command starts without them
    from pyflash.eval.imatrix import Job, Progress, Visits
    from pyflash.eval.windows import Windows

_DEFAULT_CONTEXT = 512
_MOST_NAMED = 12  # experts of a layer
_SPECIAL = "<｜"  # how the text of control tokens begins


@click.command()
@click.argument("file", type=GGUFFile())
@click.option("--text", type=FilePath(allow_dash=True), required=True, help='UTF-8 text file; "-": stdin.')
@click.option("--out", "-o", type=FilePath(), help="GGUF file to write.")
@option("--ctx", "-c", command="imatrix", type=click.IntRange(4), metavar="N",
        help="Tokens of a window, which the model sees at once.  [default: 512]")
@option("--chunks", command="imatrix", type=click.IntRange(1), metavar="N",
        help="Evaluate that many windows, from the beginning of the text.  [default: all]")
@option("--special", command="imatrix", is_flag=True,
        help="Text that spells a special token is that token: for texts of rendered chats, as scripts/make_corpus.py makes.")
@click.option("--coverage", is_flag=True, help="Only tell which experts of the layers that look them up by the token the "
              "text would reach. Evaluates nothing.")
@click.option("--json", "as_json", is_flag=True, help='Print JSON objects, one a line, the last with "done": true.')
@processor_options
def imatrix(
    file: str, text: str, out: str | None, ctx: int | None, chunks: int | None, special: bool, coverage: bool, as_json: bool,
    **options: Any,
) -> None:
    """Measure which columns of FILE's weights matter for a text, as llama.cpp's imatrix tool does.

    Writes sums of squares of what every matrix product takes to the GGUF file --out, for `pyflash quantize --imatrix` and
    llama-quantize, and tells how often each layer's experts were chosen. A run that was ended goes on where it was when it
    is started again in the same way. Runs on the processor.
    """
    from pyflash.eval.imatrix import Job, hash_visits, text_digest, window_tokens
    from pyflash.eval.source import Subject, text_windows

    if (out is None) is not coverage:
        raise click.UsageError("give --out or --coverage, and not both")
    place = None
    with converter_errors():
        gguf = read_gguf(Path(file), any_type=True)
        if out is not None:
            place = find_place(out, inputs=[file] if text == "-" else [file, text])
    if options["verbose"]:
        log_to_stderr()
    n_ctx = ctx or _DEFAULT_CONTEXT
    with leaving_on_signals(), open_model(file, {**options, **WITHOUT_DEVICE, "context": n_ctx})[0] as model:
        subject = Subject(model, file)
        windows = text_windows(subject, text_source(text, special), n_ctx, chunks)
        if not special and _SPECIAL in model.tokenizer.decode(windows.tokens[: 64 * n_ctx].tolist()):
            say(f'pyflash: the text has "{_SPECIAL}", as special tokens have: --special reads those as tokens')
        if place is None:
            import numpy as np

            tokens = np.concatenate([window_tokens(windows, index) for index in range(windows.count)])
            found = hash_visits(gguf, tokens, model.info.n_hash_layer, model.info.n_expert)
            _report(found, {"file": file, "text": text, **_window_fields(windows)}, as_json)
            return
        source = "stdin" if text == "-" else Path(text).name
        found = _collect(Job(model, gguf, file, windows, source, options["cache_type"]), place, as_json)
        _report(found, {"file": file, "text": text, "out": out, **_window_fields(windows),
                        "tokens_sha256": text_digest(windows)}, as_json)
    say(f"wrote {out}")


def _window_fields(windows: Windows) -> dict[str, Any]:
    return {"n_ctx": windows.n_ctx, "windows": windows.count, "tokens": windows.count * windows.n_ctx}


def _collect(job: Job, place: Place, as_json: bool) -> list[Visits]:
    from pyflash.eval.imatrix import collect

    status = Status()
    started = time.monotonic()

    def note(progress: Progress) -> None:
        done, total = progress.windows, job.windows.count
        now = done - progress.resumed
        if now == 0 and progress.resumed:
            say(f"pyflash: goes on after {progress.resumed} of {total} windows of an earlier run")
        elif as_json and now:
            print_json({"window": done, "windows": total, "nll": progress.nll})
        left = f", {format_seconds((time.monotonic() - started) / now * (total - done))} left" if now else ""
        shown = "" if math.isnan(progress.nll) else f"PPL {math.exp(min(progress.nll, 700)):,.4g}"
        status.show(f"{shown}{left}{', ' if shown else ''}windows", done, total)

    try:
        with converter_errors():
            return collect(job, place, note)
    finally:
        status.clear()


def _report(found: list[Visits], fields: dict[str, Any], as_json: bool) -> None:
    if as_json:
        layers = [{"layer": each.layer, "by_token": each.by_token, "visits_min": each.least, "visits_median": each.median,
                   "unvisited": each.unvisited} for each in found]
        print_done({**fields, "layers": layers, "unvisited": sum(len(each.unvisited) for each in found)})
        return
    lines = [f"{fields['tokens']:,} tokens in {fields['windows']:,} windows of {fields['n_ctx']:,}", "",
             "layer  chosen by      least visits      median  never visited"]
    for each in found:
        named = ", ".join(map(str, each.unvisited[:_MOST_NAMED]))
        more = f" ({named}{', …' if len(each.unvisited) > _MOST_NAMED else ''})" if each.unvisited else ""
        lines.append(f"{each.layer:5d}  {'token ' if each.by_token else 'router'}     {each.least:16,d}  {each.median:10,.1f}  "
                     f"{len(each.unvisited):13,d}{more}")
    if not found:
        lines[1:] = ["no layer looks its experts up by the token"]
    show("\n".join(lines))
