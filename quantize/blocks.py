"""ggml's block formats: blocks to floats, and floats to the formats that files of few bits have.

The searches are the library's (csrc/quantize); they release the interpreter lock, so that threads may share work out by
rows. The same rows give the same bytes on every machine.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pyflash.native.block_types import BLOCK_TYPES
from pyflash.native.errors import ArgumentError, check
from pyflash.native.library import ffi, lib

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

# The types that quantise() writes, smallest first.
WRITABLE = {"IQ2_XXS": 16, "IQ2_XS": 17, "IQ2_S": 22, "Q2_K": 10, "IQ3_XXS": 18, "IQ3_S": 21, "Q3_K": 11, "Q4_K": 12,
            "Q5_K": 13, "Q6_K": 14}  # fmt: skip


class Objective(IntEnum):
    """What a quantiser makes least, summed over a row: importance times error squared (PLAIN), or that times the root of
    the block's mean square plus the value's own (GGML), as llama.cpp does. UNBIASED: as PLAIN, and then the row gets the
    length back that least squares takes from it."""

    PLAIN = lib.PF_OBJECTIVE_PLAIN
    GGML = lib.PF_OBJECTIVE_GGML
    UNBIASED = lib.PF_OBJECTIVE_UNBIASED


def decode(kind: int, blocks: Bytes) -> Floats:
    """The values of blocks of a ggml type by its number, [n]; the bits of ggml's own decoders. UnsupportedError for types
    without blocks, ArgumentError for bytes that are no whole number of blocks."""
    known = BLOCK_TYPES.get(kind)
    block_bytes = known.bytes if known is not None and known.values > 1 else 0
    data = np.ascontiguousarray(blocks, dtype=np.uint8).reshape(-1)
    if block_bytes and data.size % block_bytes:
        raise ArgumentError(f"{data.size} bytes are no whole number of blocks of {block_bytes}")
    n_blocks = data.size // block_bytes if block_bytes else 0
    out = np.empty(n_blocks * (known.values if known is not None else 0), dtype=np.float32)
    error = ffi.new("pf_error *")
    check(lib.pf_codec_decode(kind, ffi.from_buffer("uint8_t[]", data), n_blocks, ffi.from_buffer("float[]", out), error),
          error)  # fmt: skip
    return out


def quantise(kind: int, rows: Floats, importance: Floats | None = None, objective: Objective = Objective.PLAIN) -> Bytes:
    """Rows [n, columns] as blocks of a type of WRITABLE, [n, bytes of a row]; columns must be a multiple of 256.

    importance [columns]: what an error of each column weighs; None: all the same. ArgumentError for numbers that are not
    finite, UnsupportedError for other types.
    """
    data = np.ascontiguousarray(rows, dtype=np.float32)
    if data.ndim != 2:
        raise ArgumentError("rows must be an array of two dimensions")
    n_rows, n_cols = data.shape
    known = BLOCK_TYPES.get(kind)
    row_bytes = n_cols // known.values * known.bytes if known is not None and known.values else 0
    out = np.empty((n_rows, row_bytes), dtype=np.uint8)
    weights = ffi.NULL
    if importance is not None:
        kept = np.ascontiguousarray(importance, dtype=np.float32)
        if kept.shape != (n_cols,):
            raise ArgumentError(f"importance has the shape {kept.shape}, and rows have {n_cols} columns")
        weights = ffi.from_buffer("float[]", kept)
    error = ffi.new("pf_error *")
    check(lib.pf_codec_quantize(kind, int(objective), ffi.from_buffer("float[]", data), weights, n_rows, n_cols,
                                ffi.from_buffer("uint8_t[]", out, require_writable=True), error), error)  # fmt: skip
    return out
