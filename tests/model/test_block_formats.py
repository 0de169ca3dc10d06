"""Files whose tensors have any block format, each another: experts, attention, tables that are computed with in F32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants
from gguf_copy import Array, copy_gguf, gguf_values
from oracle.check import check_exact
from tiny_models import TinyModel, make_tiny_model

import pyflash
from pyflash.bench.traffic import read_traffic
from quantize.blocks import WRITABLE, quantise

WIDE = dict(moe_intermediate_size=256, q_lora_rank=256, o_lora_rank=128, n_routed_experts=4, num_experts_per_tok=2,
            num_hidden_layers=4, num_hash_layers=1, compress_ratios=[0, 4, 128, 4, 0])  # fmt: skip
BY_GGUF_PY = ("F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "TQ1_0", "TQ2_0", "MXFP4")
EXPERTS = [*WRITABLE, "TQ2_0", "MXFP4", "Q5_0", "Q4_1"]
OTHERS = [*BY_GGUF_PY, *WRITABLE]
KEPT = ("norm.weight", "_sinks.weight", "_base.weight", "_scale.weight", ".bias")


def encode(name: str, values: Array) -> tuple[GGMLQuantizationType, Array] | None:
    """The values in a type by its name; None where its blocks do not divide the rows."""
    kind = GGMLQuantizationType[name]
    if name not in WRITABLE:
        return (kind, quants.quantize(values, kind)) if values.shape[-1] % 256 == 0 or name in BY_GGUF_PY[:7] else None
    if values.shape[-1] % 256:
        return None
    blocks = quantise(WRITABLE[name], values.reshape(-1, values.shape[-1]))
    return kind, blocks.reshape(*values.shape[:-1], -1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("wide"), seed=3, dense="f32", experts="f32", **WIDE)


def test_every_tensor_may_have_another_format(tiny: TinyModel, tmp_path: Path) -> None:
    """In turn, so that gate, up and down of one layer differ as much as layers do."""
    turns = {"_exps.": 0, "": 0}

    def recode(name: str, values: Array) -> tuple[GGMLQuantizationType, Array] | None:
        if name.endswith(KEPT):
            return None
        family = "_exps." if "_exps." in name else ""
        types = EXPERTS if family else OTHERS
        turns[family] += 1
        for turn in range(len(types)):
            encoded = encode(types[(turns[family] + turn) % len(types)], values)
            if encoded is not None:
                return encoded
        return None

    path = copy_gguf(tiny.path, tmp_path / "mixed.gguf", recode)
    values = gguf_values(path, tiny.weights, tiny.config.num_hidden_layers)
    check_exact(path, tiny.config, values, tiny.tokens(160, seed=1))


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "IQ2_XXS", "Q6_K"])
def test_tables_are_widened(tiny: TinyModel, tmp_path: Path, kind: str) -> None:
    """Whatever the forward pass wants in F32; norms and scales too, where their rows are whole blocks."""
    tables = ("_fn.weight", "_ape.weight", *KEPT)
    widened = 0

    def recode(name: str, values: Array) -> tuple[GGMLQuantizationType, Array] | None:
        nonlocal widened
        is_whole = values.shape[-1] % (32 if kind == "Q8_0" else 1) == 0
        encoded = encode(kind, values.reshape(-1, values.shape[-1])) if name.endswith(tables) and is_whole else None
        if encoded is None:
            return None
        widened += 4 * values.size
        return encoded[0], encoded[1].reshape(*values.shape[:-1], -1)

    path = copy_gguf(tiny.path, tmp_path / "tables.gguf", recode)
    with pyflash.Model.open(path) as model:
        assert model.info.widened_bytes == widened > 100_000
        traffic = read_traffic(path, model.info, "f16")
    with pyflash.Model.open(tiny.path) as model:
        assert model.info.widened_bytes == 0
        assert read_traffic(tiny.path, model.info, "f16") == traffic  # what a token reads is what memory has
    values = gguf_values(path, tiny.weights, tiny.config.num_hidden_layers)
    check_exact(path, tiny.config, values, tiny.tokens(40, seed=2))


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q6_K", "IQ2_XXS", "IQ2_S", "IQ3_XXS", "Q5_0"])
def test_precisions_agree(tiny: TinyModel, tmp_path: Path, kind: str) -> None:
    """K and IQ formats are multiplied with 16-bit integers, those without integer products with floats: near `exact` whatever
    the precision, one token as many."""
    path = copy_gguf(tiny.path, tmp_path / "k.gguf",
                     lambda name, values: encode(kind, values) if "ffn_" in name and "exps" in name else None)
    tokens = tiny.tokens(40, seed=4)
    logits = {}
    for precision in ("exact", "fast", "int8"):
        with pyflash.Model.open(path, precision=precision) as model, model.session(context=64, cache="f32") as session:
            logits[precision] = session.eval(tokens, all_logits=True)
            session.rollback(len(tokens))
            single = np.stack([session.eval(tokens[i : i + 1]) for i in range(len(tokens))])
            assert single.tobytes() == logits[precision].tobytes()
    assert np.abs(logits["fast"] - logits["exact"]).max() < 1e-3 and np.isfinite(logits["int8"]).all()
