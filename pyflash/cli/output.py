"""What commands print for programs, and on stderr while they work."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from pyflash.cli.streams import on_terminal
from pyflash.native.text import json_text, visible, visible_line


def print_done(values: Mapping[str, Any]) -> None:
    """The last JSON object of a command, on stdout."""
    print_json({**values, "done": True})


def print_json(values: Mapping[str, Any]) -> None:
    """A JSON object on a line of stdout."""
    click.echo(json_text(values))


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Lines of a table for people, each column as wide as its widest cell."""
    seen = [tuple(map(visible_line, row)) for row in rows]
    widths = [max(map(len, column)) for column in zip(*seen, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                     for row in seen)


class _Visible(logging.Formatter):
    """Lines that cannot steer a terminal: they tell what is in files."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


def log_to_stderr(verbose: bool = True) -> None:
    """Shows the library's warnings, and with --verbose all that it tells."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Visible("pyflash: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose else logging.WARNING)


class Status:
    """What is going on, on one line of a terminal's stderr."""

    def __init__(self) -> None:
        self._active = on_terminal(sys.stderr)

    def show(self, what: str, done: int, total: int) -> None:
        if self._active:
            sys.stderr.write(f"\r{visible(what)}: {done} of {total}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
