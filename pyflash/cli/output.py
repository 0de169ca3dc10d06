"""What commands print for programs, and on a terminal while they work."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click


def print_done(values: Mapping[str, Any]) -> None:
    """The last JSON object of a command, on stdout."""
    click.echo(json.dumps({**values, "done": True}, ensure_ascii=False))


class Status:
    """What is going on, on one line of a terminal's stderr."""

    def __init__(self) -> None:
        self._active = sys.stderr.isatty()

    def show(self, what: str, done: int, total: int) -> None:
        if self._active:
            sys.stderr.write(f"\r{what}: {done} of {total}\x1b[K")
            sys.stderr.flush()

    def clear(self) -> None:
        if self._active:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
