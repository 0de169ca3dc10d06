"""What commands print for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click


def print_done(values: Mapping[str, Any]) -> None:
    """The last JSON object of a command, on stdout."""
    click.echo(json.dumps({**values, "done": True}, ensure_ascii=False))
