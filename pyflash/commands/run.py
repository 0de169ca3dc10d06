"""`pyflash run`: one answer, or a chat."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

import pyflash
from pyflash import demo
from pyflash.commands.options import model_options, option, sampling_options
from pyflash.progress import Progress
from pyflash.terminal import Answer, chat_loop


@click.command()
@click.argument("model_or_prompt", required=False, metavar="[MODEL]")
@click.argument("prompt_argument", required=False, metavar="[PROMPT]")
@option("--model", "-m", type=click.Path(), help="GGUF file.  [default: a tiny built-in demo]")
@option("--prompt", "-p", help="Prompt.")
@option("--file", "-f", type=click.Path(), help="Read the prompt from a file.")
@option("--ctx", "-c", "context", type=click.IntRange(1),
         help="Context in tokens.  [default: the model's, at most 65536]")
@option("--system", help="System message.")
@option("--think", is_flag=True, help="Let the model think before it answers.")
@option("--no-think", is_flag=True, help="Answer at once (default).")
@option("--think-max", is_flag=True, help="Let the model think as hard as it can.")
@sampling_options
@model_options
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
