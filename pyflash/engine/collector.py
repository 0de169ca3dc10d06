"""Sums of squares of what matrix products take: what importance matrices are made of."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from pyflash.native.errors import check
from pyflash.native.library import ffi, lib


class Input(IntEnum):
    """What products take. Weights that take the same input are not told apart; D, F and the others are the model's sizes."""

    ATTENTION = lib.PF_INPUT_ATTENTION
    QUERY = lib.PF_INPUT_QUERY
    OUT_GROUPS = lib.PF_INPUT_OUT_GROUPS
    OUT = lib.PF_INPUT_OUT
    FFN = lib.PF_INPUT_FFN
    SHARED_HIDDEN = lib.PF_INPUT_SHARED_HIDDEN
    EXPERTS = lib.PF_INPUT_EXPERTS
    EXPERT_HIDDEN = lib.PF_INPUT_EXPERT_HIDDEN
    EXPERT_HIDDEN_WEIGHTED = lib.PF_INPUT_EXPERT_HIDDEN_WEIGHTED
    ATTENTION_MIX = lib.PF_INPUT_ATTENTION_MIX
    FFN_MIX = lib.PF_INPUT_FFN_MIX
    HEAD = lib.PF_INPUT_HEAD
    HEAD_MIX = lib.PF_INPUT_HEAD_MIX


@dataclass(frozen=True)
class Sums:
    """sums: float64 [matrices, columns]; counts: int64 [matrices], the tokens that they are of. Both are the collector's
    own memory: what is written there goes on from there."""

    sums: npt.NDArray[np.float64]
    counts: npt.NDArray[np.int64]


class Collector:
    """Made by Model.collector(). Collects from a session that is given it, see Session.collect()."""

    def __init__(self, handle: Any) -> None:
        """Not for callers: use Model.collector()."""
        self.handle: Any = handle

    def sums(self, kind: Input, layer: int = -1) -> Sums:
        """Of one input of a layer, or (-1) of a HEAD input. ArgumentError after a step that failed or was cancelled, a part
        of which may be in any of them."""
        found, error = ffi.new("pf_input_sums *"), ffi.new("pf_error *")
        found.struct_size = ffi.sizeof("pf_input_sums")
        check(lib.pf_collector_sums(self.handle, int(kind), layer, found, error), error)
        n_matrices, n_columns = int(found.n_matrices), int(found.n_columns)
        return Sums(self._view(found.sums, np.dtype(np.float64), (n_matrices, n_columns)),
                    self._view(found.counts, np.dtype(np.int64), (n_matrices,)))

    def _view(self, pointer: Any, dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
        handle = self.handle
        kept = ffi.gc(pointer, lambda _pointer: handle and None)  # the memory stays for as long as the array
        return np.frombuffer(ffi.buffer(kept, 8 * math.prod(shape)), dtype=dtype).reshape(shape)
