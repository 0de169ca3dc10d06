"""The oracle against transformers' DeepseekV4ForCausalLM on the same weights.

transformers runs in float32, so two things limit the agreement, and the tests separate them:

* Discrete choices flip where scores are equal to within rounding (and the indexer's scores are exactly 0 wherever every
  head's ReLU cuts off). The oracle takes over transformers' choices, and each one that differs from its own must be a near-tie.
* Its rotary angles are float32 products t * f_i, wrong by up to t * 1e-7 radians. With angles computed in double the error
  stays near 1e-6 at every position; with its own it grows with t, to 6e-6 after 1,500 tokens, which the second test pins down.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is needed to compare with transformers")
pytest.importorskip("transformers", reason="transformers is needed to compare with its DeepseekV4ForCausalLM")

import torch  # noqa: E402

from oracle import transformers_model  # noqa: E402
from oracle.compare import near_ties, relative_l2  # noqa: E402
from oracle.model import Oracle  # noqa: E402
from oracle.random_model import random_tokens, random_weights, tiny_config  # noqa: E402

NEAR_TIE = 1e-4  # gap of a choice that may flip, relative to the token's largest score

SHAPES: dict[str, tuple[dict[str, Any], int]] = {
    "mixed": ({}, 1500),
    "window only, no hash, untied window": (
        dict(num_hidden_layers=4, compress_ratios=[0, 0, 0, 0, 0], num_hash_layers=0, sliding_window=33, hidden_size=128),
        400,
    ),
    "wide heads, 64 rotary dims, top-2 of 8": (
        dict(
            head_dim=128, qk_rope_head_dim=64, index_head_dim=64, index_n_heads=8, n_routed_experts=8, num_experts_per_tok=2
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
            num_experts_per_tok=6, num_attention_heads=8, o_groups=4, o_lora_rank=32, q_lora_rank=96, vocab_size=1000,
            routed_scaling_factor=2.5,
        ),
        1500,
    ),
    "fewer tokens than one HCA window, 2 streams": (
        dict(hidden_size=192, hc_mult=2, hc_sinkhorn_iters=5, num_attention_heads=6, o_groups=3, swiglu_limit=0.5), 127,
    ),
    "8 layers, all rows kept": (
        dict(
            num_hidden_layers=8, compress_ratios=[0, 0, 4, 128, 4, 128, 4, 128, 0], index_topk=512, hidden_size=128,
            moe_intermediate_size=64, sliding_window=128,
        ),
        900,
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def compare(config: dict[str, Any], count: int, seed: int, double_rope: bool) -> np.ndarray:
    """Relative L2 error per token of transformers' logits against the oracle's; fails on a choice that is no near-tie."""
    weights, tokens = random_weights(config, seed), random_tokens(config, count, seed + 1)
    model = transformers_model.load(config, weights)
    if double_rope:
        with transformers_model.double_rope(config):
            logits, choices = transformers_model.logits_and_choices(model, tokens)
    else:
        logits, choices = transformers_model.logits_and_choices(model, tokens)
    oracle = Oracle(config, weights)
    expected = oracle.forward(tokens, forced=choices)
    ties = near_ties(oracle.choices, NEAR_TIE if double_rope else 100 * NEAR_TIE)
    error = relative_l2(logits, expected)
    print(f"\nrelative L2 error: median {np.median(error):.2e}, worst {error.max():.2e}; {len(ties)} near-ties imposed")
    print("\n".join(ties[:10]))
    return error


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_agree(shape: str) -> None:
    overrides, count = SHAPES[shape]
    error = compare(tiny_config(**overrides), count, seed=sum(map(ord, shape)), double_rope=True)
    assert np.median(error) < 1e-5
    assert error.max() < 1e-4


def test_float32_angles_limit_agreement() -> None:
    """Same weights and tokens twice: only the precision of the rotary angles differs, and it dominates the error."""
    config = tiny_config()
    own = np.median(compare(config, 1500, seed=3, double_rope=False)[-500:])
    double = np.median(compare(config, 1500, seed=3, double_rope=True)[-500:])
    assert double < 1e-5
    assert 5 * double < own < 1e-3


def test_oracle_sees_every_weight() -> None:
    """Changing any one tensor changes the logits, so that no comparison above can pass by ignoring a part."""
    config = tiny_config(n_routed_experts=4, num_experts_per_tok=2, vocab_size=64, index_topk=4, hidden_size=64)
    weights, tokens = random_weights(config, 5), random_tokens(config, 140, 6)
    reference = Oracle(config, weights)
    before, draft = reference.forward(tokens), reference.mtp_forward(tokens, np.roll(tokens, -1))
    rng = np.random.default_rng(7)
    for name, value in weights.items():
        if name.endswith("tid2eid"):
            changed = (value + 1) % 4
        else:
            changed = value + rng.standard_normal(value.shape).astype(np.float32)
        oracle = Oracle(config, {**weights, name: changed})
        if name.startswith("mtp."):
            same = np.array_equal(oracle.mtp_forward(tokens, np.roll(tokens, -1)), draft)
        else:
            same = np.array_equal(oracle.forward(tokens), before)
        assert not same, f"{name} has no influence"
