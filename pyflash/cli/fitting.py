"""`pyflash quantize --size` and `--fit`: from what was asked for to the types, and how that is told."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyflash
from pyflash.cli.progress import Progress

if TYPE_CHECKING:  # imported where they are used: without a size the command starts without them
    from gguf_export.fitting import Fit
    from gguf_export.quantizing import QuantizeOptions
    from pyflash.machine.fit_budget import FitBudget


@dataclass(frozen=True)
class Bound:
    """size: of the file, memory: of the machine; one of them, in bytes. context: tokens, for memory."""

    size: int | None
    memory: int | None
    context: int | None


@dataclass(frozen=True)
class Fitted:
    fit: Fit
    budget: FitBudget | None  # where memory was given

    def text(self) -> str:
        from gguf_export.fit_summary import summarize
        from pyflash.machine.info import table

        budget = [table(self.budget.rows()), ""] if self.budget is not None else []
        return "\n".join([*budget, summarize(self.fit), f"the same by name: {shlex.join(options_of(self.fit.options))}"])

    def as_json(self) -> dict[str, Any]:
        from gguf_export.fit_summary import fit_as_json

        budget = {} if self.budget is None else {"budget": self.budget.as_json()}
        return {**fit_as_json(self.fit), **budget}


def choose(
    source: str, options: QuantizeOptions, bound: Bound, free: Sequence[str], sensitivity: str | None
) -> Fitted:
    """Types for the bound. pyflash.Error, in one line, where nothing fits it."""
    from gguf_export.fitting import TooSmallError, fit
    from gguf_export.groups import read_sensitivity

    table = None if sensitivity is None else read_sensitivity(sensitivity)
    budget = None
    if bound.memory is not None:
        from pyflash.machine.fit_budget import make_budget

        budget = make_budget(source, bound.memory, bound.context, options.mtp)
    size = budget.file_bytes if budget is not None else bound.size or 0
    with Progress("measuring", sys.stderr) as progress:
        try:
            found = fit(source, size, options, free=free, sensitivity=table, progress=progress.update)
        except TooSmallError as error:
            if budget is None:
                raise
            raise pyflash.Error(_too_little(budget, error.least_bytes)) from error
    return Fitted(found, budget)


def _too_little(budget: FitBudget, least_bytes: int) -> str:
    from gguf_export.units import gigabytes

    needed = -(-budget.memory_for(least_bytes) // 10**9)
    return (f"{gigabytes(budget.memory_bytes)} of memory leave {gigabytes(max(0, budget.file_bytes))} for the file, and the "
            f"smallest has {gigabytes(least_bytes)}: give at least {needed}G, or a smaller --ctx")  # fmt: skip


def options_of(options: QuantizeOptions) -> list[str]:
    """The command line's options that name these types."""
    named = ["--experts", options.experts, "--dense", options.dense, "--head", options.head]
    for pattern, kind in options.tensor_types:
        named += ["--tensor-type", f"{pattern}={kind}"]
    return named
