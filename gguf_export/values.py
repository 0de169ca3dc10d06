"""Checks of a checkpoint's values that need its data, but little of it: scales and expert ids."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_export.checkpoint import Checkpoint
from gguf_export.engine import Io, ProgressFn, run_jobs
from gguf_export.errors import several
from gguf_export.inventory import Weight
from gguf_export.safetensors_file import TensorRef
from quantize.plan import Form

E8M0_NAN = 255
# Every e4m3 value times 2^(e - 127) is a BF16 number for these e.
E8M0_EXACT_IN_BF16 = (3, 246)
_CHUNK_BYTES = 8 << 20


@dataclass
class _Findings:
    problems: dict[int, str] = field(default_factory=dict)  # by the weight's place in the list
    inexact: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _CheckJob:
    order: int
    ref: TensorRef
    form: Form
    n_experts: int
    findings: _Findings

    def run(self, io: Io) -> int:
        for begin in range(0, self.ref.nbytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, self.ref.nbytes - begin)
            problem = self._problem(io.read(self.ref, begin, size, "in"))
            if problem:
                with self.findings.lock:
                    self.findings.problems[self.order] = f"{self.ref.name} {problem}"
                break
        return self.ref.nbytes

    def _problem(self, data: NDArray[Any]) -> str | None:
        if self.form is Form.I64:
            ids = data.view("<i8")
            bad = ids[(ids < 0) | (ids >= self.n_experts)]
            return f"holds the expert id {bad[0]}, there are {self.n_experts} experts" if bad.size else None
        if self.ref.dtype == "F32":
            values = data.view("<f4")
            bad_values = values[~(np.isfinite(values) & (values > 0))]
            return f"holds the scale {bad_values[0]}" if bad_values.size else None
        low, high = int(data.min()), int(data.max())
        if self.form is Form.FP8 and not E8M0_EXACT_IN_BF16[0] <= low <= high <= E8M0_EXACT_IN_BF16[1]:
            with self.findings.lock:
                self.findings.inexact.add(self.ref.name)
        return "holds a scale that is NaN" if high == E8M0_NAN else None


class ValueCheck:
    """The scales and expert ids of some weights. total_bytes is what run() reads."""

    def __init__(self, checkpoint: Checkpoint, weights: Sequence[Weight]) -> None:
        self._checkpoint = checkpoint
        self._findings = _Findings()
        self._jobs = []
        for order, weight in enumerate(weights):
            ref = checkpoint.scale_ref(weight)
            if weight.form is Form.I64:
                ref = checkpoint.tensors[weight.data_name]
            if ref is not None:
                self._jobs.append(_CheckJob(order, ref, weight.form, checkpoint.config.n_experts, self._findings))
        self.total_bytes = sum(job.ref.nbytes for job in self._jobs)

    def run(self, progress: ProgressFn | None = None) -> None:
        """Raises one ConvertError naming tensors with a NaN, infinite or non-positive scale, or an impossible id."""
        run_jobs(self._jobs, self.total_bytes, progress, scattered=True)
        problems = self._findings.problems
        if problems:
            named = [problems[order] for order in sorted(problems)]
            raise several(f"{self._checkpoint.path} is damaged, download it again", named)

    def inexact_in_bf16(self) -> list[str]:
        """After run(): e8m0 scale tensors of FP8 weights that BF16 cannot hold exactly."""
        return sorted(self._findings.inexact)
