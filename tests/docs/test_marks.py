"""Every block of the documentation is run, or is marked with the reason why not; and no command has an option that is not there."""

from __future__ import annotations

import re
import shlex

import click
import pytest
from pyflash.cli.main import cli

from .blocks import LANGUAGES, MARKS, ROOT, Block, blocks, inline_commands, pages

pytestmark = pytest.mark.quick

PLACEHOLDER = re.compile(r"^[\[<(|]|\.\.\.$|^[A-Z]+$")


def all_blocks() -> list[Block]:
    return [block for page in pages() for block in blocks(page)]


def test_every_block_says_what_it_is() -> None:
    for block in all_blocks():
        assert block.language in LANGUAGES, f"{block.place}: name the language, one of {', '.join(LANGUAGES)}"
        assert block.mark is None or (block.mark in MARKS and block.said), f"{block.place}: a mark is 'not run: REASON' and the like"
        if block.page == "docs/commands.md":  # written by a script from the commands' own help
            continue
        if block.language == "text" and block.mark is None:
            assert not block.looks_like_a_command, f"{block.place}: a command is sh; if it cannot run here: <!-- not run: REASON -->"


def test_most_blocks_run() -> None:
    commands = [block for block in all_blocks() if block.language != "text"]
    assert len(commands) > 90
    assert sum(block.runs or block.mark == "compiled" for block in commands) > 0.6 * len(commands)


def wrong_option_of_pyflash(words: list[str]) -> str | None:
    command: click.Command = cli
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        name = words.pop(0)
        if name not in command.commands:
            return None if PLACEHOLDER.search(name) else name
        command = command.commands[name]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help", "--version"}
    for word in words[: words.index("--")] if "--" in words else words:
        name = word.split("=")[0]
        if re.match(r"--[a-z]", name) and name not in known:
            return name
    return None


def wrong_option_of_a_script(words: list[str]) -> str | None:
    path = ROOT / words[0].removeprefix("../../")
    if not path.is_file():
        path = ROOT / "examples" / "train_demo" / words[0]  # blocks that went there
    if not path.is_file():
        return words[0]
    text = path.read_text(encoding="utf-8")
    options = [word.split("=")[0] for word in words if re.match(r"--[a-z]", word)]
    return next((name for name in options if not re.search(rf"{name}[\"'/]", text)), None)


def wrong(command: str) -> str | None:
    """What of a command is not there; None where nothing is wrong, or it is another program's."""
    try:
        words = shlex.split(command, comments=True)
    except ValueError:
        return None
    ends = [at for at, word in enumerate(words) if word in ("&&", "|", ">", "<", ";")]
    words = words[: ends[0]] if ends else words
    if words[:1] == ["pyflash"]:
        return wrong_option_of_pyflash(words[1:])
    if len(words) > 1 and words[0] == "python" and words[1].endswith(".py"):
        return wrong_option_of_a_script(words[1:])
    return None


@pytest.mark.parametrize("page", pages())
def test_options_are_there(page: str) -> None:
    """Also those of commands in the running text, and of blocks that are not run."""
    shells = [line for block in blocks(page) if block.language == "sh" for line in block.lines]
    for command in [*shells, *inline_commands(page)]:
        for part in command.split(" && "):
            assert wrong(part) is None, f"{page}: {part!r}: there is no {wrong(part)}"


def test_what_is_wrong_is_found() -> None:
    assert wrong("pyflash run model.gguf --think") is None
    assert wrong("pyflash run model.gguf --thinks") == "--thinks"
    assert wrong("pyflash ran model.gguf") == "ran"
    assert wrong("pyflash launch codex -- --anything") is None
    assert wrong("python scripts/build_site.py OUT --repository URL") is None
    assert wrong("python scripts/build_site.py OUT --repo URL") == "--repo"
    assert wrong("python scripts/nothing.py") == "scripts/nothing.py"
    unmarked = Block("docs/a.md", 1, "text", "pyflash run model.gguf\n", None, "")
    assert unmarked.looks_like_a_command and not unmarked.runs
    smaller = Block("docs/a.md", 1, "sh", "a --tokens 262144 \\\n    --b\n\n# no command\nc\n", "run with", "262144=4096")
    assert smaller.lines == ["a --tokens 4096 --b", "c"]
