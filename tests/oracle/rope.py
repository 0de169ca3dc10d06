"""Rotary embedding of the last r dims, adjacent pairs, angles in double."""

from __future__ import annotations

import math

import numpy as np

from .config import OracleConfig


def frequencies(config: OracleConfig, ratio: int) -> np.ndarray:
    """Radians per position [r/2]. Layers with compressed rows: their own base, and YaRN with no magnitude factor."""
    r = config.qk_rope_head_dim
    base = config.compress_rope_theta if ratio else config.rope_theta
    freq = float(base) ** (-np.arange(0, r, 2, dtype=np.float64) / r)
    scaling = config.rope_scaling
    if not ratio or not scaling:
        return freq

    def correction_dim(rotations: float) -> float:
        length = scaling["original_max_position_embeddings"]
        return r * math.log(length / (2 * math.pi * rotations)) / (2 * math.log(base))

    # The clamps to [0, r-1] are those of transformers; they act only far from the published sizes.
    low = max(math.floor(correction_dim(scaling["beta_fast"])), 0)
    high = min(math.ceil(correction_dim(scaling["beta_slow"])), r - 1)
    weight = 1 - np.clip((np.arange(r // 2) - low) / max(high - low, 0.001), 0, 1)
    return freq * weight + freq / scaling["factor"] * (1 - weight)


def rotate(x: np.ndarray, positions: np.ndarray, freq: np.ndarray, inverse: bool = False) -> np.ndarray:
    """Rotates the last 2*len(freq) dims of x [T, ..., d] by positions [T]; inverse undoes it."""
    angle = positions.astype(np.float64)[:, None] * freq
    angle = angle.reshape(len(x), *([1] * (x.ndim - 2)), len(freq))
    cos, sin = np.cos(angle), np.sin(angle)
    if inverse:
        sin = -sin
    out = x.copy()
    start = x.shape[-1] - 2 * len(freq)
    even, odd = x[..., start::2], x[..., start + 1 :: 2]
    out[..., start::2] = even * cos - odd * sin
    out[..., start + 1 :: 2] = even * sin + odd * cos
    return out
