"""PYFLASH_* variables that options refuse or nobody reads."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping

import click

from gguf_export.stores.lookup import is_name
from pyflash.native.errors import Error

_PREFIX = "PYFLASH_"
_OTHER_VARIABLES = ("PYFLASH_CPU", "PYFLASH_CACHE", "PYFLASH_STATE", "PYFLASH_LIBRARY", "PYFLASH_DEMO", "PYFLASH_API_KEY")


def check_settings(cli: click.Group, environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Lines about values that keep `pyflash run` from running, and about others. cli: the command line, whose options
    may be set by variables."""
    ours = {name: value for name, value in sorted(environment.items()) if name.startswith(_PREFIX)}
    problems, warnings = _bad_options(cli, ours)
    return problems, [*warnings, *_odd_variables(cli, ours)]


def _options(command: click.Command, context: click.Context) -> Iterator[tuple[str, click.Parameter, click.Context]]:
    """(variable, option, context) of every option that a variable can set."""
    for parameter in command.params:
        variables = parameter.envvar
        for variable in [variables] if isinstance(variables, str) else variables or ():
            yield variable, parameter, context
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from _options(inner, click.Context(inner, parent=context, info_name=name))


def _bad_options(cli: click.Group, ours: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Values that an option refuses: problems where `run` does, else warnings; one line for each variable."""
    problems: dict[str, str] = {}
    warnings: dict[str, str] = {}
    for variable, option, context in _options(cli, click.Context(cli, info_name="pyflash")):
        refusal = _refusal(option, context) if ours.get(variable) else None
        if refusal is None:
            continue
        what = f"{variable} cannot be {ours[variable]!r}"
        if context.info_name == "run":
            problems[variable] = f"{what}: {refusal}"
        else:
            warnings.setdefault(variable, f"{what} for {context.command_path}: {refusal}")
    return list(problems.values()), [line for variable, line in warnings.items() if variable not in problems]


def _refusal(option: click.Parameter, context: click.Context) -> str | None:
    """Why the option does not take what its variable says, and the way out; None when it does."""
    try:
        with context.scope(cleanup=False):
            option.process_value(context, option.value_from_envvar(context))
    except click.UsageError as error:
        return f"{error.message.rstrip('.')}: change or unset it"
    except Error as error:
        return str(error)
    return None


def _odd_variables(cli: click.Group, ours: Mapping[str, str]) -> Iterator[str]:
    known = {*_OTHER_VARIABLES, *(name for name, _, _ in _options(cli, click.Context(cli)))}
    for name in ours.keys() - known:
        near = difflib.get_close_matches(name.removeprefix(_PREFIX), [each.removeprefix(_PREFIX) for each in known], 1)
        hint = f", did you mean {_PREFIX}{near[0]}" if near else ""
        yield f"{name} has no effect: pyflash knows no such variable{hint}"
    model = ours.get("PYFLASH_MODEL")
    if model and not os.path.isfile(os.path.expanduser(model)) and not is_name(model):  # a name has been looked up
        yield f"PYFLASH_MODEL names {model!r}, which is no file: change or unset it"
