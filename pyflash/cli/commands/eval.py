"""`pyflash eval`: perplexity and KL divergence over a text."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

import pyflash
from gguf_export.errors import reason
from gguf_export.outputs import find_place
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.options import converter_errors, model_options, open_model, option
from pyflash.cli.output import Status, log_to_stderr, print_done, print_json
from pyflash.cli.paths import FilePath
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show
from pyflash.engine.options import CACHES, PRECISIONS, cache_in_use
from pyflash.machine.units import format_seconds

if TYPE_CHECKING:  # imported where they are used: every other command starts without them
    from pyflash.eval.kept_choices import Sizes
    from pyflash.eval.logits_file import LogitsFile
    from pyflash.eval.measure import Base
    from pyflash.eval.source import Subject, Text
    from pyflash.eval.statistics import Perplexity

_F = TypeVar("_F", bound=Callable[..., Any])
_DEFAULT_CONTEXT = 512


@click.group(name="eval")
def evaluate() -> None:
    """Measure how well a model predicts a text, as llama.cpp's perplexity tool does.

    Ctrl-C ends a run and shows what there is so far.
    """


def _text_options(command: _F) -> _F:
    options = (
        option("--ctx", "-c", command="eval", type=click.IntRange(4), metavar="N",
               help="Tokens of a window, which the model sees at once.  [default: 512]"),
        option("--chunks", command="eval", type=click.IntRange(1), metavar="N",
               help="Evaluate that many windows, from the beginning of the text.  [default: all]"),
        option("--special", command="eval", is_flag=True,
               help="Text that spells a special token is that token, as in chats; llama.cpp's tool takes it for text."),
        click.option("--json", "as_json", is_flag=True,
                     help='Print JSON objects, one a line, the last with "done": true.'),
    )
    for add in reversed(options):
        command = add(command)
    return command


@evaluate.command()
@click.argument("file", type=GGUFFile())
@click.option("--text", type=FilePath(allow_dash=True), required=True, help='UTF-8 text file; "-": stdin.')
@_text_options
@option("--stride", command="eval", type=click.IntRange(1), metavar="N",
        help="Begin a window every N tokens and score only its last N: more context for each, and more work.")
@click.option("--logits", type=FilePath(), metavar="OUT",
              help="Keep the log-probabilities in the file OUT, for `eval kld` or llama.cpp: for each scored token 2 "
              "bytes a token of the vocabulary.")
@model_options
def ppl(
    file: str, text: str, ctx: int | None, chunks: int | None, special: bool, as_json: bool, stride: int | None,
    logits: str | None, **options: Any,
) -> None:
    """Measure FILE's perplexity on a text: lower is better.

    The text is cut into windows of --ctx tokens. Each is evaluated by itself, and its second half is scored. Figures
    compare only for the same text, tokens and --ctx.
    """
    from pyflash.eval import measure, output
    from pyflash.eval.logits_file import written_file
    from pyflash.eval.source import text_windows

    if stride is not None and logits is not None:
        raise click.UsageError("--logits has no place for windows with a --stride")
    inputs = [file] if text == "-" else [file, text]
    if logits is not None:
        with converter_errors():
            find_place(logits, streams=True, inputs=inputs)
    n_ctx = ctx or _DEFAULT_CONTEXT
    run = _Run(as_json, options["verbose"])
    with leaving_on_signals(), contextlib.ExitStack() as stack:
        subject = _open(stack, file, options, n_ctx)
        evaluator = stack.enter_context(measure.Evaluator(subject.model, n_ctx, options["cache_type"]))
        windows = text_windows(subject, text_source(text, special), n_ctx, chunks, stride)
        n_vocab = subject.model.info.n_vocab
        writer = stack.enter_context(written_file(logits, windows, n_vocab, inputs, _kept_sizes(subject))) if logits else None
        measured = measure.measure_perplexity(evaluator, windows, writer)
        latest = run.follow(measured, windows.count, lambda statistics: run.note(statistics.result()))
        if latest is not None:
            found = latest.result()
            run.finish({"file": file, "text": text, **output.windows_fields(windows),
                        **output.perplexity_fields(found)},
                       [output.describe_model(file, subject.model.info, options["cache_type"]),
                        output.describe_windows(text, windows, found.count), "", output.perplexity_text(found)])
        run.leave()
    if logits:
        say(f"wrote {logits}")


@evaluate.command()
@click.argument("file", type=GGUFFile())
@click.argument("base", required=False, type=GGUFFile())
@click.option("--text", type=FilePath(allow_dash=True), help='UTF-8 text file; "-": stdin. A BASE of '
              "log-probabilities holds its own.")
@_text_options
@option("--base-precision", type=click.Choice(list(PRECISIONS)), default="exact", show_default=True,
        help="Precision in which a BASE model is evaluated.")
@option("--base-cache-type", type=click.Choice(list(CACHES)), default="auto", show_default=True,
        help="Precision of a BASE model's cache: reference leaves its roundings out of what is compared.")
@click.option("--hold-choices", is_flag=True,
              help="FILE uses the experts and attends to the rows that BASE chose: what its weights change, without what a "
              "choice that flips does. On the processor only.")
@model_options
def kld(
    file: str, base: str | None, text: str | None, ctx: int | None, chunks: int | None, special: bool, as_json: bool,
    base_precision: str, base_cache_type: str, hold_choices: bool, **options: Any,
) -> None:
    """Measure how FILE's predictions differ from BASE's.

    BASE is another GGUF file with the same vocabulary, evaluated side by side; or log-probabilities written by `pyflash
    eval ppl --logits` or by llama-perplexity's --save-all-logits. Without one it is FILE itself in exact precision:
    what computing fast alone changes.
    """
    from pyflash.eval import measure, output
    from pyflash.eval.kept_choices import Sizes
    from pyflash.eval.source import common_windows, kept_windows

    if base is None and base_precision == options["precision"]:
        if cache_in_use(base_precision, base_cache_type) == cache_in_use(base_precision, options["cache_type"]):
            raise click.UsageError(f"this compares FILE in {base_precision} precision with itself: give a BASE")
    run = _Run(as_json, options["verbose"])
    with leaving_on_signals(), contextlib.ExitStack() as stack:
        kept = _logits_file(stack, base)
        read = None if text is None else text_source(text, special)
        if kept is None and read is None:
            raise click.UsageError("missing option '--text': name a text to evaluate")
        if kept is not None and ctx not in (None, kept.windows.n_ctx):
            raise click.UsageError(f"{base} was made with --ctx {kept.windows.n_ctx}: leave out --ctx or give that")
        n_ctx = kept.windows.n_ctx if kept is not None else ctx or _DEFAULT_CONTEXT
        subject = _open(stack, file, options, n_ctx)
        evaluator = stack.enter_context(measure.Evaluator(subject.model, n_ctx, options["cache_type"]))
        compared: Base
        if kept is not None:
            if hold_choices:
                _check_choices(subject, kept.sizes, kept.path)
            windows = kept_windows(subject, kept, read, chunks)
            compared, base_text = measure.FileBase(kept), f"{kept.path}: log-probabilities"
        else:
            assert read is not None
            other = _open(stack, base or file, {**options, "precision": base_precision, "cache_type": base_cache_type},
                          n_ctx)
            if hold_choices:
                _check_choices(subject, Sizes.of(other.model.info), other.file)
            windows = common_windows(subject, other, read, n_ctx, chunks)
            compared = measure.ModelBase(stack.enter_context(measure.Evaluator(other.model, n_ctx, base_cache_type)))
            base_text = output.describe_model(other.file, other.model.info, base_cache_type)
        measured = measure.measure_divergence(evaluator, windows, compared, hold_choices)
        latest = run.follow(measured, windows.count, lambda statistics: run.note(
            statistics.perplexity_so_far(), statistics.kld_so_far()))
        if latest is not None:
            found = latest.result()
            run.finish({"file": file, "base": base or file, "text": text, "hold_choices": hold_choices, **output.windows_fields(windows),
                        **output.divergence_fields(found)},
                       [output.describe_model(file, subject.model.info, options["cache_type"]),
                        f"base {base_text}"
                        f"{', whose choices are held' if hold_choices else ''}",
                        output.describe_windows(text or str(base), windows, found.count), "",
                        output.divergence_text(found)])
        run.leave()


def _open(stack: contextlib.ExitStack, file: str, options: Mapping[str, Any], n_ctx: int) -> Subject:
    from pyflash.eval.source import Subject

    return Subject(stack.enter_context(open_model(file, {**options, "context": n_ctx})[0]), file)


def _kept_sizes(subject: Subject) -> Sizes | None:
    """Of the choices that are kept with log-probabilities; None with a device, which does not tell them."""
    from pyflash.eval.kept_choices import Sizes, can_keep

    info = subject.model.info
    return Sizes.of(info) if not subject.model.placement.name and can_keep(info) else None


def _check_choices(subject: Subject, sizes: Sizes | None, base: str) -> None:
    from pyflash.eval.kept_choices import Sizes, check_same

    if sizes is None:
        raise pyflash.ArgumentError(f"{base} holds no choices: make it again with this version's `pyflash eval ppl --logits` "
                                    "and --device cpu, or give the GGUF file as BASE")
    if subject.model.placement.name:
        raise pyflash.UnsupportedError("choices are held on the processor: add --device cpu")
    check_same(Sizes.of(subject.model.info), subject.file, sizes, base)


def text_source(path: str, special: bool) -> Text:
    from pyflash.eval.source import Text

    if path != "-":
        return Text(path, special)
    stream = getattr(sys.stdin, "buffer", None)
    if stream is None:
        raise pyflash.ArgumentError("stdin is closed: name a text file")
    return Text("the text on stdin", special, stream)


def _logits_file(stack: contextlib.ExitStack, base: str | None) -> LogitsFile | None:
    """BASE, when it is no GGUF file."""
    from pyflash.eval.logits_file import LogitsFile

    if base is None:
        return None
    try:
        with open(base, "rb") as file:
            is_gguf = file.read(4) == b"GGUF"
    except OSError as error:
        raise pyflash.FileError(f"cannot read {base}: {reason(error)}") from error
    return None if is_gguf else stack.enter_context(LogitsFile(base))


_S = TypeVar("_S")


class _Run:
    """One run over windows: what is shown while it lasts, and what at its end, also when Ctrl-C makes that."""

    def __init__(self, as_json: bool, verbose: bool) -> None:
        if verbose:
            log_to_stderr()
        self._as_json, self._verbose = as_json, verbose
        self._status = Status()
        self._window = self._n_windows = 0
        self._started = 0.0
        self._interrupted = False

    def follow(self, windows: Iterator[_S], count: int, show: Callable[[_S], None]) -> _S | None:
        """Shows the statistics after each window, until all are done or Ctrl-C comes. Returns the latest, if any."""
        self._started, self._n_windows = time.monotonic(), count
        self._status.show("windows", 0, count)
        latest = None
        try:
            for latest in windows:
                self._window += 1
                show(latest)
        except KeyboardInterrupt:
            self._interrupted = True
        self._status.clear()
        return latest

    def note(self, perplexity: Perplexity, kld: Any = None) -> None:
        from pyflash.eval import output

        if self._as_json:
            fields = {"window": self._window, "windows": self._n_windows, **output.perplexity_fields(perplexity)}
            print_json(fields | (output.estimate_fields("kld", kld) if kld is not None else {}))
        left = (time.monotonic() - self._started) / self._window * (self._n_windows - self._window)
        shown = f"PPL {output.estimate_text(perplexity.ppl)}, "
        shown += "" if kld is None else f"KL divergence {output.estimate_text(kld)}, "
        self._status.show(f"{shown}{format_seconds(left)} left, windows", self._window, self._n_windows)

    def finish(self, fields: dict[str, Any], lines: list[str]) -> None:
        seconds = time.monotonic() - self._started
        if not self._as_json:
            if self._window < self._n_windows:
                lines.append(f"\nafter {self._window} of {self._n_windows} windows")
            show("\n".join(lines))
        elif self._interrupted:
            print_json({**fields, "windows_done": self._window, "seconds": seconds, "done": False})
        else:
            print_done({**fields, "windows_done": self._window, "seconds": seconds})
        if self._verbose:
            say(f"pyflash: {self._window} windows in {format_seconds(seconds)}")

    def leave(self) -> None:
        """Goes on as Ctrl-C does, if it came."""
        if self._interrupted:
            if self._as_json and self._window == 0:
                print_json({"windows_done": 0, "done": False})
            raise KeyboardInterrupt
