"""Importance matrices: files of llama.cpp's two forms, written and read, and the means that quantisers get."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter

import pyflash
from gguf_export.imatrix_file import Collected, write_importance
from gguf_export.writer import Metadata
from quantize import importance
from quantize.importance import SHRINKAGE

DOWN = "blk.0.ffn_down_exps.weight"
OUT_A = "blk.0.attn_output_a.weight"
Array = np.ndarray[Any, Any]


def squares(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).lognormal(0, 1.5, shape)


def write(path: Path, entries: dict[str, Collected]) -> importance.Importance:
    write_importance(path, entries, ["a text", "another"], 7, 512, Metadata())
    return importance.read(path)


def write_old(path: Path, entries: dict[str, tuple[int, Array]], tail: bytes | None = None) -> Path:
    data = struct.pack("<i", len(entries))
    for name, (n_call, values) in entries.items():
        data += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", n_call, values.size)
        data += values.astype("<f4").tobytes()
    path.write_bytes(data + (struct.pack("<ii", 12, 6) + b"corpus" if tail is None else tail))
    return path


@pytest.mark.quick
def test_gguf_py_reads_what_we_write(tmp_path: Path) -> None:
    down = Collected(squares(1, 3, 32), np.array([5.0, 0, 9]), squares(2, 3, 32))
    write(tmp_path / "i.gguf", {DOWN: down, "blk.0.attn_q_a.weight": Collected(squares(3, 1, 64), np.array([14.0]))})
    reader = GGUFReader(tmp_path / "i.gguf")
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["a text", "another"]
    assert [reader.fields[f"imatrix.{key}"].contents() for key in ("chunk_count", "chunk_size")] == [7, 512]
    tensors = {each.name: each for each in reader.tensors}
    assert [each for each in tensors if "pyflash" not in each] == [
        "blk.0.attn_q_a.weight.in_sum2", "blk.0.attn_q_a.weight.counts", f"{DOWN}.in_sum2", f"{DOWN}.counts",
    ]  # fmt: skip
    assert tensors[f"{DOWN}.in_sum2"].shape.tolist() == [32, 3] and tensors[f"{DOWN}.counts"].shape.tolist() == [1, 3]
    assert np.array_equal(tensors[f"{DOWN}.in_sum2"].data, down.sums.astype(np.float32))
    assert tensors[f"{DOWN}.counts"].data.reshape(-1).tolist() == [5, 0, 9]
    assert down.weighted is not None
    assert np.array_equal(tensors[f"{DOWN}.pyflash.in_sum2_weighted"].data, down.weighted.astype(np.float32))


@pytest.mark.quick
def test_reads_what_gguf_py_writes(tmp_path: Path) -> None:
    """A file as llama.cpp's tool makes it: no sums with routes' weights."""
    sums = squares(1, 4, 32).astype(np.float32)
    writer = GGUFWriter(tmp_path / "i.gguf", "unused")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki"])
    writer.add_uint32("imatrix.chunk_count", 3)
    writer.add_uint32("imatrix.chunk_size", 256)
    writer.add_tensor(f"{DOWN}.in_sum2", sums)
    writer.add_tensor(f"{DOWN}.counts", np.array([[1], [100], [0], [16]], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = importance.read(tmp_path / "i.gguf")
    assert (list(read.datasets), read.chunk_count, read.chunk_size) == (["wiki"], 3, 256)
    assert read.metadata() == {"quantize.imatrix.file": "i.gguf", "quantize.imatrix.dataset": "wiki",
                               "quantize.imatrix.entries_count": 1, "quantize.imatrix.chunks_count": 3}  # fmt: skip
    assert not read.uses_route_weights(DOWN)
    found = read.of(DOWN, 4, 32)
    mean = sums.astype(float).sum(axis=0) / 117
    assert found is not None and found.dtype == np.float32
    np.testing.assert_allclose(found[0], (sums[0] + SHRINKAGE * mean) / (1 + SHRINKAGE), rtol=1e-6)
    np.testing.assert_allclose(found[1], (sums[1] + SHRINKAGE * mean) / (100 + SHRINKAGE), rtol=1e-6)
    assert read.of("blk.1.ffn_down_exps.weight", 4, 32) is None


@pytest.mark.quick
def test_an_expert_that_nobody_chose_has_the_layers_mean(tmp_path: Path) -> None:
    sums = squares(1, 3, 32)
    sums[1] = 0
    found = write(tmp_path / "i.gguf", {DOWN: Collected(sums, np.array([40.0, 0, 60]))}).of(DOWN, 3, 32)
    assert found is not None
    np.testing.assert_allclose(found[1], sums.sum(axis=0) / 100, rtol=1e-6)


@pytest.mark.quick
def test_down_projections_have_the_routes_weights_where_the_file_has_them(tmp_path: Path) -> None:
    read = write(tmp_path / "i.gguf", {DOWN: Collected(squares(1, 1, 32), np.array([8.0]), squares(2, 1, 32))})
    found = read.of(DOWN, 1, 32)
    assert found is not None and read.uses_route_weights(DOWN)
    np.testing.assert_allclose(found, squares(2, 1, 32) / 8, rtol=1e-6)


@pytest.mark.quick
@pytest.mark.parametrize("counts", [[10.0], [10.0] * 8])
def test_groups_of_the_output_projection(tmp_path: Path, counts: list[float]) -> None:
    """llama.cpp's entry has values for each group, whatever the shape of the tensor in the file."""
    sums = squares(1, 8, 32)
    read = write(tmp_path / "i.gguf", {OUT_A: Collected(sums, np.array(counts))})
    whole, groups = read.of(OUT_A, 1, 32), read.of(OUT_A, 8, 32)
    assert whole is not None and groups is not None
    np.testing.assert_allclose(whole, sums.sum(axis=0, keepdims=True) / 80, rtol=1e-6)
    if len(counts) == 1:
        np.testing.assert_allclose(groups, sums / 10, rtol=1e-6)
    ours = write(tmp_path / "ours.gguf", {OUT_A: Collected(sums[:1], np.array([80.0]))}).of(OUT_A, 8, 32)
    assert ours is not None and ours.shape == (8, 32) and (ours == ours[0]).all()


