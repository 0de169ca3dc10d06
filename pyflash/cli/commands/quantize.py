"""`pyflash quantize`: a GGUF file or a checkpoint becomes a smaller GGUF file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from pyflash.cli.advice import in_options
from pyflash.cli.fitting import Bound, Fitted, choose
from pyflash.cli.options import converter_errors, parse_size, print_written
from pyflash.cli.output import print_done
from pyflash.cli.paths import FilePath
from pyflash.cli.progress import Progress
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say, show

if TYPE_CHECKING:
    from gguf_export.quantizing import QuantizeOptions


class TensorType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A pattern and a type."""

    name = "REGEX=TYPE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        pattern, equals, kind = str(value).rpartition("=")
        if not (pattern and equals and kind):
            self.fail(f"{value!r:.80} is no REGEX=TYPE, such as ffn_down_exps=Q2_K", param, ctx)
        return pattern, kind


OBJECTIVES = ("unbiased", "hessian", "ggml")  # the first one is what is quantised with unasked


@click.command()
@click.argument("source", type=FilePath())
@click.argument("out", type=FilePath(), metavar="OUT.gguf")
@click.option("--experts", metavar="TYPE", default="keep", show_default=True,
              help="Type of the routed experts: keep (MXFP4), IQ3_S, Q3_K, IQ3_XXS, Q2_K, IQ2_S, IQ2_XS or IQ2_XXS, from "
              "large to small.")
@click.option("--dense", metavar="TYPE", default="Q8_0", show_default=True,
              help="Type of attention and shared experts: keep, Q8_0, Q6_K, Q5_K or Q4_K.")
@click.option("--head", metavar="TYPE", default="BF16", show_default=True,
              help="Type of head and embedding: keep, BF16, Q8_0 or Q6_K.")
@click.option("--tensor-type", "tensor_types", type=TensorType(), multiple=True, metavar="REGEX=TYPE",
              help="Type of the tensors in whose name REGEX is found, instead; may be repeated, and of several that fit "
              "the last one counts.")
@click.option("--size", metavar="SIZE",
              help="Choose the types, so that the files have at most SIZE together, such as 90G, and the least harm is "
              "expected. --experts, --dense, --head and --tensor-type hold where they are given.")
@click.option("--fit", metavar="SIZE",
              help="The same for a machine with SIZE of memory, such as 96G: what the system and a run need is left free.")
@click.option("--ctx", "-c", "context", type=click.IntRange(1), metavar="N",
              help="Tokens of context that --fit leaves room for.  [default: the model's default]")
@click.option("--sensitivity", type=FilePath(),
              help="How much errors of each group of tensors harm, for --size and --fit.  [default: a guess]")
@click.option("--imatrix", type=FilePath(),
              help="Importance matrix: what an error of each column weighs. A GGUF file or .dat as llama.cpp writes them.")
@click.option("--objective", type=click.Choice(OBJECTIVES), default=OBJECTIVES[0], show_default=True,
              help="What is made least. hessian: importance times error squared; unbiased: the same, and rows keep their "
              "length; ggml: as llama.cpp's quantisers do.")
@click.option("--mtp", is_flag=True, help="With the MTP block, where the source has it.")
@click.option("--name", help="The model's name.  [default: the source's]")
@click.option("--split-max-size", metavar="SIZE", help="Write shards of at most SIZE, such as 40G.")
@click.option("--threads", "-t", type=click.IntRange(1, 256), metavar="N",
              help="Threads; the file is the same for any number.  [default: one a core]")
@click.option("--resume", is_flag=True, help="Go on with what an interrupted run of the same work left.")
@click.option("--restart", is_flag=True, help="Throw away what an interrupted run left.")
@click.option("--dry-run", is_flag=True, help="Print types and sizes; read no weights and write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan, or what was written, as one JSON object.")
def quantize(
    source: str, out: str, size: str | None, fit: str | None, context: int | None,
    sensitivity: str | None, split_max_size: str | None, dry_run: bool, as_json: bool, **options: Any,
) -> None:
    """Make a smaller GGUF file of a GGUF file or a checkpoint.

    SOURCE is a GGUF file with MXFP4 experts or of the native profile, of shards the first, by its path or by its name in a
    local store, as `pyflash run` takes it; or what `pyflash convert` takes.
    Router, mHC, compressors, indexer, norms, sinks, biases and ids stay as they are. OUT.gguf is replaced when the new file
    is complete; OUT.quantize.json beside it tells the error of every tensor, measured on what was read back. What an
    interrupted run has finished waits for --resume.
    """
    bound = _bound(size, fit, context, sensitivity)
    with converter_errors(), leaving_on_signals():
        from gguf_export import quantizing

        shard_bytes = None if split_max_size is None else parse_size(split_max_size)
        settings = quantizing.QuantizeOptions(shard_bytes=shard_bytes, **options)
        fitted = None
        if bound is not None:
            fitted = choose(source, settings, bound, _not_given(), sensitivity)
            settings = fitted.fit.options
        if dry_run:
            plan = fitted.fit.plan if fitted else quantizing.plan_quantization(source, settings)
            if as_json:
                print_done({**plan.as_json(), **_fit_fields(fitted)})
            else:
                show(in_options(fitted.text() if fitted else plan.summary()))
            return
        if fitted is not None and not as_json:
            show(in_options(fitted.text()))
        _write(source, out, settings, as_json, fitted)


def _bound(size: str | None, fit: str | None, context: int | None, sensitivity: str | None) -> Bound | None:
    if size is not None and fit is not None:
        raise click.UsageError("choose one of --size and --fit")
    if context is not None and fit is None:
        raise click.UsageError("--ctx is for --fit")
    if size is None and fit is None:
        if sensitivity is not None:
            raise click.UsageError("--sensitivity is for --size and --fit")
        return None
    return Bound(parse_size(size) if size else None, parse_size(fit) if fit else None, context)


def _not_given() -> list[str]:
    """Which of the options for types are left to a choice."""
    command = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return [name for name in ("experts", "dense", "head") if command.get_parameter_source(name) is default]


def _fit_fields(fitted: Fitted | None) -> dict[str, Any]:
    return {} if fitted is None else {"fit": fitted.as_json()}


def _write(source: str, out: str, settings: QuantizeOptions, as_json: bool, fitted: Fitted | None) -> None:
    from gguf_export import quantizing
    from gguf_export.quantize_summary import group_errors

    try:
        with Progress("quantizing", sys.stderr) as progress:
            written = quantizing.quantize(
                source, out, settings, progress=progress.update,
                warn=lambda warning: progress.say(f"pyflash: warning: {in_options(warning)}"),
            )
    except KeyboardInterrupt:
        if quantizing.has_left(out):
            say("pyflash: what is finished is kept: the same command with --resume goes on")
        raise
    groups = group_errors(written.errors)
    if as_json:
        print_done({
            "files": [str(path) for path in written.files], "errors_file": str(written.errors_file),
            "total_bytes": written.total_bytes, "seconds": round(written.seconds, 3), "n_resumed": written.n_resumed,
            "errors": groups, "warnings": written.warnings, **_fit_fields(fitted),
        })
        return
    print_written(written.files, written.total_bytes)
    for label, error in groups.items():
        weighted = error["weighted_error"]
        more = "" if weighted is None else f", {weighted:.4g} by importance"
        say(f"error of {label}: {error['error']:.4g}{more}")
    say(f"every tensor's error: {written.errors_file}")
