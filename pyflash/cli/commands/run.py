"""`pyflash run`: one answer, or a chat."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

import pyflash
from gguf_export.stores.lookup import is_name
from pyflash.chat.conversation import Conversation
from pyflash.cli.advice import LOADING, ways_out
from pyflash.cli.chat.commands import loaded
from pyflash.cli.chat.lines import History, LineReader
from pyflash.cli.chat.loop import Chat, SessionFile
from pyflash.cli.chat.settings import SAMPLING, Settings, stop_strings
from pyflash.cli.chat.view import JsonView, TextView
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.memory_advice import warning_of
from pyflash.cli.options import draft_options, model_options, open_model, option, sampling_options, stage_options
from pyflash.cli.output import log_to_stderr
from pyflash.cli.paths import FilePath, expanded
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import piped_text, read_stdin, say
from pyflash.cli.text import read_text, recoded
from pyflash.engine.options import RELEASES
from pyflash.machine.models import model_path
from pyflash.machine.places import homeless, state_dir

_THINKING = {"no_think": "off", "think_low": "low", "think": "high", "think_max": "max"}


@click.command()
@click.argument("model_or_prompt", required=False, metavar="[MODEL]", shell_complete=GGUFFile().shell_complete)
@click.argument("prompt_argument", required=False, metavar="[PROMPT]")
@option("--model", "-m", type=GGUFFile(), help="GGUF file, or its name in a local store.  [default: the built-in demo "
        "model]")
@option("--prompt", "-p", help="Prompt.")
@option("--file", "-f", type=FilePath(), help="Put this text file after the prompt; alone it is the prompt.")
@option("--ctx", "-c", "context", type=click.IntRange(1), metavar="N",
        help="Context in tokens.  [default: the model's, at most 65536]")
@option("--system", help="System message.")
@option("--think", is_flag=True, help="Let the model think before it answers.")
@option("--no-think", is_flag=True, help="Answer at once (default).")
@option("--think-low", is_flag=True, help="Let the model think a little (release 0731 only).")
@option("--think-max", is_flag=True, help="Let the model think as hard as it can.")
@option("--release", type=click.Choice(list(RELEASES)), help="The model's release, whose rules its chats follow. "
        "[default: what the file tells, else preview]")
@option("--hide-thinking", is_flag=True, help="Show only that the model thinks, not what.")
@sampling_options
@draft_options
@option("--json-object", is_flag=True, help="Make the answer a JSON object.")
@option("--json-schema", metavar="FILE|JSON", help="Make the answer JSON of this schema.")
@option("--tools", type=FilePath(), help="JSON file: a list of tools that the model may call, as in OpenAI's API. "
        "Calls are shown as JSON.")
@option("--session", type=FilePath(), help="Continue the conversation in this file, if there is one, and keep it "
        "there after each answer. Another pyflash that wants the same file meanwhile is refused.")
@option("--session-ro", type=FilePath(), help="Continue the conversation in this file, and leave the file as it is.")
@option("--no-history", is_flag=True, help="Do not keep what is typed in a chat for the next one.")
@option("--json", "as_json", is_flag=True, help='Print JSON objects, one a line, the last with "done": true.')
@option("--logprobs", type=click.IntRange(0, 20), default=0, help="With --json: each token's log-probability, and the "
        "N likeliest tokens.", metavar="N")
@stage_options
@model_options
def run(model_or_prompt: str | None, prompt_argument: str | None, **options: Any) -> None:
    """Answer PROMPT, or chat when there is none. PROMPT "-" is what comes on stdin.

    MODEL is a GGUF file, or one that Hugging Face's client, LM Studio or Ollama keeps on this machine, by its name:
    ORG/REPO:QUANT, ollama:NAME (`pyflash list` shows them). One argument alone is a MODEL when it names a file or looks
    like it, as ./m and m.gguf do, or is such a name, else a PROMPT for the built-in demo model. That is tiny, and
    trained for small talk, sums with and without --think, facts of a text that it is given, and --tools.

    Text that is piped in goes after the prompt: `pyflash run model.gguf "Sum this up:" < report.txt`. It is waited for,
    however late it comes; with < /dev/null there is none. Without a prompt each line of it is a turn of a chat, which
    ends at the first that fails. Texts are UTF-8, or UTF-16 with its mark.

    In a chat /help lists the commands. Nothing of it is dropped when the context is full: the chat says so, /undo and
    /clear make room, and a larger --ctx holds more.
    """
    model_path, prompt = _model_and_prompt(model_or_prompt, prompt_argument, options)
    if options["logprobs"] and not options["as_json"]:
        raise click.UsageError("--logprobs needs --json, which has a place for them")
    interactive = prompt is None and sys.stdin.isatty() and sys.stdout.isatty()
    if interactive and options["as_json"]:
        raise click.UsageError("--json needs a prompt")
    settings = _settings(options, stats=interactive)
    tools, response_format = _tools(options["tools"]), _response_format(options)
    log_to_stderr(options["verbose"])
    if model_path is None and interactive:
        say("Demo model: knows small talk, sums (/think shows how) and what it reads. Yours: pyflash run model.gguf")
    session_path, resumed_path = _session_files(options)
    with leaving_on_signals(), _session(model_path, options) as session:
        settings.follow(session.model.sampling)
        conversation = Conversation(session, settings, tools=tools, response_format=response_format,
                                    logprobs=options["logprobs"])
        session_file = SessionFile(session_path, conversation) if session_path else None
        if resumed_path:
            with ways_out(LOADING):
                conversation.load(resumed_path)
            if interactive:
                say(f"continues {loaded(conversation)}")
        system = recoded(options["system"] or "", "--system", say)
        if system and system != conversation.system:
            conversation.system = system
        view = JsonView(settings, options["logprobs"]) if options["as_json"] else TextView(settings)
        chat = Chat(conversation, view, session_file, options["verbose"], response_format is not None)
        finished = chat.answer_once(prompt) if prompt is not None else chat.run(_reader(chat, interactive))
    if not finished:
        raise KeyboardInterrupt


def _reader(chat: Chat, interactive: bool) -> LineReader:
    history = None
    if interactive and isinstance(sys.stdin, io.TextIOWrapper):
        known_only = codecs.lookup(sys.stdin.encoding).name == "ascii"  # the locale names nothing better
        sys.stdin.reconfigure(encoding="utf-8" if known_only else None, errors="surrogateescape")
        folder = state_dir()
        history = History(folder / "history") if folder is not None else None
    return LineReader(interactive, history, chat.commands.complete)


@contextlib.contextmanager
def _session(model_path: str | None, options: dict[str, Any]) -> Iterator[pyflash.Session]:
    if model_path is None and (line := homeless()) is not None:
        say(f"pyflash: {line}")
    model, expert_budget = open_model(model_path, options)
    with model:
        if not model.release_known:
            say(f"pyflash: the file does not tell its release; taken to be {model.release}, else give --release 0731")
        with model.session(context=options["context"], cache=options["cache_type"]) as session:
            if not model.n_stages and (warning := warning_of(model, session, expert_budget)):
                say(f"pyflash: warning: {warning}")
            yield session


# -- what is asked --


def _typed(name: str) -> bool:
    """Whether an option stands on the command line, rather than in the environment or nowhere."""
    return click.get_current_context().get_parameter_source(name) is ParameterSource.COMMANDLINE


def _is_chosen(name: str) -> bool:
    """Whether an option stands on the command line or in the environment."""
    return click.get_current_context().get_parameter_source(name) is not ParameterSource.DEFAULT


def _model_and_prompt(
    first: str | None, second: str | None, options: dict[str, Any]
) -> tuple[str | None, str | None]:
    """The arguments and options that name them, what is typed before what the environment says."""
    model: str | None = options["model"]
    prompt = first
    if second is not None:
        if _typed("model"):
            raise click.UsageError("the model is given twice: as an argument and with --model")
        assert first is not None
        model, prompt = model_path(expanded(first)), second
    elif first is not None and not _typed("model") and _names_a_model(first):
        model, prompt = model_path(expanded(first)), None
    if prompt is not None and _typed("prompt"):
        raise click.UsageError("give the prompt once: as an argument or with --prompt")
    return model, _prompt(prompt, options)


def _names_a_model(text: str) -> bool:
    """Whether it does, or was meant to: a mistyped path is no prompt, and a word that a folder happens to have for its
    name is one. So with names in local stores: "yes/no" is one only where a store has it."""
    is_path = re.match(r"((~|\.{0,2}[/\\]|[A-Za-z]:[/\\])\S*|\.\.?)$", text) is not None
    return text.endswith(".gguf") or is_path or (os.path.exists(text) and not os.path.isdir(text)) or is_name(text)


def _prompt(prompt: str | None, options: dict[str, Any]) -> str | None:
    """The prompt with what goes after it; None for a chat."""
    file = options["file"] if _typed("file") else None
    if prompt is None and (_typed("prompt") or file is None):
        prompt = options["prompt"]
    if prompt is None and file is None:
        file = options["file"]
    if prompt is None and file is None:
        return None
    prompt = None if prompt is None else recoded(prompt, "the prompt", say)
    if prompt == "-" or file == "-":
        text = read_stdin(say)
        parts = [text] if prompt in ("-", None) else [prompt, text]
        if prompt == "-" and file not in ("-", None):
            parts.append(read_text(file, say))
    elif file is not None:
        parts = [read_text(file, say)] if prompt is None else [prompt, read_text(file, say)]
    else:
        parts = [prompt or "", piped_text(say)]
    whole = "\n\n".join(part for part in parts if part and part.strip())
    if not whole:
        raise click.UsageError("the prompt is empty")
    return whole


def _session_files(options: dict[str, Any]) -> tuple[str | None, str | None]:
    """The files of --session and --session-ro, of which the one that is typed goes before the environment's."""
    session, read_only = options["session"], options["session_ro"]
    if session and read_only:
        if _typed("session") == _typed("session_ro"):
            raise click.UsageError("choose one of --session and --session-ro")
        return (session, None) if _typed("session") else (None, read_only)
    return session, read_only


