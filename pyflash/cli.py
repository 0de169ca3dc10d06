"""The pyflash command. Text goes to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed (one line says what and what to do), 2 usage, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

import pyflash
from pyflash import demo, machine, report
from pyflash.progress import Progress, format_bytes
from pyflash.terminal import Answer, chat_loop

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

_F = TypeVar("_F", bound=Callable[..., Any])


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line and exits."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    sys.exit(_exit_code(arguments))


def _exit_code(arguments: Sequence[str] | None) -> int:
    try:
        result = cli.main(args=arguments, prog_name="pyflash", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo(err=True)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except pyflash.Error as error:
        return _failed(str(error))
    except OSError as error:
        reason = error.strerror or str(error)
        return _failed(f"{error.filename}: {reason}" if error.filename else reason)


def _failed(message: str) -> int:
    click.echo(f"pyflash: error: {' '.join(message.split())}", err=True)
    return EXIT_FAILED


def _option(*names: str, **settings: Any) -> Callable[[_F], _F]:
    """A click option that PYFLASH_<NAME> sets as well."""
    long_name = next(name for name in names if name.startswith("--"))
    variable = "PYFLASH_" + long_name.strip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _refuse_gpu_layers(_context: click.Context, _option: click.Parameter, layers: int) -> None:
    if layers:
        raise pyflash.DeviceError("this build has no GPU support: leave out -ngl and PYFLASH_GPU_LAYERS, or set 0")


def _model_options(command: _F) -> _F:
    for option in (
        _option("--threads", "-t", type=click.IntRange(1, 4096), help="Worker threads.  [default: one a core]"),
        _option("--gpu-layers", "-ngl", type=click.IntRange(0), default=0, show_default=True, expose_value=False,
                callback=_refuse_gpu_layers, help="Layers on the GPU; this build can do 0."),
        _option("--precision", type=click.Choice(["fast", "exact"]), default="fast", show_default=True,
                help="exact: float32 activations and cache."),
        _option("--cache-type", type=click.Choice(["auto", "f16", "reference"]), default="auto", show_default=True,
                help="Precision of the cache; reference: about half the memory of f16."),
        _option("--verbose", is_flag=True, help="Tell on stderr what happens, and the speed."),
    ):
        command = option(command)
    return command


def _sampling_options(command: _F) -> _F:
    unit = click.FloatRange(0, 1)
    for option in (
        _option("--max-tokens", "-n", type=click.IntRange(1), help="Most tokens to generate."),
        _option("--temp", type=click.FloatRange(0), default=1.0, show_default=True, help="Temperature; 0: likeliest."),
        _option("--top-p", type=unit, default=1.0, show_default=True, help="Nucleus sampling; 1: off."),
        _option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="Keep the k likeliest; 0: all."),
        _option("--min-p", type=unit, default=0.0, show_default=True, help="Drop tokens less likely than this share "
                "of the likeliest; 0: off."),
        _option("--seed", type=int, help="Makes the answer repeatable.  [default: random]"),
    ):
        command = option(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyflash.__version__, prog_name="pyflash")
def cli() -> None:
    """Run DeepSeek-V4-Flash on this machine."""


@cli.command()
@click.argument("model_or_prompt", required=False, metavar="[MODEL]")
@click.argument("prompt_argument", required=False, metavar="[PROMPT]")
@_option("--model", "-m", type=click.Path(), help="GGUF file.  [default: a tiny built-in demo]")
@_option("--prompt", "-p", help="Prompt.")
@_option("--file", "-f", type=click.Path(), help="Read the prompt from a file.")
@_option("--ctx", "-c", "context", type=click.IntRange(1),
         help="Context in tokens.  [default: the model's, at most 65536]")
@_option("--system", help="System message.")
@_option("--think", is_flag=True, help="Let the model think before it answers.")
@_option("--no-think", is_flag=True, help="Answer at once (default).")
@_option("--think-max", is_flag=True, help="Let the model think as hard as it can.")
@_sampling_options
@_model_options
def run(model_or_prompt: str | None, prompt_argument: str | None, **options: Any) -> None:
    """Answer PROMPT, or chat when there is none ("-": read it from stdin).

    One argument alone is a MODEL when it names a file or ends with .gguf, else a PROMPT for the built-in demo model,
    which is tiny and random and talks nonsense.
    """
    model_path, prompt = _model_and_prompt(model_or_prompt, prompt_argument, options)
    think = _think_mode(options)
    if options["verbose"]:
        logging.basicConfig(stream=sys.stderr, format="pyflash: %(message)s", level=logging.DEBUG)
    max_tokens = options["max_tokens"]
    if model_path is None:
        with Progress("making the demo model", sys.stderr) as progress:
            model_path = str(demo.path(progress.update))
        max_tokens = max_tokens or demo.MAX_TOKENS
    messages: list[dict[str, str]] = []
    if options["system"]:
        messages.append({"role": "system", "content": options["system"]})
    with (
        pyflash.Model.open(model_path, threads=options["threads"], precision=options["precision"]) as model,
        model.session(context=options["context"], cache=options["cache_type"]) as session,
    ):
        answer = Answer(
            session, think=think, verbose=options["verbose"], max_tokens=max_tokens, temperature=options["temp"],
            top_k=options["top_k"], top_p=options["top_p"], min_p=options["min_p"], seed=options["seed"],
        )
        if prompt is None:
            chat_loop(answer, messages)
        else:
            answer.stream([*messages, {"role": "user", "content": prompt}])


def _typed(name: str) -> bool:
    """Whether an option stands on the command line, rather than in the environment or nowhere."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _model_and_prompt(
    first: str | None, second: str | None, options: dict[str, Any]
) -> tuple[str | None, str | None]:
    """The arguments and options that name them, what is typed before what the environment says."""
    model: str | None = options["model"]
    prompt = first
    if second is not None:
        if _typed("model"):
            raise click.UsageError("the model is given twice: as an argument and with --model")
        model, prompt = first, second
    elif first is not None and not _typed("model") and (first.endswith(".gguf") or os.path.isfile(first)):
        model, prompt = first, None
    typed = [name for name in ("prompt", "file") if _typed(name)]
    if len(typed) + (prompt is not None) > 1:
        raise click.UsageError("give the prompt once: as an argument, with --prompt or with --file")
    if prompt is None:
        named = typed or [name for name in ("prompt", "file") if options[name] is not None]
        if named == ["file"]:
            prompt = Path(options["file"]).read_text(encoding="utf-8", errors="replace")
        elif named:
            prompt = options["prompt"]
    if prompt == "-":
        prompt = sys.stdin.buffer.read().decode("utf-8", "replace")
    if prompt is not None and not prompt.strip():
        raise click.UsageError("the prompt is empty")
    return model, prompt


