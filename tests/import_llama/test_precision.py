"""How far each program's default numerics are from float32 on the same default file, llama.cpp's against pyflash's with a
cache in the same half floats. (What pyflash's default cache costs: tests/model/test_precision.py.)

llama.cpp's reference is its own run, with float32 caches, of a float32 copy of the file; pyflash's is "exact" on the
file itself. On random models flipped experts make every rounding look large, and are rare events, so the figures are
means over several models.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from import_llama.float32_copy import float32_copy
from import_llama.models import pyflash_logits, random_tokens, write_model
from import_llama.runner import LlamaCpp
from oracle.compare import agreement, kl_divergence

pytestmark = pytest.mark.llama

T = 640
SEEDS = (1, 2, 3)
SAME_MODEL = 1e-10  # median KL between the two references


def test_fast_is_closer_than_llama_cpp(llama: LlamaCpp, tmp_path: Path) -> None:
    ours, theirs = [], []
    for seed in SEEDS:
        folder = tmp_path / str(seed)
        (path,) = write_model(folder, seed, {"num_experts_per_tok": 2})
        copy = float32_copy(path, folder / "float32.gguf")
        tokens = random_tokens(T, seed)
        exact, fast = pyflash_logits(path, tokens), pyflash_logits(path, tokens, "fast", "f16")
        (default,) = llama.evaluate(path, [tokens])
        (float32,) = llama.evaluate(copy, [tokens], float32=True)
        copy.unlink()
        assert np.median(kl_divergence(exact, float32.logits)) < SAME_MODEL
        ours.append(agreement(exact, fast))
        theirs.append(agreement(float32.logits, default.logits))
    (kl, top1), (llama_kl, llama_top1) = np.mean(ours, axis=0), np.mean(theirs, axis=0)
    print(f"\npyflash fast against exact: KL {kl:.4f}, top-1 {top1:.3f}; each {ours}")
    print(f"llama.cpp default against its float32: KL {llama_kl:.4f}, top-1 {llama_top1:.3f}; each {theirs}")
    assert 0 < kl < llama_kl
    assert top1 > llama_top1
