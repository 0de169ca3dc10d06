"""Checksums in converted files: written, verified, and what other programs make of them."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from ran import Ran

from gguf_export import checksums
from gguf_export.checksums import TensorDigest, verify
from gguf_export.convert import export_hf
from gguf_export.errors import ConvertError
from gguf_export.reader import read_gguf, shard_paths

Run = Callable[..., Ran]
Convert = Callable[..., Path]
OPTIONS: list[dict[str, Any]] = [{}, {"profile": "native", "mtp": True}, {"mtp": True, "shard_bytes": 200_000}]


def copied(path: Path, folder: Path) -> Path:
    """The file and its shards, to be changed."""
    for each in shard_paths(path, read_gguf(path)):
        shutil.copy(each, folder)
    return folder / path.name


def flip(path: Path, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_what_convert_writes_verifies(converted: Convert, options: dict[str, Any]) -> None:
    path = converted(**options)
    found, ref = verify(path), read_gguf(path)
    assert (found.state, found.other_keys, found.n_tensors) == ("intact", False, len(ref.tensors))
    assert found.n_bytes == sum(each.nbytes for each in ref.tensors.values())
    mtp = path.with_name(f"mtp-{path.name}")
    if mtp.exists():
        assert verify(mtp).state == "intact"


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_flipped_bit_is_found(converted: Convert, tmp_path: Path, options: dict[str, Any]) -> None:
    path = copied(converted(**options), tmp_path)
    rng = np.random.default_rng(3)
    tensors = read_gguf(path).tensors
    for name in rng.choice(sorted(tensors), 12, replace=False):
        ref = tensors[str(name)]
        assert ref.path is not None
        at = ref.offset + int(rng.integers(0, ref.nbytes))
        flip(ref.path, at)
        found = verify(path)
        assert (found.state, found.damaged) == ("damaged", (name,)) and not found.other_keys
        flip(ref.path, at)
    assert verify(path).state == "intact"


def test_a_damaged_checksum_is_damage(converted: Convert, tmp_path: Path) -> None:
    path = copied(converted(), tmp_path)
    digest = read_gguf(path).keys[checksums.TENSORS_KEY][5].split(" ")[0].encode()
    flip(path, path.read_bytes().index(digest))
    assert verify(path).state == "damaged"


def test_changed_metadata_is_told(converted: Convert, tmp_path: Path) -> None:
    """In place, as editors of GGUF files do; the tensors are still as they were."""
    path = copied(converted(), tmp_path)
    name = read_gguf(path).keys["general.name"].encode()
    flip(path, path.read_bytes().index(name))
    found = verify(path)
    assert (found.state, found.other_keys, found.damaged) == ("intact", True, ())
    assert "its metadata has been changed" in found.summary()


def rewritten(path: Path, out: Path, change: Callable[[str, Any, Any], tuple[Any, Any]], extra: bool = False) -> Path:
    """All keys and tensors written again by gguf-py. change(name, data, type) gives what a tensor becomes."""
    reader = GGUFReader(path)
    writer = GGUFWriter(out, "deepseek4")
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture":
            continue
        inner = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    if extra:
        writer.add_uint32("quantize.by", 1)
    for tensor in reader.tensors:
        data, kind = change(tensor.name, tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def test_rewritten_by_another_program(converted: Convert, tmp_path: Path) -> None:
    from gguf import quants

    def wider(name: str, data: Any, kind: Any) -> tuple[Any, Any]:
        if kind is not GGMLQuantizationType.Q8_0:
            return data, kind
        return quants.dequantize(data, kind).astype(np.float16), GGMLQuantizationType.F16

    def louder(name: str, data: Any, kind: Any) -> tuple[Any, Any]:
        return (data * np.float32(2), kind) if kind is GGMLQuantizationType.F32 else (data, kind)

    def fewer(name: str, data: Any, kind: Any) -> tuple[Any, Any]:
        return data, kind

    source = converted()
    def unknown(name: str, data: Any, kind: Any) -> tuple[Any, Any]:  # a type that pyflash does not know
        if kind is not GGMLQuantizationType.F32 or data.size % 32:
            return data, kind
        return quants.quantize(data, GGMLQuantizationType.Q4_0), GGMLQuantizationType.Q4_0

    for change, extra in ((wider, False), (louder, True), (unknown, False)):
        found = verify(rewritten(source, tmp_path / "other.gguf", change, extra))
        assert found.state == "rewritten" and "no longer apply" in found.summary()
    copy = verify(rewritten(source, tmp_path / "copy.gguf", fewer, extra=True))
    assert (copy.state, copy.other_keys) == ("intact", True)


def test_merged_shards_verify(converted: Convert, tmp_path: Path) -> None:
    """Tensors go by their names: another layout of the same bytes is intact."""
    path = converted(mtp=True, shard_bytes=200_000)
    tensors = read_gguf(path).tensors
    out = GGUFWriter(tmp_path / "merged.gguf", "deepseek4")
    out.add_array(checksums.TENSORS_KEY, read_gguf(path).keys[checksums.TENSORS_KEY])
    for shard in shard_paths(path, read_gguf(path)):
        for tensor in GGUFReader(shard).tensors:
            out.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    found = verify(tmp_path / "merged.gguf")
    assert (found.state, found.other_keys, found.n_tensors) == ("intact", True, len(tensors))


def test_digests_do_not_depend_on_pieces() -> None:
    data = np.random.default_rng(1).integers(0, 256, 3 * checksums.LEAF_BYTES + 12345).astype(np.uint8)
    whole = TensorDigest(data.size)
    whole.add(0, data.data)
    rng = np.random.default_rng(2)
    cuts = [0, *sorted(int(cut) for cut in rng.integers(1, data.size, 40)), data.size]
    pieces = [(begin, end) for begin, end in itertools.pairwise(cuts) if end > begin]
    rng.shuffle(pieces)
    scattered = TensorDigest(data.size)
    for begin, end in pieces:
        scattered.add(int(begin), data[begin:end].data)
    assert scattered.hex() == whole.hex()
    data[checksums.LEAF_BYTES + 5] ^= 1
    other = TensorDigest(data.size)
    other.add(0, data.data)
    assert other.hex() != whole.hex()
    assert TensorDigest(0).hex() == TensorDigest(0).hex() != whole.hex()


@pytest.mark.parametrize("entries", [["x"], ["0" * 32 + " F32 4"], [1, 2], "text", 7])
def test_unreadable_checksums(converted: Convert, tmp_path: Path, entries: Any) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "deepseek4")
    if isinstance(entries, list):
        writer.add_array(checksums.TENSORS_KEY, entries)
    elif isinstance(entries, str):
        writer.add_string(checksums.TENSORS_KEY, entries)
    else:
        writer.add_uint32(checksums.TENSORS_KEY, entries)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(ConvertError, match="checksums cannot be read"):
        verify(tmp_path / "m.gguf")


def test_native_files_still_go_back(converted: Convert, tmp_path: Path, tiny_checkpoint: Path) -> None:
    export_hf(converted(profile="native", mtp=True), tmp_path / "back")
    for path in tiny_checkpoint.glob("*.safetensors"):
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes()


def test_as_a_command(converted: Convert, tmp_path: Path, run: Run) -> None:
    path = copied(converted(), tmp_path)
    ran = run("info", "--verify", path)
    assert ran.code == 0 and "are as they were written" in ran.stdout and ran.stderr == ""
    done = run("info", "--verify", path, "--json").json()
    assert (done["verified"], done["damaged"], done["metadata_changed"]) == ("intact", [], False)
    ref = read_gguf(path).tensors["blk.0.attn_kv.weight"]
    flip(path, ref.offset + 3)
    ran = run("info", "--verify", path, "--json")
    assert ran.code == 1 and ran.json()["damaged"] == ["blk.0.attn_kv.weight"] and "blk.0.attn_kv.weight" in ran.stderr
    with open(path, "r+b") as file:
        file.truncate(ref.offset + 5)
    assert "truncated" in run("info", "--verify", path).stderr


@pytest.mark.parametrize("n_tensors", [0, 1])
def test_files_without_checksums(tmp_path: Path, run: Run, n_tensors: int) -> None:
    writer = GGUFWriter(tmp_path / "m.gguf", "llama")
    for index in range(n_tensors):
        writer.add_tensor(f"a{index}", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    ran = run("info", "--verify", tmp_path / "m.gguf")
    assert ran.code == 0 and "holds no checksums" in ran.stdout
    assert run("info", "--verify", tmp_path / "m.gguf", "--json").json()["verified"] == "unknown"


# Presses Ctrl-C as soon as the first progress is told.
INTERRUPTED = """
import os, signal, sys
from pyflash.cli import progress
progress.Progress.update = lambda *_: os.kill(os.getpid(), signal.SIGINT)
from pyflash.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends signals")
def test_interrupted(converted: Convert, cache_dir: Path) -> None:
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, "info", "--verify", str(converted())],
                          capture_output=True, encoding="utf-8", timeout=60, env=dict(os.environ))
    assert done.returncode == 128 + signal.SIGINT and "Traceback" not in done.stderr
