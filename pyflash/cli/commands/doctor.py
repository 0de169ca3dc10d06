"""`pyflash doctor`: what this machine offers, and what is wrong."""

from __future__ import annotations

import dataclasses
import os

import click

from pyflash import demo
from pyflash.cli.output import print_done
from pyflash.cli.settings_check import check_settings
from pyflash.cli.streams import show
from pyflash.machine.doctor import describe, diagnose
from pyflash.native.errors import Error


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def doctor(context: click.Context, as_json: bool) -> None:
    """Show what is installed, what this machine offers, and what is wrong with the settings.

    Devices and CPU kernel sets are listed with the reason why one is skipped. Exits with 1 when something keeps pyflash
    from running, and says how to put it right.
    """
    group = context.find_root().command
    assert isinstance(group, click.Group)
    problems, warnings = check_settings(group, os.environ)
    found = diagnose(os.environ, *_demo(warnings), problems, warnings)
    if as_json:
        print_done(dataclasses.asdict(found))
    else:
        show(describe(found))
    if found.problems:
        raise Error(found.problems[0])


def _demo(warnings: list[str]) -> tuple[str | None, str | None]:
    """The demo model's checkpoint and its GGUF's place."""
    try:
        return str(demo.checkpoint()), str(demo.file())
    except Error as error:
        warnings.append(str(error))
        return None, None
