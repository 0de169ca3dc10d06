"""Random models that llama.cpp takes, as files of the compat profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

_BASE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 256,
    "sliding_window": 64,
    "compress_ratios": [0, 0, 4, 128, 4, 128, 0],
    "index_n_heads": 32,  # with few heads many scores are exactly 0, and each program breaks such ties in its own way
    "index_topk": 32,
    "n_routed_experts": 16,
    "num_experts_per_tok": 4,
    "moe_intermediate_size": 128,
}


def write_model(folder: Path, seed: int, changes: dict[str, Any] | None = None, **options: Any) -> list[Path]:
    """Writes a random checkpoint, 6 layers of all three kinds unless changed, and converts it. Returns its files."""
    config = make_config(**_BASE | (changes or {}))
    checkpoint = write_checkpoint(folder / "checkpoint", config, seed=seed)
    return convert(checkpoint, folder / "model.gguf", ConvertOptions(**options)).files


def random_tokens(count: int, seed: int, vocab: int = _BASE["vocab_size"]) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocab, count).astype(np.int32)


def pyflash_logits(path: Path, tokens: np.ndarray, precision: str = "exact", cache: str = "auto") -> np.ndarray:
    """float32 [len(tokens), vocab]."""
    with pyflash.Model.open(path, precision=precision) as model:
        with model.session(context=len(tokens), cache=cache) as session:
            return session.eval(tokens, all_logits=True)