def _think_mode(options: dict[str, Any]) -> str:
    modes = {"no_think": "off", "think": "high", "think_max": "max"}
    chosen = [name for name in modes if options[name]]
    chosen = [name for name in chosen if _typed(name)] or chosen
    if len(chosen) > 1:
        raise click.UsageError("choose one of --think, --no-think and --think-max")
    return modes[chosen[0]] if chosen else "off"


@cli.command()
@click.argument("checkpoint", type=click.Path())
@click.argument("out", type=click.Path(), metavar="OUT.gguf")
@click.option("--profile", type=click.Choice(["compat", "native"]), default="compat", show_default=True,
              help="compat: for llama.cpp, Ollama and LM Studio too. native: FP8 kept bit for bit, for pyflash only.")
@click.option("--dense", type=click.Choice(["q8_0", "bf16", "f32"]), default="q8_0", show_default=True,
              help="Type of the FP8 tensors in the compat profile.")
@click.option("--experts", type=click.Choice(["keep", "q8_0", "bf16", "f32"]), default="keep", show_default=True,
              help="Type of the routed experts; keep: FP4 as MXFP4, without loss.")
@click.option("--mtp", is_flag=True, help="Write the MTP block too; compat: as a file of its own.")
@click.option("--split-max-size", metavar="SIZE", help="Write shards of at most SIZE, such as 40G.")
@click.option("--dry-run", is_flag=True, help="Print the plan and the sizes; read no weights and write nothing.")
def convert(checkpoint: str, out: str, dry_run: bool, split_max_size: str | None, **options: Any) -> None:
    """Turn a DeepSeek-V4 checkpoint folder into a GGUF file."""
    with _converter_errors():
        from gguf_export import convert as converter

        settings = converter.ConvertOptions(shard_bytes=_size(split_max_size), **options)
        if dry_run:
            click.echo(converter.plan_conversion(Path(checkpoint), settings).summary())
            return
        with Progress("converting", sys.stderr) as progress:
            written = converter.convert(Path(checkpoint), Path(out), settings, progress=progress.update)
    for warning in written.warnings:
        click.echo(f"pyflash: warning: {warning}", err=True)
    _print_written(written.files, written.total_bytes)


def _print_written(files: Sequence[Path], total_bytes: int) -> None:
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    click.echo(f"wrote {files[0]}{more}: {format_bytes(total_bytes)}", err=True)


def _size(text: str | None) -> int | None:
    if text is None:
        return None
    units = {"K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
    digits, unit = (text[:-1], units[text[-1].upper()]) if text[-1:].upper() in units else (text, 1)
    if not digits.isdecimal() or int(digits) == 0:
        raise click.UsageError(f"{text!r} is no size; write a number of bytes, or one with K, M, G or T: 40G")
    return int(digits) * unit


@contextlib.contextmanager
def _converter_errors() -> Iterator[None]:
    from gguf_export.errors import ConvertError

    try:
        yield
    except ConvertError as error:
        raise pyflash.Error(str(error)) from error


@cli.command()
@click.argument("file", type=click.Path())
@click.option("--ctx", type=click.IntRange(1), help="Context in tokens to reckon with.  [default: at most 65536]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(file: str, ctx: int | None, as_json: bool) -> None:
    """Tell what a GGUF file is, what it costs, and whether it fits this machine."""
    with _converter_errors():
        found = report.inspect(file, ctx)
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(found), "done": True}, ensure_ascii=False))
    else:
        click.echo(report.describe(found))


@cli.group()
def export() -> None:
    """Write a GGUF file in another layout."""


@export.command("hf")
@click.argument("file", type=click.Path())
@click.argument("dest", type=click.Path())
def export_hf(file: str, dest: str) -> None:
    """Turn a native-profile GGUF back into the safetensors it came from, in the new folder DEST."""
    with _converter_errors():
        from gguf_export import convert as converter

        with Progress("exporting", sys.stderr) as progress:
            files = converter.export_hf(Path(file), Path(dest), progress=progress.update)
    _print_written(files, sum(path.stat().st_size for path in files))


@cli.command()
def doctor() -> None:
    """Show devices, the kernel set in use, and what is skipped and why."""
    click.echo(report.doctor(os.environ.get("PYFLASH_CPU") or None, machine.kernel_sets()))
