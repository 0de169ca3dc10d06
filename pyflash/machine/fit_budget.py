"""What a machine's memory leaves for a model file: all else that running it takes, by the library's own account."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf_export.errors import ConvertError, reason
from gguf_export.quantizing import QuantizeOptions, QuantizePlan, plan_quantization
from pyflash.machine.memory_plan import make_plan, open_measured
from pyflash.machine.units import format_bytes
from pyflash.native.errors import ArgumentError

# For the system and what else runs: more where there is more, because then more does.
_RESERVE, _LARGE_RESERVE, _LARGE = 6 * 10**9, 8 * 10**9, 96 * 10**9


@dataclasses.dataclass(frozen=True)
class FitBudget:
    """Bytes. memory_bytes: the machine's. reserve_bytes: left to the system. program_bytes to checkpoint_bytes: see
    memory_plan.Plan and Cost, for a context of n_ctx tokens."""

    memory_bytes: int
    reserve_bytes: int
    n_ctx: int
    program_bytes: int
    widened_bytes: int
    draft_bytes: int
    cache_bytes: int
    buffer_bytes: int
    checkpoint_bytes: int

    @property
    def run_bytes(self) -> int:
        """What a run takes beside the weights."""
        return (self.program_bytes + self.widened_bytes + self.draft_bytes + self.cache_bytes + self.buffer_bytes
                + self.checkpoint_bytes)  # fmt: skip

    @property
    def file_bytes(self) -> int:
        """What is left for the file; not more than 0 where there is nothing."""
        return self.memory_bytes - self.reserve_bytes - self.run_bytes

    def memory_for(self, file_bytes: int) -> int:
        """The smallest memory that leaves so much for the file."""
        least = file_bytes + self.run_bytes
        return least + (_RESERVE if least + _RESERVE <= _LARGE else _LARGE_RESERVE)

    def rows(self) -> list[tuple[str, str]]:
        """Every term, for people."""
        return [
            ("memory", format_bytes(self.memory_bytes)),
            ("system", format_bytes(self.reserve_bytes)),
            ("program", format_bytes(self.program_bytes)),
            *([("widened", format_bytes(self.widened_bytes))] if self.widened_bytes else []),
            *([("draft head", format_bytes(self.draft_bytes))] if self.draft_bytes else []),
            ("cache", f"{format_bytes(self.cache_bytes)} for a context of {self.n_ctx:,} tokens"),
            ("buffers", format_bytes(self.buffer_bytes)),
            ("checkpoints", format_bytes(self.checkpoint_bytes)),
            ("left for the file", format_bytes(max(0, self.file_bytes))),
        ]

    def as_json(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "file_bytes": self.file_bytes}


def reserve(memory_bytes: int) -> int:
    return _RESERVE if memory_bytes <= _LARGE else _LARGE_RESERVE


def make_budget(source: Path | str, memory_bytes: int, n_ctx: int | None, mtp: bool = False) -> FitBudget:
    """For a machine of so much memory, whatever this one has. n_ctx: None for the default context. mtp: with the drafting
    block. ConvertError for a source that cannot be quantised or run."""
    plan = plan_quantization(source, QuantizeOptions(mtp=mtp))
    with _openable(plan) as (path, beside):
        model, program_bytes = open_measured(path, "fast", {"device": "cpu", "mtp": beside})
        with model:
            if n_ctx is not None and n_ctx > model.info.n_ctx_train:
                raise ArgumentError(f"a context of {n_ctx:,} tokens is more than this model's {model.info.n_ctx_train:,}: "
                                    "ask for less")
            found = make_plan(model, program_bytes, n_ctx, "auto", 0)
    cost = found.cost
    return FitBudget(memory_bytes, reserve(memory_bytes), cost.n_ctx, found.program_bytes, found.widened_bytes,
                     found.draft_bytes if mtp else 0, cost.cache_bytes, cost.buffer_bytes, cost.checkpoint_bytes)  # fmt: skip


@contextlib.contextmanager
def _openable(plan: QuantizePlan) -> Iterator[tuple[Path, Path | None]]:
    """What the library opens, and what drafts for it where that is a file of its own: the source, or for a checkpoint files
    like the result, with nothing in their weights."""
    if plan.source.path.is_file():
        yield plan.source.path, None
        return
    layouts = [layout for _, layout in plan.layouts("model.gguf")]
    with tempfile.TemporaryDirectory(prefix="pyflash-") as folder:
        paths = [Path(folder) / layout.name for layout in layouts]
        for path, layout in zip(paths, layouts, strict=True):
            try:
                with open(path, "wb") as file:
                    file.write(layout.header)
                    file.truncate(layout.size)  # takes no space on the disk
            except OSError as error:
                raise ConvertError(f"cannot write {path}: {reason(error)}") from None
        yield paths[0], paths[1] if len(paths) > 1 else None
