"""Checkpoints in BF16, float16 and float32, with other programs' names: numpy makes them of published ones, exactly.

What transformers itself saves is in test_transformers_checkpoint.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import payloads, small_checkpoint, small_config

from gguf_export.config import parse_config
from gguf_export.convert import ConvertOptions, convert, plan_conversion
from gguf_export.dialect import published_config, published_name
from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf
from gguf_export.safetensors_file import build_header
from quantize import codecs

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
LOSSLESS = ConvertOptions(dense="bf16", experts="bf16")

# transformers' names by the published ones, within a layer.
OWN_NAMES = {
    "attn_norm.weight": "input_layernorm.weight",
    "ffn_norm.weight": "post_attention_layernorm.weight",
    "hc_attn_fn": "attn_hc.fn",
    "hc_ffn_base": "ffn_hc.base",
    "hc_ffn_scale": "ffn_hc.scale",
    "attn.attn_sink": "self_attn.sinks",
    "attn.wq_a.weight": "self_attn.q_a_proj.weight",
    "attn.q_norm.weight": "self_attn.q_a_norm.weight",
    "attn.wq_b.weight": "self_attn.q_b_proj.weight",
    "attn.wkv.weight": "self_attn.kv_proj.weight",
    "attn.kv_norm.weight": "self_attn.kv_norm.weight",
    "attn.wo_a.weight": "self_attn.o_a_proj.weight",
    "attn.wo_b.weight": "self_attn.o_b_proj.weight",
    "attn.compressor.ape": "self_attn.compressor.position_bias",
    "attn.compressor.norm.weight": "self_attn.compressor.kv_norm.weight",
    "attn.compressor.wkv.weight": "self_attn.compressor.kv_proj.weight",
    "attn.compressor.wgate.weight": "self_attn.compressor.gate_proj.weight",
    "attn.indexer.compressor.ape": "self_attn.compressor.indexer.position_bias",
    "attn.indexer.compressor.norm.weight": "self_attn.compressor.indexer.kv_norm.weight",
    "attn.indexer.compressor.wkv.weight": "self_attn.compressor.indexer.kv_proj.weight",
    "attn.indexer.compressor.wgate.weight": "self_attn.compressor.indexer.gate_proj.weight",
    "attn.indexer.wq_b.weight": "self_attn.compressor.indexer.q_b_proj.weight",
    "attn.indexer.weights_proj.weight": "self_attn.compressor.indexer.scorer.weights_proj.weight",
    "ffn.gate.weight": "mlp.gate.weight",
    "ffn.gate.bias": "mlp.gate.e_score_correction_bias",
    "ffn.gate.tid2eid": "mlp.gate.tid2eid",
    "ffn.shared_experts.w1.weight": "mlp.shared_experts.gate_proj.weight",
    "ffn.shared_experts.w2.weight": "mlp.shared_experts.down_proj.weight",
    "ffn.shared_experts.w3.weight": "mlp.shared_experts.up_proj.weight",
    "ffn.experts.12.w1.weight": "mlp.experts.12.gate_proj.weight",
    "ffn.experts.12.w2.weight": "mlp.experts.12.down_proj.weight",
    "ffn.experts.12.w3.weight": "mlp.experts.12.up_proj.weight",
}


@pytest.mark.parametrize("published, own", OWN_NAMES.items())
def test_names(published: str, own: str) -> None:
    for prefix in ("layers.7.", "mtp.0."):
        for name in (published, own):
            assert published_name(f"model.{prefix}{name}") == published_name(prefix + name) == prefix + published


def test_names_outside_of_layers() -> None:
    pairs = {"model.embed_tokens.weight": "embed.weight", "lm_head.weight": "head.weight", "model.norm.weight":
             "norm.weight", "model.hc_head.hc_fn": "hc_head_fn", "hc_head.hc_scale": "hc_head_scale"}  # fmt: skip
    assert {name: published_name(name) for name in pairs} == pairs
    for name in ("layers.1.attn.norm.weight", "model.layers.1.attn.norm.weight"):  # transformers 5.23.0 writes this
        assert published_name(name) == "layers.1.attn.kv_norm.weight"


def plain(tensors: Tensors, dtype: str = "BF16") -> Tensors:
    """Every quantized weight as floats, without its scales; exact in BF16 for the values of test checkpoints."""
    result: Tensors = {}
    for name, (kind, shape, data) in tensors.items():
        if name.endswith(".scale"):
            continue
        scale = tensors.get(name.removesuffix(".weight") + ".scale")
        if scale is None:
            result[name] = (kind, shape, data)
            continue
        codes = np.frombuffer(data, np.uint8).reshape(shape)
        scales = np.frombuffer(scale[2], np.uint8).reshape(scale[1])
        values = codecs.fp4_decode(codes, scales) if kind == "I8" else codecs.fp8_decode(codes, scales)
        encoded = {"BF16": codecs.bf16_encode, "F32": lambda x: x, "F16": lambda x: x.astype(np.float16)}[dtype](values)
        result[name] = (dtype, values.shape, encoded.tobytes())
    return result


def dense(tensors: Tensors) -> Tensors:
    return {name: value for name, value in tensors.items() if ".experts." not in name}


def stacked(tensors: Tensors) -> Tensors:
    """transformers' own names, with `model.` before them; a layer's experts in two tensors."""
    result: Tensors = {}
    experts: dict[str, dict[tuple[int, str], tuple[str, tuple[int, ...], bytes]]] = {}
    outside = {"embed.weight": "model.embed_tokens.weight", "head.weight": "lm_head.weight",
               "hc_head_fn": "model.hc_head.hc_fn", "hc_head_base": "model.hc_head.hc_base",
               "hc_head_scale": "model.hc_head.hc_scale", "norm.weight": "model.norm.weight"}  # fmt: skip
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        number, _, inner = rest.partition(".")
        expert = re.fullmatch(r"ffn\.experts\.(\d+)\.(w[123])\.weight", inner)
        if name in outside:
            result[outside[name]] = value
        elif expert:
            experts.setdefault(f"model.{part}.{number}.mlp.experts", {})[int(expert[1]), expert[2]] = value
        else:
            own = OWN_NAMES.get(inner) or re.sub(r"hc_(attn|ffn)_(fn|base|scale)", r"\1_hc.\2", inner)
            result[f"model.{part}.{number}.{own}"] = value
    for prefix, members in experts.items():
        n = 1 + max(expert for expert, _ in members)
        for name, matrices in (("gate_up_proj", ("w1", "w3")), ("down_proj", ("w2",))):
            dtype, (rows, cols), _ = members[0, matrices[0]]
            data = b"".join(members[expert, matrix][2] for expert in range(n) for matrix in matrices)
            result[f"{prefix}.{name}"] = (dtype, (n, rows * len(matrices), cols), data)
    return result


def as_saved(config: dict[str, Any]) -> dict[str, Any]:
    """config.json as transformers writes it."""
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention", 128: "heavily_compressed_attention"}
    n, n_hash = config["num_hidden_layers"], config["num_hash_layers"]
    gone = ("compress_ratios", "num_hash_layers", "rope_scaling", "quantization_config", "torch_dtype", "rope_theta",
            "compress_rope_theta", "qk_rope_head_dim")  # fmt: skip
    share = config["qk_rope_head_dim"] / config["head_dim"]
    scaling = {"rope_type": "yarn", "attention_factor": 1.0, "partial_rotary_factor": share, **config["rope_scaling"]}
    return {key: value for key, value in config.items() if key not in gone} | {
        "dtype": "bfloat16", "layer_types": [kinds[ratio] for ratio in config["compress_ratios"][:n]],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
        "mlp_layer_types": ["hash_moe"] * n_hash + ["moe"] * (n - n_hash), "mlp_bias": False,
        "partial_rotary_factor": share,
        "rope_parameters": {"main": {"rope_type": "default", "rope_theta": config["rope_theta"]},
                            "compress": {**scaling, "rope_theta": config["compress_rope_theta"]}},
    }  # fmt: skip


def write(folder: Path, tensors: Tensors, config: dict[str, Any], source: Path) -> Path:
    """A checkpoint of one file."""
    folder.mkdir()
    header, _ = build_header(folder, [(name, dtype, shape) for name, (dtype, shape, _) in tensors.items()])
    (folder / "model.safetensors").write_bytes(header + b"".join(data for _, _, data in tensors.values()))
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    return folder


def gguf_payloads(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    data = path.read_bytes()
    return {name: (ref.dtype, ref.shape, data[ref.offset : ref.offset + ref.nbytes])
            for name, ref in read_gguf(path).tensors.items()}  # fmt: skip


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("published") / "c")


MAKERS: dict[str, Callable[[Tensors], Tensors]] = {
    "published names": lambda tensors: plain(tensors),
    "prefixed": lambda tensors: {f"model.{name}": value for name, value in plain(tensors).items()},
    "stacked": lambda tensors: stacked(plain(tensors)),
    "float32": lambda tensors: stacked(plain(tensors, "F32")),
    "experts still FP4": lambda tensors: {
        name: value for name, value in (tensors | plain(dense(tensors))).items()
        if ".experts." in name or not name.endswith(".scale")},
}  # fmt: skip


@pytest.mark.parametrize("kind", MAKERS)
def test_the_same_weights_in_other_words(tmp_path: Path, published: Path, kind: str) -> None:
    """Converted without loss, a fine-tune's file is that of the published checkpoint with these weights."""
    tensors = MAKERS[kind](payloads(published))
    folder = write(tmp_path / "tuned", tensors, as_saved(small_config()), published)
    for options in (LOSSLESS, ConvertOptions(dense="bf16", experts="bf16", mtp=True), ConvertOptions(experts="q8_0")):
        convert(published, tmp_path / "a.gguf", options)
        convert(folder, tmp_path / "b.gguf", options)
        assert gguf_payloads(tmp_path / "a.gguf") == gguf_payloads(tmp_path / "b.gguf")
        if options.mtp:
            assert gguf_payloads(tmp_path / "mtp-a.gguf") == gguf_payloads(tmp_path / "mtp-b.gguf")
    found, expected = (read_gguf(tmp_path / name).keys for name in ("b.gguf", "a.gguf"))
    ours = ("general.name", "pyflash.checksum.header")
    assert {key: value for key, value in found.items() if key not in ours} == {
        key: value for key, value in expected.items() if key not in ours
    }


