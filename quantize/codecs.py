"""Reference codecs in numpy: slow, plain, and what the C codecs are tested against.

Formats: e2m1, e4m3 (fn) and e8m0 as in the OCP Microscaling and OFP8 specifications, BF16, and GGUF's block types
MXFP4 (39) and Q8_0 (8). Codes are uint8 arrays of any shape; decoding gives float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from quantize.plan import GGMLType, block_shape

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

BLOCK, MXFP4_BYTES = block_shape(GGMLType.MXFP4)  # BLOCK: values that share a scale in packed FP4, MXFP4 and Q8_0
Q8_0_BYTES = block_shape(GGMLType.Q8_0)[1]
FP8_BLOCK = 128  # rows and columns that share a scale of an FP8 matrix

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
E2M1_VALUES: Floats = np.concatenate([_E2M1, -_E2M1])


def _e4m3_table() -> Floats:
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value[(code & 0x7F) == 0x7F] = np.nan
    table: Floats = np.where(code & 0x80, -value, value).astype(np.float32)
    return table


E4M3_VALUES: Floats = _e4m3_table()


def e2m1_decode(codes: Bytes) -> Floats:
    """Codes 0..15 (sign in bit 3) to their values."""
    return E2M1_VALUES[codes]


def e2m1_encode(values: ArrayLike) -> Bytes:
    """Nearest code, halves to the even mantissa, saturating at 6."""
    values = np.asarray(values, dtype=np.float32)
    magnitude = np.abs(values)
    # Midpoints between neighbours; a tie goes up exactly where the upper neighbour has the even code.
    midpoints = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=np.float32)
    low = np.searchsorted(midpoints, magnitude, side="left")
    high = np.searchsorted(midpoints, magnitude, side="right")
    code = np.where((low != high) & (high % 2 == 0), high, low)
    sign = np.signbit(values).astype(np.uint8) << 3
    result: Bytes = code.astype(np.uint8) | sign
    return result


def e4m3_decode(codes: Bytes) -> Floats:
    """Codes to values; 0x7f and 0xff are NaN."""
    return E4M3_VALUES[codes]


def e4m3_encode(values: ArrayLike) -> Bytes:
    """Nearest code, halves to even, saturating at 448; NaN becomes 0x7f."""
    values = np.asarray(values, dtype=np.float32)
    magnitude = np.minimum(np.abs(values).astype(np.float64), 448.0)
    exponent = np.maximum(np.floor(np.log2(np.maximum(magnitude, 2.0**-20))), -6.0)
    units = np.rint(magnitude * 2.0 ** (3 - exponent))  # 8..16 when normal, 0..8 when denormal
    code = np.where(units < 8, units, (exponent + 6) * 8 + units)
    code = np.where(np.isnan(values), 0x7F, code).astype(np.uint8)
    result: Bytes = code | (np.signbit(values).astype(np.uint8) << 7)
    return result


def e8m0_decode(codes: Bytes) -> Floats:
    """Byte e to 2^(e - 127): byte 0 is a denormal float32, byte 255 is NaN."""
    value = np.ldexp(np.ones(1), np.asarray(codes, dtype=np.int64) - 127).astype(np.float32)
    return np.where(np.asarray(codes) == 255, np.float32(np.nan), value)


def bf16_decode(codes: NDArray[np.uint16]) -> Floats:
    return (codes.astype(np.uint32) << 16).view(np.float32)


def bf16_encode(values: ArrayLike) -> NDArray[np.uint16]:
    """Round to nearest even; NaN stays a quiet NaN."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits.astype(np.uint64) + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where((bits & 0x7FFFFFFF) > 0x7F800000, bits >> 16 | 0x40, rounded).astype(np.uint16)


def fp4_unpack(packed: Bytes) -> Bytes:
    """[..., n] bytes to [..., 2n] codes: the low nibble is the first of the two."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


def fp4_pack(codes: Bytes) -> Bytes:
    """[..., 2n] codes to [..., n] bytes."""
    packed: Bytes = codes[..., 0::2] | codes[..., 1::2] << np.uint8(4)
    return packed


def fp4_decode(packed: Bytes, scales: Bytes) -> Floats:
    """[rows, cols/2] packed codes with [rows, cols/32] e8m0 scales to [rows, cols]."""
    return e2m1_decode(fp4_unpack(packed)) * np.repeat(e8m0_decode(scales), BLOCK, axis=-1)


def fp8_decode(codes: Bytes, scales: NDArray[Any]) -> Floats:
    """[rows, cols] e4m3 codes to values. scales [ceil(rows/128), ceil(cols/128)]: uint8 are e8m0, else floats."""
    factors = e8m0_decode(scales) if scales.dtype == np.uint8 else scales.astype(np.float32)
    rows, cols = codes.shape
    factors = np.repeat(np.repeat(factors, FP8_BLOCK, axis=0)[:rows], FP8_BLOCK, axis=1)[:, :cols]
    return e4m3_decode(codes) * factors


def mxfp4_encode(packed: Bytes, scales: Bytes) -> Bytes:
    """[blocks, 16] packed codes and [blocks] e8m0 scales to [blocks, 17]: codes and scales unchanged."""
    codes = fp4_unpack(packed)
    return np.concatenate([scales[:, None], codes[:, :16] | codes[:, 16:] << 4], axis=1)


def mxfp4_unpack(blocks: Bytes) -> tuple[Bytes, Bytes]:
    """[blocks, 17] to ([blocks, 16] packed codes, [blocks] scales)."""
    codes = np.concatenate([blocks[:, 1:] & 15, blocks[:, 1:] >> 4], axis=1)
    return fp4_pack(codes), blocks[:, 0]


def mxfp4_decode(blocks: Bytes) -> Floats:
    """[blocks, 17] to [blocks, 32]: e2m1 * 2^(e - 127)."""
    packed, scales = mxfp4_unpack(blocks)
    return fp4_decode(packed, scales[:, None])


def q8_0_encode(values: Floats) -> Bytes:
    """[blocks, 32] to [blocks, 34]: a float16 scale amax/127, then codes rounded with halves away from zero."""
    values = np.asarray(values, dtype=np.float32)
    scale = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(scale > 2.0**-128, np.float32(1) / scale, np.float32(0)).astype(np.float32)
        half = scale.astype(np.float16)
    scaled = (values * inverse).astype(np.float64)
    codes = (np.sign(scaled) * np.floor(np.abs(scaled) + 0.5)).astype(np.int8)
    return np.concatenate([half.view(np.uint8), codes.view(np.uint8)], axis=1)


def q8_0_decode(blocks: Bytes) -> Floats:
    """[blocks, 34] to [blocks, 32]."""
    scale = np.ascontiguousarray(blocks[:, :2]).view(np.float16).astype(np.float32)
    return np.ascontiguousarray(blocks[:, 2:]).view(np.int8).astype(np.float32) * scale
