"""Importance matrices: how much an error of each column of a weight matters, from what its products took.

An entry holds sums of squares over the tokens that were seen, for one matrix or for each of a layer's experts. The mean is
the diagonal of the matrix that an error's effect on the output is measured by. An expert that few tokens chose says little
about itself, so its mean is drawn to the layer's, as if that had been seen SHRINKAGE times more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyflash.native.errors import FormatError

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

SHRINKAGE = 16  # observations
_GROUPED = "attn_output_a"  # one matrix in files, whose groups of rows llama.cpp takes for matrices


@dataclass(frozen=True)
class Entry:
    """What is known of a weight. sums: reads the sums of squares, [n_values], one matrix after the other. weighted: the
    same of inputs times the weight of the route to their expert, as they count in the output; None where the file has
    none. counts [matrices, or 1 for all]: the tokens that they are of. has_visits: counts tell the experts' visits; in
    files of the old format nothing does.
    """

    n_values: int
    counts: Doubles
    sums: Callable[[], Floats]
    weighted: Callable[[], Floats] | None = None
    has_visits: bool = True


@dataclass(frozen=True)
class Importance:
    """An importance matrix as it lies in a file. datasets: the names of the texts. chunk_size: tokens; 0: unknown."""

    path: Path
    datasets: Sequence[str]
    chunk_count: int
    chunk_size: int
    entries: Mapping[str, Entry]

    def of(self, name: str, n_matrices: int, n_columns: int) -> Floats | None:
        """Mean squares, float32 [n_matrices, n_columns], of the tensor of that name; None where nothing is known.

        Of the experts' down projections they are of the inputs times the route's weight, where the file has these. Experts
        are drawn to the layer's mean, which those that no token chose have. attn_output_a may have an entry for each of its
        groups; where the tensor is one matrix it gets their mean. FormatError, with the tensor's name, for another number
        of values, and for values that are no sums of squares.
        """
        entry = self.entries.get(name)
        if entry is None:
            return None
        sums = self._matrices(name, entry, n_matrices, n_columns)
        counts = entry.counts
        if len(sums) != n_matrices:  # grouped
            if len(sums) == 1:
                sums = np.broadcast_to(sums, (n_matrices, n_columns))
            else:
                each = len(sums) // n_matrices
                counts = np.array([counts.sum() * (each if len(counts) == 1 else 1)])
                sums = sums.reshape(n_matrices, each, n_columns).sum(axis=1)
        if len(counts) not in (1, n_matrices):
            raise self._wrong(name, f"{len(counts)} counts where the tensor has {n_matrices} matrices")
        if not counts.any():
            return None
        means = _shrunk(sums, counts) if entry.has_visits else _without_visits(sums / counts)
        return np.ascontiguousarray(means, dtype=np.float32)

    def uses_route_weights(self, name: str) -> bool:
        """Whether of(name) tells of inputs times the route's weight."""
        entry = self.entries.get(name)
        return entry is not None and entry.weighted is not None

    def metadata(self) -> dict[str, str | int]:
        """The keys of a file that was quantised with it, as llama.cpp's tool writes them."""
        dataset = {"quantize.imatrix.dataset": self.datasets[0]} if self.datasets else {}
        return {"quantize.imatrix.file": self.path.name, **dataset,
                "quantize.imatrix.entries_count": len(self.entries), "quantize.imatrix.chunks_count": self.chunk_count}

    def _matrices(self, name: str, entry: Entry, n_matrices: int, n_columns: int) -> Doubles:
        n_groups, rest = divmod(entry.n_values, n_columns)
        is_grouped = _GROUPED in name and (n_matrices == 1 or n_groups == 1)
        if rest or n_groups == 0 or (n_groups != n_matrices and not is_grouped):
            raise self._wrong(name, f"{entry.n_values:,} values where the tensor has {n_matrices} x {n_columns:,}")
        sums = (entry.weighted or entry.sums)().astype(np.float64).reshape(-1, n_columns)
        for values in (sums, entry.counts):
            if not np.isfinite(values).all() or (values < 0).any():
                raise self._wrong(name, "values that are no sums of squares")
        return sums

    def _wrong(self, name: str, what: str) -> FormatError:
        return FormatError(f"{self.path}: {name} has {what}: take an importance matrix of this model")


def _shrunk(sums: Doubles, counts: Doubles) -> Doubles:
    """Means drawn to that of all matrices."""
    if len(counts) == 1:
        return sums / counts[0]
    mean = sums.sum(axis=0) / counts.sum()
    means: Doubles = (sums + SHRINKAGE * mean) / (counts[:, np.newaxis] + SHRINKAGE)
    return means


def _without_visits(means: Doubles) -> Doubles:
    """The old format writes ones for experts that were not visited, and means of any number of visits for the others."""
    unvisited = (means == 1).all(axis=1)
    if len(means) == 1 or unvisited.all() or not unvisited.any():
        return means
    return np.where(unvisited[:, np.newaxis], means[~unvisited].mean(axis=0), means)


def read(path: str | Path) -> Importance:
    """From a GGUF file of llama.cpp's or of `pyflash imatrix`, or one of llama.cpp's old format (.dat). Values are read when
    they are asked for. FormatError, FileError."""
    from gguf_export.imatrix_file import read_importance  # the one way up from here

    return read_importance(Path(path))
