"""Manifold-constrained hyper-connections: N residual streams mixed around every block."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .config import OracleConfig


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _mixes(streams: np.ndarray, fn: np.ndarray, eps: float) -> np.ndarray:
    """fn applied to the RMS-normalised flat streams: streams [T, N, D], fn [M, N*D] -> [T, M]."""
    flat = streams.reshape(len(streams), -1)
    return flat @ fn.T / np.sqrt((flat**2).mean(-1, keepdims=True) + eps)


def pre(
    config: OracleConfig, weights: Mapping[str, np.ndarray], prefix: str, streams: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Block input [T, D], post weights [T, N] and mixing matrix [T, N, N] (from, to) of the site `prefix`."""
    n, eps = config.hc_mult, config.hc_eps
    scale, base = weights[prefix + "_scale"], weights[prefix + "_base"]
    m = _mixes(streams, weights[prefix + "_fn"], config.rms_norm_eps)
    pre_w = sigmoid(m[:, :n] * scale[0] + base[:n]) + eps
    post_w = 2 * sigmoid(m[:, n : 2 * n] * scale[1] + base[n : 2 * n])
    logits = (m[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(-1, n, n)
    comb = np.exp(logits - logits.max(-1, keepdims=True))
    comb = comb / comb.sum(-1, keepdims=True) + eps
    comb = comb / (comb.sum(1, keepdims=True) + eps)
    for _ in range(config.hc_sinkhorn_iters - 1):
        comb = comb / (comb.sum(2, keepdims=True) + eps)
        comb = comb / (comb.sum(1, keepdims=True) + eps)
    return np.einsum("tn,tnd->td", pre_w, streams), post_w, comb


def post(y: np.ndarray, post_w: np.ndarray, comb: np.ndarray, streams: np.ndarray) -> np.ndarray:
    """New streams [T, N, D] from the block output y [T, D]: sums over the first index of comb."""
    return post_w[:, :, None] * y[:, None, :] + np.matmul(comb.transpose(0, 2, 1), streams)


def head(config: OracleConfig, weights: Mapping[str, np.ndarray], prefix: str, streams: np.ndarray) -> np.ndarray:
    """The streams collapsed to [T, D] before the final norm."""
    m = _mixes(streams, weights[prefix + "hc_head_fn"], config.rms_norm_eps)
    w = sigmoid(m * weights[prefix + "hc_head_scale"] + weights[prefix + "hc_head_base"]) + config.hc_eps
    return np.einsum("tn,tnd->td", w, streams)
