"""Damaged checkpoints and impossible requests: one line that names the tensor or key, and nothing written."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import Edit, poke, rewrite, small_checkpoint, small_config

from gguf_export.config import parse_config
from gguf_export.convert import ConvertOptions, convert, export_hf, plan_conversion
from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf
from gguf_export.safetensors_file import read_header


def refused(folder: Path, tmp_path: Path, **options: Any) -> str:
    """Converts, expects a refusal, and gives its text."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(ConvertError) as error:
        convert(folder, out / "native.gguf", ConvertOptions(**options))
    assert list(out.iterdir()) == []
    assert "\n" not in str(error.value)
    return str(error.value)


def drop(name: str) -> Edit:
    return lambda tensors: [tensors.pop(name)] and None


def rename(name: str, new: str) -> Edit:
    def edit(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        tensors[new] = tensors.pop(name)

    return edit


def retype(name: str, dtype: str) -> Edit:
    def edit(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        tensors[name] = (dtype, *tensors[name][1:])

    return edit


def reshape(name: str, shape: tuple[int, ...]) -> Edit:
    def edit(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        tensors[name] = (tensors[name][0], shape, tensors[name][2])

    return edit


EXPERT = "layers.1.ffn.experts.3.w2"
WKV = "layers.0.attn.wkv.weight"
WO_B = "layers.2.attn.wo_b.weight"
IDS = "layers.0.ffn.gate.tid2eid"
SCALE = "layers.2.attn.wkv.scale"


@pytest.mark.parametrize(
    "name, edit, message",
    [
        ("layers.1.attn.wq_a.scale", drop("layers.1.attn.wq_a.scale"), "layers.1.attn.wq_a.scale is missing"),
        (f"{EXPERT}.weight", drop(f"{EXPERT}.weight"), f"{EXPERT}.weight is missing"),
        ("norm.weight", rename("norm.weight", "model.norms.weight"), "model.norms.weight is not a tensor of this model"),
        (WKV, retype(WKV, "I8"), f"{WKV} is I8, expected F8_E4M3"),
        (f"{EXPERT}.weight", retype(f"{EXPERT}.weight", "F8_E4M3"), f"{EXPERT}.weight is F8_E4M3, expected I8"),
        (f"{EXPERT}.scale", retype(f"{EXPERT}.scale", "U8"), f"{EXPERT}.scale is U8, expected F8_E8M0"),
        (WO_B, reshape(WO_B, (128, 160)), f"{WO_B} has shape [128, 160], expected [160, 128]"),
        (f"{EXPERT}.scale", poke(f"{EXPERT}.scale", 255, "u1", at=7), f"{EXPERT}.scale holds a scale that is NaN"),
        (SCALE, poke(SCALE, 255, "u1"), f"{SCALE} holds a scale that is NaN"),
        (IDS, poke(IDS, 5, "<i8", at=9), f"{IDS} holds the expert id 5, there are 5 experts"),
        (IDS, poke(IDS, -1, "<i8"), f"{IDS} holds the expert id -1"),
        (WKV, poke(WKV, 0x7F, "u1", at=99), f"{WKV} holds NaN"),
    ],
)  # fmt: skip
def test_damaged_tensors_are_named(tmp_path: Path, name: str, edit: Edit, message: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    rewrite(folder, name, edit)
    assert message in refused(folder, tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0, -1.0])
def test_damaged_float_scales_are_named(tmp_path: Path, value: float) -> None:
    folder = small_checkpoint(tmp_path / "c", experts="fp8")
    rewrite(folder, f"{EXPERT}.scale", poke(f"{EXPERT}.scale", np.float32(value), "<f4", at=1))
    assert f"{EXPERT}.scale holds the scale" in refused(folder, tmp_path, profile="native")


def test_many_problems_are_one_error(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    for i in range(5):
        for matrix in ("w1", "w3"):
            name = f"layers.2.ffn.experts.{i}.{matrix}.weight"
            rewrite(folder, name, drop(name))
    text = refused(folder, tmp_path)
    assert text.count("is missing") == 8 and "and 2 more" in text


def test_truncated_shard_names_the_tensor(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    path = sorted(folder.glob("*.safetensors"))[2]
    last = list(read_header(path).values())[-1]
    path.write_bytes(path.read_bytes()[: last.offset + last.nbytes - 1])
    text = refused(folder, tmp_path)
    assert "truncated" in text and last.name in text and path.name in text


def test_missing_shard_and_lying_index(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    index_path = folder / "model.safetensors.index.json"
    index = json.loads(index_path.read_text())
    moved = dict(index, weight_map=index["weight_map"] | {"norm.weight": "model-00001-of-00006.safetensors"})
    index_path.write_text(json.dumps(moved))
    assert "norm.weight" in refused(folder, tmp_path)
    index_path.write_text(json.dumps({"weight_map": {"norm.weight": "../c/model-00001-of-00006.safetensors"}}))
    assert "norm.weight" in refused(folder, tmp_path)
    index_path.write_text(json.dumps(index))
    (folder / "model-00003-of-00006.safetensors").unlink()
    assert "model-00003-of-00006.safetensors" in refused(folder, tmp_path)


def header_file(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(begin: int, end: int, shape: list[Any], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "truncated"),
        (b"\x01\0\0", "truncated"),
        (struct.pack("<Q", 1 << 63) + b"{}", "header does not fit"),
        (header_file(b"{}")[:-1], "header does not fit"),
        (header_file(b"[]"), "no JSON object"),
        (header_file(b"{"), "damaged"),
        (header_file(b'{"a":' * 5000), "damaged"),
        (header_file(b'{"a":1,"a":1}'), "'a' appears twice"),
        (header_file(b'{"a":NaN}'), "damaged"),
        (header_file(b"\xff\xfe"), "damaged"),
        (header_file({"a": 1}), "tensor a"),
        (header_file({"a": entry(0, 4, [4], "Q4")}, bytes(4)), "unknown dtype 'Q4'"),
        (header_file({"a": entry(0, 4, [4], ["U8"])}, bytes(4)), "unknown dtype"),
        (header_file({"a": entry(0, 4, [-4])}, bytes(4)), "tensor a has the shape"),
        (header_file({"a": entry(0, 4, [True, 4])}, bytes(4)), "tensor a has the shape"),
        (header_file({"a": entry(0, 4, [4.0])}, bytes(4)), "tensor a has the shape"),
        (header_file({"a": entry(4, 0, [4])}, bytes(4)), "tensor a has offsets"),
        (header_file({"a": entry(0, 4, [5])}, bytes(4)), "tensor a has offsets"),
        (header_file({"a": entry(0, 4, [1 << 62, 1 << 62])}, bytes(4)), "tensor a has offsets"),
        (header_file({"a": entry(0, 8, [8])}, bytes(4)), "truncated: tensor a"),
        (header_file({"a": entry(0, 4, [4]), "b": entry(2, 6, [4])}, bytes(6)), "tensor b overlaps"),
        (header_file({"a": entry(0, 4, [4]), "b": entry(0, 4, [4])}, bytes(4)), "tensor b overlaps"),
        (header_file({"a": entry(0, 4, [4]), "b": entry(6, 8, [2])}, bytes(8)), "tensor b leaves a gap"),
        (header_file({"a": entry(0, 4, [4])}, bytes(5)), "1 bytes after its last tensor"),
        (header_file({"__metadata__": {"a": 1}}), "__metadata__"),
    ],
)
def test_bad_safetensors_headers(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ConvertError, match=message):
        read_header(path)


def test_random_damage_to_a_header_never_crashes(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c", changes={"num_hidden_layers": 1, "compress_ratios": [0, 0]})
    path = folder / "model-00001-of-00004.safetensors"
    original = path.read_bytes()
    length = 8 + int.from_bytes(original[:8], "little")
    rng = np.random.default_rng(5)
    outcomes = set()
    for _ in range(400):
        data = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0, length)] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(0, len(data))] if rng.random() < 0.2 else data)
        try:
            read_header(path)
            outcomes.add("accepted")
        except ConvertError as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
    assert "refused" in outcomes


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "deepseek_v3"}, "model_type"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 100}, "hidden_size is 100, which is no multiple of 32"),
        ({"num_attention_heads": 3}, "multiple of o_groups"),
        ({"num_experts_per_tok": 99}, "num_experts_per_tok exceeds"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"compress_ratios": [0, 0]}, "compress_ratios"),
        ({"compress_ratios": [0, 4, 64, 0]}, r"compress_ratios\[2\] is 64"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.type is 'linear'"),
        ({"rope_scaling": None}, "rope_scaling"),
        ({"quantization_config": {"quant_method": "awq"}}, "quant_method is 'awq'"),
        ({"quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]}}, "weight_block_size"),
        ({"eos_token_id": 10**6}, "eos_token_id"),
        ({"swiglu_limit": 0}, "swiglu_limit"),
        ({"qk_rope_head_dim": 33}, "qk_rope_head_dim"),
        ({"expert_dtype": "int4"}, "expert_dtype is 'int4'"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
    ],
)
def test_unsupported_configs(changes: dict[str, Any], message: str) -> None:
    config = small_config(**changes)
    with pytest.raises(ConvertError, match=message):
        parse_config({key: value for key, value in config.items() if value is not None})


@pytest.mark.parametrize("key, value", [("hc_mult", 2), ("index_head_dim", 32), ("index_head_dim", 96)])
def test_compat_refuses_what_llama_cpp_cannot_load(tmp_path: Path, key: str, value: int) -> None:
    folder = small_checkpoint(tmp_path / "c", changes={key: value})
    assert f"{key} is {value}" in refused(folder, tmp_path)
    report = convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))
    assert report.files[0].is_file()


