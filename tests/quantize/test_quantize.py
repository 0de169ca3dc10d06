"""`pyflash quantize`: what it writes, keeps, refuses, and goes on with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf.quants import dequantize

from gguf_export import quantizing
from gguf_export.checksums import verify
from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from gguf_export.quantizing import QuantizeOptions, plan_quantization, quantize
from gguf_export.reader import read_gguf
from gguf_export.synthetic import make_config, write_checkpoint
from quantize.blocks import decode

WIDE: dict[str, Any] = {
    "hidden_size": 256, "moe_intermediate_size": 256, "q_lora_rank": 256, "o_lora_rank": 128, "num_hidden_layers": 3,
    "num_hash_layers": 1, "compress_ratios": [0, 4, 128, 0], "n_routed_experts": 4, "vocab_size": 512,
}  # fmt: skip
SMALL = {"experts": "IQ2_XXS", "dense": "Q6_K", "head": "Q6_K", "tensor_types": (("ffn_down_exps", "Q2_K"),)}
KEPT = re.compile(r"hc_|compressor|indexer|norm|sinks|bias|tid2eid|ffn_gate_inp")
COMMAND = [sys.executable, "-m", "pyflash", "quantize"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", make_config("tiny", **WIDE))


@pytest.fixture(scope="module")
def sources(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same model as a compat file, a native one with its MTP block, and a checkpoint."""
    folder = tmp_path_factory.mktemp("sources")
    compat, native = folder / "wide.gguf", folder / "wide-native.gguf"
    convert(checkpoint, compat, ConvertOptions(name="Wide"))
    convert(checkpoint, native, ConvertOptions(profile="native", mtp=True, name="Wide"))
    return {"compat": compat, "native": native, "checkpoint": checkpoint}


