"""Writes docs/commands.md, the reference of every command, from the commands themselves.

    python scripts/make_command_reference.py            # writes it
    python scripts/make_command_reference.py --check    # exits with 1 when it is not up to date

The text does not depend on click's version: only what the commands declare goes in.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pyflash.cli.chat.commands import COMMANDS, HELP_ON_LINES
from pyflash.cli.chat.settings import helps
from pyflash.cli.main import cli

PATH = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
COMMAND = "python scripts/make_command_reference.py"

HEAD = f"""\
# Commands

Every command of `pyflash` and its options. Written by `{COMMAND}` from the commands themselves: change them, not this file.

Text goes to stdout and everything else to stderr. Exit codes: 0 done; 1 failed, and one line on stderr says what and
what to do; 2 wrong usage; 130 interrupted. An option that names a `PYFLASH_` variable takes its value from there when it
is not given. With `--json` a command prints one JSON object a line, the last of them with `"done": true`.

Other variables: `PYFLASH_CPU` (`scalar`, `avx2`, `avxvnni`, `avx512`, `amx`, ...) forces a set of CPU kernels; `PYFLASH_CACHE` is the
folder for the demo model's GGUF, `PYFLASH_STATE` that for what was typed in chats; `PYFLASH_LIBRARY` names another build
of the library, `PYFLASH_DEMO` another checkpoint for the demo model.

`python -m pyflash --demo-checkpoint` prints the folder of the demo model's checkpoint, `python -m pyflash --cmake-dir` that
for programs that build against the library.
"""


def main() -> None:
    text = HEAD + "".join(section(path, command) for path, command in walk(("pyflash",), cli)) + chat_section()
    if sys.argv[1:] == ["--check"]:
        if not PATH.is_file() or PATH.read_text(encoding="utf-8") != text:
            sys.exit(f"{PATH.name} is not up to date: run {COMMAND}")
        return
    PATH.write_text(text, encoding="utf-8", newline="\n")


def walk(path: tuple[str, ...], command: click.Command) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Commands depth first, in alphabetical order."""
    yield path, command
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            if not inner.hidden:
                yield from walk((*path, name), inner)


def section(path: tuple[str, ...], command: click.Command) -> str:
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    usage = [*path, *(["[OPTIONS]"] if options else []), *map(argument_usage, arguments)]
    if isinstance(command, click.Group):
        usage.append("COMMAND")
    lines = [f"{'#' * min(1 + len(path), 4)} {' '.join(path)}", "", "```text", " ".join(usage), "```", ""]
    lines += paragraphs(command.help or "")
    lines += map(option_line, options)
    if isinstance(command, click.Group):
        lines.append("")
        lines += [f"- [`{name}`](#{'-'.join((*path, name))}): {summary(inner)}"
                  for name, inner in sorted(command.commands.items()) if not inner.hidden]
    return "\n" + "\n".join(lines).rstrip() + "\n"


def chat_section() -> str:
    """The slash commands of a chat, and what /set knows."""
    lines = ["## In a chat", "", *(f"- **`{f'{each.name} {each.takes}'.strip()}`** {escaped(each.help)}"
                                   for each in COMMANDS)]  # fmt: skip
    lines += ["", *(escaped(line.strip()) for line in HELP_ON_LINES), "", "Settings of `/set`:", ""]
    lines += [f"- **`{name}`** {escaped(text)}" for name, text in helps().items()]
    return "\n" + "\n".join(lines) + "\n"


def argument_usage(argument: click.Argument) -> str:
    name = argument.metavar or (argument.name or "").upper()
    if not argument.metavar and isinstance(argument.type, click.Choice):
        name = "|".join(map(str, argument.type.choices))
    if argument.nargs != 1:
        name += "..."
    return name if argument.required or name.startswith("[") else f"[{name}]"


def paragraphs(help_text: str) -> list[str]:
    """A help text as Markdown: what stands as it is under a \\b becomes a block."""
    lines = []
    for paragraph in inspect.cleandoc(help_text).split("\n\n"):
        if paragraph.startswith("\b\n"):
            lines += ["```text", *paragraph[2:].splitlines(), "```", ""]
        else:
            lines += [escaped(re.sub(r"\s*\n\s*", " ", paragraph)), ""]
    return lines


def escaped(text: str) -> str:
    """Words such as FILE|JSON and <think> as they are."""
    return re.sub(r"(`[^`]*`)|[<>*_|]", lambda found: found[1] or "\\" + found[0], text)


def summary(command: click.Command) -> str:
    return escaped(re.sub(r"\s+", " ", inspect.cleandoc(command.help or "").split("\n\n")[0]))


def option_line(option: click.Option) -> str:
    value = "" if option.is_flag or option.count else " " + value_name(option)
    names = [*option.opts, *option.secondary_opts]
    variables = [option.envvar] if isinstance(option.envvar, str) else list(option.envvar or ())
    notes = []
    if option.multiple:
        notes.append("may be given several times")
    if option.show_default and not option.is_flag and option.default is not None:
        notes.append(f"default {option.default}")
    notes += [limits(option.type), *(f"`{variable}`" for variable in variables)]
    text = escaped(re.sub(r"\s+", " ", option.help or "").strip())
    noted = [note for note in notes if note]
    return f"- **`{', '.join(names)}{value}`** {text}" + (f" ({'; '.join(noted)})" if noted else "")


def value_name(option: click.Option) -> str:
    if option.metavar:
        return option.metavar
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    if isinstance(option.type, click.Path):
        return "FILE"
    numbers = {click.types.IntParamType: "N", click.types.FloatParamType: "X"}
    return next((name for kind, name in numbers.items() if isinstance(option.type, kind)), "TEXT")


def limits(kind: click.ParamType) -> str:
    if not isinstance(kind, click.IntRange | click.FloatRange):
        return ""
    if kind.min is not None and kind.max is not None:
        return f"{kind.min} to {kind.max}"
    return f"at least {kind.min}" if kind.min is not None else f"at most {kind.max}" if kind.max is not None else ""


if __name__ == "__main__":
    main()