def test_drafting_refusals(tmp_path: Path) -> None:
    without = small_checkpoint(tmp_path / "w", drafts=False)
    assert "no mtp" in refused(without, tmp_path, mtp=True)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"profile": "fast"}, "profile is 'fast'"),
        ({"dense": "q4"}, "dense is 'q4'"),
        ({"profile": "native", "dense": "bf16"}, "leave out dense"),
        ({"shard_bytes": 0}, "shard size"),
    ],
)
def test_bad_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConvertError, match=message):
        plan_conversion(tmp_path, ConvertOptions(**options))


def test_bad_places(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    for checkpoint, out, message in (
        (tmp_path / "absent", tmp_path / "m.gguf", "no folder"),
        (tmp_path, tmp_path / "m.gguf", "no config.json"),
        (folder, tmp_path / "m.bin", "does not end in .gguf"),
        (folder, tmp_path / "absent" / "m.gguf", "there is no folder"),
    ):
        with pytest.raises(ConvertError, match=message):
            convert(checkpoint, out, ConvertOptions())


def test_a_folder_in_the_way_is_noticed_before_anything_is_read(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    (tmp_path / "mtp-m.gguf").mkdir()

    def progress(done: int, total: int) -> None:
        raise AssertionError("it has begun")

    with pytest.raises(ConvertError, match="mtp-m.gguf is a folder"):
        convert(folder, tmp_path / "m.gguf", ConvertOptions(mtp=True), progress=progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "mtp-m.gguf"]


def test_temporary_files_of_others_stay(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c", drafts=False)
    convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))
    theirs = tmp_path / f".mtp.gguf.{os.getpid()}.part"
    theirs.write_text("theirs")
    their_folder = tmp_path / ".mtp.gguf.01234567.part"
    (their_folder / "inside").mkdir(parents=True)
    convert(folder, tmp_path / "mtp.gguf", ConvertOptions())
    assert theirs.read_text() == "theirs" and (their_folder / "inside").is_dir()


def test_text_that_is_not_utf8_in_a_gguf(tmp_path: Path) -> None:
    """It may be read, but is not exported as a checkpoint's file."""
    path = tmp_path / "native.gguf"
    convert(small_checkpoint(tmp_path / "c"), path, ConvertOptions(profile="native"))
    original = path.read_bytes()
    path.write_bytes(original.replace(b"deepseek_v4", b"deepseek\xffv4", 1))
    config = read_gguf(path).keys["pyflash.hf.config.json"]
    assert config.encode("utf-8", "surrogateescape").count(b"deepseek\xffv4") == 1
    with pytest.raises(ConvertError, match="config.json is not UTF-8"):
        export_hf(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_folder_name_that_is_not_utf8(tmp_path: Path) -> None:
    try:
        folder = small_checkpoint(tmp_path / os.fsdecode(b"model\xff"), drafts=False)
    except OSError:
        pytest.skip("file names are Unicode here")
    convert(folder, tmp_path / "m.gguf", ConvertOptions())
    assert read_gguf(tmp_path / "m.gguf").keys["general.name"] == "model?"


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    folder = small_checkpoint(tmp_path / "c")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=10, used=9, free=1))
    assert "free some space" in refused(folder, tmp_path)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda t: t["model"].update(type="Unigram"), "'Unigram' model"),
        (lambda t: t.pop("model"), "damaged"),
        (lambda t: t["model"].update(vocab=[]), "damaged"),
        (lambda t: t["model"]["vocab"].update(extra=512), "token id 512"),
        (lambda t: t["model"]["vocab"].update(extra="x"), "id 'x'"),
        (lambda t: t["model"]["vocab"].update(extra=t["model"]["vocab"]["a"]), "two tokens"),
        (lambda t: t["model"]["vocab"].update({"\ud800": t["model"]["vocab"].pop("a")}), "not Unicode: '\\ud800'"),
        (lambda t: t["model"]["merges"].append(["a", "\udfff"]), "not Unicode: 'a \\udfff'"),
        (lambda t: t["model"]["merges"].append("\udfff b"), "not Unicode"),
        # Another model's: its id 0 or 1 is an ordinary token, or nothing.
        (lambda t: t["added_tokens"].__delitem__(0), "has the ordinary token"),
        (lambda t: (t["added_tokens"].__delitem__(1), t["model"]["vocab"].pop(_by_id(t, 1))),
         "has no token with the eos"),
    ],
)
def test_bad_tokenizers(tmp_path: Path, damage: Callable[[dict[str, Any]], Any], message: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    damage(tokenizer)
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    assert message in refused(folder, tmp_path)


def _by_id(tokenizer: dict[str, Any], token_id: int) -> str:
    vocab: dict[str, int] = tokenizer["model"]["vocab"]
    return next(text for text, number in vocab.items() if number == token_id)


def test_tokenizers_that_do_not_fit_are_warnings(tmp_path: Path) -> None:
    """Fewer tokens than config.json says, and none of those that begin turns."""
    folder = small_checkpoint(tmp_path / "c")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [each for each in tokenizer["added_tokens"] if "User" not in each["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    few, turns = convert(folder, tmp_path / "m.gguf", ConvertOptions()).warnings
    assert "tokenizer.json has 511 tokens, config.json says 512" in few
    assert "no <｜User｜>, so chats come out wrong" in turns
    assert plan_conversion(folder, ConvertOptions()).notes == [few, turns]


def test_export_refusals(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    convert(folder, tmp_path / "compat.gguf", ConvertOptions())
    with pytest.raises(ConvertError, match="no native file"):
        export_hf(tmp_path / "compat.gguf", tmp_path / "back")
    convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConvertError, match="not an empty folder"):
        export_hf(tmp_path / "native.gguf", tmp_path / "full")
    with pytest.raises(ConvertError, match="there is no folder"):
        export_hf(tmp_path / "native.gguf", tmp_path / "no" / "back")
    with pytest.raises(ConvertError, match="cannot read"):
        export_hf(tmp_path / "absent.gguf", tmp_path / "back")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_hf(tmp_path / "native.gguf", tmp_path / "back", progress=interrupt)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c", "compat.gguf", "full", "native.gguf"]


def test_random_damage_to_a_gguf_never_crashes(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c", tokenizer=False)
    convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))
    path = tmp_path / "native.gguf"
    original = path.read_bytes()
    length = min(ref.offset for ref in read_gguf(path).tensors.values())
    rng = np.random.default_rng(6)
    refusals = 0
    for _ in range(300):
        data = bytearray(original)
        for _ in range(rng.integers(1, 3)):
            data[rng.integers(0, length)] = rng.integers(0, 256)
        path.write_bytes(data[: rng.integers(0, len(data))] if rng.random() < 0.2 else data)
        try:
            read_gguf(path)
        except ConvertError:
            refusals += 1
    assert refusals > 50


@pytest.mark.parametrize(("number", "name"), [(12, "Q4_K"), (23, "IQ4_XS"), (200, "200")])
def test_types_are_told_by_name(tmp_path: Path, number: int, name: str) -> None:
    entry = struct.pack("<Q", 1) + b"t" + struct.pack("<IQIQ", 1, 32, number, 0)
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + entry + bytes(64))
    with pytest.raises(ConvertError, match=f"tensor t has .*type {name}, "):
        read_gguf(tmp_path / "m.gguf")
