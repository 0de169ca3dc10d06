"""The whole model. Oracle.forward computes every token of a sequence from nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import mhc
from .attention import Context, attention
from .choices import Choices, Forced
from .config import OracleConfig
from .moe import moe
from .numerics import Numerics
from .taps import Taps
from .layer_weights import LayerWeights, rms_norm


class Oracle:
    """A model in float64.

    weights: dequantised arrays under the full official names ("layers.0.attn.wq_a.weight", "embed.weight",
    "mtp.0.e_proj.weight", ...), without the scale tensors; the expert tables are integers.
    """

    def __init__(
        self,
        config: OracleConfig | Mapping[str, Any],
        weights: Mapping[str, np.ndarray],
        numerics: Numerics | None = None,
    ) -> None:
        self.config = config if isinstance(config, OracleConfig) else OracleConfig.from_hf(config)
        self.weights = {
            name: value if value.dtype.kind in "iu" else value.astype(np.float64) for name, value in weights.items()
        }
        self.numerics = numerics or Numerics()
        self.choices: list[Choices] = []  # of the last forward, in order of computation

    def forward(
        self, tokens: Sequence[int] | np.ndarray, taps: Taps | None = None, forced: Forced | None = None
    ) -> np.ndarray:
        """Logits [T, vocab] of every token; self.choices then tells what was chosen and how close it was."""
        self.choices = []
        return self._head("", self._streams(np.asarray(tokens), taps, forced), -1, taps)

    def mtp_forward(
        self,
        tokens: Sequence[int] | np.ndarray,
        next_tokens: Sequence[int] | np.ndarray,
        taps: Taps | None = None,
        forced: Forced | None = None,
    ) -> np.ndarray:
        """Draft logits [T, vocab]: row t is for position t+2, given next_tokens[t] at position t+1.

        The block is layer L of taps and choices, its head layer L too.
        """
        config, w, eps = self.config, LayerWeights(self.weights, "mtp.0.", self.numerics), self.config.rms_norm_eps
        self.choices = []
        streams = self._streams(np.asarray(tokens), taps, forced)
        embed = self.weights["embed.weight"][np.asarray(next_tokens)]
        e = w.linear(rms_norm(embed, eps) * w["enorm.weight"], "e_proj")
        h = w.linear(rms_norm(streams, eps) * w["hnorm.weight"], "h_proj")
        layer = config.num_hidden_layers
        streams = self._block("mtp.0.", layer, e[:, None, :] + h, np.asarray(next_tokens), taps, forced)
        return self._head("mtp.0.", streams, layer, taps)

    def _streams(self, tokens: np.ndarray, taps: Taps | None, forced: Forced | None) -> np.ndarray:
        """The final stream stack [T, N, D], before hc_head."""
        embed = self.weights["embed.weight"][tokens]
        streams = np.repeat(embed[:, None, :], self.config.hc_mult, axis=1)
        if taps is not None:
            taps.record("embed", -1, streams)
        for layer in range(self.config.num_hidden_layers):
            streams = self._block(f"layers.{layer}.", layer, streams, tokens, taps, forced)
        return streams

    def _block(
        self, prefix: str, layer: int, streams: np.ndarray, tokens: np.ndarray, taps: Taps | None, forced: Forced | None
    ) -> np.ndarray:
        config = self.config
        w = LayerWeights(self.weights, prefix, self.numerics)
        ctx = Context(config, w, layer, config.ratio(layer), self.numerics, taps, forced)

        x, post_w, comb = mhc.pre(config, w, "hc_attn", streams)
        ctx.tap("attn_in", x)
        x = rms_norm(x, config.rms_norm_eps) * w["attn_norm.weight"]
        ctx.tap("attn_norm", x)
        y, chosen = attention(ctx, x)
        self.choices += chosen
        streams = mhc.post(y, post_w, comb, streams)
        ctx.tap("attn_out", y)
        ctx.tap("attn_X", streams)

        x, post_w, comb = mhc.pre(config, w, "hc_ffn", streams)
        ctx.tap("ffn_in", x)
        x = rms_norm(x, config.rms_norm_eps) * w["ffn_norm.weight"]
        ctx.tap("ffn_norm", x)
        y, chosen = moe(ctx, x, tokens)
        self.choices += chosen
        streams = mhc.post(y, post_w, comb, streams)
        ctx.tap("ffn_out", y)
        ctx.tap("ffn_X", streams)
        return streams

    def _head(self, prefix: str, streams: np.ndarray, layer: int, taps: Taps | None) -> np.ndarray:
        """hc_head and norm of the model or of the MTP block, then the shared output matrix."""
        x = mhc.head(self.config, self.weights, prefix, streams)
        normed = rms_norm(x, self.config.rms_norm_eps) * self.weights[prefix + "norm.weight"]
        logits = self.numerics.linear_input(normed, "head") @ self.weights["head.weight"].T
        if taps is not None:
            for name, value in (("head_in", x), ("head_norm", normed), ("logits", logits)):
                taps.record(name, layer, value)
        return logits
