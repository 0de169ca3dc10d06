"""Optional roundings. Pure float64 by default; the others simulate what a quantised cache or activation does.

The rules of FP8 and FP4 are those of the published inference reference: a power-of-two scale per block,
2^ceil(log2(max|x| / largest value of the format)).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np


def _blocks(x: np.ndarray, size: int) -> np.ndarray:
    """View of the last axis as blocks, zero-padded: [..., n, size]."""
    pad = -x.shape[-1] % size
    if pad:
        x = np.concatenate([x, np.zeros((*x.shape[:-1], pad))], axis=-1)
    return x.reshape(*x.shape[:-1], -1, size)


def _unblock(blocks: np.ndarray, width: int) -> np.ndarray:
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :width]


def _round_minifloat(x: np.ndarray, mantissa_bits: int, min_exponent: int, largest: float) -> np.ndarray:
    """Nearest value (ties to even) with that many stored mantissa bits, saturating; subnormals included."""
    x = np.clip(x, -largest, largest)
    exponent = np.maximum(np.frexp(x)[1] - 1, min_exponent)
    step = np.ldexp(1.0, exponent - mantissa_bits)
    return np.rint(x / step) * step


def _power_of_two_scale(amax: np.ndarray, largest: float) -> np.ndarray:
    mantissa, exponent = np.frexp(amax / largest)
    return np.ldexp(1.0, np.where(mantissa == 0.5, exponent - 1, exponent))


def fp8(x: np.ndarray, block: int) -> np.ndarray:
    """x rounded to e4m3 with one power-of-two scale per block of the last axis."""
    b = _blocks(x, block)
    scale = _power_of_two_scale(np.maximum(np.abs(b).max(-1, keepdims=True), 1e-4), 448.0)
    return _unblock(_round_minifloat(b / scale, 3, -6, 448.0) * scale, x.shape[-1])


def fp4(x: np.ndarray, block: int = 32) -> np.ndarray:
    """x rounded to e2m1 with one power-of-two scale per block of the last axis."""
    b = _blocks(x, block)
    scale = _power_of_two_scale(np.maximum(np.abs(b).max(-1, keepdims=True), 6 * 2.0**-126), 6.0)
    return _unblock(_round_minifloat(b / scale, 1, 0, 6.0) * scale, x.shape[-1])


def int8(x: np.ndarray, block: int = 32) -> np.ndarray:
    """x rounded to 8-bit integers with scale max|x|/127 per block of the last axis."""
    b = _blocks(x, block)
    scale = np.abs(b).max(-1, keepdims=True) / 127
    return _unblock(np.rint(b / np.where(scale == 0, 1, scale)) * scale, x.shape[-1])


def bf16(x: np.ndarray) -> np.ndarray:
    """x rounded to bfloat16."""
    return _round_minifloat(x, 7, -126, float(np.finfo(np.float32).max))


def hadamard(x: np.ndarray) -> np.ndarray:
    """Sylvester's transform of the last axis (a power of two wide), orthonormal."""
    width = x.shape[-1]
    if width & (width - 1):
        raise ValueError(f"Hadamard transform needs a power of two, not {width}")
    matrix = np.ones((1, 1))
    while len(matrix) < width:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return x @ matrix / np.sqrt(width)


@dataclass(frozen=True)
class Numerics:
    """Which roundings to simulate; all off is the pure model.

    kv_fp8: window and compressed rows in e4m3 per 64 values, rotary dims in bf16 (the published reference).
    idx_fp4: indexer queries and rows in e2m1 per 32 after a Hadamard transform (the published reference).
    kv_f16, kv_bf16: whole rows in that format instead.
    act_int8, act_fp8: inputs of the linear layers whose weight name matches this regular expression are rounded to
    int8 per 32 values, or e4m3 per 128.
    """

    kv_fp8: bool = False
    idx_fp4: bool = False
    kv_f16: bool = False
    kv_bf16: bool = False
    act_int8: str | None = None
    act_fp8: str | None = None

    def kv_row(self, row: np.ndarray, rope_dim: int) -> np.ndarray:
        """A cache row [..., d] as it is read back."""
        if self.kv_fp8:
            return np.concatenate([fp8(row[..., :-rope_dim], 64), bf16(row[..., -rope_dim:])], axis=-1)
        if self.kv_bf16:
            return bf16(row)
        return row.astype(np.float16).astype(np.float64) if self.kv_f16 else row

    def index_vector(self, x: np.ndarray) -> np.ndarray:
        """An indexer query or row [..., di] as the score sees it."""
        return fp4(hadamard(x)) if self.idx_fp4 else x

    def linear_input(self, x: np.ndarray, weight_name: str) -> np.ndarray:
        """The input [..., K] of the layer with that weight."""
        if self.act_int8 and re.search(self.act_int8, weight_name):
            return int8(x)
        if self.act_fp8 and re.search(self.act_fp8, weight_name):
            return fp8(x, 128)
        return x
