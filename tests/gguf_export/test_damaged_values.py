"""Damage that leaves every size right: NaN, infinity, zeros, and what stands in a file's place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import poke, rewrite, small_checkpoint
from ran import Ran

from gguf_export.convert import ConvertOptions, convert, plan_conversion
from gguf_export.errors import ConvertError
from gguf_export.safetensors_file import read_header

BF16_NAN, BF16_INFINITY = 0x7FC1, 0xFF80
INDEX = "model.safetensors.index.json"


def refused(folder: Path, tmp_path: Path, **options: Any) -> str:
    """Converts, expects a refusal in one line that leaves nothing, and gives its text."""
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(ConvertError) as error:
        convert(folder, out / "native.gguf", ConvertOptions(**options))
    assert list(out.iterdir()) == [] and "\n" not in str(error.value)
    return str(error.value)


def zeroed(name: str) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        dtype, shape, payload = tensors[name]
        tensors[name] = (dtype, shape, bytes(len(payload)))

    return edit


@pytest.mark.parametrize("options", [{}, {"dense": "f32", "experts": "f32"}, {"profile": "native"}], ids=str)
@pytest.mark.parametrize(
    "name, value, dtype, what",
    [
        ("embed.weight", BF16_NAN, "<u2", "NaN"),
        ("head.weight", BF16_INFINITY, "<u2", "infinity"),
        ("norm.weight", BF16_NAN, "<u2", "NaN"),
        ("layers.1.attn.compressor.wkv.weight", BF16_INFINITY, "<u2", "infinity"),
        ("layers.2.hc_ffn_fn", np.float32(-np.inf).view(np.uint32), "<u4", "infinity"),
        ("layers.0.attn.attn_sink", 0xFFC00000, "<u4", "NaN"),
        ("layers.2.attn.wo_b.weight", 0xFF, "u1", "NaN"),
    ],
)
def test_values_that_are_no_numbers(
    tmp_path: Path, options: dict[str, Any], name: str, value: int, dtype: str, what: str
) -> None:
    folder = small_checkpoint(tmp_path / "c")
    rewrite(folder, name, poke(name, value, dtype, at=3))
    text = refused(folder, tmp_path, **options)
    assert f"{name} holds {what}" in text and "download the checkpoint again" in text


def test_every_damaged_tensor_is_named(tmp_path: Path) -> None:
    """Not only the first one: what is damaged in one place is often damaged in others."""
    folder = small_checkpoint(tmp_path / "c")
    names = ["embed.weight", "layers.0.attn.wkv.weight", "layers.2.ffn_norm.weight", "head.weight"]
    for name in names:
        is_fp8 = "wkv" in name
        rewrite(folder, name, poke(name, 0x7F if is_fp8 else BF16_NAN, "u1" if is_fp8 else "<u2", at=7))
    text = refused(folder, tmp_path)
    assert all(f"{name} holds NaN" in text for name in names)


def test_damage_everywhere_ends_early(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    for layer in range(3):
        for part in ("attn_norm", "ffn_norm", "attn.q_norm", "attn.kv_norm"):
            name = f"layers.{layer}.{part}.weight"
            rewrite(folder, name, poke(name, BF16_NAN, "<u2"))
    text = refused(folder, tmp_path)
    assert text.count("holds NaN") == 8 and "; perhaps others: the rest was not read" in text


def test_drafting_blocks_only_where_they_are_converted(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    rewrite(folder, "mtp.0.enorm.weight", poke("mtp.0.enorm.weight", BF16_NAN, "<u2"))
    assert "mtp.0.enorm.weight holds NaN" in refused(folder, tmp_path, mtp=True)
    assert convert(folder, tmp_path / "m.gguf", ConvertOptions()).warnings == []


@pytest.mark.parametrize(
    "name",
    ["layers.1.ffn.experts.2.w2.weight", "layers.0.attn.wkv.weight", "layers.2.attn_norm.weight", "head.weight",
     "layers.1.attn.wq_a.scale", "layers.1.ffn.experts.2.w2.scale", "layers.0.ffn.gate.tid2eid"],
)  # fmt: skip
@pytest.mark.parametrize("profile", ["compat", "native"])
def test_only_zeros_is_a_warning(tmp_path: Path, name: str, profile: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    rewrite(folder, name, zeroed(name))
    told: list[str] = []
    report = convert(folder, tmp_path / "native.gguf", ConvertOptions(profile=profile), warn=told.append)
    assert [warning for warning in report.warnings if "only zeros" in warning and name in warning], report.warnings
    assert told == report.warnings


def test_float_scales_of_only_zeros_are_a_warning(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c", experts="fp8")
    name = "layers.1.ffn.experts.3.w2.scale"
    rewrite(folder, name, zeroed(name))
    report = convert(folder, tmp_path / "m.gguf", ConvertOptions())
    assert any(name in warning and "only zeros" in warning for warning in report.warnings)


def test_zeros_that_are_usual_are_not_told(tmp_path: Path) -> None:
    """Biases and what training starts at zero."""
    folder = small_checkpoint(tmp_path / "c")
    for name in ("layers.2.ffn.gate.bias", "layers.1.hc_attn_base", "layers.1.attn.attn_sink",
                 "layers.1.attn.compressor.ape"):  # fmt: skip
        rewrite(folder, name, zeroed(name))
    assert convert(folder, tmp_path / "m.gguf", ConvertOptions()).warnings == []


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize 3593787756\n" % (b"ab" * 32)
PAGE = b"\n<!DOCTYPE html>\n<html class=''><head><title>Sign in</title></head></html>" + b" " * 4096
FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX,
         "model-00003-of-00006.safetensors"]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "content, message", [(LFS, "Git LFS pointer"), (PAGE, "web page"), (b"\xef\xbb\xbf" + PAGE, "web page")]
)
def test_what_stands_in_a_files_place(tmp_path: Path, file: str, content: bytes, message: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    (folder / file).write_bytes(content)
    text = refused(folder, tmp_path)
    assert file in text and message in text


@pytest.mark.parametrize("file", FILES)
def test_empty_and_zeroed_files(tmp_path: Path, file: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    for content in (b"", bytes(5000)):
        (folder / file).write_bytes(content)
        text = refused(folder, tmp_path)
        assert file in text and "download it again" in text


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("native", [False, True])
def test_links_to_nothing_are_told_before_any_work(
    tmp_path: Path, file: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small_checkpoint(tmp_path / "c")
    (folder / file).unlink()
    try:
        (folder / file).symlink_to("../../blobs/0123abcd")
    except OSError:
        pytest.skip("no symlinks here")
    monkeypatch.setattr("gguf_export.convert.run_jobs", None)  # not reached
    text = refused(folder, tmp_path, profile="native" if native else "compat")
    assert file in text and "link to ../../blobs/0123abcd, which is not there" in text
    with pytest.raises(ConvertError, match="is not there"):
        plan_conversion(folder, ConvertOptions())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_or_folder_in_a_files_place(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert "tokenizer.json is no regular file" in refused(folder, tmp_path)
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.json").mkdir()
    assert "tokenizer.json is no regular file" in refused(folder, tmp_path)


def test_a_missing_index_is_made_from_the_headers(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    convert(folder, tmp_path / "a.gguf", ConvertOptions())
    (folder / INDEX).unlink()
    report = convert(folder, tmp_path / "b.gguf", ConvertOptions())
    assert report.warnings == [f"there is no {INDEX}; the headers of the 6 shards say where each tensor is"]
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    (folder / "model-00002-of-00006.safetensors").unlink()
    assert "model-00002-of-00006.safetensors" in refused(folder, tmp_path)


def test_shards_of_two_downloads_without_an_index(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    (folder / INDEX).unlink()
    first = folder / "model-00001-of-00006.safetensors"
    shutil.copy(first, folder / "model-00001-of-00008.safetensors")
    assert "shards of 6 and shards of 8" in refused(folder, tmp_path)
    (folder / "model-00001-of-00008.safetensors").unlink()
    shutil.copy(first, folder / "model.safetensors")
    assert "shards of 6 and model.safetensors" in refused(folder, tmp_path)
    (folder / "model.safetensors").unlink()
    shutil.copy(first, folder / "model-00002-of-00006.safetensors")
    name = next(iter(read_header(first)))
    text = refused(folder, tmp_path)
    assert f"{name} is in model-00001-of-00006.safetensors and in model-00002-of-00006.safetensors" in text


def test_adapters_and_pickles(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model-00001-of-00002.bin").touch()
    assert "save the model with safetensors" in refused(folder, tmp_path)
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "merge it into its model" in refused(folder, tmp_path)


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_numbers_that_are_none_in_configs(tmp_path: Path, file: str, value: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    path = folder / file
    path.write_text(path.read_text(encoding="utf-8").replace("{", f'{{"extra": {value}, ', 1), encoding="utf-8")
    assert file in (text := refused(folder, tmp_path)) and "is no JSON" in text


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "swiglu_limit", "hidden_size", "hc_eps"])
def test_numbers_too_large_in_config(tmp_path: Path, key: str) -> None:
    folder = small_checkpoint(tmp_path / "c")
    values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    text = json.dumps({**values, key: "LARGE"}).replace('"LARGE"', "1e400")
    (folder / "config.json").write_text(text, encoding="utf-8")
    assert f"{key} is inf" in refused(folder, tmp_path)


def test_run_on_a_model_of_nan_says_what_to_do(tmp_path: Path, tiny_model: Path, run: Callable[..., Ran]) -> None:
    """A file that was converted somewhere else, or damaged since."""
    from gguf_export.reader import read_gguf

    path = tmp_path / "nan.gguf"
    shutil.copy(tiny_model, path)
    ref = read_gguf(path).tensors["output_norm.weight"]
    with open(path, "r+b") as file:
        file.seek(ref.offset)
        file.write(np.full(ref.nbytes // 4, np.nan, "<f4").tobytes())
    ran = run("run", path, "hello", "-n", "4")
    assert ran.code == 1 and "not a number" in ran.stderr and "pyflash info --verify" in ran.stderr
    ran = run("info", "--verify", path)
    assert ran.code == 1 and "output_norm.weight" in ran.stderr and "damaged" in ran.stderr
