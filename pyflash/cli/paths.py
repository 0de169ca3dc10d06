"""Paths as people give them: on the command line, in variables, typed or dropped into a chat."""

from __future__ import annotations

import os
import shlex
import sys
import urllib.parse
import urllib.request
from typing import Any

import click


class FilePath(click.Path):
    """A path in which ~ is a home folder: shells leave it as it is in --model=~/m.gguf, and in variables."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(expanded(value) if isinstance(value, str) else value, param, ctx)


def expanded(path: str) -> str:
    """With a home folder in place of ~, unless a file has that very name."""
    return path if os.path.lexists(path) else os.path.expanduser(path)


def typed_path(text: str) -> str:
    """A path as typed, pasted or dropped into a terminal: plain, in quotes, with spaces after backslashes, or a file://
    address. What names a file as it stands is that file."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:  # Python was told to take file names for ASCII
        text = os.fsdecode(text.encode("utf-8", "surrogateescape"))
    if os.path.lexists(expanded(text)):
        return expanded(text)
    if text.lower().startswith("file://"):
        address = urllib.parse.urlsplit(text)
        if address.netloc in ("", "localhost"):
            return urllib.request.url2pathname(address.path)
    return expanded(_unquoted(text))


def _unquoted(text: str) -> str:
    """The one word that a shell would make of it; the text itself where it would make several, or none."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    if sys.platform == "win32":  # where a backslash is between folders
        lexer.escape = ""
    try:
        words = list(lexer)
    except ValueError:
        return text
    return words[0] if len(words) == 1 else text
