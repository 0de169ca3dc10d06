"""What a tensor would lose as another type: measured on a sample of its rows, without writing anything.

The sample is the same every time: matrices and rows at equal distances. Of a source whose weights are not there, rows of
seeded random numbers stand for them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gguf_export.engine import Io, Job, ProgressFn, run_jobs
from gguf_export.errors import ConvertError
from gguf_export.quantize_jobs import Floats, ImportanceLike, TensorError, decode_any, encode, importance_of
from gguf_export.quantize_source import Matrix, SourceTensor
from gguf_export.values import Unusable, ValueWatch
from quantize.blocks import Objective
from quantize.codecs import e2m1_decode, e2m1_encode
from quantize.plan import GGMLType

EXPERTS, EXPERT_ROWS = 8, 16  # of a tensor, and of each of these experts
ROWS = 32  # of a tensor that is one matrix

Errors = dict[tuple[str, GGMLType], float]  # by the tensor's name and the type
Wanted = Sequence[tuple[SourceTensor, Sequence[GGMLType]]]


@dataclass
class _Sample:
    """Some matrices of a tensor. sums [matrices, types, 4]: see TensorError.of(); each job writes its own."""

    name: str
    kinds: Sequence[GGMLType]
    matrices: Sequence[Matrix]
    importances: Sequence[Floats | None]
    rows: int
    objective: Objective
    sums: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = np.zeros((len(self.matrices), len(self.kinds), 4))

    @property
    def nbytes(self) -> int:
        """What is decoded and searched, for progress."""
        return 4 * len(self.kinds) * self.rows * sum(matrix.cols for matrix in self.matrices)

    def errors(self) -> Errors:
        has_importance = any(each is not None for each in self.importances)
        found = [TensorError.of(sums, has_importance) for sums in self.sums.sum(axis=0)]
        return {
            (self.name, kind): error.plain if error.weighted is None else error.weighted
            for kind, error in zip(self.kinds, found, strict=True)
        }


@dataclass(frozen=True, slots=True)
class _SampleJob:
    sample: _Sample
    index: int
    watch: ValueWatch

    def run(self, io: Io) -> int:
        sample, matrix = self.sample, self.sample.matrices[self.index]
        with contextlib.suppress(Unusable):
            values = np.empty((sample.rows, matrix.cols), dtype=np.float32)
            for number, row in enumerate(_spread(matrix.rows, sample.rows)):
                values[number] = matrix.floats(io, row, 1, self.watch)
            if not np.isfinite(values).all():
                raise ConvertError(f"the source is damaged, get it again: {sample.name} holds infinity or NaN")
            for number, kind in enumerate(sample.kinds):
                if io.is_stopped():
                    break
                sample.sums[self.index, number] = self._lost(values, kind)
        return 4 * len(sample.kinds) * sample.rows * matrix.cols

    def _lost(self, values: Floats, kind: GGMLType) -> tuple[float, float, float, float]:
        importance = self.sample.importances[self.index]
        found = decode_any(kind, encode(kind, values, importance, self.sample.objective)).reshape(values.shape)
        squares = np.square(values - found, dtype=np.float64).sum(axis=0)
        energy = np.square(values, dtype=np.float64).sum(axis=0)
        h = np.ones_like(squares) if importance is None else importance.astype(np.float64)
        return float(squares.sum()), float(energy.sum()), float(squares @ h), float(energy @ h)


def _spread(count: int, most: int) -> list[int]:
    """At most so many of the numbers below count, at equal distances."""
    n = min(count, most)
    return [(2 * index + 1) * count // (2 * n) for index in range(n)]


def measure_errors(
    wanted: Wanted, importance: ImportanceLike | None, objective: Objective, where: Path, threads: int,
    progress: ProgressFn | None = None,
) -> Errors:  # fmt: skip
    """Shares of the energy that tensors lose as those types, weighted by importance where that is known. where: for
    messages. progress gets bytes of floats. ConvertError for weights that are no numbers."""
    watch = ValueWatch(where)
    samples: list[_Sample] = []
    total = sum(_sampled_bytes(tensor, kinds) for tensor, kinds in wanted)

    def jobs() -> Iterator[Job]:
        for tensor, kinds in wanted:
            sample = _sample(tensor, kinds, importance, objective)
            samples.append(sample)
            yield from (_SampleJob(sample, index, watch) for index in range(len(sample.matrices)))

    run_jobs(jobs(), total, progress, threads=threads, scattered=True)
    watch.check()
    return {key: error for sample in samples for key, error in sample.errors().items()}


def _sampled_bytes(tensor: SourceTensor, kinds: Sequence[GGMLType]) -> int:
    return _sample(tensor, kinds, None, Objective.PLAIN).nbytes


def _sample(
    tensor: SourceTensor, kinds: Sequence[GGMLType], importance: ImportanceLike | None, objective: Objective
) -> _Sample:
    n = len(tensor.matrices)
    chosen = _spread(n, EXPERTS)
    weights = importance_of(importance, tensor.info.name, n, tensor.info.ne[0])
    rows = min(tensor.matrices[0].rows, ROWS if n == 1 else EXPERT_ROWS)
    known = [weights[index] if weights is not None and weights[index].any() else None for index in chosen]
    return _Sample(tensor.info.name, kinds, [tensor.matrices[index] for index in chosen], known, rows, objective)


@dataclass(frozen=True, slots=True)
class _RandomMatrix:
    """Normal numbers, rounded to FP4 where that is what the source stores."""

    rows: int
    cols: int
    is_fp4: bool

    def floats(self, io: Io, row: int, n_rows: int, watch: ValueWatch) -> Floats:
        values: Floats = np.random.default_rng([row, self.cols]).standard_normal(n_rows * self.cols, dtype=np.float32)
        return e2m1_decode(e2m1_encode(2 * values)) if self.is_fp4 else values


def typical_errors(wanted: Wanted, objective: Objective) -> Errors:
    """The same of random numbers in the source's form; no weights are read."""
    found: dict[tuple[bool, GGMLType, int], float] = {}
    errors: Errors = {}
    for tensor, kinds in wanted:
        is_fp4, cols = tensor.info.kind is GGMLType.MXFP4, tensor.info.ne[0]
        for kind in kinds:
            key = (is_fp4, kind, cols)
            if key not in found:
                sample = _Sample("", [kind], [_RandomMatrix(ROWS, cols, is_fp4)], [None], ROWS, objective)
                with Io() as io:
                    _SampleJob(sample, 0, ValueWatch(Path())).run(io)
                found[key] = sample.errors()["", kind]
            errors[tensor.info.name, kind] = found[key]
    return errors


def mean_error(errors: Errors, members: Mapping[str, tuple[GGMLType, int]], stored: Mapping[str, GGMLType]) -> float:
    """Of a group whose tensors become those types: each counts by its weights. members: (type, weights) by name."""
    total = sum(weights for _, weights in members.values())
    lost = sum(errors[name, kind] * weights for name, (kind, weights) in members.items() if kind is not stored[name])
    return lost / total if total else 0.0
