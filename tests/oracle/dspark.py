"""DSpark in float64, stateless: the rows that each stage keeps of a sequence, and a draft behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import mhc, rope
from .attention import Context
from .choices import Choices, Forced
from .layer_weights import LayerWeights, rms_norm
from .mhc import sigmoid
from .model import Oracle
from .moe import moe


@dataclass
class SparkDraft:
    """Of the block's rows: hidden [block, D] before the head's norm, logits [block, vocab] before and after the Markov
    correction, the likeliest tokens and their confidences. context: each stage's rows [n, d] of the tokens before, the
    first of which is at context_begin. margin: how near a choice of experts was to another."""

    hidden: np.ndarray
    logits: np.ndarray
    corrected: np.ndarray
    tokens: list[int]
    confidence: np.ndarray
    context: list[np.ndarray]
    context_begin: int
    margin: float


class SparkOracle:
    """The stages mtp.0 and on of a checkpoint, over an Oracle of the model."""

    def __init__(self, oracle: Oracle, config: Mapping[str, Any]) -> None:
        """config: of config.json, with the dspark keys."""
        self.oracle = oracle
        self.block = int(config["dspark_block_size"])
        self.noise = int(config["dspark_noise_token_id"])
        self.targets = list(config["dspark_target_layer_ids"])
        self.n_stages = len(config["compress_ratios"]) - int(config["num_hidden_layers"])

    def features(self, tokens: Sequence[int], forced: Forced | None = None) -> np.ndarray:
        """main_x [T, D]: what the target layers put out, projected and normalised."""
        oracle, config = self.oracle, self.oracle.config
        w = LayerWeights(oracle.weights, "mtp.0.", oracle.numerics)
        embed = oracle.weights["embed.weight"][np.asarray(tokens)]
        streams = np.repeat(embed[:, None, :], config.hc_mult, axis=1)
        seen = {}
        for layer in range(config.num_hidden_layers):
            streams = oracle._block(f"layers.{layer}.", layer, streams, np.asarray(tokens), None, forced)
            if layer in self.targets:
                seen[layer] = streams.mean(1)
        stacked = np.concatenate([seen[layer] for layer in self.targets], axis=-1)
        return rms_norm(w.linear(stacked, "main_proj"), config.rms_norm_eps) * w["main_norm.weight"]

    def _rows(self, w: LayerWeights, x: np.ndarray, first: int) -> np.ndarray:
        """A stage's rows of inputs x [n, D] at positions from first on."""
        config, numerics = self.oracle.config, self.oracle.numerics
        kv = rms_norm(w.linear(x, "attn.wkv"), config.rms_norm_eps) * w["attn.kv_norm.weight"]
        positions = first + np.arange(len(x))
        return numerics.kv_row(rope.rotate(kv, positions, rope.frequencies(config, 0)), config.qk_rope_head_dim)

    def _attention(self, ctx: Context, x: np.ndarray, context: np.ndarray, first: int) -> np.ndarray:
        """Every row of the block sees the same context and all of the block."""
        config, w = self.oracle.config, ctx.w
        d, eps, n = config.head_dim, config.rms_norm_eps, len(x)
        freq, positions = rope.frequencies(config, 0), first + np.arange(n)
        low = rms_norm(w.linear(x, "attn.wq_a"), eps) * w["attn.q_norm.weight"]
        q = rope.rotate(rms_norm(w.linear(low, "attn.wq_b").reshape(n, -1, d), eps), positions, freq)
        keys = np.concatenate([context, self._rows(w, x, first)])
        s = np.einsum("thd,kd->thk", q, keys) / np.sqrt(d)
        sink = w["attn.attn_sink"]
        top = np.maximum(s.max(-1), sink)
        p = np.exp(s - top[:, :, None])
        p /= (p.sum(-1) + np.exp(sink - top))[:, :, None]
        o = rope.rotate(np.einsum("thk,kd->thd", p, keys), positions, freq, inverse=True)
        groups = self.oracle.numerics.linear_input(o.reshape(n, config.o_groups, -1), "attn.wo_a")
        wo_a = w["attn.wo_a.weight"].reshape(config.o_groups, config.o_lora_rank, -1)
        return w.linear(np.einsum("tgi,goi->tgo", groups, wo_a).reshape(n, -1), "attn.wo_b")

    def _stage(self, stage: int, streams: np.ndarray, ids: np.ndarray, context: np.ndarray, first: int,
               choices: list[Choices]) -> np.ndarray:
        config, oracle = self.oracle.config, self.oracle
        w = LayerWeights(oracle.weights, f"mtp.{stage}.", oracle.numerics)
        ctx = Context(config, w, config.num_hidden_layers + stage, 0, oracle.numerics, None, None)
        x, post, comb = mhc.pre(config, w, "hc_attn", streams)
        x = rms_norm(x, config.rms_norm_eps) * w["attn_norm.weight"]
        streams = mhc.post(self._attention(ctx, x, context, first), post, comb, streams)
        x, post, comb = mhc.pre(config, w, "hc_ffn", streams)
        x = rms_norm(x, config.rms_norm_eps) * w["ffn_norm.weight"]
        y, chosen = moe(ctx, x, ids)
        choices += chosen
        return mhc.post(y, post, comb, streams)

    def draft(self, features: np.ndarray, anchor: int, context_begin: int = 0) -> SparkDraft:
        """Behind the tokens that features [T, D] are of; anchor: the token at T. context_begin: rows before are not there."""
        oracle, config = self.oracle, self.oracle.config
        first, last = len(features), f"mtp.{self.n_stages - 1}."
        begin = max(context_begin, first - config.sliding_window)
        ids = np.array([anchor, *[self.noise] * (self.block - 1)])
        streams = np.repeat(oracle.weights["embed.weight"][ids][:, None, :], config.hc_mult, axis=1)
        choices: list[Choices] = []
        contexts = []
        for stage in range(self.n_stages):
            w = LayerWeights(oracle.weights, f"mtp.{stage}.", oracle.numerics)
            contexts.append(self._rows(w, features[begin:], begin))
            streams = self._stage(stage, streams, ids, contexts[-1], first, choices)
        hidden = mhc.head(config, oracle.weights, last, streams)
        normed = rms_norm(hidden, config.rms_norm_eps) * oracle.weights[last + "norm.weight"]
        logits = oracle.numerics.linear_input(normed, "head") @ oracle.weights["head.weight"].T
        w1 = oracle.weights[last + "markov_head.markov_w1.weight"]
        w2 = oracle.weights[last + "markov_head.markov_w2.weight"]
        proj = oracle.weights[last + "confidence_head.proj.weight"].reshape(-1)
        corrected, tokens, confidence, previous = [], [], [], anchor
        for row in range(self.block):
            corrected.append(logits[row] + w2 @ w1[previous])
            confidence.append(sigmoid(proj @ np.concatenate([hidden[row], w1[previous]])))
            previous = int(np.argmax(corrected[-1]))
            tokens.append(previous)
        margin = min(float((choice.margin / choice.scale).min()) for choice in choices)
        return SparkDraft(hidden, logits, np.stack(corrected), tokens, np.array(confidence), contexts, begin, margin)
