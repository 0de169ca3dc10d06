"""Residual streams on their way from stage to stage: what goes into a message, and what comes out of it again.

Ray writes arguments of up to 100 KB into the message itself, and puts longer ones into the machine's object store, from where
the next machine has to fetch them: that costs further messages. So the streams of few tokens go a token an argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from pyflash.native.values import FloatArray

Precision = Literal["float32", "bfloat16"]
PRECISIONS: Final = ("float32", "bfloat16")

_MOST_ROWS: Final = 64  # tokens that go one by one
_INLINED: Final = 100_000  # bytes of an argument that Ray writes into the message


def pack(found: Sequence[FloatArray | None], precision: Precision = "float32") -> list[np.ndarray]:
    """Streams [n, N, D] of shares, as a message's arguments. None: of a share that is out."""
    rows = [each for each in found if each is not None]
    if not rows:
        return []
    joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
    if precision == "bfloat16":
        joined = to_bfloat16(joined)
    if len(joined) <= _MOST_ROWS and joined[:1].nbytes < _INLINED:
        return list(joined)
    return [joined]


def unpack(arrays: Sequence[np.ndarray], counts: Sequence[int]) -> list[FloatArray | None]:
    """The streams of shares again. counts: tokens of each, 0 for one that is out."""
    if not arrays:
        return [None] * len(counts)
    joined = np.stack(arrays) if arrays[0].ndim == 2 else arrays[0]
    if joined.dtype == np.uint16:
        joined = from_bfloat16(joined)
    found: list[FloatArray | None] = []
    begin = 0
    for n in counts:
        found.append(joined[begin : begin + n] if n else None)
        begin += n
    return found


def to_bfloat16(values: FloatArray) -> np.ndarray:
    """The upper halves of floats, rounded to the nearest, to even between two; NaN stays one."""
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def from_bfloat16(halves: np.ndarray) -> FloatArray:
    return (halves.astype(np.uint32) << 16).view(np.float32)