def test_experts_are_q8_0_unless_asked(tmp_path: Path, published: Path) -> None:
    folder = write(tmp_path / "tuned", stacked(plain(payloads(published))), as_saved(small_config()), published)
    for experts, kind in (("keep", "Q8_0"), ("bf16", "BF16"), ("f32", "F32")):
        convert(folder, tmp_path / "m.gguf", ConvertOptions(experts=experts))
        assert read_gguf(tmp_path / "m.gguf").tensors["blk.1.ffn_up_exps.weight"].dtype == kind
    assert "(BF16)" in plan_conversion(folder, ConvertOptions()).summary()


def test_a_dry_run_without_the_weights(tmp_path: Path, published: Path) -> None:
    folder = write(tmp_path / "tuned", stacked(plain(payloads(published))), as_saved(small_config()), published)
    expected = plan_conversion(folder, ConvertOptions()).total_bytes
    (folder / "model.safetensors").unlink()
    assert plan_conversion(folder, ConvertOptions()).total_bytes == expected


def test_float16_and_rounding(tmp_path: Path, published: Path) -> None:
    """float16 and float32 lose nothing where the target is float32; matrices that become BF16 are told."""
    tensors = plain(payloads(published), "F16")
    rng = np.random.default_rng(4)
    embedding = rng.standard_normal((512, 160)).astype(np.float32)
    tensors["embed.weight"] = ("F32", (512, 160), embedding.tobytes())
    folder = write(tmp_path / "tuned", tensors, as_saved(small_config()), published)
    warnings = convert(folder, tmp_path / "m.gguf", ConvertOptions()).warnings
    assert warnings == ['embed.weight are rounded to BF16; dense="f32" keeps every digit']
    assert convert(folder, tmp_path / "m.gguf", ConvertOptions(dense="f32", experts="f32")).warnings == []
    found = gguf_payloads(tmp_path / "m.gguf")
    assert found["token_embd.weight"][2] == embedding.tobytes()
    half = np.frombuffer(tensors["layers.0.attn.wkv.weight"][2], np.float16)
    assert np.array_equal(np.frombuffer(found["blk.0.attn_kv.weight"][2], np.float32), half.astype(np.float32))


