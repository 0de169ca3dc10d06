"""`pyflash doctor`: what this machine offers."""

from __future__ import annotations

import os

import click

from pyflash import machine, report


@click.command()
def doctor() -> None:
    """Show devices, the kernel set in use, and what is skipped and why."""
    click.echo(report.doctor(os.environ.get("PYFLASH_CPU") or None, machine.kernel_sets()))