def _settings(options: dict[str, Any], stats: bool) -> Settings:
    try:
        stop = stop_strings([recoded(text, "--stop", say) for text in options["stop"]]) if options["stop"] else ()
    except pyflash.ArgumentError as error:
        raise click.UsageError(f"--stop: {error}") from None
    chosen = {setting.keyword: options[setting.name] for setting in SAMPLING if _is_chosen(setting.name)}
    return Settings(
        chosen, options["max_tokens"], _think_mode(options), stop, options["draft"], options["draft_max"],
        hide_thinking=options["hide_thinking"], stats=stats, history=not options["no_history"],
    )


def _think_mode(options: dict[str, Any]) -> str:
    chosen = [name for name in _THINKING if options[name]]
    chosen = [name for name in chosen if _typed(name)] or chosen
    if len(chosen) > 1:
        raise click.UsageError("choose one of --think, --no-think, --think-low and --think-max")
    return _THINKING[chosen[0]] if chosen else "off"


def _response_format(options: dict[str, Any]) -> dict[str, Any] | None:
    text = options["json_schema"]
    if text is None:
        return {"type": "json_object"} if options["json_object"] else None
    if options["json_object"]:
        raise click.UsageError("choose one of --json-object and --json-schema")
    source = "--json-schema"
    if not text.lstrip().startswith(("{", "[")):
        source, text = text, read_text(text, say)
    schema = _json(recoded(text, source, say), source)
    if not isinstance(schema, dict):
        raise pyflash.ArgumentError(f'{source}: a JSON schema is an object such as {{"type": "object"}}')
    return {"type": "json_schema", "json_schema": {"schema": schema}}


def _tools(path: str | None) -> list[dict[str, Any]] | None:
    if path is None:
        return None
    tools = _json(read_text(path, say), path)
    tools = tools if isinstance(tools, list) else [tools]
    for tool in tools:
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise pyflash.FormatError(
                f'{path}: a tool is written as {{"type": "function", "function": {{"name": ..., "parameters": ...}}}}'
            )
    return tools


def _json(text: str, source: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise pyflash.FormatError(f"{source} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
                                  ) from None
    except RecursionError:
        raise pyflash.FormatError(f"{source} is nested too deeply") from None
    except ValueError as error:  # a number of thousands of digits
        raise pyflash.FormatError(f"{source} holds what no program can use: {error}") from None
