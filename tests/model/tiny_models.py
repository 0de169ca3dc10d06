"""Tiny checkpoints in the official layout, their GGUF files, and their weights as the oracle takes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, quants
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from oracle.config import OracleConfig
from oracle.random_model import tiny_config
from oracle.weights import read_checkpoint, read_safetensors


@dataclass(frozen=True)
class TinyModel:
    """A converted checkpoint. weights are exactly what the GGUF holds; mtp_path is None when drafts live in `path`."""

    path: Path
    mtp_path: Path | None
    config: OracleConfig
    weights: dict[str, np.ndarray]

    def tokens(self, count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, self.config.vocab_size, count).astype(np.int32)


def _round_to_q8_0(weights: dict[str, np.ndarray], checkpoint: Path) -> None:
    """Replaces every weight that the checkpoint stores as FP8 by its Q8_0 rounding, by the gguf package's own code."""
    for file in checkpoint.glob("*.safetensors"):
        for name, dtype, _ in read_safetensors(file):
            if dtype == "F8_E4M3":
                blocks = quants.quantize(weights[name].astype(np.float32), GGMLQuantizationType.Q8_0)
                weights[name] = quants.dequantize(blocks, GGMLQuantizationType.Q8_0).astype(np.float64)


def make_tiny_model(
    folder: Path,
    seed: int = 0,
    profile: str = "compat",
    dense: str | None = None,
    experts: str = "keep",
    mtp: bool = False,
    **changes: Any,
) -> TinyModel:
    """Writes a random checkpoint of tiny_config() with `changes` into folder and converts it, FP8 to bfloat16."""
    config = make_config(**tiny_config(**changes))
    checkpoint = write_checkpoint(folder / "checkpoint", config, seed=seed, drafts=mtp)
    path = folder / "model.gguf"
    dense = dense or ("q8_0" if profile == "native" else "bf16")  # native takes the converter's default only
    convert(checkpoint, path, ConvertOptions(profile=profile, dense=dense, experts=experts, mtp=mtp))
    weights = read_checkpoint(checkpoint)
    if profile == "compat" and dense == "q8_0":
        _round_to_q8_0(weights, checkpoint)
    mtp_files = [file for file in folder.glob("*.gguf") if file != path]
    return TinyModel(path, mtp_files[0] if mtp_files else None, OracleConfig.from_hf(config), weights)


def make_parts_model(folder: Path) -> TinyModel:
    """What the tests of a session's parts take, whole and in stages: an MTP block, and windows shorter than their texts."""
    return make_tiny_model(
        folder, seed=31, mtp=True, dense="q8_0", hidden_size=64, num_attention_heads=2, o_groups=1, o_lora_rank=32, q_lora_rank=32,
        n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32, vocab_size=512, sliding_window=48, index_topk=20,
        index_n_heads=2,
    )  # fmt: skip
