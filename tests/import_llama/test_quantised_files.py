"""Files that real llama.cpp quantised, in every file type that it makes: "exact" against the float64 oracle on the values
that they hold, and against llama.cpp itself.

llama.cpp's own error is what it says of the file less what it says of a float32 copy: it rounds activations to 8 bits.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from gguf_copy import gguf_values
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from import_llama.float32_copy import float32_copy
from import_llama.models import _BASE, random_tokens
from import_llama.quantise import quantised
from import_llama.runner import LlamaCpp
from oracle.check import check_exact
from oracle.compare import kl_divergence
from oracle.config import OracleConfig
from oracle.weights import read_checkpoint

pytestmark = pytest.mark.llama

FILE_TYPES = {
    "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "Q2_K": 10, "Q3_K_M": 12, "Q4_K_M": 15, "Q5_K_M": 17,
    "Q6_K": 18, "IQ2_XXS": 19, "IQ2_XS": 20, "IQ3_XXS": 23, "IQ1_S": 24, "IQ4_NL": 25, "IQ3_M": 27, "IQ2_M": 29,
    "IQ4_XS": 30, "IQ1_M": 31, "TQ1_0": 36, "TQ2_0": 37, "MXFP4_MOE": 38,
}  # fmt: skip
# Rows of 256; few experts, as some types are quantised slowly.
WIDE = _BASE | {
    "compress_ratios": [0, 4, 128, 0], "num_hidden_layers": 3, "num_hash_layers": 1, "n_routed_experts": 4,
    "num_experts_per_tok": 2, "moe_intermediate_size": 256, "q_lora_rank": 256, "num_nextn_predict_layers": 0,
}  # fmt: skip
T = 160
SAME_MODEL = 1e-10  # median KL of llama.cpp's float32 copy, in nats


@dataclass(frozen=True)
class Files:
    config: OracleConfig
    weights: dict[str, np.ndarray]
    by_type: dict[str, Path]


@pytest.fixture(scope="module")
def files(llama: LlamaCpp, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("quantised")
    config = make_config(**WIDE)
    checkpoint = write_checkpoint(folder / "checkpoint", config, seed=5, drafts=False)
    (source,) = convert(checkpoint, folder / "source.gguf", ConvertOptions(dense="f32", experts="f32")).files
    by_type = {name: folder / f"{name}.gguf" for name in FILE_TYPES}
    quantised(llama.package, source, {FILE_TYPES[name]: path for name, path in by_type.items()})
    return Files(OracleConfig.from_hf(config), read_checkpoint(checkpoint), by_type)


@pytest.mark.parametrize("name", FILE_TYPES)
def test_every_file_type(llama: LlamaCpp, files: Files, tmp_path: Path, name: str) -> None:
    path, tokens = files.by_type[name], random_tokens(T, 7)
    types = Counter(tensor.tensor_type.name for tensor in GGUFReader(path).tensors)
    print(f"\n{name}: {dict(types.most_common())}")
    values = gguf_values(path, files.weights, files.config.num_hidden_layers)
    ours = check_exact(path, files.config, values, tokens)
    (own,) = llama.evaluate(path, [tokens], float32=True)
    (float32,) = llama.evaluate(float32_copy(path, tmp_path / "float32.gguf"), [tokens], float32=True)
    assert np.median(kl_divergence(ours, float32.logits)) < SAME_MODEL
    error = np.abs(own.logits - float32.logits).max(-1)
    best = np.sort(own.logits, axis=-1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > 2 * error
    kl = kl_divergence(ours, own.logits)
    print(f"KL of llama.cpp: mean {kl.mean():.1e}, median {np.median(kl):.1e}; {clear.sum()} of {T} tokens are clear")
    assert clear.sum() > T // 10
    assert (ours.argmax(-1) == own.logits.argmax(-1))[clear].all()