def test_tied_embeddings(tmp_path: Path, published: Path) -> None:
    tensors = plain(payloads(published))
    del tensors["head.weight"]
    config = as_saved(small_config())
    folder = write(tmp_path / "untied", tensors, config, published)
    with pytest.raises(ConvertError, match="head.weight is missing"):
        convert(folder, tmp_path / "m.gguf", ConvertOptions())
    folder = write(tmp_path / "tied", tensors, {**config, "tie_word_embeddings": True}, published)
    convert(folder, tmp_path / "m.gguf", ConvertOptions())
    found = gguf_payloads(tmp_path / "m.gguf")
    assert found["output.weight"] == found["token_embd.weight"]


def test_nan_in_stacked_experts_is_named(tmp_path: Path, published: Path) -> None:
    tensors = stacked(plain(payloads(published)))
    name = "model.layers.1.mlp.experts.down_proj"
    dtype, shape, data = tensors[name]
    values = np.frombuffer(data, "<u2").copy()
    values[3 * shape[1] * shape[2] + 5] = 0x7FC0
    tensors[name] = (dtype, shape, values.tobytes())
    folder = write(tmp_path / "tuned", tensors, as_saved(small_config()), published)
    with pytest.raises(ConvertError, match=re.escape(f"{name}[3] holds NaN")):
        convert(folder, tmp_path / "m.gguf", ConvertOptions())


