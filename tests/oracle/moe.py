"""Mixture of experts: hash or score routing, routed experts, one shared expert."""

from __future__ import annotations

import numpy as np

from .attention import Context
from .choices import Choices, choose
from .mhc import sigmoid


def expert(ctx: Context, x: np.ndarray, prefix: str) -> np.ndarray:
    """SwiGLU with clamped halves: x [T, D] -> [T, D]."""
    limit = ctx.config.swiglu_limit
    gate = np.minimum(ctx.w.linear(x, prefix + "w1"), limit)
    up = np.clip(ctx.w.linear(x, prefix + "w3"), -limit, limit)
    return ctx.w.linear(gate * sigmoid(gate) * up, prefix + "w2")


def moe(ctx: Context, x: np.ndarray, tokens: np.ndarray) -> tuple[np.ndarray, list[Choices]]:
    """x [T, D] normalised block input, tokens [T] -> [T, D], and the router's choices unless they come from a table."""
    config, w = ctx.config, ctx.w
    choices: list[Choices] = []
    scores = np.sqrt(np.logaddexp(0, w.linear(x, "ffn.gate")))
    if w.has("ffn.gate.tid2eid"):
        ids = w["ffn.gate.tid2eid"][tokens].astype(np.int32)
    else:
        everyone = np.full(len(x), config.n_routed_experts)
        selection = scores + w["ffn.gate.bias"]
        chosen, record = choose("experts", ctx.layer, selection, config.num_experts_per_tok, everyone, ctx.forced)
        ids = np.stack(chosen).astype(np.int32)
        choices.append(record)
    weight = np.take_along_axis(scores, ids, axis=1)
    weight = config.routed_scaling_factor * weight / weight.sum(-1, keepdims=True)
    ctx.tap("router", scores)
    ctx.tap("experts", ids)
    ctx.tap("expert_w", weight)

    out = expert(ctx, x, "ffn.shared_experts.")
    for e in np.unique(ids):
        token, slot = np.nonzero(ids == e)
        y = expert(ctx, x[token], f"ffn.experts.{e}.") * weight[token, slot, None]
        np.add.at(out, token, y)  # a table may name an expert twice for one token
    return out, choices
