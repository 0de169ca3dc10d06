"""Attention of one layer: sliding window, compressed rows (CSA, HCA), lightning indexer, grouped output."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import rope
from .choices import Choices, Forced, choose
from .config import OracleConfig
from .numerics import Numerics
from .taps import Taps
from .layer_weights import LayerWeights, rms_norm

QUERY_BLOCK = 256  # queries scored at once, which bounds the score matrix


@dataclass
class Context:
    """What every part of a layer needs."""

    config: OracleConfig
    w: LayerWeights
    layer: int
    ratio: int
    numerics: Numerics
    taps: Taps | None
    forced: Forced | None

    def tap(self, name: str, values, positions=None) -> None:  # noqa: ANN001
        if self.taps is not None:
            self.taps.record(name, self.layer, values, positions)


def compressed_rows(ctx: Context, x: np.ndarray, prefix: str, width: int) -> np.ndarray:
    """All complete rows of a compressor, [T // ratio, width], normalised and rotated. x [T, D]."""
    config, w, ratio = ctx.config, ctx.w, ctx.ratio
    n = len(x) // ratio
    if n == 0:
        return np.zeros((0, width))
    x = x[: n * ratio]
    a = w.linear(x, prefix + "wkv").reshape(n, ratio, -1)
    g = w.linear(x, prefix + "wgate").reshape(n, ratio, -1) + w[prefix + "ape"]
    if a.shape[-1] == 2 * width:  # overlapping: first half of the previous window, second half of this one
        absent_a, absent_g = np.zeros((1, ratio, width)), np.full((1, ratio, width), -np.inf)
        a = np.concatenate([np.concatenate([absent_a, a[:-1, :, :width]]), a[:, :, width:]], axis=1)
        g = np.concatenate([np.concatenate([absent_g, g[:-1, :, :width]]), g[:, :, width:]], axis=1)
    p = np.exp(g - g.max(1, keepdims=True))
    row = (p / p.sum(1, keepdims=True) * a).sum(1)
    row = rms_norm(row, config.rms_norm_eps) * w[prefix + "norm.weight"]
    return rope.rotate(row, np.arange(n) * ratio, rope.frequencies(config, ratio))


def select_rows(ctx: Context, x: np.ndarray, qr: np.ndarray) -> tuple[list[np.ndarray], Choices]:
    """Lightning indexer: for each token the ids of the compressed rows it attends to, ascending."""
    config, w, numerics = ctx.config, ctx.w, ctx.numerics
    heads, width = config.index_n_heads, config.index_head_dim
    n_tokens = len(x)
    positions = np.arange(n_tokens)
    q = w.linear(qr, "attn.indexer.wq_b").reshape(n_tokens, heads, width)
    q = numerics.index_vector(rope.rotate(q, positions, rope.frequencies(config, ctx.ratio)))
    rows = numerics.index_vector(compressed_rows(ctx, x, "attn.indexer.compressor.", width))
    weight = w.linear(x, "attn.indexer.weights_proj") / np.sqrt(width * heads)
    scores = np.zeros((n_tokens, len(rows)))
    for start in range(0, n_tokens, QUERY_BLOCK):
        part = slice(start, start + QUERY_BLOCK)
        dots = np.maximum(q[part] @ rows.T, 0)  # [B, Hi, rows]
        scores[part] = np.einsum("th,thr->tr", weight[part], dots)
    ctx.tap("idx_q", q)
    ctx.tap("idx_row", rows, (np.arange(len(rows)) + 1) * ctx.ratio - 1)
    ctx.tap("idx_w", weight)
    visible = (positions + 1) // ctx.ratio
    ids, record = choose("topk", ctx.layer, scores, config.index_topk, visible, ctx.forced)
    ids = [np.sort(i).astype(np.int32) for i in ids]
    ctx.tap("topk", ids)
    return ids, record


def sparse_attention(
    config: OracleConfig, q: np.ndarray, kv: np.ndarray, rows: np.ndarray, allowed: np.ndarray, sink: np.ndarray
) -> np.ndarray:
    """o [T, H, d] from q [T, H, d], window rows kv [T, d], compressed rows [R, d] and their mask allowed [T, R]."""
    n_tokens, n_heads, width = q.shape
    out = np.empty_like(q)
    for start in range(0, n_tokens, QUERY_BLOCK):
        stop = min(start + QUERY_BLOCK, n_tokens)
        first = max(0, start - config.sliding_window + 1)
        keys = np.concatenate([kv[first:stop], rows])
        age = np.arange(start, stop)[:, None] - np.arange(first, stop)[None, :]
        mask = np.concatenate([(age >= 0) & (age < config.sliding_window), allowed[start:stop]], axis=1)
        s = (q[start:stop].reshape(-1, width) @ keys.T).reshape(stop - start, n_heads, -1) / np.sqrt(width)
        s = np.where(mask[:, None, :], s, -np.inf)
        top = np.maximum(s.max(-1), sink)
        p = np.exp(s - top[:, :, None])
        p /= (p.sum(-1) + np.exp(sink - top))[:, :, None]
        out[start:stop] = (p.reshape(-1, len(keys)) @ keys).reshape(stop - start, n_heads, width)
    return out


def attention(ctx: Context, x: np.ndarray) -> tuple[np.ndarray, list[Choices]]:
    """Attention of a whole sequence: x [T, D] normalised block input -> [T, D], and the indexer's choices if any."""
    config, w, ratio, numerics = ctx.config, ctx.w, ctx.ratio, ctx.numerics
    n_tokens, d, r = len(x), config.head_dim, config.qk_rope_head_dim
    positions = np.arange(n_tokens)
    freq = rope.frequencies(config, ratio)
    eps = config.rms_norm_eps

    qr = rms_norm(w.linear(x, "attn.wq_a"), eps) * w["attn.q_norm.weight"]
    q = rms_norm(w.linear(qr, "attn.wq_b").reshape(n_tokens, -1, d), eps)
    q = rope.rotate(q, positions, freq)
    kv = rms_norm(w.linear(x, "attn.wkv"), eps) * w["attn.kv_norm.weight"]
    kv = numerics.kv_row(rope.rotate(kv, positions, freq), r)
    ctx.tap("q_lora", qr)
    ctx.tap("q", q)
    ctx.tap("kv", kv)

    choices: list[Choices] = []
    rows = np.zeros((0, d))
    allowed = np.zeros((n_tokens, 0), dtype=bool)
    if ratio:
        rows = numerics.kv_row(compressed_rows(ctx, x, "attn.compressor.", d), r)
        ctx.tap("comp_row", rows, (np.arange(len(rows)) + 1) * ratio - 1)
        allowed = np.arange(len(rows))[None, :] < ((positions + 1) // ratio)[:, None]
    if w.has("attn.indexer.wq_b.weight"):
        ids, record = select_rows(ctx, x, qr)
        choices.append(record)
        allowed = np.zeros_like(allowed)
        for t, selected in enumerate(ids):
            allowed[t, selected] = True

    o = sparse_attention(config, q, kv, rows, allowed, w["attn.attn_sink"])
    o = rope.rotate(o, positions, freq, inverse=True)
    ctx.tap("attn_o", o)
    groups = o.reshape(n_tokens, config.o_groups, -1)
    wo_a = w["attn.wo_a.weight"].reshape(config.o_groups, config.o_lora_rank, -1)
    groups = numerics.linear_input(groups, "attn.wo_a")
    z = np.matmul(groups.transpose(1, 0, 2), wo_a.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(n_tokens, -1)
    return w.linear(z, "attn.wo_b"), choices
