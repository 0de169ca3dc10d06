"""What `pyflash quantize` writes, in llama.cpp: it loads, and differs from its source by what the types lose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gguf_export.convert import ConvertOptions, convert
from gguf_export.quantizing import QuantizeOptions, quantize
from gguf_export.synthetic import make_config, write_checkpoint
from import_llama.models import random_tokens
from import_llama.runner import LlamaCpp
from oracle.compare import kl_divergence

pytestmark = pytest.mark.llama

WIDE = {"hidden_size": 256, "moe_intermediate_size": 256, "q_lora_rank": 256, "vocab_size": 512}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    convert(write_checkpoint(folder / "wide", make_config("tiny", **WIDE)), folder / "wide.gguf", ConvertOptions())
    return folder / "wide.gguf"


@pytest.mark.parametrize("dense", ["Q8_0", "Q4_K"])
def test_types_in_llama(llama: LlamaCpp, source: Path, tmp_path: Path, dense: str) -> None:
    prompt = random_tokens(60, 31, 512)
    (reference,) = llama.evaluate(source, [prompt])
    kls = []
    for kind in ("IQ3_S", "IQ2_S", "IQ2_XXS"):
        out = tmp_path / f"{kind}.gguf"
        types = (("ffn_down_exps", "Q3_K"), (r"blk\.[12]\..*_exps", "Q2_K"), (r"blk\.3\..*_exps", "IQ3_XXS"))
        quantize(source, out, QuantizeOptions(experts=kind, dense=dense, head="Q6_K", tensor_types=types))
        (run,) = llama.evaluate(out, [prompt])
        kls.append(float(kl_divergence(run.logits, reference.logits).mean()))
    print(f"\nKL next to the source, dense {dense}: IQ3_S {kls[0]:.3f}, IQ2_S {kls[1]:.3f}, IQ2_XXS {kls[2]:.3f}")
    assert np.isfinite(kls).all() and 0 < kls[0] < kls[1] < kls[2] < 3
