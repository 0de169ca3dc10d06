"""Fine-tunes as `transformers` saves them: saved, converted and run in exact mode, against transformers itself.

transformers computes in float32 with float32 rotary angles (computed in double here, see tests/oracle); near-ties of
routers and of the indexer may fall the other way, so single tokens may be off, most are not.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gguf_export.convert import ConvertOptions, convert
from gguf_export.reader import read_gguf

pytestmark = pytest.mark.oracle
pytest.importorskip("torch", reason="torch is needed to save a fine-tune")
pytest.importorskip("transformers", reason="transformers is needed to save a fine-tune")

import torch  # noqa: E402
from oracle import transformers_model  # noqa: E402
from oracle.compare import relative_l2  # noqa: E402
from oracle.random_model import random_tokens, random_weights, tiny_config  # noqa: E402
from transformers import DeepseekV4ForCausalLM  # noqa: E402

from pyflash import Model  # noqa: E402

CONFIG = tiny_config(num_hidden_layers=4, compress_ratios=[0, 4, 128, 4, 0], num_hash_layers=1, n_routed_experts=8,
                     index_topk=128)  # more than there are rows: nothing to choose, so no near-ties of the indexer
N_TOKENS = 300
LOSSLESS = ConvertOptions(dense="f32", experts="f32")


def save(folder: Path, dtype: torch.dtype, tied: bool = False, **options: Any) -> Path:
    """A random model, saved by transformers with its weights in `dtype`."""
    weights = random_weights(CONFIG, 1)
    if tied:
        weights["head.weight"] = weights["embed.weight"]
    model = transformers_model.load(CONFIG, weights).to(dtype)
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    model.save_pretrained(folder, **options)
    return folder


def theirs(folder: Path) -> np.ndarray:
    """transformers' logits [N_TOKENS, vocab] of what it saved, in float32."""
    model = DeepseekV4ForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()
    with transformers_model.double_rope(CONFIG):
        return transformers_model.logits_and_choices(model, random_tokens(CONFIG, N_TOKENS, 2))[0]


def ours(path: Path) -> np.ndarray:
    with Model.open(path, precision="exact", threads=1) as model, model.session(context=N_TOKENS) as session:
        return session.eval(random_tokens(CONFIG, N_TOKENS, 2), all_logits=True)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    """Rounding apart for most tokens; the others are those of flipped near-ties."""
    error = relative_l2(found, expected)
    print(f"relative L2 error: median {np.median(error):.2e}, 90 % below {np.quantile(error, 0.9):.2e}")
    assert np.median(error) < 1e-5 and np.quantile(error, 0.9) < 1e-4


SAVED: dict[str, Callable[[Path], Path]] = {
    "bf16": lambda folder: save(folder, torch.bfloat16),
    "f32": lambda folder: save(folder, torch.float32),
    "f16": lambda folder: save(folder, torch.float16),
    "sharded": lambda folder: save(folder, torch.bfloat16, max_shard_size="2MB"),
    "tied": lambda folder: save(folder, torch.bfloat16, tied=True),
}


@pytest.mark.parametrize("how", SAVED)
def test_saved_by_transformers(tmp_path: Path, how: str) -> None:
    folder = SAVED[how](tmp_path / "saved")
    converted = convert(folder, tmp_path / "m.gguf", LOSSLESS)
    assert not any("rounded" in warning for warning in converted.warnings)
    assert_close(ours(tmp_path / "m.gguf"), theirs(folder))


def test_names_of_its_modules(tmp_path: Path) -> None:
    """As state dicts have them: experts stacked in two tensors a layer, some weights in other types."""
    from safetensors.torch import save_file

    folder = save(tmp_path / "saved", torch.bfloat16)
    expected = theirs(folder)
    state = DeepseekV4ForCausalLM.from_pretrained(folder).state_dict()
    assert "model.layers.1.mlp.experts.gate_up_proj" in state and "model.layers.1.self_attn.q_a_proj.weight" in state
    for name, value in state.items():  # the same values in wider types; BF16's exponents here fit float16's
        kept = value.half() if "o_b_proj" in name else value.contiguous()
        state[name] = value.float() if "q_a_proj" in name else kept
    save_file(state, folder / "model.safetensors")
    convert(folder, tmp_path / "m.gguf", LOSSLESS)
    assert_close(ours(tmp_path / "m.gguf"), expected)


def test_types_by_default(tmp_path: Path) -> None:
    """Experts and what is FP8 as published become Q8_0; the embedding and the router stay BF16."""
    folder = save(tmp_path / "saved", torch.bfloat16)
    convert(folder, tmp_path / "m.gguf", ConvertOptions())
    types = {name: ref.dtype for name, ref in read_gguf(tmp_path / "m.gguf").tensors.items()}
    expected = {"blk.1.ffn_up_exps.weight": "Q8_0", "blk.1.attn_q_a.weight": "Q8_0", "token_embd.weight": "BF16",
                "blk.1.ffn_gate_inp.weight": "BF16", "blk.1.attn_norm.weight": "F32", "blk.1.hc_attn_fn.weight": "F32"}
    assert {name: types[name] for name in expected} == expected
    assert np.median(relative_l2(ours(tmp_path / "m.gguf"), theirs(folder))) < 0.1
