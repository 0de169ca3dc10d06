"""What several commands share: options, errors of the converter."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

import pyflash
from pyflash.progress import format_bytes

_F = TypeVar("_F", bound=Callable[..., Any])


def option(*names: str, **settings: Any) -> Callable[[_F], _F]:
    """A click option that PYFLASH_<NAME> sets as well."""
    long_name = next(name for name in names if name.startswith("--"))
    variable = "PYFLASH_" + long_name.strip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _refuse_gpu_layers(_context: click.Context, _option: click.Parameter, layers: int) -> None:
    if layers:
        raise pyflash.DeviceError("this build has no GPU support: leave out -ngl and PYFLASH_GPU_LAYERS, or set 0")


def model_options(command: _F) -> _F:
    for add in (
        option("--threads", "-t", type=click.IntRange(1, 4096), help="Worker threads.  [default: one a core]"),
        option("--gpu-layers", "-ngl", type=click.IntRange(0), default=0, show_default=True, expose_value=False,
               callback=_refuse_gpu_layers, help="Layers on the GPU; this build can do 0."),
        option("--precision", type=click.Choice(["fast", "exact"]), default="fast", show_default=True,
               help="exact: float32 activations and cache."),
        option("--cache-type", type=click.Choice(["auto", "f16", "reference"]), default="auto", show_default=True,
               help="Precision of the cache; reference: about half the memory of f16."),
        option("--verbose", is_flag=True, help="Tell on stderr what happens, and the speed."),
    ):
        command = add(command)
    return command


def sampling_options(command: _F) -> _F:
    unit = click.FloatRange(0, 1)
    for add in (
        option("--max-tokens", "-n", type=click.IntRange(1), help="Most tokens to generate."),
        option("--temp", type=click.FloatRange(0), default=1.0, show_default=True, help="Temperature; 0: likeliest."),
        option("--top-p", type=unit, default=1.0, show_default=True, help="Nucleus sampling; 1: off."),
        option("--top-k", type=click.IntRange(0), default=0, show_default=True, help="Keep the k likeliest; 0: all."),
        option("--min-p", type=unit, default=0.0, show_default=True, help="Drop tokens less likely than this share "
               "of the likeliest; 0: off."),
        option("--seed", type=int, help="Makes the answer repeatable.  [default: random]"),
    ):
        command = add(command)
    return command


@contextlib.contextmanager
def converter_errors() -> Iterator[None]:
    from gguf_export.errors import ConvertError

    try:
        yield
    except ConvertError as error:
        raise pyflash.Error(str(error)) from error


def print_written(files: Sequence[Path], total_bytes: int) -> None:
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    click.echo(f"wrote {files[0]}{more}: {format_bytes(total_bytes)}", err=True)