@pytest.mark.parametrize("value, options, kind", [(1e9, {}, "Q8_0"), (3.4e38, LOSSLESS, "BF16")], ids=["q8_0", "bf16"])
def test_numbers_too_large_for_the_type(
    tmp_path: Path, published: Path, value: float, options: Any, kind: str
) -> None:
    """They would become infinity, and the model's logits NaN."""
    tensors = plain(payloads(published), "F32")
    name = "layers.1.attn.wq_a.weight"
    dtype, shape, data = tensors[name]
    values = np.frombuffer(data, np.float32).copy()
    values[7] = value
    tensors[name] = (dtype, shape, values.tobytes())
    folder = write(tmp_path / "tuned", tensors, as_saved(small_config()), published)
    with pytest.raises(ConvertError, match=f"{name} holds numbers too large for {kind}"):
        convert(folder, tmp_path / "m.gguf", options or ConvertOptions())
    convert(folder, tmp_path / "m.gguf", ConvertOptions(dense="f32", experts="f32"))


def edit_config(**changes: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda _tensors, config: config.update(changes)


def rope(**changes: Any) -> Callable[[Tensors, dict[str, Any]], None]:
    def edit(_tensors: Tensors, config: dict[str, Any]) -> None:
        for key, value in changes.items():
            part, _, name = key.partition("_")
            config["rope_parameters"][part][name] = value

    return edit


def reshaped(name: str, shape: tuple[int, ...]) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, _config: tensors.update({name: (tensors[name][0], shape, tensors[name][2])})


def also(name: str, source: str) -> Callable[[Tensors, dict[str, Any]], None]:
    return lambda tensors, _config: tensors.update({name: tensors[source]})


EXPERTS = "model.layers.2.mlp.experts"


@pytest.mark.parametrize(
    "edit, message",
    [
        (edit_config(layer_types=["sliding_attention", "full_attention", "x"]), "layer_types[1] is 'full_attention'"),
        (edit_config(layer_types=["sliding_attention"]), "compress_ratios is no list of at least 3"),
        (edit_config(layer_types=7), "layer_types is no list"),
        (edit_config(compress_rates={"compressed_sparse_attention": 8}), "compress_ratios[1] is 8"),
        (edit_config(mlp_layer_types=["moe", "hash_moe", "moe"]), "hash_moe after moe"),
        (edit_config(mlp_layer_types=["dense"] * 3), "mlp_layer_types is no list of"),
        (edit_config(mlp_bias=True), "mlp_bias is True"),
        (edit_config(rope_parameters=3), "rope_parameters is no object"),
        (edit_config(rope_parameters={"main": 1, "compress": {}}), "no objects main and compress"),
        (rope(main_rope_type="yarn"), "rope_parameters.main.rope_type is 'yarn'"),
        (rope(compress_rope_type="linear"), "rope_scaling.type is 'linear'"),
        (rope(compress_attention_factor=1.3), "scales attention"),
        (rope(compress_truncate=False), "does not round"),
        (rope(compress_factor="16"), "factor is '16'"),
        (edit_config(eos_token_id=[]), "eos_token_id is []"),
        (edit_config(quantization_config={"quant_method": "bitsandbytes"}), "quant_method is 'bitsandbytes'"),
        (reshaped(f"{EXPERTS}.down_proj", (5, 96, 160)), f"{EXPERTS}.down_proj[0] has shape [96, 160]"),
        (reshaped(f"{EXPERTS}.down_proj", (5 * 160, 96)), f"{EXPERTS}.down_proj is not a tensor of this model"),
        (reshaped(f"{EXPERTS}.gate_up_proj", (4, 240, 160)), f"{EXPERTS}.gate_up_proj[3] has shape"),
        (lambda tensors, _: [tensors.pop(f"{EXPERTS}.down_proj")] and None,
         "layers.2.ffn.experts.4.w2.weight is missing"),
        (reshaped("model.layers.0.self_attn.kv_proj.weight", (160, 64)), "self_attn.kv_proj.weight has shape"),
        (also("model.layers.0.self_attn.foo.weight", "lm_head.weight"), "self_attn.foo.weight is not a tensor"),
        (also("head.weight", "lm_head.weight"), "head.weight and lm_head.weight are the same weight"),
        (lambda tensors, _: [tensors.pop("model.norm.weight")] and None, "norm.weight is missing"),
        (lambda tensors, _: [tensors.pop("model.layers.1.self_attn.q_b_proj.weight")] and None,
         "layers.1.attn.wq_b.weight is missing"),
    ],
)  # fmt: skip
def test_mistakes_are_a_line(
    tmp_path: Path, published: Path, edit: Callable[[Tensors, dict[str, Any]], None], message: str
) -> None:
    tensors, config = stacked(plain(payloads(published))), as_saved(small_config())
    edit(tensors, config)
    folder = write(tmp_path / "tuned", tensors, config, published)
    with pytest.raises(ConvertError) as error:
        convert(folder, tmp_path / "m.gguf", ConvertOptions())
    assert message in str(error.value) and "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned"]
    assert ".scale" not in str(error.value)  # a tensor that no fine-tune has


