"""Checks of a checkpoint's values: scales and expert ids beforehand, all others as they stream through."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_export.checkpoint import Checkpoint
from gguf_export.engine import Io, ProgressFn, run_jobs
from gguf_export.errors import MOST_NAMED, ConvertError, several
from gguf_export.inventory import Weight
from gguf_export.safetensors_file import TensorRef
from quantize.codecs import Q8_0_BYTES
from quantize.plan import Form, GGMLType

E8M0_NAN = 255
# Every e4m3 value times 2^(e - 127) is a BF16 number for these e.
E8M0_EXACT_IN_BF16 = (3, 246)
_CHUNK_BYTES = 8 << 20
_ZERO_SCALE = "holds the scale 0.0"


@dataclass
class _Findings:
    problems: dict[int, str] = field(default_factory=dict)  # by the weight's place in the list
    inexact: set[str] = field(default_factory=set)
    zeros: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _CheckJob:
    order: int
    ref: TensorRef
    form: Form
    n_experts: int
    findings: _Findings

    def run(self, io: Io) -> int:
        is_zero, zero = True, None
        for begin in range(0, self.ref.nbytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, self.ref.nbytes - begin)
            data = io.read(self.ref, begin, size, "in")
            is_zero = is_zero and not data.any()
            problem = self._problem(data)
            if problem == _ZERO_SCALE:  # a scale of zero may be meant only where all are
                zero, problem = problem, None
            if problem is None and not is_zero:
                problem = zero
            if problem:
                with self.findings.lock:
                    self.findings.problems[self.order] = f"{self.ref.name} {problem}"
                break
        else:
            if is_zero:
                with self.findings.lock:
                    self.findings.zeros.add(self.ref.name)
        return self.ref.nbytes

    def _problem(self, data: NDArray[Any]) -> str | None:
        if self.form is Form.I64:
            ids = data.view("<i8")
            bad = ids[(ids < 0) | (ids >= self.n_experts)]
            return f"holds the expert id {bad[0]}, there are {self.n_experts} experts" if bad.size else None
        if self.ref.dtype == "F32":
            values = data.view("<f4")
            bad_values = values[~(np.isfinite(values) & (values >= 0))]
            if bad_values.size:
                return f"holds the scale {bad_values[0]}"
            return None if values.all() else _ZERO_SCALE
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

    def zeros(self) -> list[str]:
        """After run(): tensors whose bytes are all zero. An e8m0 scale of zero is 2^-127."""
        return sorted(self._findings.zeros)

    def inexact_in_bf16(self) -> list[str]:
        """After run(): e8m0 scale tensors of FP8 weights that BF16 cannot hold exactly."""
        return sorted(self._findings.inexact)


class Unusable(Exception):
    """What is being converted holds values that no output can be made of: read on, to name others, but write nothing."""


# By dtype: the words of the array, which of their bits make a number zero or not, and from where on it is no number.
_NUMBERS: dict[str, tuple[str, int, int | None]] = {
    "BF16": ("<u2", 0x7FFF, 0x7F80),
    "F16": ("<u2", 0x7FFF, 0x7C00),
    "F32": ("<u4", 0x7FFFFFFF, 0x7F800000),
    "F8_E4M3": ("u1", 0x7F, 0x7F),
    "I8": ("u1", 0x77, None),  # two e2m1 codes
}
_HAS_NO_INFINITY = ("F8_E4M3",)
_MAY_BE_ZERO = ("bias", "base", "sink", "ape", "position_bias", "tid2eid", "scale", "inv")


class ValueWatch:
    """Looks at the stored values of weights while a conversion reads them: NaN, infinity, and matrices of only zeros."""

    def __init__(self, where: Path) -> None:
        """where: the checkpoint, for messages."""
        self._where = where
        self._lock = threading.Lock()
        self._problems: dict[str, str] = {}
        self._seen: set[str] = set()
        self._nonzero: set[str] = set()

    def look(self, ref: TensorRef, data: NDArray[np.uint8]) -> None:
        """data: some bytes of the tensor, whole numbers. Raises Unusable as soon as any tensor is damaged, ConvertError
        when there are as many as an error names."""
        form = _NUMBERS.get(ref.dtype)
        if form is None:
            return
        words, mask, limit = form
        if limit is not None or ref.name not in self._nonzero:
            largest = int((data.view(words) & mask).max(initial=0))
            self._note(ref.name, largest, limit, ref.dtype in _HAS_NO_INFINITY)
        if self._problems:
            raise Unusable

    def _note(self, name: str, largest: int, limit: int | None, is_finite: bool) -> None:
        self._seen.add(name)
        if largest:
            self._nonzero.add(name)
        if limit is None or largest < limit:
            return
        is_infinity = largest == limit and not is_finite
        self._add(name, "infinity" if is_infinity else "NaN")

    def _add(self, name: str, what: str) -> None:
        with self._lock:
            if len(self._problems) < MOST_NAMED and (what == "NaN" or name not in self._problems):
                self._problems[name] = what
            if len(self._problems) >= MOST_NAMED:
                raise self._error(["perhaps others: the rest was not read"])

    def look_encoded(self, name: str, kind: GGMLType, data: NDArray[Any]) -> None:
        """data: what numbers of the tensor have become. Those that its type cannot hold are told like damage."""
        if kind is GGMLType.BF16:
            words, limit = data.view("<u2"), 0x7F80
        elif kind is GGMLType.Q8_0:  # a float16 scale begins every block
            words, limit = np.ascontiguousarray(data.reshape(-1, Q8_0_BYTES)[:, :2]).view("<u2"), 0x7C00
        else:
            return
        if int((words & 0x7FFF).max(initial=0)) >= limit:
            self._add(name, f"numbers too large for {kind.name}")
            raise Unusable

    def _error(self, more: Sequence[str] = ()) -> ConvertError:
        named = [f"{name} holds {what}" for name, what in sorted(self._problems.items())]
        what = f"{self._where} is damaged, download the checkpoint again (a fine-tune of your own: save it again)"
        return ConvertError(f"{what}: {'; '.join([*named, *more])}")

    @property
    def has_problems(self) -> bool:
        return bool(self._problems)

    def check(self) -> None:
        """When everything has been read: ConvertError naming the tensors with values that are no numbers."""
        if self._problems:
            raise self._error()

    def zeros(self) -> list[str]:
        """When everything has been read: matrices and norms of only zeros."""
        return sorted(name for name in self._seen - self._nonzero if not name.endswith(_MAY_BE_ZERO))