@pytest.mark.quick
def test_the_old_form(tmp_path: Path) -> None:
    """Means times calls; experts that were not visited have ones, and get the mean of the others."""
    means = squares(1, 3, 32).astype(np.float32)
    old = means.copy()
    old[1] = 1
    path = write_old(tmp_path / "i.dat", {DOWN: (4, old * 4), "output.weight": (4, means[0] * 4)})
    read = importance.read(path)
    assert (read.chunk_count, list(read.datasets), len(read.entries)) == (12, ["corpus"], 2)
    found, head = read.of(DOWN, 3, 32), read.of("output.weight", 1, 32)
    assert found is not None and head is not None
    np.testing.assert_allclose(found[[0, 2]], means[[0, 2]], rtol=1e-6)
    np.testing.assert_allclose(found[1], means[[0, 2]].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(head[0], means[0], rtol=1e-6)
    assert importance.read(write_old(path, {DOWN: (4, old)}, tail=b"")).chunk_count == 0


@pytest.mark.quick
def test_nothing_is_known_where_nothing_was_counted(tmp_path: Path) -> None:
    read = write(tmp_path / "i.gguf", {DOWN: Collected(np.zeros((2, 32)), np.zeros(2))})
    assert read.of(DOWN, 2, 32) is None


def refuses(path: Path, *words: str) -> None:
    with pytest.raises(pyflash.Error) as failure:
        importance.read(path)
    assert all(word in str(failure.value) for word in (*words, path.name)) and "\n" not in str(failure.value)


@pytest.mark.quick
def test_wrong_sizes_name_the_tensor(tmp_path: Path) -> None:
    read = write(tmp_path / "i.gguf", {DOWN: Collected(squares(1, 3, 32), np.ones(3)),
                                       OUT_A: Collected(squares(1, 3, 33), np.ones(3))})  # fmt: skip
    for name, n_matrices, n_columns in ((DOWN, 3, 64), (DOWN, 4, 32), (DOWN, 1, 32), (OUT_A, 1, 32), (OUT_A, 2, 33)):
        with pytest.raises(pyflash.FormatError, match=f"{name} has"):
            read.of(name, n_matrices, n_columns)


@pytest.mark.quick
@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_no_sums_of_squares(tmp_path: Path, value: float) -> None:
    sums = squares(1, 1, 32).astype(np.float32)
    sums[0, 3] = value
    read = importance.read(write_old(tmp_path / "i.dat", {DOWN: (1, sums)}))
    with pytest.raises(pyflash.FormatError, match=DOWN):
        read.of(DOWN, 1, 32)


@pytest.mark.quick
def test_files_that_are_none(tmp_path: Path, tiny_model: Path) -> None:
    refuses(tmp_path / "absent.gguf", "cannot read")
    refuses(tiny_model, "no importance matrix")
    for name, data in (("empty", b""), ("text", b"hello world, this is text"), ("zero", bytes(8)),
                       ("negative", struct.pack("<ii", 3, -5)), ("huge", struct.pack("<ii", 1, 2**31 - 1))):
        (tmp_path / name).write_bytes(data)
        refuses(tmp_path / name)
    whole = write_old(tmp_path / "whole.dat", {DOWN: (4, squares(1, 3, 32))}, tail=b"").read_bytes()
    write(tmp_path / "i.gguf", {DOWN: Collected(squares(1, 3, 32), np.ones(3))})
    for kind, cut in (("dat", whole), ("gguf", (tmp_path / "i.gguf").read_bytes())):
        for length in range(0, len(cut) - 32, 37):
            (tmp_path / f"cut.{kind}").write_bytes(cut[:length])
            refuses(tmp_path / f"cut.{kind}")
