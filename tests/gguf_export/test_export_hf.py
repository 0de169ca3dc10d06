"""pyflash export hf: the checkpoint's own files to the byte, what is said where that cannot be, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from checkpoints import leftovers, payloads, rewrite, small_checkpoint
from ran import Ran

from gguf_export import hf_files
from gguf_export.convert import ConvertOptions, convert, export_hf, plan_export_hf
from gguf_export.errors import ConvertError
from gguf_export.quantizing import QuantizeOptions, quantize
from gguf_export.reader import read_gguf
from quantize import codecs

Run = Callable[..., Ran]
Convert = Callable[..., Path]
NATIVE = ConvertOptions(profile="native", mtp=True)
INDEX = "model.safetensors.index.json"


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def lay_out(folder: Path, shards: dict[str, list[str]], *, spaces: int | None = None, index: bool = True) -> None:
    """Writes the tensors again, into these files and in this order; the header lists them by name, as a sorted map does."""
    tensors = payloads(folder)
    for path in [*folder.glob("*.safetensors"), *folder.glob(INDEX)]:
        path.unlink()
    assert sorted(name for names in shards.values() for name in names) == sorted(tensors)
    for shard, names in shards.items():
        entries: dict[str, Any] = {}
        data = b""
        for name in names:
            dtype, shape, payload = tensors[name]
            offsets = [len(data), len(data) + len(payload)]
            entries[name] = {"data_offsets": offsets, "shape": list(shape), "dtype": dtype}
            data += payload
        header = json.dumps({**dict(sorted(entries.items())), "__metadata__": {"made": "by hand"}}, indent=spaces).encode()
        (folder / shard).write_bytes(len(header).to_bytes(8, "little") + header + data)
    if index:
        places = {name: shard for shard, names in shards.items() for name in reversed(names)}
        text = json.dumps({"weight_map": places, "metadata": {"total_size": 1.5, "who": "é"}}, ensure_ascii=False)
        (folder / INDEX).write_text(text, encoding="utf-8", newline="")


def _shuffled(names: list[str]) -> list[str]:
    return [names[i] for i in np.random.default_rng(5).permutation(len(names))]


def _single(folder: Path) -> None:
    lay_out(folder, {"model.safetensors": list(payloads(folder))}, index=False)


def _other_files(folder: Path) -> None:
    names = _shuffled(list(payloads(folder)))
    lay_out(folder, {"b.part.safetensors": names[:700:2], "a_1.safetensors": names[1:700:2] + names[700:]}, spaces=2)


def _no_index(folder: Path) -> None:
    names = _shuffled(list(payloads(folder)))
    lay_out(folder, {f"model-0000{i + 1}-of-00003.safetensors": names[i::3] for i in range(3)}, index=False)


def _more_small_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_bytes("{{ bos_token }}\r\n<｜User｜>".encode())
    (folder / "special_tokens_map.json").write_bytes(b'{"a":  1}\r\n')
    (folder / "LICENSE").write_bytes(b"MIT License\n\nwhoever")
    (folder / "generation_config.json").unlink()


def _float_scale(folder: Path) -> None:
    name = "layers.1.attn.wo_a.scale"

    def to_float(shard: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        _, shape, data = shard[name]
        shard[name] = ("F32", shape, codecs.e8m0_decode(np.frombuffer(data, np.uint8)).astype(np.float32).tobytes())

    rewrite(folder, name, to_float)


@pytest.mark.parametrize(
    "release, changed, options",
    [("preview", _other_files, {}), ("preview", _more_small_files, {"drafts": False}), ("preview", _float_scale, {}),
     ("preview", _single, {"experts": "fp8", "drafts": False}), ("0731", _no_index, {})],
    ids=["other files", "small files", "a float scale", "one file, FP8 experts", "DSpark, no index"],
)  # fmt: skip
def test_the_files_come_back(
    tmp_path: Path, release: str, changed: Callable[[Path], None], options: dict[str, Any]
) -> None:
    folder = small_checkpoint(tmp_path / "c", release, **options)
    changed(folder)
    with_drafts = options.get("drafts", True)
    convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native", mtp=with_drafts))
    plan = plan_export_hf(tmp_path / "native.gguf")
    told: list[str] = []
    files = export_hf(tmp_path / "native.gguf", tmp_path / "back", warn=told.append)
    assert contents(tmp_path / "back") == contents(folder)
    assert plan.is_same_files and plan.n_tensors == len(payloads(folder))
    assert plan.drafts == ({"0731": "dspark", "preview": "mtp"}[release] if with_drafts else "none")
    assert plan.files == [(path.name, path.stat().st_size) for path in files] and plan.notes == told
    assert any("drafting blocks" in note for note in told) == (not with_drafts)
    assert leftovers(tmp_path) == leftovers(tmp_path / "back") == []


def test_without_the_drafting_blocks(tmp_path: Path) -> None:
    """The tensors that are there are the checkpoint's; its files cannot be."""
    folder = small_checkpoint(tmp_path / "c")
    convert(folder, tmp_path / "native.gguf", ConvertOptions(profile="native"))
    assert hf_files.LAYOUT_KEY not in read_gguf(tmp_path / "native.gguf").keys
    told: list[str] = []
    export_hf(tmp_path / "native.gguf", tmp_path / "back", warn=told.append)
    expected = {name: value for name, value in payloads(folder).items() if not name.startswith("mtp.")}
    assert payloads(tmp_path / "back") == expected
    assert "cannot draft" in told[0] and "mtp=True" in told[0] and "split as published" in told[1] and len(told) == 2
    index = json.loads((tmp_path / "back" / INDEX).read_text())
    assert index["weight_map"].keys() == expected.keys()


