"""What is quantised: a GGUF file or a checkpoint, as tensors that can be kept as they are or read as floats."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_export.checkpoint import Checkpoint
from gguf_export.convert import ConvertOptions, plan_conversion
from gguf_export.engine import Io
from gguf_export.errors import ConvertError, reason
from gguf_export.hub_cache import find_checkpoint
from gguf_export.hf_files import SIDE_PREFIX
from gguf_export.metadata import ARCH
from gguf_export.names import NATIVE_STAGE, native_scale_name
from gguf_export.reader import GGUFFile, read_gguf, read_pairs, shard_paths
from gguf_export.safetensors_file import TensorRef
from gguf_export.stores.lookup import STORES, find_model
from gguf_export.tensors import OutputTensor, Rows, Source, copied
from gguf_export.values import ValueCheck, ValueWatch
from gguf_export.writer import Metadata, TensorInfo
from quantize.blocks import decode
from quantize.choice import kind_named
from quantize.plan import Form, GGMLType, row_bytes

# What a quantised file must not take over from its source: how that was split and laid out, its checksums, and what only
# native files have.
_DROPPED = re.compile(
    r"split\..*|general\.alignment|pyflash\.(checksum\..*|profile|fp8|drafts|quantize\..*)|"
    + re.escape(SIDE_PREFIX) + ".*"
)  # fmt: skip
_BLOCK_NUMBER = re.compile(r"blk\.(\d+)\.")


class Matrix(Protocol):
    """Rows of a weight, which are read as floats."""

    @property
    def rows(self) -> int: ...

    @property
    def cols(self) -> int: ...

    def floats(self, io: Io, row: int, n_rows: int, watch: ValueWatch) -> NDArray[np.float32]:
        """[n_rows * cols], valid until the next call with the same io."""


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """Matrices side by side, in one of a checkpoint's number formats."""

    piece: tuple[Source, ...]

    @property
    def rows(self) -> int:
        return self.piece[0].rows

    @property
    def cols(self) -> int:
        return sum(source.cols for source in self.piece)

    def floats(self, io: Io, row: int, n_rows: int, watch: ValueWatch) -> NDArray[np.float32]:
        return Rows(GGMLType.F32, self.piece, row, n_rows, watch).floats(io)


@dataclass(frozen=True, slots=True)
class BlockMatrix:
    """In one of ggml's block formats. data: of this matrix alone."""

    data: TensorRef
    kind: GGMLType
    rows: int
    cols: int

    def floats(self, io: Io, row: int, n_rows: int, watch: ValueWatch) -> NDArray[np.float32]:
        size = row_bytes(self.kind, self.cols)
        return decode(self.kind, io.read(self.data, row * size, n_rows * size, "in"))


@dataclass(frozen=True)
class SourceTensor:
    """kept: the tensor as a file has it without loss. matrices: its values, empty where they are no weights."""

    kept: OutputTensor
    matrices: tuple[Matrix, ...]

    @property
    def info(self) -> TensorInfo:
        return self.kept.info


@dataclass
class SourceFile:
    """One output file's: "" is OUT itself, "mtp-" the draft file beside it."""

    prefix: str
    metadata: Metadata
    tensors: list[SourceTensor]


@dataclass
class QuantizeSource:
    """inputs: all files that are read. identity: what tells another source, or a changed one, from this."""

    path: Path
    files: list[SourceFile]
    inputs: list[Path]
    identity: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    is_complete: bool = True
    check: ValueCheck | None = None  # to run before values are read
    checkpoint: Checkpoint | None = None  # None for a GGUF file

    def check_scales(self) -> None:
        """Of a checkpoint, before its values are read. ConvertError naming what is damaged."""
        if self.check is not None:
            self.check.run()


def open_source(path: Path | str, mtp: bool, name: str | None = None) -> QuantizeSource:
    """Reads headers only. ConvertError for what is neither a GGUF file of this architecture nor a checkpoint.

    path: of either, or a name in a local store; of ORG/NAME a checkpoint counts before a GGUF file. mtp: with the drafting
    block. name: the model's, None for the one it has.
    """
    given = _in_store(os.fspath(path)) or Path(path)
    if given.is_file() and given.name != "config.json":
        return _open_gguf(given, mtp, name)
    if given.suffix == ".gguf" and not given.exists():
        raise ConvertError(f"there is no file {given}: check the path")
    return _open_checkpoint(given, mtp, name)