def test_native_is_refused(tmp_path: Path, published: Path) -> None:
    for index, tensors in enumerate((plain(payloads(published)), stacked(plain(payloads(published))))):
        folder = write(tmp_path / str(index), tensors, as_saved(small_config()), published)
        with pytest.raises(ConvertError, match='use profile="compat"'):
            convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))
    prefixed = {f"model.{name}": value for name, value in payloads(published).items()}
    folder = write(tmp_path / "prefixed", prefixed, small_config(), published)
    with pytest.raises(ConvertError, match='use profile="compat"'):
        convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))


def test_configs_in_both_words_are_the_same() -> None:
    values = small_config()
    expected = parse_config(values)
    found = parse_config(published_config(as_saved(values)))
    for name in expected.__dataclass_fields__:
        if name != "is_quantized":
            assert getattr(found, name) == getattr(expected, name), name
    assert published_config(values) == values
    assert parse_config(published_config({**as_saved(values), "eos_token_id": [1, 5]})).eos_token_id == 1
    default = as_saved(values)
    default["rope_parameters"]["compress"] = {"rope_type": "default", "rope_theta": 160000}
    assert parse_config(published_config(default)).yarn_factor == 1.0
    flat = {**as_saved(values), "rope_parameters": values["rope_scaling"], "rope_theta": 10000,
            "compress_rope_theta": 160000, "qk_rope_head_dim": values["qk_rope_head_dim"]}  # fmt: skip
    assert parse_config(published_config(flat)).yarn_factor == 16.0