def test_a_file_of_an_earlier_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not tell how the checkpoint's files were laid out."""
    folder = small_checkpoint(tmp_path / "c")
    _other_files(folder)
    with monkeypatch.context() as patch:
        patch.setattr(hf_files, "add_layout", lambda metadata, checkpoint: None)
        convert(folder, tmp_path / "native.gguf", NATIVE)
    assert not plan_export_hf(tmp_path / "native.gguf").is_same_files
    export_hf(tmp_path / "native.gguf", tmp_path / "back")
    assert payloads(tmp_path / "back") == payloads(folder)


def test_a_quantised_file_carries_nothing_of_it(tmp_path: Path, converted: Convert) -> None:
    quantize(converted(profile="native", mtp=True), tmp_path / "q.gguf", QuantizeOptions(experts="Q2_K"))
    assert not [key for key in read_gguf(tmp_path / "q.gguf").keys if key.startswith(hf_files.SIDE_PREFIX)]
    with pytest.raises(ConvertError, match="no native file.*quantised; give the file of"):
        export_hf(tmp_path / "q.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "options, name, why",
    [({}, "tiny.gguf", "compat profile: FP8 became Q8_0"), ({"dense": "bf16"}, "tiny.gguf", "FP8 became BF16"),
     ({"mtp": True}, "mtp-tiny.gguf", "only what drafts")],
)  # fmt: skip
def test_other_files_are_refused(
    tmp_path: Path, converted: Convert, run: Run, options: dict[str, Any], name: str, why: str
) -> None:
    ran = run("export", "hf", converted(**options).parent / name, tmp_path / "back")
    assert ran.code == 1 and why in ran.stderr and "--profile native" in ran.stderr
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("tensor", ["blk.0.attn_q_a.weight", "blk.1.ffn_down_exps.weight", "output_norm.weight"])
def test_damaged_weights_are_found(tmp_path: Path, converted: Convert, tensor: str) -> None:
    path = tmp_path / "native.gguf"
    shutil.copyfile(converted(profile="native", mtp=True), path)
    ref = read_gguf(path).tensors[tensor]
    with open(path, "r+b") as file:
        file.seek(ref.offset + ref.nbytes // 2 + 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 0x40]))
    with pytest.raises(ConvertError, match=f"damaged.*{tensor}"):
        export_hf(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def _renamed(text: str) -> str:
    return text.replace("layers.1.attn.wq_a.weight", "layers.9.attn.wq_a.weight")


def _retyped(text: str) -> str:
    return text.replace("F8_E4M3", "F8_E5M2")


def _shorter(text: str) -> str:
    return text[: len(text) // 2]


@pytest.mark.parametrize("change", [_renamed, _retyped, _shorter])
def test_a_layout_of_other_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[str], str]) -> None:
    header_text = hf_files.header_text
    with monkeypatch.context() as patch:
        patch.setattr(hf_files, "header_text", lambda path: change(header_text(path)))
        convert(small_checkpoint(tmp_path / "c"), tmp_path / "native.gguf", NATIVE)
    with pytest.raises(ConvertError, match="does not fit its tensors"):
        export_hf(tmp_path / "native.gguf", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_layout_that_cannot_be_read() -> None:
    packed = {"ok": b'{"shards": {"m.safetensors": "{}"}, "index": null}', "name": b'{"shards": {"../m": "{}"}, "index": null}',
              "kind": b'{"shards": {"m.safetensors": 1}, "index": null}', "index": b'{"shards": {}, "index": 1}',
              "surrogate": b'{"shards": {}, "index": "\\ud800"}', "list": b"[]", "text": b"no"}  # fmt: skip
    import zlib

    for what, text in packed.items():
        keys = {hf_files.LAYOUT_KEY: list(zlib.compress(text))}
        if what == "ok":
            layout = hf_files.read_layout(keys, Path("m.gguf"))
            assert layout is not None and layout.shards == {"m.safetensors": "{}"} and layout.index is None
            continue
        with pytest.raises(ConvertError, match="cannot be read"):
            hf_files.read_layout(keys, Path("m.gguf"))
    for value in (list(zlib.compress(packed["ok"]))[:-3], "text", 5, [1000]):
        with pytest.raises(ConvertError, match="cannot be read"):
            hf_files.read_layout({hf_files.LAYOUT_KEY: value}, Path("m.gguf"))


def test_a_full_disk_is_noticed_before_writing(
    tmp_path: Path, converted: Convert, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = plan_export_hf(converted(profile="native", mtp=True)).total_bytes - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=free, used=0, free=free))
    monkeypatch.setattr("gguf_export.hf.run_jobs", lambda *arguments: pytest.fail("it began to write"))
    with pytest.raises(ConvertError, match="free some space"):
        export_hf(converted(profile="native", mtp=True), tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_dry_run(tmp_path: Path, converted: Convert, run: Run) -> None:
    path = converted(profile="native", mtp=True)
    shown = run("export", "hf", path, tmp_path / "back", "--dry-run")
    plan = run("export", "hf", path, tmp_path / "back", "--dry-run", "--json").json()
    assert list(tmp_path.iterdir()) == []
    done = run("export", "hf", path, tmp_path / "back", "--json").json()
    sizes = {file["name"]: file["bytes"] for file in plan["files"]}
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "back").iterdir()}
    assert plan["total_bytes"] == done["total_bytes"] and plan["same_files"] and plan["drafts"] == "mtp"
    assert all(name in shown.stdout for name in sizes) and "the files that it was made from" in shown.stdout
    without = run("export", "hf", converted(profile="native"), tmp_path / "other", "--dry-run")
    assert "converting with --mtp keeps them" in without.stdout
