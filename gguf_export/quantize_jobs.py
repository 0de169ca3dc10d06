"""Quantised tensors of an output: read as floats, searched for, written, read back and compared, a few rows at a time."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_export.checksums import TensorDigest
from gguf_export.engine import Io, Job
from gguf_export.errors import ConvertError
from gguf_export.quantize_source import Matrix
from gguf_export.safetensors_file import TensorRef
from gguf_export.tensors import Output, OutputTensor, TensorJob
from gguf_export.values import Unusable, ValueWatch
from pyflash.native.errors import Error
from quantize import native
from quantize.blocks import Objective, decode, quantise
from quantize.plan import GGMLType, row_bytes

Floats = NDArray[np.float32]

# A job is about a second's search; its steps keep the buffers of a thread at some ten MB.
_JOB_VALUES = 2 << 20
_STEP_VALUES = 1 << 19


class ImportanceLike(Protocol):
    """What an error of each column weighs, by tensor."""

    def of(self, name: str, n_matrices: int, n_columns: int) -> Floats | None:
        """[n_matrices, n_columns], or None for a tensor of which nothing is known."""

    def metadata(self) -> dict[str, str | int]:
        """The keys quantize.imatrix.* of a file that was quantised with it."""


def importance_of(importance: ImportanceLike | None, name: str, n: int, cols: int) -> Floats | None:
    """[n matrices, cols], or None where nothing is known. ConvertError for what cannot weigh errors."""
    found = None if importance is None else importance.of(name, n, cols)
    if found is None:
        return None
    if found.shape != (n, cols) or not np.isfinite(found).all() or (found < 0).any():
        what = "numbers that are none, infinite or negative, or of another model's sizes"
        raise ConvertError(f"the importance of {name} holds {what}: collect it again")
    return np.ascontiguousarray(found, dtype=np.float32)


@dataclass(frozen=True)
class TensorError:
    """Shares of the energy that are lost, sum((x - y)^2 h) / sum(x^2 h): plain with h = 1, weighted with the importance
    (None without one)."""

    plain: float
    weighted: float | None

    @classmethod
    def of(cls, sums: NDArray[np.float64], has_importance: bool) -> TensorError:
        """sums: squares of errors, of values, and both weighted."""
        error, energy, weighted_error, weighted_energy = map(float, sums)
        return cls(
            error / energy if energy else 0.0,
            (weighted_error / weighted_energy if weighted_energy else 0.0) if has_importance else None,
        )


@dataclass
class ErrorSums:
    """One row a job, so that the sum does not depend on which thread was first."""

    sums: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 4)))
    has_importance: bool = False

    def result(self) -> TensorError:
        return TensorError.of(self.sums.sum(axis=0), self.has_importance)


@dataclass(frozen=True)
class QuantisedTensor(OutputTensor):
    """pieces stays empty: the values come from matrices."""

    matrices: tuple[Matrix, ...] = ()
    stored: str = ""  # the type before
    objective: Objective = Objective.PLAIN
    importance: ImportanceLike | None = None
    errors: ErrorSums = field(default_factory=ErrorSums, compare=False)

    @property
    def row_bytes(self) -> int:
        return row_bytes(self.info.kind, self.info.ne[0])

    def weights(self) -> Floats | None:
        """[matrices, columns]: what errors weigh. ConvertError where that cannot be."""
        return importance_of(self.importance, self.info.name, len(self.matrices), self.info.ne[0])

    def quantise_jobs(self, path: Path, offset: int, watch: ValueWatch, digest: TensorDigest) -> Iterator[Job]:
        output = Output(path, offset, watch, digest)
        weights = self.weights()
        cols = self.info.ne[0]
        step = max(1, _JOB_VALUES // cols)
        spans = [
            (index, row, min(step, matrix.rows - row))
            for index, matrix in enumerate(self.matrices) for row in range(0, matrix.rows, step)
        ]  # fmt: skip
        self.errors.sums, self.errors.has_importance = np.zeros((len(spans), 4)), weights is not None
        position = 0
        for slot, (index, row, n_rows) in enumerate(spans):
            of_matrix = weights[index] if weights is not None and weights[index].any() else None
            yield QuantiseJob(self, self.matrices[index], of_matrix, row, n_rows, output, position, slot)
            position += n_rows * self.row_bytes


@dataclass(frozen=True, slots=True)
class QuantiseJob:
    """Rows [row, row + n_rows) of a matrix, which go to the tensor's bytes from `position` on."""

    tensor: QuantisedTensor
    matrix: Matrix
    importance: Floats | None
    row: int
    n_rows: int
    output: Output
    position: int
    slot: int

    def run(self, io: Io) -> int:
        """Returns early, with the rest not done, where the run is stopped."""
        cols, size = self.matrix.cols, self.tensor.row_bytes
        step = max(1, _STEP_VALUES // cols)
        for row in range(0, self.n_rows, step):
            if io.is_stopped():
                break
            n_rows = min(step, self.n_rows - row)
            with contextlib.suppress(Unusable):
                values = self.matrix.floats(io, self.row + row, n_rows, self.output.watch).reshape(n_rows, cols)
                data = self._encode(values)
                begin = self.position + row * size
                self.output.write(io, begin, data)
                self._compare(io, values, begin, data.nbytes)
        return self.n_rows * size

    def _encode(self, values: Floats) -> NDArray[Any]:
        name, kind = self.tensor.info.name, self.tensor.info.kind
        if not np.isfinite(values).all():
            raise ConvertError(f"the source is damaged, get it again: {name} holds infinity or NaN")
        try:
            return encode(kind, values, self.importance, self.tensor.objective)
        except Error as error:
            raise ConvertError(f"{name} cannot become {kind.name}: {error}") from None

    def _compare(self, io: Io, values: Floats, begin: int, nbytes: int) -> None:
        output, info = self.output, self.tensor.info
        written = TensorRef(info.name, info.kind.name, info.ne, output.path, output.offset, info.nbytes)
        found = decode_any(info.kind, io.read(written, begin, nbytes, "back")).reshape(values.shape)
        if not np.isfinite(found).all():
            raise ConvertError(f"{info.name} holds numbers too large for {info.kind.name}: keep it, or take a wider type")
        squares = np.square(values - found, dtype=np.float32).sum(axis=0, dtype=np.float64)
        energy = np.square(values, dtype=np.float32).sum(axis=0, dtype=np.float64)
        h = np.ones_like(squares) if self.importance is None else self.importance.astype(np.float64)
        self.tensor.errors.sums[self.slot] += (squares.sum(), energy.sum(), (squares * h).sum(), (energy * h).sum())


def encode(kind: GGMLType, values: Floats, importance: Floats | None, objective: Objective) -> NDArray[np.uint8]:
    """Rows [n, columns] as bytes of a type that can be written."""
    if kind is GGMLType.BF16:
        codes = np.empty(values.size, dtype=np.uint16)
        native.f32_to_bf16(np.ascontiguousarray(values).reshape(-1), values.size, codes)
        return codes.view(np.uint8)
    if kind is GGMLType.Q8_0:
        out = np.empty(row_bytes(kind, values.size), dtype=np.uint8)
        native.f32_to_q8_0(np.ascontiguousarray(values).reshape(-1), values.size, out)
        return out
    return quantise(kind, values, importance, objective).reshape(-1)


def decode_any(kind: GGMLType, data: NDArray[np.uint8]) -> Floats:
    if kind is GGMLType.BF16:
        out = np.empty(data.size // 2, dtype=np.float32)
        native.bf16_to_f32(data.view("<u2"), out.size, out)
        return out
    return decode(kind, data)


class Finished:
    """Which tensors are complete on the disk's side of this program: written, perhaps not flushed yet."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self.tensors: list[str] = []

    def counted(self, name: str, jobs: list[Job]) -> Iterator[Job]:
        """The jobs of one tensor, which count themselves."""
        with self._lock:
            self._open[name] = len(jobs)
        if not jobs:
            self.tensors.append(name)
        for job in jobs:
            yield _Counted(job, lambda: self._done(name))

    def _done(self, name: str) -> None:
        with self._lock:
            self._open[name] -= 1
            if not self._open[name]:
                self.tensors.append(name)


@dataclass(frozen=True, slots=True)
class _Counted:
    job: Job
    done: Callable[[], None]

    def run(self, io: Io) -> int:
        count = self.job.run(io)
        if not io.is_stopped():  # which may have ended it early
            self.done()
        return count


def tensor_jobs(tensor: OutputTensor, path: Path, offset: int, watch: ValueWatch, digest: TensorDigest) -> list[Job]:
    """path, offset: where the tensor goes. watch gets what is read, digest what is written."""
    if isinstance(tensor, QuantisedTensor):
        return list(tensor.quantise_jobs(path, offset, watch, digest))
    jobs: Iterator[TensorJob] = tensor.jobs(path, offset, watch, digest)
    return list(jobs)
