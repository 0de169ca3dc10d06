"""Tiny checkpoints of release 0731 in each layout that holds their DSpark stages, and the oracle's view of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from oracle.config import OracleConfig
from oracle.dspark import SparkOracle
from oracle.model import Oracle
from oracle.random_model import tiny_config
from oracle.weights import read_checkpoint

RATIOS = [0, 0, 4, 128, 4, 128]


@dataclass(frozen=True)
class SparkModel:
    """draft: the file beside the model's, or None where the stages are in it."""

    path: Path
    draft: Path | None
    config: dict[str, Any]
    checkpoint: Path

    def open(self, **options: Any) -> pyflash.Model:
        return pyflash.Model.open(self.path, mtp=self.draft, **options)

    def oracle(self) -> SparkOracle:
        return SparkOracle(Oracle(OracleConfig.from_hf(self.config), read_checkpoint(self.checkpoint)), self.config)

    def tokens(self, count: int, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, self.config["vocab_size"], count).astype(np.int32)


def make_spark_model(folder: Path, seed: int = 0, profile: str = "compat", dense: str = "bf16", n_stages: int = 3,
                     **changes: Any) -> SparkModel:
    """A random checkpoint of tiny_config() with DSpark stages, converted with them."""
    sizes = tiny_config(**changes)
    layers = sizes["num_hidden_layers"]
    sizes["compress_ratios"] = RATIOS[:layers] + [0] * n_stages
    config = make_config(release="0731", **sizes)
    checkpoint = write_checkpoint(folder / "checkpoint", config, seed=seed)
    path = folder / "model.gguf"
    convert(checkpoint, path, ConvertOptions(
        profile=profile, dense="q8_0" if profile == "native" else dense, mtp=True))
    beside = folder / "dspark-model.gguf"
    return SparkModel(path, beside if beside.exists() else None, config, checkpoint)