def _in_store(name: str) -> Path | None:
    """The GGUF file that a name means; None for a path and for a checkpoint's name."""
    if os.path.lexists(name):
        return None
    if ":" not in name:
        with contextlib.suppress(ConvertError):
            if (find_checkpoint(name) / "config.json").is_file():
                return None
        if not any(store.find(name) for store in STORES):
            return None
    return find_model(name)


def _identity(paths: Iterable[Path], header: bytes) -> dict[str, Any]:
    files = []
    for path in sorted(paths):
        try:
            status = path.stat()
        except OSError as error:
            raise ConvertError(f"cannot read {path}: {reason(error)}") from None
        files.append([path.name, status.st_size, status.st_mtime_ns])
    return {"files": files, "header": hashlib.blake2b(header, digest_size=16).hexdigest()}


# ---- Checkpoints -------------------------------------------------------------------------------------------------


def _open_checkpoint(path: Path, mtp: bool, name: str | None) -> QuantizeSource:
    # FP8 has no type in ggml, and BF16 holds it: what is not quantised loses nothing.
    plan = plan_conversion(find_checkpoint(path), ConvertOptions(dense="bf16", mtp=mtp, name=name))
    checkpoint = plan.checkpoint
    if mtp and checkpoint.drafts == "dspark":
        raise ConvertError(
            f"{path} drafts with DSpark, whose stages are not quantised; leave out mtp=True, and convert the checkpoint with it: "
            "the draft file of that goes beside any file of the model"
        )
    files = []
    for file in plan.files:
        tensors = [SourceTensor(tensor, _matrices(tensor)) for tensor in file.tensors]
        files.append(SourceFile(file.prefix, _without_checksums(file.metadata), tensors))
    inputs = {ref.path for ref in checkpoint.tensors.values() if ref.path is not None and ref.path.exists()}
    inputs |= set(checkpoint.path.glob("*.json"))
    header = repr(sorted((ref.name, ref.dtype, ref.shape, ref.offset) for ref in checkpoint.tensors.values())).encode()
    return QuantizeSource(
        checkpoint.path, files, sorted(inputs), _identity(inputs, header), list(plan.notes), checkpoint.is_complete,
        ValueCheck(checkpoint, plan.weights) if checkpoint.is_complete else None, checkpoint,
    )  # fmt: skip


def _without_checksums(metadata: Metadata) -> Metadata:
    return Metadata({key: value for key, value in metadata.pairs.items() if not key.startswith("pyflash.checksum.")})


def _matrices(tensor: OutputTensor) -> tuple[Matrix, ...]:
    """The values of a converted tensor."""
    info = tensor.info
    if info.kind in (GGMLType.I32, GGMLType.I64, GGMLType.I8):
        return ()
    if all(piece[0].form is not None for piece in tensor.pieces):
        return tuple(StoredMatrix(piece) for piece in tensor.pieces)
    n_rows = math.prod(info.ne[1:]) // len(tensor.pieces)
    refs = [piece[0].data for piece in tensor.pieces]
    return tuple(StoredMatrix((Source(ref, None, Form(ref.dtype), n_rows, info.ne[0]),)) for ref in refs)


# ---- GGUF files --------------------------------------------------------------------------------------------------


def _open_gguf(path: Path, mtp: bool, name: str | None) -> QuantizeSource:
    gguf = read_gguf(path)
    arch = gguf.keys.get("general.architecture")
    if arch != ARCH:
        raise ConvertError(f"{path} is of the architecture {arch!r:.40}, and only {ARCH} is known: give another file")
    notes: list[str] = []
    refs, has_drafts = _without_drafts(path, gguf, mtp, notes)
    metadata = Metadata({key: value for key, value in read_pairs(path).pairs.items() if not _DROPPED.fullmatch(key)})
    if not has_drafts:
        metadata.pairs.pop(f"{ARCH}.nextn_predict_layers", None)
    if name is not None:
        named = Metadata()
        named.text("general.name", name)
        metadata.pairs.update(named.pairs)  # where the key stands
    tensors = [tensor for tensor in (_gguf_tensor(gguf, ref) for ref in refs) if tensor is not None]
    paths = shard_paths(path, gguf)
    return QuantizeSource(path, [SourceFile("", metadata, tensors)], paths, _identity(paths, _header(path, gguf)), notes)


def _header(path: Path, gguf: GGUFFile) -> bytes:
    """All that stands before the tensors of the first file; with our checksums, of all of them."""
    length = min((ref.offset for ref in gguf.tensors.values() if ref.path == path), default=None)
    try:
        with open(path, "rb") as file:
            return file.read() if length is None else file.read(length)
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None


