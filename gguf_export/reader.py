"""Reads GGUF directories, sharded or not, with the checks that untrusted files need. Payloads are read by others."""

from __future__ import annotations

import contextlib
import math
import re
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf_export.errors import ConvertError, reason
from gguf_export.safetensors_file import TensorRef
from gguf_export.standins import HEAD_BYTES, standin_reason
from gguf_export.writer import MAGIC, SCALAR_FORMATS, Metadata, ValueType
from pyflash.native.block_types import BLOCK_TYPES
from quantize.plan import GGMLType, row_bytes

_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
MOST_DIMS = 4
_NVFP4 = 40


@dataclass(frozen=True)
class GGUFFile:
    """keys maps to Python values. A tensor's dtype is its GGMLType name, its shape is GGUF's order (ne[0] first).

    Bytes of strings that are not UTF-8 are lone surrogates, as Python's "surrogateescape" has it.
    """

    keys: dict[str, Any]
    tensors: dict[str, TensorRef]


class _Cursor:
    """Bounds-checked reads of one file's header."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        file.seek(0, 2)
        self.size = file.tell()
        file.seek(0)
        self.position = 0

    def fail(self, why: str) -> ConvertError:
        return ConvertError(f"{self.path} is damaged: {why}")

    def bytes(self, n: int) -> bytes:
        if n > self.size - self.position:
            raise ConvertError(f"{self.path} is truncated: it ends inside its header; download it again")
        self.position += n
        return self.file.read(n)

    def unpack(self, form: str) -> Any:
        return struct.unpack(form, self.bytes(struct.calcsize(form)))[0]

    def count(self, least_bytes: int) -> int:
        """A count of things that take at least least_bytes each, so that it cannot exceed the file."""
        n = int(self.unpack("<Q"))
        if n > (self.size - self.position) // least_bytes:
            raise self.fail(f"it claims {n:,} entries, more than its size allows")
        return n

    def string(self) -> str:
        return self.bytes(self.count(1)).decode("utf-8", "surrogateescape")

    def kind(self) -> ValueType:
        number = self.unpack("<I")
        try:
            return ValueType(number)
        except ValueError:
            raise self.fail(f"value type {number} does not exist") from None

    def value(self, kind: ValueType) -> Any:
        if kind is ValueType.STRING:
            return self.string()
        if kind is not ValueType.ARRAY:
            return self.unpack(SCALAR_FORMATS[kind])
        inner = self.kind()
        if inner is ValueType.ARRAY:
            raise self.fail("arrays of arrays are not supported")
        if inner is ValueType.STRING:
            return [self.string() for _ in range(self.count(8))]
        form = SCALAR_FORMATS[inner]
        n = self.count(struct.calcsize(form))
        return list(struct.unpack(f"<{n}{form[1]}", self.bytes(n * struct.calcsize(form))))


def _tensor_entry(cursor: _Cursor) -> tuple[str, int, tuple[int, ...], int]:
    """Name, type, ne, and the offset in the data."""
    name = cursor.string()
    n_dims = cursor.unpack("<I")
    if not 1 <= n_dims <= MOST_DIMS:
        raise cursor.fail(f"tensor {name:.80} has {n_dims} dimensions")
    ne = tuple(cursor.unpack("<Q") for _ in range(n_dims))
    return name, cursor.unpack("<I"), ne, cursor.unpack("<Q")


def _type_problem(number: int) -> str:
    known = BLOCK_TYPES.get(number)
    if known is None:
        return f"{number}, which is unknown here: update pyflash, or take another file"
    if known.is_foreign:
        return (f"ik_llama.cpp's {known.name} ({number}), which only that reads: take a file in llama.cpp's types, or "
                "convert this one with ik_llama.cpp's llama-quantize")  # fmt: skip
    return f"{known.name}, which ggml has removed: take a newer file"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """ConvertError for what the system refuses, also within."""
    try:
        kind = path.stat().st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):  # opening a pipe would wait for who writes to it
            raise ConvertError(f"{path} is not a regular file: name one that is")
        with open(path, "rb") as file:
            yield file
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None


def _read_one(path: Path, any_type: bool) -> GGUFFile:
    with _opened(path) as file:
        return _parse(_Cursor(path, file), any_type)


def peek_key(path: Path, wanted: str) -> Any:
    """The value of one key, None without it: reads the header only as far as that. For the others see read_gguf()."""
    with _opened(path) as file:
        cursor = _Cursor(path, file)
        _, n_keys = _start(cursor)
        for _ in range(n_keys):
            key, value = cursor.string(), cursor.value(cursor.kind())
            if key == wanted:
                return value
    return None


def _start(cursor: _Cursor) -> tuple[int, int]:
    """The numbers of tensors and of keys."""
    standin = standin_reason(cursor.file.read(HEAD_BYTES))
    cursor.file.seek(0)
    if standin:
        raise ConvertError(f"{cursor.path} {standin}")
    if cursor.bytes(4) != MAGIC:
        raise ConvertError(f"{cursor.path} is no GGUF file: give a .gguf file, or convert a checkpoint first")
    version = cursor.unpack("<I")
    if version not in (2, 3):
        raise ConvertError(f"{cursor.path} is GGUF version {version}, only 2 and 3 are supported: update pyflash")
    return cursor.count(24), cursor.count(13)


def _parse(cursor: _Cursor, any_type: bool) -> GGUFFile:
    n_tensors, n_keys = _start(cursor)
    keys: dict[str, Any] = {}
    for _ in range(n_keys):
        key = cursor.string()
        if key in keys:
            raise cursor.fail(f"key {key:.80} appears twice")
        keys[key] = cursor.value(cursor.kind())
    entries = sorted((_tensor_entry(cursor) for _ in range(n_tensors)), key=lambda entry: entry[3])
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise cursor.fail(f"general.alignment is {alignment!r:.40}")
    start = cursor.position + -cursor.position % alignment
    tensors: dict[str, TensorRef] = {}
    position = 0
    for index, (name, number, ne, offset) in enumerate(entries):
        end = entries[index + 1][3] if index + 1 < len(entries) else cursor.size - start
        block = BLOCK_TYPES[number].values if number in BLOCK_TYPES else 0
        if not block and not any_type:
            raise ConvertError(f"{cursor.path}: tensor {name:.80} has type {_type_problem(number)}")
        if block and ne[0] % block:
            kind = BLOCK_TYPES[number].name
            raise cursor.fail(f"tensor {name:.80} has rows of {ne[0]} values of type {kind}, whose blocks have {block}")
        if name in tensors or offset < position:
            raise cursor.fail(f"tensor {name:.80} overlaps another or appears twice")
        nbytes = row_bytes(GGMLType(number), ne[0]) * math.prod(ne[1:]) if block else max(0, end - offset)
        if number == _NVFP4 and index + 1 < len(entries) and nbytes + -nbytes % alignment != end - offset:
            raise ConvertError(
                f"{cursor.path}: tensor {name:.80} has the number of NVFP4 (40) and another size: llama-modchip's own type, "
                "which only that reads; take a file in llama.cpp's types"
            )
        if nbytes > cursor.size - start - offset:
            raise ConvertError(f"{cursor.path} is truncated: tensor {name:.80} goes past its end; download it again")
        dtype = BLOCK_TYPES[number].name if number in BLOCK_TYPES else f"type {number}"
        tensors[name] = TensorRef(name, dtype, ne, cursor.path, start + offset, nbytes)
        position = offset + nbytes
    return GGUFFile(keys, tensors)


def read_pairs(path: Path) -> Metadata:
    """The key/value pairs of a file that read_gguf() has read, as its bytes have them."""
    pairs = Metadata()
    try:
        with open(path, "rb") as file:
            cursor = _Cursor(path, file)
            cursor.bytes(len(MAGIC) + 4 + 8)
            for _ in range(cursor.count(13)):
                key, begin = cursor.string(), cursor.position
                cursor.value(cursor.kind())
                size = cursor.position - begin
                file.seek(begin)
                pairs.pairs[key] = file.read(size)
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None
    return pairs


def shard_paths(path: Path, gguf: GGUFFile) -> list[Path]:
    """The files that read_gguf(path) read: path alone, or all shards in order."""
    match = _SHARD.fullmatch(path.name)
    count = gguf.keys.get("split.count", 1)
    if match is None or count in (0, 1):
        return [path]
    return [path.with_name(f"{match[1]}-{index:05d}-of-{count:05d}.gguf") for index in range(1, count + 1)]


def read_gguf(path: Path, any_type: bool = False) -> GGUFFile:
    """The directory of a file, or of all shards when `path` is the first of them.

    any_type: take tensors of types that this program does not know as well, with their numbers for names ("type 12").
    """
    first = _read_one(path, any_type)
    count = first.keys.get("split.count", 1)
    if count in (0, 1):
        return first
    match = _SHARD.fullmatch(path.name)
    if not match or int(match[2]) != 1 or int(match[3]) != count:
        raise ConvertError(f"{path} is a shard; give the first one, named NAME-00001-of-{count:05d}.gguf")
    tensors = dict(first.tensors)
    for index in range(2, count + 1):
        shard = _read_one(path.with_name(f"{match[1]}-{index:05d}-of-{count:05d}.gguf"), any_type)
        twice = tensors.keys() & shard.tensors.keys()
        if twice or shard.keys.get("split.no") != index - 1:
            raise ConvertError(f"shard {index} does not belong to {path}")
        tensors |= shard.tensors
    return GGUFFile(first.keys, tensors)
