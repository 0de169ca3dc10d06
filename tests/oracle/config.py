"""The hyperparameters the oracle needs, by their names in the checkpoint's config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class OracleConfig:
    """Sizes of one model. ``compress_ratios`` has one entry per layer and, for the MTP block, one more."""

    vocab_size: int
    hidden_size: int  # D
    num_hidden_layers: int  # L
    num_attention_heads: int  # H
    head_dim: int  # d
    qk_rope_head_dim: int  # r, the last r dims of a head
    q_lora_rank: int  # Rq
    o_groups: int  # G
    o_lora_rank: int  # Ro
    sliding_window: int  # W, the query's own token included
    compress_ratios: tuple[int, ...]
    index_n_heads: int  # Hi
    index_head_dim: int  # di
    index_topk: int
    n_routed_experts: int  # E
    num_experts_per_tok: int  # A
    moe_intermediate_size: int  # F
    num_hash_layers: int
    routed_scaling_factor: float
    swiglu_limit: float
    hc_mult: int  # N
    hc_sinkhorn_iters: int
    hc_eps: float
    rms_norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    num_nextn_predict_layers: int = 0
    rope_scaling: Mapping[str, Any] | None = None

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> OracleConfig:
        """Takes a parsed config.json; raises ValueError for a variant this oracle does not compute."""
        if config.get("scoring_func", "sqrtsoftplus") != "sqrtsoftplus":
            raise ValueError(f"scoring_func {config['scoring_func']!r} is not supported, only sqrtsoftplus")
        if config.get("hidden_act", "silu") != "silu":
            raise ValueError(f"hidden_act {config['hidden_act']!r} is not supported, only silu")
        if config.get("n_shared_experts", 1) != 1:
            raise ValueError("n_shared_experts must be 1")
        known = {f.name for f in fields(cls)}
        values = {key: value for key, value in config.items() if key in known}
        values["compress_ratios"] = tuple(values["compress_ratios"])
        return cls(**values)

    def ratio(self, layer: int) -> int:
        """Compression ratio of a layer; layer L is the MTP block, sliding window only when not listed."""
        return self.compress_ratios[layer] if layer < len(self.compress_ratios) else 0
