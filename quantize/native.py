"""The C codecs on caller-owned numpy arrays. Each call releases the interpreter lock and allocates nothing.

Arrays must be C-contiguous and large enough; the functions check both, because the C side cannot.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyflash.native.library import ffi, lib
from quantize.codecs import BLOCK, FP8_BLOCK, MXFP4_BYTES, Q8_0_BYTES


def _pointer(kind: str, array: NDArray[Any], least: int, dtype: type[np.generic], writable: bool = False) -> Any:
    if array.dtype != dtype or array.size < least or not array.flags.c_contiguous:
        raise ValueError(f"codec needs a contiguous {dtype.__name__} array of {least} elements")
    return ffi.from_buffer(f"{kind}[]", array, require_writable=writable)


def _blocks(n_values: int) -> int:
    if n_values % BLOCK:
        raise ValueError(f"{n_values} values are no whole number of blocks of {BLOCK}")
    return n_values // BLOCK


def fp4_to_mxfp4(packed: NDArray[Any], scales: NDArray[Any], n_values: int, out: NDArray[Any]) -> None:
    n = _blocks(n_values)
    lib.pf_codec_fp4_to_mxfp4(
        _pointer("uint8_t", packed, n * 16, np.uint8),
        _pointer("uint8_t", scales, n, np.uint8),
        n,
        _pointer("uint8_t", out, n * MXFP4_BYTES, np.uint8, writable=True),
    )


def mxfp4_to_fp4(blocks: NDArray[Any], n_values: int, packed: NDArray[Any], scales: NDArray[Any]) -> None:
    n = _blocks(n_values)
    lib.pf_codec_mxfp4_to_fp4(
        _pointer("uint8_t", blocks, n * MXFP4_BYTES, np.uint8),
        n,
        _pointer("uint8_t", packed, n * 16, np.uint8, writable=True),
        _pointer("uint8_t", scales, n, np.uint8, writable=True),
    )


def mxfp4_to_f32(blocks: NDArray[Any], n_values: int, out: NDArray[Any]) -> None:
    n = _blocks(n_values)
    lib.pf_codec_mxfp4_to_f32(
        _pointer("uint8_t", blocks, n * MXFP4_BYTES, np.uint8),
        n,
        _pointer("float", out, n_values, np.float32, writable=True),
    )


def fp8_to_f32(
    codes: NDArray[Any], scales: NDArray[Any], row0: int, n_rows: int, cols: int, out: NDArray[Any]
) -> None:
    """codes holds rows [row0, row0 + n_rows); scales the whole matrix's: uint8 (e8m0) or float32."""
    is_f32 = scales.dtype == np.float32
    n_scales = -(-(row0 + n_rows) // FP8_BLOCK) * -(-cols // FP8_BLOCK)
    lib.pf_codec_fp8_to_f32(
        _pointer("uint8_t", codes, n_rows * cols, np.uint8),
        _pointer("uint8_t", scales, n_scales, np.float32 if is_f32 else np.uint8),
        int(is_f32),
        row0,
        n_rows,
        cols,
        _pointer("float", out, n_rows * cols, np.float32, writable=True),
    )


def f32_to_bf16(values: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    lib.pf_codec_f32_to_bf16(
        _pointer("float", values, n, np.float32), n, _pointer("uint16_t", out, n, np.uint16, writable=True)
    )


def bf16_to_f32(codes: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    lib.pf_codec_bf16_to_f32(
        _pointer("uint16_t", codes, n, np.uint16), n, _pointer("float", out, n, np.float32, writable=True)
    )


def f32_to_q8_0(values: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    blocks = _blocks(n)
    lib.pf_codec_f32_to_q8_0(
        _pointer("float", values, n, np.float32),
        blocks,
        _pointer("uint8_t", out, blocks * Q8_0_BYTES, np.uint8, writable=True),
    )


def q8_0_to_f32(blocks: NDArray[Any], n: int, out: NDArray[Any]) -> None:
    count = _blocks(n)
    lib.pf_codec_q8_0_to_f32(
        _pointer("uint8_t", blocks, count * Q8_0_BYTES, np.uint8),
        count,
        _pointer("float", out, n, np.float32, writable=True),
    )
