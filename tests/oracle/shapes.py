"""Tiny shapes that between them vary every size and every mix of layer kinds, for all comparisons with the oracle."""

from __future__ import annotations

from typing import Any

# Changes to random_model.tiny_config(), and how many tokens to evaluate.
SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "mixed": ({}, 1500),
    "window only, no hash, untied window": (
        dict(
            num_hidden_layers=4, compress_ratios=[0, 0, 0, 0, 0], num_hash_layers=0, sliding_window=33, hidden_size=128
        ),
        400,
    ),
    # Large epsilons, because those of the published model hide below float32 rounding.
    "wide heads, 64 rotary dims, top-2 of 8": (
        dict(
            head_dim=128, qk_rope_head_dim=64, index_head_dim=64, index_n_heads=8, n_routed_experts=8,
            num_experts_per_tok=2, hc_eps=1e-3, rms_norm_eps=1e-2,
        ),
        700,
    ),
    "CSA only, few rows kept, all hash": (
        dict(
            num_hidden_layers=4, compress_ratios=[4, 4, 4, 4, 0], num_hash_layers=4, index_topk=7, sliding_window=16,
            n_routed_experts=12, num_experts_per_tok=3,
        ),
        601,
    ),
    "HCA first as in Pro, 32 experts, 8 heads in 4 groups": (
        dict(
            num_hidden_layers=5, compress_ratios=[128, 128, 4, 128, 4, 0], num_hash_layers=3, n_routed_experts=32,
            num_experts_per_tok=6, num_attention_heads=8, o_groups=4, o_lora_rank=32, q_lora_rank=96, vocab_size=1001,
            routed_scaling_factor=2.5,
        ),
        800,
    ),
    "fewer tokens than one HCA window, 2 streams": (
        dict(
            hidden_size=192, hc_mult=2, hc_sinkhorn_iters=5, num_attention_heads=6, o_groups=3, swiglu_limit=0.5,
            num_experts_per_tok=3, num_hash_layers=1, vocab_size=514,
        ),
        127,
    ),
    "8 layers, all rows kept": (
        dict(
            num_hidden_layers=8, compress_ratios=[0, 0, 4, 128, 4, 128, 4, 128, 0], index_topk=512, hidden_size=128,
            moe_intermediate_size=64, sliding_window=128,
        ),
        600,
    ),
}  # fmt: skip