@pytest.fixture(scope="module")
def quantised(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One of the sources with SMALL's types. Not to be written to."""
    done: dict[str, Path] = {}

    def get(source: str) -> Path:
        if source not in done:
            done[source] = tmp_path_factory.mktemp("quantised") / "q.gguf"
            quantize(sources[source], done[source], QuantizeOptions(**SMALL, threads=2, name="Wide"))
        return done[source]

    return get


def values(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    tensors = [tensor for tensor in GGUFReader(path).tensors if tensor.tensor_type.name != "I32"]
    return {tensor.name: dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


def payload(path: Path, name: str) -> bytes:
    ref = read_gguf(path).tensors[name]
    assert ref.path is not None
    return ref.path.read_bytes()[ref.offset : ref.offset + ref.nbytes]


class Uneven:
    """An importance that differs from column to column; of the second expert nothing is known."""

    def of(self, name: str, n_matrices: int, n_columns: int) -> np.ndarray[Any, Any] | None:
        if "ffn_up_exps" in name:
            return None
        result = np.random.default_rng(1).lognormal(0, 1.5, (n_matrices, n_columns)).astype(np.float32)
        result[1:2] = 0
        return result

    def metadata(self) -> dict[str, str | int]:
        return {"quantize.imatrix.file": "uneven.gguf", "quantize.imatrix.entries_count": 5}


@pytest.mark.parametrize("source", ["compat", "native", "checkpoint"])
def test_types_keys_and_errors(source: str, sources: dict[str, Path], quantised: Callable[[str], Path]) -> None:
    path = quantised(source)
    assert verify(path).state == "intact" and not verify(path).other_keys
    found, before = read_gguf(path), read_gguf(sources["compat"])
    assert found.tensors.keys() == before.tensors.keys()
    kinds = {name: ref.dtype for name, ref in found.tensors.items()}
    for name, kind in kinds.items():
        if re.search("ffn_(gate|up)_exps", name):
            assert kind == "IQ2_XXS"
        elif "ffn_down_exps" in name:
            assert kind == "Q2_K"
        elif KEPT.search(name):
            lossless = source != "compat" and name.endswith("indexer.attn_q_b.weight")
            assert kind == ("BF16" if lossless else before.tensors[name].dtype), name
            assert lossless or payload(path, name) == payload(sources["compat"], name)
        else:
            assert kind == ("Q6_K" if before.tensors[name].shape[0] % 256 == 0 else "Q8_0"), name
    replaced = {"general.file_type", "pyflash.checksum.header", "pyflash.checksum.tensors"}
    assert {key: value for key, value in found.keys.items() if key not in replaced and "quantize" not in key} == {
        key: value for key, value in before.keys.items() if key not in replaced
    }
    assert found.keys["general.file_type"] == 19 and found.keys["general.quantization_version"] == 2
    assert found.keys["pyflash.quantize.objective"] == "unbiased" and found.keys["pyflash.quantize.version"]
    original = values(sources["compat"])
    report = json.loads(path.with_suffix(".quantize.json").read_text())
    told = {entry["name"]: entry for entry in report["tensors"]}
    for name, array in values(path).items():
        energy = float(np.square(original[name], dtype=np.float64).sum())
        error = float(np.square(original[name] - array, dtype=np.float64).sum()) / energy if energy else 0.0
        assert error < (0.13 if "exps" in name else 0.002)
        if source == "compat":  # else the source is nearer than Q8_0
            assert told[name]["error"] == pytest.approx(error, rel=1e-4, abs=1e-12), name
    assert 0.05 < report["groups"]["experts, down"]["error"] < report["groups"]["experts, gate and up"]["error"] < 0.13


def test_native_and_checkpoint_give_the_same_file(quantised: Callable[[str], Path]) -> None:
    assert quantised("native").read_bytes() == quantised("checkpoint").read_bytes()


def test_our_decoder_and_gguf_py_agree(quantised: Callable[[str], Path]) -> None:
    path = quantised("compat")
    wanted = values(path)
    for name, ref in read_gguf(path).tensors.items():
        if ref.dtype in ("IQ2_XXS", "Q2_K", "Q6_K", "Q8_0"):
            kind = next(t.tensor_type for t in GGUFReader(path).tensors if t.name == name)
            ours = decode(int(kind), np.frombuffer(payload(path, name), dtype=np.uint8))
            assert ours.tobytes() == wanted[name].astype(np.float32).tobytes(), name


@pytest.mark.parametrize("kind", ["IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "Q3_K"])
def test_every_expert_type(kind: str, sources: dict[str, Path], tmp_path: Path) -> None:
    one = (("ffn_down_exps", "keep"), ("ffn_gate_exps", "keep"))
    out = tmp_path / "q.gguf"
    report = quantize(sources["compat"], out, QuantizeOptions(experts=kind.lower(), tensor_types=one))
    assert {read_gguf(out).tensors[f"blk.{layer}.ffn_up_exps.weight"].dtype for layer in range(3)} == {kind}
    assert read_gguf(out).keys["general.file_type"] == 38  # most weights are MXFP4 still
    assert all(0.005 < error.plain < 0.1 for error in report.errors.values()) and len(report.errors) == 3


def test_threads_shards_and_splits_do_not_change_bytes(
    sources: dict[str, Path], quantised: Callable[[str], Path], tmp_path: Path
) -> None:
    out = tmp_path / "q.gguf"
    quantize(sources["compat"], out, QuantizeOptions(**SMALL, threads=1, name="Wide"))
    assert out.read_bytes() == quantised("compat").read_bytes()
    report = quantize(sources["compat"], tmp_path / "s.gguf", QuantizeOptions(**SMALL, shard_bytes=500_000))
    assert len(report.files) > 3 and report.files[0].name == f"s-00001-of-{len(report.files):05d}.gguf"
    assert verify(report.files[0]).state == "intact"
    again = tmp_path / "again.gguf"  # from shards
    quantize(report.files[0], again, QuantizeOptions(experts="keep"))
    whole, joined = read_gguf(out), read_gguf(again)
    assert all(payload(out, name) == payload(again, name) for name in whole.tensors)
    assert joined.keys["pyflash.checksum.tensors"] == whole.keys["pyflash.checksum.tensors"]
    assert "split.count" not in joined.keys


def test_importance(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantize(sources["compat"], tmp_path / "plain.gguf", QuantizeOptions(experts="IQ2_XS"))
    monkeypatch.setattr(quantizing, "read_importance_of", lambda _options: Uneven())
    uneven = quantize(sources["compat"], tmp_path / "uneven.gguf", QuantizeOptions(experts="IQ2_XS"))
    ggml = quantize(sources["compat"], tmp_path / "ggml.gguf", QuantizeOptions(experts="IQ2_XS", objective="ggml"))
    gate, up = "blk.1.ffn_gate_exps.weight", "blk.1.ffn_up_exps.weight"
    assert plain.errors[gate].weighted is None and uneven.errors[up].weighted is None
    weighted = uneven.errors[gate].weighted
    assert weighted is not None and weighted < 0.8 * plain.errors[gate].plain < uneven.errors[gate].plain
    assert uneven.errors[up] == plain.errors[up]
    half = len(payload(tmp_path / "plain.gguf", gate)) // 4  # the second expert's, of which nothing is known
    without, with_one = (payload(tmp_path / f"{name}.gguf", gate)[half : 2 * half] for name in ("plain", "uneven"))
    assert without == with_one
    assert ggml.errors[gate] != uneven.errors[gate]
    assert any("nothing of blk.0.ffn_up_exps.weight" in warning for warning in uneven.warnings)
    keys = read_gguf(tmp_path / "uneven.gguf").keys
    assert (keys["quantize.imatrix.file"], keys["quantize.imatrix.entries_count"]) == ("uneven.gguf", 5)


def test_an_importance_matrix_of_llama_cpp(sources: dict[str, Path], tmp_path: Path) -> None:
    path, rng = tmp_path / "wiki.gguf", np.random.default_rng(2)
    writer = GGUFWriter(path, "deepseek4")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["wiki.txt"])
    writer.add_uint32("imatrix.chunk_count", 7)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, n_matrices in (("ffn_gate_exps", 4), ("ffn_down_exps", 4), ("attn_q_a", 1)):
        sums = rng.lognormal(0, 1.5, (n_matrices, 256)).astype(np.float32)
        writer.add_tensor(f"blk.0.{name}.weight.in_sum2", sums * 50)
        writer.add_tensor(f"blk.0.{name}.weight.counts", np.full((n_matrices, 1), 50, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    types = (("exps", "keep"), (r"blk\.0\.ffn_.*_exps", "IQ2_XXS"))
    out = tmp_path / "q.gguf"
    report = quantize(sources["compat"], out, QuantizeOptions(imatrix=path, tensor_types=types, dense="keep", head="keep"))
    gate = report.errors["blk.0.ffn_gate_exps.weight"]
    assert gate.weighted is not None and gate.weighted < 0.7 * gate.plain
    assert any("nothing of blk.0.ffn_up_exps.weight" in warning for warning in report.warnings)
    keys = read_gguf(out).keys
    assert [keys[f"quantize.imatrix.{key}"] for key in ("file", "dataset", "entries_count", "chunks_count")] == [
        "wiki.gguf", "wiki.txt", 3, 7,
    ]  # fmt: skip


@pytest.mark.parametrize(("options", "words"), [
    ({"experts": "Q4_K"}, "MXFP4, 4.25 bits a weight, .* can only lose"),
    ({"experts": "Q8_0"}, "can only lose"),
    ({"experts": "IQ4_XS"}, "is not written"),
    ({"experts": "NVFP4"}, "is not written"),
    ({"experts": "Q4_0"}, "is not written"),
    ({"experts": "Q9"}, "is no type"),
    ({"dense": "MXFP4"}, "is not written"),
    ({"head": "Q4_K"}, "choose one of keep, BF16, Q8_0, Q6_K"),
    ({"tensor_types": (("ffn_up_exps", "Q5_K"),)}, "can only lose"),
    ({"tensor_types": (("attn_q_b", "MXFP4"),)}, "only experts that are FP4"),
    ({"tensor_types": (("(", "Q2_K"),)}, "no regular expression"),
    ({"tensor_types": (("nothing_like_it", "Q2_K"),)}, "no tensor's name has"),
    ({"tensor_types": (("hc_attn|norm", "Q8_0"),)}, "always kept"),
    ({"objective": "best"}, "expected one of hessian, ggml, unbiased"),
    ({"mtp": True}, "no MTP block"),
    ({"threads": 0}, "expected 1 to 256"),
    ({"resume": True, "restart": True}, "choose one of them"),
])  # fmt: skip
def test_refused(options: dict[str, Any], words: str, sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=words):
        quantize(sources["compat"], tmp_path / "q.gguf", QuantizeOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_quantising_twice_is_refused(quantised: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match="is IQ2_XXS|is Q2_K already"):
        quantize(quantised("compat"), tmp_path / "q.gguf", QuantizeOptions(tensor_types=(("down_exps", "IQ2_XXS"),)))
    plan = plan_quantization(quantised("compat"), QuantizeOptions())  # the defaults keep what is small already
    assert {tensor.info.kind.name for tensor in plan.files[0].tensors} >= {"IQ2_XXS", "Q2_K", "Q6_K"}
    assert any("stay Q6_K" in note for note in plan.notes)


def test_patterns_the_last_one_counts(sources: dict[str, Path]) -> None:
    types = (("exps", "Q2_K"), (r"blk\.1\.", "IQ2_S"), (r"blk\.1\.ffn_down_exps", "keep"))
    plan = plan_quantization(sources["compat"], QuantizeOptions(experts="IQ3_S", tensor_types=types))
    kinds = {tensor.info.name: tensor.info.kind.name for tensor in plan.files[0].tensors}
    assert kinds["blk.0.ffn_down_exps.weight"] == "Q2_K" and kinds["blk.1.ffn_up_exps.weight"] == "IQ2_S"
    assert kinds["blk.1.ffn_down_exps.weight"] == "MXFP4" and kinds["blk.1.attn_q_b.weight"] == "IQ2_S"
    assert kinds["blk.1.hc_attn_fn.weight"] == "F32" and kinds["blk.1.ffn_gate_inp.weight"] == "BF16"


def test_narrow_rows_stay_or_fall_back(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "narrow", make_config("tiny", **(WIDE | {"moe_intermediate_size": 96})))
    plan = plan_quantization(folder, QuantizeOptions(experts="Q2_K", dense="Q4_K"))
    kinds = {tensor.info.name: tensor.info.kind.name for tensor in plan.files[0].tensors}
    assert kinds["blk.0.ffn_up_exps.weight"] == "Q2_K" and kinds["blk.0.ffn_down_exps.weight"] == "MXFP4"
    assert kinds["blk.0.ffn_up_shexp.weight"] == "Q4_K" and kinds["blk.0.ffn_down_shexp.weight"] == "Q8_0"
    assert any("stay MXFP4" in note and "256" in note for note in plan.notes)
    assert any("become Q8_0" in note for note in plan.notes)


@pytest.mark.parametrize("source", ["native", "checkpoint"])
def test_with_the_mtp_block(source: str, sources: dict[str, Path], tmp_path: Path) -> None:
    report = quantize(sources[source], tmp_path / "q.gguf", QuantizeOptions(**SMALL, mtp=True))
    assert [path.name for path in report.files] == ["q.gguf"] + (["mtp-q.gguf"] if source == "checkpoint" else [])
    last = read_gguf(report.files[-1])
    assert last.keys["deepseek4.nextn_predict_layers"] == 1 and verify(report.files[-1]).state == "intact"
    assert last.tensors["blk.3.ffn_up_exps.weight"].dtype == "IQ2_XXS"
    if source == "checkpoint":  # the draft file is a source itself
        quantize(report.files[-1], tmp_path / "again.gguf", QuantizeOptions(experts="keep", dense="keep", mtp=True))
        assert read_gguf(tmp_path / "again.gguf").tensors.keys() == last.tensors.keys()


def test_dry_run_and_json(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    types = ["--experts", "iq2_xxs", "--dense", "q6_k", "--head", "q6_k", "--tensor-type", "ffn_down_exps=q2_k"]
    dry = subprocess.run([*COMMAND, str(sources["compat"]), str(out), *types, "--dry-run"], capture_output=True, text=True)
    assert dry.returncode == 0 and not list(tmp_path.iterdir())
    assert re.search(r"experts, gate and up IQ2_XXS +6 tensors .* 2.062 bits a weight \(from MXFP4, 4.25\)", dry.stdout)
    planned = json.loads(subprocess.run([*COMMAND, str(sources["compat"]), str(out), *types, "--dry-run", "--json"],
                                        capture_output=True, text=True, check=True).stdout)
    made = subprocess.run([*COMMAND, str(sources["compat"]), str(out), *types, "--json"], capture_output=True, text=True)
    written = json.loads(made.stdout)
    assert planned["total_bytes"] == written["total_bytes"] == out.stat().st_size
    assert planned["groups"]["experts, down"]["types"] == {"Q2_K": 3}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.gguf", "q.quantize.json"]
    bad = subprocess.run([*COMMAND, str(sources["compat"]), str(out), "--tensor-type", "x"], capture_output=True, text=True)
    assert bad.returncode == 2 and "REGEX=TYPE" in bad.stderr
    lost = subprocess.run([*COMMAND, str(sources["compat"]), str(out), "--experts", "Q4_K"], capture_output=True, text=True)
    assert lost.returncode == 1 and lost.stderr.count("\n") == 1 and "can only lose" in lost.stderr


def test_a_killed_run_goes_on(
    sources: dict[str, Path], quantised: Callable[[str], Path], tmp_path: Path
) -> None:
    out, partial = tmp_path / "q.gguf", tmp_path / ".q.gguf.partial"
    code = (
        "import sys; from gguf_export import quantizing as q; q._RECORD_SECONDS = 0\n"
        f"q.quantize(sys.argv[1], sys.argv[2], q.QuantizeOptions(**{SMALL!r}, threads=1))"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(sources["compat"]), str(out)])
    manifest = partial / "manifest.json"
    deadline = time.monotonic() + 60
    while not (manifest.exists() and len(json.loads(manifest.read_text())["done"]) > 25):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not out.exists()
    options = QuantizeOptions(**SMALL)
    with pytest.raises(ConvertError, match=r"interrupted run left \d+ finished tensors .*resume=True"):
        quantize(sources["compat"], out, options)
    with pytest.raises(ConvertError, match="had another source, other options"):
        quantize(sources["compat"], out, QuantizeOptions(experts="Q2_K", resume=True))
    with pytest.raises(ConvertError, match="another source or other options left"):
        quantize(sources["native"], out, options)
    done = json.loads(manifest.read_text())["done"]
    broken = next(name for name in done if name.endswith("attn_q_a.weight"))
    layout = plan_quantization(sources["compat"], options).layouts("q.gguf")[0][1]
    with open(partial / "0", "r+b") as file:  # of what was noted as finished the disk has lost something
        file.seek(layout.offsets[broken] + 5)
        file.write(b"lost")
    report = quantize(sources["compat"], out, QuantizeOptions(**SMALL, resume=True))
    assert report.n_resumed == len(done) - 1
    assert out.read_bytes() == quantised("compat").read_bytes()
    told, wanted = (json.loads(path.with_suffix(".quantize.json").read_text()) for path in (out, quantised("compat")))
    assert told["tensors"] == wanted["tensors"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.gguf", "q.quantize.json"]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupted_and_begun_anew(sources: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "q.gguf"
    process = subprocess.Popen([*COMMAND, str(sources["compat"]), str(out), "--experts", "IQ2_S", "-t", "1"],
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    while not (tmp_path / ".q.gguf.partial" / "manifest.json").exists():
        assert process.poll() is None
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert "--resume goes on" in told
    assert process.returncode == 130 and not out.exists()
    assert (tmp_path / ".q.gguf.partial" / "manifest.json").exists()
    report = quantize(sources["compat"], out, QuantizeOptions(experts="Q2_K", restart=True))
    assert report.n_resumed == 0 and verify(out).state == "intact"


def test_too_little_space(sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1_000_000)
    monkeypatch.setattr("shutil.disk_usage", lambda _path: usage)
    with pytest.raises(ConvertError, match=r"has 1.00 MB free and the output needs \d"):
        quantize(sources["compat"], tmp_path / "q.gguf", QuantizeOptions())
    assert not list(tmp_path.iterdir())


class Broken(Uneven):
    def of(self, name: str, n_matrices: int, n_columns: int) -> np.ndarray[Any, Any] | None:
        found = super().of(name, n_matrices, n_columns)
        if found is not None and name == "blk.2.ffn_down_exps.weight":
            found[0, 3] = np.nan
        return found


def test_a_broken_importance_is_told_before_anything_is_written(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantizing, "read_importance_of", lambda _options: Broken())
    with pytest.raises(ConvertError, match="the importance of blk.2.ffn_down_exps.weight"):
        quantize(sources["compat"], tmp_path / "q.gguf", QuantizeOptions(experts="Q2_K"))
    assert not list(tmp_path.iterdir())


def test_damaged_sources_leave_nothing(sources: dict[str, Path], tmp_path: Path) -> None:
    source = tmp_path / "bad.gguf"
    data = bytearray(sources["compat"].read_bytes())
    ref = read_gguf(sources["compat"]).tensors["blk.0.attn_q_a.weight"]
    data[ref.offset : ref.offset + 2] = b"\x00\x7c"  # an infinite scale
    source.write_bytes(data)
    with pytest.raises(ConvertError, match="blk.0.attn_q_a.weight holds infinity or NaN"):
        quantize(source, tmp_path / "q.gguf", QuantizeOptions(dense="Q6_K", experts="Q2_K"))
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["bad.gguf"]
    with pytest.raises(ConvertError, match="is a file that this is made from"):
        quantize(source, source, QuantizeOptions())
    with pytest.raises(ConvertError, match="does not end in .gguf"):
        quantize(source, tmp_path / "q.bin", QuantizeOptions())
