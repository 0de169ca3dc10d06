"""What a model chooses for each token: which experts, and which compressed rows the indexer keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from pyflash.engine.model import ModelInfo

Ids = npt.NDArray[np.int32]
SPARSE_RATIO = 4  # of layers with an indexer


@dataclass(frozen=True)
class Choices:
    """Room for the choices of n positions; -1 where none has been noted.

    experts: int32 [layers, n, experts used], best first. rows: int32 [layers with an indexer, n, index_topk], ascending:
    of the token at p the first min(index_topk, (p + 1) // 4) count.
    """

    experts: Ids
    rows: Ids

    @classmethod
    def of(cls, info: ModelInfo, n: int) -> Choices:
        """Empty ones for a model's tokens at positions 0 to n - 1."""
        return cls(*(np.full(shape, -1, dtype=np.int32) for shape in shapes(info, n)))

    @property
    def n_positions(self) -> int:
        return int(self.experts.shape[1])

    def fits(self, info: ModelInfo) -> bool:
        """Whether they have the model's sizes."""
        wanted = shapes(info, self.n_positions)
        return all(each.shape == shape and each.dtype == np.int32 and each.flags.c_contiguous
                   for each, shape in zip((self.experts, self.rows), wanted, strict=True))


def shapes(info: ModelInfo, n: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Of experts and rows, for n positions."""
    return (info.n_layer, n, info.n_expert_used), (info.layer_ratios.count(SPARSE_RATIO), n, info.index_topk)
