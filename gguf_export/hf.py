"""Native GGUF files back to the safetensors tensors they came from, byte for byte."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gguf_export.checkpoint import INDEX
from gguf_export.config import ModelConfig, parse_config, parse_json_object
from gguf_export.engine import Io, Job, ProgressFn, run_jobs, write_header
from gguf_export.errors import ConvertError, several
from gguf_export.inventory import E8M0, Weight, dspark_weights, main_weights, mtp_weights, shard_of, tensors_of
from gguf_export.metadata import SIDE_FILES, SIDE_PREFIX
from gguf_export.names import dspark_name, gguf_name, native_scale_name
from gguf_export.outputs import check_name, check_space, output_folder
from gguf_export.reader import GGUFFile, read_gguf
from gguf_export.safetensors_file import TensorRef, build_header, index_json, shard_name
from quantize import native
from quantize.codecs import BLOCK, MXFP4_BYTES
from quantize.plan import Form, GGMLType, target_type

_JOB_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class _CopyJob:
    """Bytes of a GGUF tensor from `begin` on, into all of `target`."""

    source: TensorRef
    begin: int
    target: TensorRef

    def run(self, io: Io) -> int:
        assert self.target.path is not None
        for done in range(0, self.target.nbytes, _JOB_BYTES):
            size = min(_JOB_BYTES, self.target.nbytes - done)
            io.write(self.target.path, self.target.offset + done, io.read(self.source, self.begin + done, size, "in"))
        return self.target.nbytes


@dataclass(frozen=True, slots=True)
class _FP4Job:
    """One expert's MXFP4 blocks, from block `begin` on, into packed codes and scales."""

    source: TensorRef
    begin: int
    data: TensorRef
    scale: TensorRef

    def run(self, io: Io) -> int:
        assert self.data.path is not None and self.scale.path is not None
        step = _JOB_BYTES // MXFP4_BYTES
        for done in range(0, self.scale.nbytes, step):
            n = min(step, self.scale.nbytes - done)
            blocks = io.read(self.source, (self.begin + done) * MXFP4_BYTES, n * MXFP4_BYTES, "in")
            packed, scales = io.buffer("packed", np.uint8, n * 16), io.buffer("scales", np.uint8, n)
            native.mxfp4_to_fp4(blocks, n * BLOCK, packed, scales)
            io.write(self.data.path, self.data.offset + done * 16, packed)
            io.write(self.scale.path, self.scale.offset + done, scales)
        return self.data.nbytes + self.scale.nbytes


