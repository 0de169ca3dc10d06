"""The same model as other programs write it: every dialect gives the same logits, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyflash
import pytest
from gguf import GGUFValueType as Kind
from gguf_export.placing import open_for_programs
from gguf_export.reader import read_gguf
from gguf_parts import Parts, Tensor, array, read_parts, scalar
from tiny_models import TinyModel, make_tiny_model

N_TOKENS = 150
A = "deepseek4."
Change = Callable[[Parts], None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("dialects"), seed=51, mtp=True)


@pytest.fixture
def parts(tiny: TinyModel) -> Parts:
    return read_parts(tiny.path)


@pytest.fixture(scope="module")
def tokens(tiny: TinyModel) -> np.ndarray:
    return tiny.tokens(N_TOKENS, 52)


def logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    with pyflash.Model.open(path, device="cpu", threads=1) as model, model.session(context=N_TOKENS, chunk=50) as session:
        return session.eval(tokens, all_logits=True)


@pytest.fixture(scope="module")
def expected(tiny: TinyModel, tokens: np.ndarray) -> np.ndarray:
    return logits(tiny.path, tokens)


def refused(path: Path, error: type[pyflash.Error] = pyflash.Error) -> str:
    with pytest.raises(error) as caught:
        pyflash.Model.open(path, device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- keys ---


def _as_array(name: str, kind: Kind, n: int = 6) -> Change:
    def change(parts: Parts) -> None:
        parts.keys[A + name] = array(kind, [parts.key(A + name)] * n)

    return change


def _as_scalar(name: str, kind: Kind, rename: str | None = None) -> Change:
    def change(parts: Parts) -> None:
        (value,) = set(parts.key(A + name))
        parts.keys[A + (rename or name)] = scalar(kind, value)

    return change


def _without(*names: str) -> Change:
    def change(parts: Parts) -> None:
        for name in names:
            del parts.keys[A + name]

    return change


def _ratios(*more: int, kind: Kind = Kind.INT32) -> Change:
    def change(parts: Parts) -> None:
        parts.keys[A + "attention.compress_ratios"] = array(kind, [0, 0, 4, 128, 4, 128, *more])

    return change


def _set(name: str, value: bytes) -> Change:
    return lambda parts: parts.keys.update({name: value})


def _as_ds4(parts: Parts) -> None:
    """Keys as ds4 asks for them: none that it does not, and those that only it does."""
    _without("rope.scaling.type", "swiglu_clamp_shexp", "expert_gating_func", "context_length")(parts)
    del parts.keys["tokenizer.chat_template"], parts.keys["general.version"]
    parts.keys |= {A + "vocab_size": scalar(Kind.UINT32, 512), A + "expert_group_count": scalar(Kind.UINT32, 0),
                   A + "expert_group_used_count": scalar(Kind.UINT32, 0)}  # fmt: skip
    _ratios()(parts)


def _with_vision(parts: Parts) -> None:
    for layer in range(2, 6):
        parts.tensors[f"blk.{layer}.exp_probs_b_vl.bias"] = Tensor(0, (16,), bytes(64))
    parts.tensors["v.token_embd_img.weight"] = Tensor(1, (32, 7), bytes(32 * 7 * 2))


def _three_dimensions(parts: Parts) -> None:
    for name, tensor in parts.tensors.items():
        if name.endswith("attn_output_a.weight"):
            parts.tensors[name] = Tensor(tensor.number, (tensor.ne[0], tensor.ne[1] // 2, 2), tensor.data)


SAME: dict[str, Change] = {
    "unchanged": lambda parts: None,
    "expert width by layer": _as_array("expert_feed_forward_length", Kind.UINT32),
    "expert width by block": _as_array("expert_feed_forward_length", Kind.INT32, 7),
    "heads by layer": _as_array("attention.head_count", Kind.INT32),
    "one-entry arrays": _as_array("attention.head_count_kv", Kind.UINT32, 1),
    "indexer by layer": _as_array("attention.indexer.key_length", Kind.UINT32),
    "eps by layer": _as_array("attention.layer_norm_rms_epsilon", Kind.FLOAT32),
    "float64 factor": _set(A + "rope.scaling.factor", scalar(Kind.FLOAT64, 16.0)),
    "whole factor": _set(A + "rope.scaling.factor", scalar(Kind.UINT32, 16)),
    "64-bit length": _set(A + "rope.scaling.original_context_length", scalar(Kind.UINT64, 65536)),
    "flag as a number": _set(A + "expert_weights_norm", scalar(Kind.UINT8, 1)),
    "flag by layer": _set(A + "expert_weights_norm", array(Kind.UINT8, [1] * 6)),
    "one clamp": _as_scalar("swiglu_clamp_exp", Kind.FLOAT32),
    "one whole clamp": lambda parts: _set(A + "swiglu_clamp_exp", scalar(Kind.INT32, 10))(parts),
    "one shared clamp": _as_scalar("swiglu_clamp_shexp", Kind.FLOAT64),
    "no shared clamp": _without("swiglu_clamp_shexp"),
    "clamps of more blocks": _set(A + "swiglu_clamp_exp", array(Kind.FLOAT32, [10.0] * 8)),
    "ratios of the layers": _ratios(),
    "ratios of one more": _ratios(0),
    "ratios of three more": _ratios(0, 0, 0),
    "ratios of drafts that are elsewhere": _ratios(4, 128),
    "unsigned ratios": _ratios(0, kind=Kind.UINT32),
    "no ratios": _without("attention.compress_ratios"),
    "no scaling type": _without("rope.scaling.type"),
    "no betas": _without("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    "no base": _without("rope.freq_base"),
    "no gating": _without("expert_gating_func"),
    "no context": _without("context_length"),
    "padding token": _set("tokenizer.ggml.padding_token_id", scalar(Kind.UINT32, 2)),
    "one group": _set(A + "expert_group_count", scalar(Kind.UINT32, 1)),
    "imatrix keys": _set("quantize.imatrix.chunks_count", scalar(Kind.INT32, 9)),
    "drafts elsewhere": _set(A + "nextn_predict_layers", scalar(Kind.UINT32, 1)),
    "no drafts": _set(A + "nextn_predict_layers", scalar(Kind.UINT32, 0)),
    "no drafts, but counted": lambda parts: parts.keys.update(
        {A + "nextn_predict_layers": scalar(Kind.UINT32, 1), A + "block_count": scalar(Kind.UINT32, 7)}
    ),
    "output_a of three dimensions": _three_dimensions,
    "vision": _with_vision,
    "ds4": _as_ds4,
}


@pytest.mark.parametrize("name", SAME)
def test_same_logits(name: str, parts: Parts, tmp_path: Path, tokens: np.ndarray, expected: np.ndarray) -> None:
    SAME[name](parts)
    path = parts.write(tmp_path / "other.gguf")
    np.testing.assert_array_equal(logits(path, tokens), expected)
    assert read_gguf(path).tensors.keys() == parts.tensors.keys()


def test_context_is_what_is_stretched(parts: Parts, tmp_path: Path) -> None:
    _without("context_length")(parts)
    with pyflash.Model.open(parts.write(tmp_path / "other.gguf"), device="cpu") as model:
        assert model.info.n_ctx_train == 16 * 65536


def test_eps_is_the_files(parts: Parts, tmp_path: Path, tokens: np.ndarray, expected: np.ndarray) -> None:
    key = A + "attention.layer_norm_rms_epsilon"
    found = {}
    for eps in (1e-20, 1e-2):
        parts.keys[key] = scalar(Kind.FLOAT32, eps)
        found[eps] = logits(parts.write(tmp_path / "other.gguf"), tokens)
    assert np.abs(found[1e-20] - expected).max() < np.abs(found[1e-2] - expected).max()
    assert np.isfinite(found[1e-20]).all() and not np.array_equal(found[1e-20], expected)


def test_clamp_of_zero_is_none(parts: Parts, tmp_path: Path, tokens: np.ndarray) -> None:
    for limit in (0.0, 1e30):
        parts.keys[A + "swiglu_clamp_exp"] = scalar(Kind.FLOAT32, limit)
        parts.keys[A + "swiglu_clamp_shexp"] = array(Kind.FLOAT32, [limit] * 6)
        parts.write(tmp_path / f"{limit:g}.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "0.gguf", tokens), logits(tmp_path / "1e+30.gguf", tokens))


# --- shards ---


def _first_empty(names: list[str]) -> list[list[str]]:
    return [[], names[:1], names[1:90], names[90:]]


def _ragged(names: list[str]) -> list[list[str]]:
    return [names[:3], names[3:4], names[4:100], [], names[100:]]


@pytest.mark.parametrize("groups", [_first_empty, _ragged, *(
    lambda names, n=n: [names[i::n] for i in range(n)] for n in range(4, 10)
)])  # fmt: skip
def test_shards(groups: Callable[[list[str]], list[list[str]]], parts: Parts, tmp_path: Path, tokens: np.ndarray,
                expected: np.ndarray) -> None:
    paths = parts.write_shards(tmp_path, groups(list(parts.tensors)))
    np.testing.assert_array_equal(logits(paths[0], tokens), expected)
    assert read_gguf(paths[0]).tensors.keys() == parts.tensors.keys()


# --- MTP blocks ---


def _with_mtp(parts: Parts, tiny: TinyModel) -> Parts:
    assert tiny.mtp_path is not None
    block = read_parts(tiny.mtp_path).tensors
    return Parts(dict(parts.keys), parts.tensors | {name: t for name, t in block.items() if name.startswith("blk.6.")})


@pytest.mark.parametrize("blocks", [6, 7])
@pytest.mark.parametrize("declared", [None, 1])
def test_mtp_block_in_the_main_file(tiny: TinyModel, parts: Parts, tmp_path: Path, tokens: np.ndarray,
                                    expected: np.ndarray, blocks: int, declared: int | None) -> None:
    whole = _with_mtp(parts, tiny)
    whole.keys[A + "block_count"] = scalar(Kind.UINT32, blocks)
    if declared is not None:
        whole.keys[A + "nextn_predict_layers"] = scalar(Kind.UINT32, declared)
    path = whole.write(tmp_path / "whole.gguf")
    np.testing.assert_array_equal(logits(path, tokens), expected)
    with pyflash.Model.open(path, device="cpu") as model, model.session(context=8) as session:
        assert model.info.has_mtp and model.info.n_layer == 6
        session.eval([1, 2, 3])
        assert np.isfinite(session.draft(4)).all()
    assert open_for_programs(path, "llama.cpp")[1] == [path]


def test_mtp_block_without_its_projection(tiny: TinyModel, parts: Parts, tmp_path: Path, tokens: np.ndarray,
                                          expected: np.ndarray) -> None:
    whole = _with_mtp(parts, tiny)
    del whole.tensors["blk.6.nextn.eh_proj.weight"]
    whole.keys |= {A + "block_count": scalar(Kind.UINT32, 7), A + "nextn_predict_layers": scalar(Kind.UINT32, 1)}
    path = whole.write(tmp_path / "whole.gguf")
    np.testing.assert_array_equal(logits(path, tokens), expected)
    with pyflash.Model.open(path, device="cpu") as model:
        assert not model.info.has_mtp


# --- sizes from the file ---


def test_pruned_experts(tmp_path: Path) -> None:
    tiny = make_tiny_model(tmp_path, n_routed_experts=11, num_experts_per_tok=3, num_hash_layers=0)
    assert np.isfinite(logits(tiny.path, tiny.tokens(N_TOKENS, 1))).all()
    with pyflash.Model.open(tiny.path, device="cpu") as model:
        assert (model.info.n_expert, model.info.n_expert_used) == (11, 3)


def test_sixty_one_layers(parts: Parts, tmp_path: Path, tokens: np.ndarray) -> None:
    """As many as V4-Pro's, from the six by turns, with ratios by the tables' shapes."""
    blocks = {name: tensor for name, tensor in parts.tensors.items() if name.startswith("blk.")}
    for layer in range(6, 61):
        prefix = f"blk.{2 + layer % 4}."
        parts.tensors |= {name.replace(prefix, f"blk.{layer}."): tensor for name, tensor in blocks.items()
                          if name.startswith(prefix)}  # fmt: skip
    parts.keys[A + "block_count"] = scalar(Kind.UINT32, 61)
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        parts.keys[A + key] = array(Kind.FLOAT32, [10.0] * 61)
    del parts.keys[A + "attention.compress_ratios"]
    path = parts.write(tmp_path / "other.gguf")
    assert np.isfinite(logits(path, tokens)).all()
    with pyflash.Model.open(path, device="cpu") as model:
        assert model.info.layer_ratios == (0, 0, *((4, 128)[layer % 2] for layer in range(2, 61)))


# --- refusals ---


def test_keys_are_named(parts: Parts, tmp_path: Path) -> None:
    def said(change: Change) -> str:
        other = Parts(dict(parts.keys), dict(parts.tensors))
        change(other)
        return refused(other.write(tmp_path / "other.gguf"))

    mixed = _set(A + "expert_feed_forward_length", array(Kind.UINT32, [128] * 5 + [64]))
    assert "deepseek4.expert_feed_forward_length is 128 in layer 0 and 64 in layer 5" in said(mixed)
    short = _set(A + "attention.head_count", array(Kind.UINT32, [4, 4]))
    assert "deepseek4.attention.head_count has 2 entries" in said(short)
    assert "deepseek4.attention.compress_ratios has 3 entries for 6 layers" in said(
        _set(A + "attention.compress_ratios", array(Kind.INT32, [0, 4, 128]))
    )
    assert "lacks the key deepseek4.expert_count" in said(_without("expert_count"))
    assert "deepseek4.expert_count is not an integer" in said(_set(A + "expert_count", scalar(Kind.STRING, "16")))
    assert "deepseek4.expert_count is not an integer" in said(_set(A + "expert_count", scalar(Kind.FLOAT32, 15.5)))
    assert "deepseek4.expert_group_count = 8" in said(_set(A + "expert_group_count", scalar(Kind.UINT32, 8)))
    assert "lacks deepseek4.rope.scaling.factor:" in said(_without("rope.scaling.factor"))
    assert "deepseek4.rope.scaling.original_context_length" in said(
        _without("rope.scaling.type", "rope.scaling.original_context_length")
    )
    assert 'deepseek4.rope.scaling.type is not "yarn"' in said(
        _set(A + "rope.scaling.type", scalar(Kind.STRING, "linear"))
    )
    assert "layer 2 has tensors of a compressor" in said(
        _set(A + "attention.compress_ratios", array(Kind.INT32, [0, 0, 0, 128, 4, 128]))
    )
    assert "deepseek4.swiglu_clamp_exp: -1 is no SwiGLU limit" in said(
        _set(A + "swiglu_clamp_exp", scalar(Kind.FLOAT32, -1.0))
    )

    def odd_table(other: Parts) -> None:
        _without("attention.compress_ratios")(other)
        name = "blk.2.attn_compressor_ape.weight"
        other.tensors[name] = Tensor(0, (64, 8), other.tensors[name].data)

    assert "blk.2.attn_compressor_ape.weight of shape [64, 8] tells none" in said(odd_table)


@pytest.mark.parametrize(("number", "said"), [
    (145, "ik_llama.cpp's IQ2_KS (145)"), (158, "ik_llama.cpp's IQ1_KT (158)"), (218, "ik_llama.cpp's IQ3_XXS_R4 (218)"),
    (97, "ik_llama.cpp's Q8_0_X4 (97)"), (399, "ik_llama.cpp's Q8_K_R8 (399)"), (77, "77 (unknown)"),
    (31, "Q4_0_4_4"),
])  # fmt: skip
def test_types_of_others(parts: Parts, tmp_path: Path, number: int, said: str) -> None:
    name = "blk.3.ffn_up_exps.weight"
    parts.tensors[name] = Tensor(number, parts.tensors[name].ne, parts.tensors[name].data)
    path = parts.write(tmp_path / "other.gguf")
    message = refused(path, pyflash.UnsupportedError)
    assert name in message and said in message
    assert ("with ik_llama.cpp's llama-quantize" in message) == ("ik_llama.cpp" in said)
    with pytest.raises(Exception, match="type ") as caught:
        read_gguf(path)
    assert name in str(caught.value) and said.partition(" (")[0] in str(caught.value)


@pytest.mark.parametrize("block_bytes", [18, 34, 72])
def test_modchips_type_has_nvfp4s_number(parts: Parts, tmp_path: Path, block_bytes: int) -> None:
    name = "blk.3.attn_kv.weight"
    ne = parts.tensors[name].ne
    parts.tensors[name] = Tensor(40, ne, bytes(ne[0] // 64 * ne[1] * block_bytes))
    path = parts.write(tmp_path / "other.gguf")
    assert f"{name}' has the number of NVFP4 (40)" in refused(path, pyflash.UnsupportedError)
    with pytest.raises(Exception, match="llama-modchip"):
        read_gguf(path)


def _arch(name: str) -> Change:
    return _set("general.architecture", scalar(Kind.STRING, name))


def _ds4_dspark(parts: Parts) -> None:
    parts.tensors = {f"dspark.{name}": tensor for name, tensor in list(parts.tensors.items())[:4]}
    parts.keys[A + "dspark.block_size"] = scalar(Kind.UINT32, 5)


def _ds4_mtp(parts: Parts) -> None:
    parts.tensors = {f"mtp.0.{name}": tensor for name, tensor in list(parts.tensors.items())[:4]}


def _mainline_dspark(parts: Parts) -> None:
    _arch("dflash")(parts)
    parts.keys["dflash.hyper_connection.count"] = scalar(Kind.UINT32, 4)


def _nothing(parts: Parts) -> None:
    parts.tensors = {}


OTHERS: dict[str, tuple[Change, str]] = {
    "V4.1": (_arch("deepseek41"), 'architecture "deepseek41" (DeepSeek-V4.1), and pyflash runs deepseek4'),
    "V3": (_arch("deepseek2"), "(DeepSeek-V2, V3 or R1)"),
    "llama": (_arch("llama"), 'architecture "llama", and pyflash runs deepseek4'),
    "mainline DSpark": (_mainline_dspark, "a DSpark draft model"),
    "DFlash of another model": (_arch("dflash"), "a DFlash draft model"),
    "ds4's DSpark": (_ds4_dspark, "a DSpark draft model"),
    "ds4's DSpark by architecture": (_arch("deepseek4-dspark"), "a DSpark draft model"),
    "ds4's MTP": (_ds4_mtp, "an MTP draft model in ds4's layout"),
    "imatrix": (_set("general.type", scalar(Kind.STRING, "imatrix")), "an importance matrix"),
    "LoRA": (_set("general.type", scalar(Kind.STRING, "adapter")), "an adapter (LoRA)"),
    "mmproj": (_arch("clip"), "a vision projector (mmproj)"),
    "control vector": (_arch("controlvector"), "a control vector"),
    "vocabulary": (_nothing, "has no tensors"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_named(name: str, parts: Parts, tmp_path: Path, tiny: TinyModel) -> None:
    change, said = OTHERS[name]
    change(parts)
    path = parts.write(tmp_path / "other.gguf")
    assert said in refused(path)
    with pytest.raises(pyflash.Error) as caught:
        pyflash.Model.open(tiny.path, device="cpu", mtp=path)
    assert said in str(caught.value)
    if name == "imatrix":
        for command in ("info", "bench"):
            run = subprocess.run([sys.executable, "-m", "pyflash", command, str(path)], capture_output=True, text=True)
            assert run.returncode == 1 and said in run.stderr and len(run.stderr.splitlines()) == 1, run.stderr


def test_imatrix_without_an_architecture(parts: Parts, tmp_path: Path) -> None:
    del parts.keys["general.architecture"]
    assert "lacks the key general.architecture" in refused(parts.write(tmp_path / "other.gguf"))
    parts.keys["imatrix.chunk_count"] = scalar(Kind.UINT32, 3)
    assert "an importance matrix" in refused(parts.write(tmp_path / "other.gguf"))


def test_mtp_file_alone(tiny: TinyModel) -> None:
    assert tiny.mtp_path is not None
    assert "holds only the model's MTP block" in refused(tiny.mtp_path)
