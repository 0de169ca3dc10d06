"""Files of float32 weights: llama.cpp and pyflash "exact" must continue prompts with the same tokens.

llama.cpp appends its likeliest tokens to random prompts; pyflash evaluates the same tokens, so that each position is
compared given the same prefix. With float32 caches on both sides only the order of summation is left between the two.
llama.cpp's default caches are float16; in a random model that is enough to flip an expert or a compressed row here and
there, after which tokens may differ that are no near-ties.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_export.synthetic import make_config

from import_llama.models import pyflash_logits, random_tokens, write_model
from import_llama.runner import LlamaCpp
from oracle.compare import kl_divergence

pytestmark = pytest.mark.llama

N_CONTINUE = 80
LEAST_AGREEMENT = 0.98
LARGEST_GAP = 1e-3  # between the two candidates, in standard deviations of the position's logits
LARGEST_KL = 1e-10  # median, in nats; another rms_norm_eps alone, 1e-6 for 1e-5, would give 2e-10
LARGEST_KL_FLOAT16 = 1e-5

_YARN = make_config()["rope_scaling"]


@dataclass(frozen=True)
class Shape:
    changes: dict[str, Any]
    prompts: tuple[int, ...]  # lengths: beyond a window of 128 tokens, and with more compressed rows than index_topk
    batch: int | None = None  # of llama.cpp; None: its default


SHAPES = {
    "two active experts": Shape({"num_experts_per_tok": 2}, (333, 600)),
    "wide heads, short YaRN, early clamp": Shape(
        {
            "head_dim": 512, "qk_rope_head_dim": 64, "index_head_dim": 128, "swiglu_limit": 1.0,
            "o_groups": 4, "routed_scaling_factor": 2.5,
            "rope_scaling": _YARN | {"original_max_position_embeddings": 256, "factor": 4},
        },
        (300, 515),
    ),
    "no hash layers, other order and constants": Shape(
        {
            "num_hash_layers": 0, "num_hidden_layers": 5, "compress_ratios": [128, 4, 4, 0, 128, 0], "head_dim": 128,
            "hc_sinkhorn_iters": 6, "hc_eps": 1e-5, "rms_norm_eps": 1e-5, "rope_theta": 3000, "index_topk": 8,
        },
        (400,), batch=96,
    ),
    "window of 128, uneven widths": Shape(
        {
            "sliding_window": 128, "hidden_size": 384, "moe_intermediate_size": 96, "n_routed_experts": 12,
            "num_attention_heads": 6, "o_groups": 3, "q_lora_rank": 96, "vocab_size": 640, "index_topk": 48,
        },
        (260, 450),
    ),
}  # fmt: skip


@dataclass
class Comparison:
    """Positions of one kind: of prompts, which llama.cpp evaluates in batches, or continued ones, one at a time."""

    kl: np.ndarray
    gaps: np.ndarray  # where the likeliest tokens differ, how far apart pyflash has them, in standard deviations

    @property
    def agreement(self) -> float:
        return 1 - len(self.gaps) / len(self.kl)

    def __str__(self) -> str:
        gaps = ", ".join(f"{gap:.4f}" for gap in np.sort(self.gaps)) or "none"
        return (f"{self.agreement:.2%} of {len(self.kl)} agree, mean KL {self.kl.mean():.1e}, "
                f"median {np.median(self.kl):.1e}; gaps of the others: {gaps}")


def compare(pairs: list[tuple[np.ndarray, np.ndarray]]) -> Comparison:
    """pairs: pyflash's and llama.cpp's logits."""
    ours, theirs = (np.concatenate(side) for side in zip(*pairs, strict=True))
    here, there = ours.argmax(-1), theirs.argmax(-1)
    differ = np.flatnonzero(here != there)
    gaps = (ours[differ, here[differ]] - ours[differ, there[differ]]) / ours[differ].std(-1)
    return Comparison(kl_divergence(ours, theirs), gaps)


def run_both(llama: LlamaCpp, folder: Path, name: str, float32: bool) -> tuple[Comparison, Comparison]:
    """Prompts' positions and continued positions, over all prompts of the shape."""
    shape, seed = SHAPES[name], list(SHAPES).index(name)
    (path,) = write_model(folder, seed, shape.changes, dense="f32", experts="f32")
    vocab = shape.changes.get("vocab_size", 512)
    prompts = [random_tokens(n, 100 * seed + i, vocab) for i, n in enumerate(shape.prompts)]
    batch = {"batch": shape.batch} if shape.batch else {}
    runs = [(run, pyflash_logits(path, run.tokens))
            for run in llama.evaluate(path, prompts, N_CONTINUE, float32=float32, **batch)]  # fmt: skip
    path.unlink()
    prompt_part = compare([(ours[: run.n_prompt], run.logits[: run.n_prompt]) for run, ours in runs])
    continued_part = compare([(ours[run.n_prompt :], run.logits[run.n_prompt :]) for run, ours in runs])
    variety = [len(np.unique(run.tokens[run.n_prompt :])) for run, _ in runs]
    print(f"\nprompts: {prompt_part}\ncontinuations: {continued_part}; distinct tokens in each: {variety}")
    assert min(variety) >= N_CONTINUE // 4, "the continuations repeat themselves too much to say anything"
    return prompt_part, continued_part


@pytest.mark.parametrize("name", SHAPES)
def test_same_continuations(llama: LlamaCpp, tmp_path: Path, name: str) -> None:
    for part in run_both(llama, tmp_path, name, float32=True):
        assert part.agreement >= LEAST_AGREEMENT
        assert part.gaps.max(initial=0) <= LARGEST_GAP, "a disagreement that is no near-tie"
        assert np.median(part.kl) <= LARGEST_KL


def test_default_caches(llama: LlamaCpp, tmp_path: Path) -> None:
    for part in run_both(llama, tmp_path, "two active experts", float32=False):
        assert part.agreement >= LEAST_AGREEMENT
        assert np.median(part.kl) <= LARGEST_KL_FLOAT16