def _without_drafts(path: Path, gguf: GGUFFile, mtp: bool, notes: list[str]) -> tuple[list[TensorRef], bool]:
    """The tensors to take, in the file's order, and whether drafting blocks are among them."""
    refs = list(gguf.tensors.values())
    blocks = {int(match[1]) for ref in refs if ".nextn." in ref.name and (match := _BLOCK_NUMBER.match(ref.name))}
    all_blocks = {int(match[1]) for ref in refs if (match := _BLOCK_NUMBER.match(ref.name))}
    stages = ("mtp.", NATIVE_STAGE)
    if mtp and any(ref.name.startswith(stages) for ref in refs):
        raise ConvertError(f"{path} drafts with DSpark, whose stages are not quantised; leave out mtp=True")
    if not blocks and mtp:
        raise ConvertError(f"{path} has no MTP block; leave out mtp=True")
    if blocks and not mtp and blocks != all_blocks:  # else it is a draft file of its own
        count = gguf.keys.get(f"{ARCH}.block_count")
        if isinstance(count, int) and count > min(blocks):
            notes.append("the source counts its MTP block among its layers, so it stays")
        else:
            drafts = tuple(f"blk.{block}." for block in blocks)
            return [ref for ref in refs if not ref.name.startswith(drafts)], False
    return [ref for ref in refs if not ref.name.startswith(stages)], bool(blocks)


def _gguf_tensor(gguf: GGUFFile, ref: TensorRef) -> SourceTensor | None:
    """None for the scales of native FP8, which go with their weights."""
    if ref.dtype == "I8":
        if ref.name.endswith(".scale") and ref.name.removesuffix(".scale") + ".weight" in gguf.tensors:
            return None
        return _native_tensor(gguf, ref)
    if ref.dtype == "F32" and ref.name.endswith(".scale"):
        weight = gguf.tensors.get(ref.name.removesuffix(".scale") + ".weight")
        if weight is not None and weight.dtype == "I8":
            return None
    info = TensorInfo(ref.name, kind_named(ref.dtype), ref.shape)
    kept = copied(info, [ref])
    if info.kind in (GGMLType.I32, GGMLType.I64) or info.kind.name in ("I16", "F64"):
        return SourceTensor(kept, ())
    n_matrices, rows = math.prod(ref.shape[2:]), math.prod(ref.shape[1:2])
    parts = _parts(ref, ref.dtype, n_matrices)
    matrices: tuple[Matrix, ...]
    if info.kind in (GGMLType.F32, GGMLType.F16, GGMLType.BF16):
        matrices = tuple(StoredMatrix((Source(part, None, Form(ref.dtype), rows, ref.shape[0]),)) for part in parts)
    else:
        matrices = tuple(BlockMatrix(part, info.kind, rows, ref.shape[0]) for part in parts)
    return SourceTensor(kept, matrices)


def _native_tensor(gguf: GGUFFile, ref: TensorRef) -> SourceTensor:
    """FP8 of the native profile; kept, it becomes BF16, which other programs can read too."""
    scale = gguf.tensors.get(native_scale_name(ref.name))
    if scale is None or len(ref.shape) < 2:
        raise ConvertError(f"tensor {ref.name} has the type I8 and no scales: it is nothing that can be quantised")
    n, (cols, rows) = math.prod(ref.shape[2:]), ref.shape[:2]
    expected = n * -(-rows // 128) * -(-cols // 128) * (4 if scale.dtype == "F32" else 1)
    if scale.nbytes != expected:
        raise ConvertError(f"tensor {scale.name} is damaged: it has {scale.nbytes:,} bytes, expected {expected:,}")
    scales = _parts(scale, "F32" if scale.dtype == "F32" else "F8_E8M0", n)
    pieces = tuple(
        (Source(part, of_part, Form.FP8, rows, cols),)
        for part, of_part in zip(_parts(ref, "F8_E4M3", n), scales, strict=True)
    )
    kept = OutputTensor(TensorInfo(ref.name, GGMLType.BF16, ref.shape), pieces)
    return SourceTensor(kept, tuple(StoredMatrix(piece) for piece in pieces))


def _parts(ref: TensorRef, dtype: str, count: int) -> list[TensorRef]:
    """A tensor's matrices, one after another."""
    size = ref.nbytes // count
    return [replace(ref, dtype=dtype, offset=ref.offset + index * size, nbytes=size) for index in range(count)]