@dataclass(frozen=True, slots=True)
class _WidthJob:
    """float32 vectors back to BF16, or int32 ids back to int64."""

    source: TensorRef
    target: TensorRef

    def run(self, io: Io) -> int:
        assert self.target.path is not None
        item = 8 if self.target.dtype == "I64" else 2
        for done in range(0, self.source.nbytes, _JOB_BYTES):
            data = io.read(self.source, done, min(_JOB_BYTES, self.source.nbytes - done), "in")
            if item == 8:
                io.write(self.target.path, self.target.offset + done * 2, data.view("<i4").astype("<i8"))
                continue
            bits = data.view("<u4")
            if np.any(bits & 0xFFFF):
                raise ConvertError(f"tensor {self.source.name} holds values that are not BF16; the file was changed")
            io.write(self.target.path, self.target.offset + done // 2, (bits >> 16).astype("<u2"))
        return self.target.nbytes


class _Export:
    """Matches the inventory of the stored config with the file's tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gguf: GGUFFile = read_gguf(path)
        if self.gguf.keys.get("pyflash.profile") != "native":
            raise ConvertError(
                f"{path} is no native file, so the checkpoint's bytes are not in it; "
                'convert with profile="native"'
            )
        self.side_files = self._side_files()
        if "config.json" not in self.side_files:
            raise ConvertError(f"{path} does not carry the checkpoint's config.json, which an export needs")
        config = parse_json_object(self.side_files["config.json"], f"{path}: config.json")
        self.config: ModelConfig = parse_config(config)
        experts = self.gguf.tensors.get("blk.0.ffn_gate_exps.weight")
        self.expert_form = Form.FP8 if experts is not None and experts.dtype == "I8" else Form.FP4
        self.weights = list(main_weights(self.config, self.expert_form))
        self.verbatim: list[Weight] = []  # DSpark's, as older native files have them: under their own names
        self.has_stages = "dspark.main_proj.weight" in self.gguf.tensors and self.config.dspark is not None
        if f"blk.{self.config.n_layers}.nextn.e_proj.weight" in self.gguf.tensors:
            self.weights += mtp_weights(self.config, self.expert_form)
        elif self.has_stages:
            self.weights += dspark_weights(self.config, self.expert_form)
        elif "mtp.0.main_proj.weight" in self.gguf.tensors and self.config.dspark is not None:
            self.verbatim = list(dspark_weights(self.config, self.expert_form))
        self._check()

    def _source_name(self, weight: Weight) -> str:
        if self.has_stages and weight.name.startswith("mtp."):
            return dspark_name(weight.name, native=True)
        return gguf_name(weight.name, self.config.n_layers)

    def _check(self) -> None:
        """Every tensor is there with the type and shape that a native conversion gives it."""
        problems: list[str] = []
        for weight in self.weights:
            name = self._source_name(weight)
            kind = target_type(
                weight.form, is_matrix=len(weight.shape) == 2, is_expert=weight.is_expert, profile="native"
            )
            last = (self.config.n_experts,) if weight.is_expert else ()
            expected: list[tuple[str, tuple[GGMLType, ...], tuple[int, ...]]] = [
                (name, (kind,), tuple(reversed(weight.shape)) + last)
            ]
            if kind is GGMLType.I8:
                shape = tuple(reversed(weight.scale_shape)) + last
                expected.append((native_scale_name(name), (GGMLType.I8, GGMLType.F32), shape))
            problems += filter(None, (self._problem(*entry) for entry in expected))
        for weight in self.verbatim:
            for name, _, shape in tensors_of(weight, self._scale_dtype(weight)):
                ref = self.gguf.tensors.get(name)
                if ref is None or ref.shape != tuple(reversed(shape)):
                    problems.append(f"{name} is missing or misshaped")
        if problems:
            raise several(f"{self.path} does not fit the config.json in it", list(dict.fromkeys(problems)))

    def _problem(self, name: str, kinds: tuple[GGMLType, ...], shape: tuple[int, ...]) -> str | None:
        ref = self.gguf.tensors.get(name)
        if ref is None:
            return f"{name} is missing"
        if ref.dtype not in [kind.name for kind in kinds]:
            return f"{name} is {ref.dtype}, expected {kinds[0].name}"
        return None if ref.shape == shape else f"{name} has shape {list(ref.shape)}, expected {list(shape)}"

    def _scale_dtype(self, weight: Weight) -> str:
        is_verbatim = weight.name.startswith("mtp.") and bool(self.verbatim)
        name = weight.scale_name if is_verbatim else native_scale_name(self._source_name(weight))
        ref = self.gguf.tensors.get(name)
        return "F32" if ref is not None and ref.dtype == "F32" else E8M0

    def shards(self) -> list[list[tuple[str, str, tuple[int, ...]]]]:
        """The tensors of each safetensors file, in the official layout."""
        groups: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {}
        for weight in self.weights + self.verbatim:
            group = groups.setdefault(shard_of(weight.name, self.config), [])
            group += tensors_of(weight, self._scale_dtype(weight))
        return [group for _, group in sorted(groups.items())]

    def jobs(self, targets: dict[str, TensorRef]) -> Iterator[Job]:
        for weight in self.verbatim:
            for name, _, _ in tensors_of(weight):
                yield _CopyJob(self.gguf.tensors[name], 0, targets[name])
        experts_seen: dict[str, int] = {}
        for weight in self.weights:
            name = self._source_name(weight)
            index = experts_seen.get(name, 0)
            experts_seen[name] = index + 1
            source, data = self.gguf.tensors[name], targets[weight.data_name]
            if weight.form is Form.FP4:
                scale = targets[weight.scale_name]
                yield _FP4Job(source, index * scale.nbytes, data, scale)
            elif weight.form is Form.FP8:
                yield _CopyJob(source, index * data.nbytes, data)
                scale = targets[weight.scale_name]
                yield _CopyJob(self.gguf.tensors[native_scale_name(name)], index * scale.nbytes, scale)
            elif source.dtype == data.dtype:
                yield _CopyJob(source, 0, data)
            else:
                yield _WidthJob(source, data)

    def _side_files(self) -> dict[str, bytes]:
        files = {}
        for name in SIDE_FILES:
            text = self.gguf.keys.get(SIDE_PREFIX + name)
            if isinstance(text, str):
                try:
                    files[name] = text.encode("utf-8")
                except UnicodeEncodeError:
                    raise ConvertError(f"{self.path} is damaged: its {name} is not UTF-8") from None
        return files


def export_hf(gguf_path: Path | str, dest: Path | str, progress: ProgressFn | None = None) -> list[Path]:
    """Writes the folder `dest`: safetensors shards in the official layout, the index, config.json and tokenizer files.

    Every tensor has the name, dtype, shape and bytes of the checkpoint that the native file was made from; drafting
    blocks only where they were converted (--mtp). Returns the files. dest may be an empty folder, which is kept. On any
    error or Ctrl-C it is as it was.
    """
    dest = Path(check_name(dest))
    export = _Export(Path(gguf_path))
    with output_folder(dest) as (work, names):
        names += _write_folder(export, work, dest, progress)
    return [dest / name for name in names]


def _write_folder(export: _Export, work: Path, dest: Path, progress: ProgressFn | None) -> list[str]:
    shards = export.shards()
    targets: dict[str, TensorRef] = {}
    files = []
    for index, tensors in enumerate(shards):
        path = work / shard_name(index, len(shards))
        header, refs = build_header(path, tensors)
        with open(path, "xb") as file:
            file.truncate(refs[-1].offset + refs[-1].nbytes)
        write_header(path, header)
        targets |= {ref.name: ref for ref in refs}
        files.append(path.name)
    total = sum(ref.nbytes for ref in targets.values())
    check_space({os.fspath(dest): total})
    run_jobs(export.jobs(targets), total, progress)
    if len(shards) > 1:
        places = {ref.name: ref.path.name for ref in targets.values() if ref.path is not None}
        (work / INDEX).write_bytes(index_json(places, total))
        files.append(INDEX)
    for name, data in export.side_files.items():
        (work / name).write_bytes(data)
        files.append(name)
    return files
