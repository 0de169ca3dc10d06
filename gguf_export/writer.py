"""GGUF headers: key/value pairs, tensor directory, data offsets, and the split into shards."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from gguf_export.errors import ConvertError
from quantize.plan import GGMLType, row_bytes

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
MOST_NAME_BYTES = 64
MOST_SHARDS = 65535


class ValueType(IntEnum):
    U8 = 0
    I8 = 1
    U16 = 2
    I16 = 3
    U32 = 4
    I32 = 5
    F32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    U64 = 10
    I64 = 11
    F64 = 12


SCALAR_FORMATS = {
    ValueType.U8: "<B", ValueType.I8: "<b", ValueType.U16: "<H", ValueType.I16: "<h", ValueType.U32: "<I",
    ValueType.I32: "<i", ValueType.F32: "<f", ValueType.BOOL: "<?", ValueType.U64: "<Q", ValueType.I64: "<q",
    ValueType.F64: "<d",
}  # fmt: skip


def _string(text: str) -> bytes:
    data = text.encode("utf-8")
    return struct.pack("<Q", len(data)) + data


def encoded_key(key: str, value: bytes) -> bytes:
    """A key and its encoded value, as they stand in the header."""
    return _string(key) + value


@dataclass
class Metadata:
    """Key/value pairs in order."""

    pairs: dict[str, bytes] = field(default_factory=dict)

    def add(self, key: str, kind: ValueType, value: Any) -> None:
        if key in self.pairs:
            raise ValueError(f"key {key} twice")
        body = _string(value) if kind is ValueType.STRING else struct.pack(SCALAR_FORMATS[kind], value)
        self.pairs[key] = struct.pack("<I", kind) + body

    def add_array(self, key: str, kind: ValueType, values: Sequence[Any]) -> None:
        if key in self.pairs:
            raise ValueError(f"key {key} twice")
        if kind is ValueType.STRING:
            body = b"".join(map(_string, values))
        else:
            body = b"".join(struct.pack(SCALAR_FORMATS[kind], value) for value in values)
        self.pairs[key] = struct.pack("<IIQ", ValueType.ARRAY, kind, len(values)) + body

    def blob(self, key: str, data: bytes) -> None:
        """An array of U8."""
        if key in self.pairs:
            raise ValueError(f"key {key} twice")
        self.pairs[key] = struct.pack("<IIQ", ValueType.ARRAY, ValueType.U8, len(data)) + data

    def u32(self, key: str, value: int) -> None:
        self.add(key, ValueType.U32, value)

    def f32(self, key: str, value: float) -> None:
        self.add(key, ValueType.F32, float(np.float32(value)))

    def text(self, key: str, value: str) -> None:
        self.add(key, ValueType.STRING, value)

    def flag(self, key: str, value: bool) -> None:
        self.add(key, ValueType.BOOL, value)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A directory entry; ne[0] is contiguous, as GGUF has it."""

    name: str
    kind: GGMLType
    ne: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return row_bytes(self.kind, self.ne[0]) * math.prod(self.ne[1:])


def aligned(size: int) -> int:
    """What a tensor of that many bytes takes in a file."""
    return size + -size % ALIGNMENT


@dataclass(frozen=True)
class FileLayout:
    """One output file: its header bytes and where the data of each tensor goes."""

    name: str
    header: bytes
    offsets: dict[str, int]  # from the start of the file
    size: int


def _layout(name: str, metadata: Metadata, tensors: Sequence[TensorInfo]) -> FileLayout:
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(tensors), len(metadata.pairs))]
    parts += [encoded_key(key, value) for key, value in metadata.pairs.items()]
    position = 0
    relative = {}
    for tensor in tensors:
        if len(tensor.name.encode()) >= MOST_NAME_BYTES or tensor.name in relative:
            raise ConvertError(f"tensor name {tensor.name!r} is too long for GGUF or used twice")
        relative[tensor.name] = position
        parts.append(_string(tensor.name) + struct.pack("<I", len(tensor.ne)))
        parts.append(struct.pack(f"<{len(tensor.ne)}QIQ", *tensor.ne, tensor.kind, position))
        position += aligned(tensor.nbytes)
    header = b"".join(parts)
    header += bytes(aligned(len(header)) - len(header))
    return FileLayout(
        name, header, {key: len(header) + offset for key, offset in relative.items()}, len(header) + position
    )


def shard_file_name(name: str, index: int, count: int) -> str:
    """llama.cpp's naming, from index 0: model.gguf becomes model-00001-of-00003.gguf."""
    return f"{Path(name).stem}-{index + 1:05d}-of-{count:05d}.gguf"


def _groups(tensors: Sequence[TensorInfo], shard_bytes: int) -> list[list[TensorInfo]]:
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for tensor in tensors:
        size = aligned(tensor.nbytes)
        if groups[-1] and filled + size > shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(tensor)
        filled += size
    return groups


def layout_files(
    name: str, metadata: Metadata, tensors: Sequence[TensorInfo], shard_bytes: int | None = None
) -> list[FileLayout]:
    """The files that hold these tensors in this order: one, or shards of at most shard_bytes of tensor data.

    A tensor is never split, so a shard is larger when a single tensor is. The first shard carries the metadata.
    """
    groups = _groups(tensors, shard_bytes) if shard_bytes else [list(tensors)]
    if len(groups) == 1:
        return [_layout(name, metadata, tensors)]
    if len(groups) > MOST_SHARDS:
        raise ConvertError(f"{len(groups):,} shards are too many; use a larger shard size")
    layouts = []
    for index, group in enumerate(groups):
        pairs = Metadata(dict(metadata.pairs) if index == 0 else {})
        pairs.add("split.no", ValueType.U16, index)
        pairs.add("split.count", ValueType.U16, len(groups))
        pairs.add("split.tensors.count", ValueType.I32, len(tensors))
        layouts.append(_layout(shard_file_name(name, index, len(groups)), pairs, group))
    return layouts
