"""Safetensors files: a strict header reader and a header builder. Payloads are read and written by others."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_export.config import parse_json_object
from gguf_export.errors import ConvertError, reason
from gguf_export.standins import HEAD_BYTES, standin_reason

MOST_HEADER_BYTES = 100_000_000
MOST_DIMS = 8

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor's place: `path` is None where only its size is known (a plan without the shards)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path | None
    offset: int  # from the start of the file
    nbytes: int


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape) * ITEM_BYTES[dtype]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _parse_entry(path: Path, name: str, entry: Any, data_start: int, data_bytes: int) -> TensorRef:
    def bad(why: str) -> ConvertError:
        return ConvertError(f"{path} is damaged: tensor {name:.200} {why}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise bad("has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise bad(f"has the unknown dtype {dtype!r:.40}")
    if not isinstance(shape, list) or len(shape) > MOST_DIMS or not all(map(_is_count, shape)):
        raise bad(f"has the shape {shape!r:.60}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise bad(f"has the offsets {offsets!r:.60}")
    begin, end = offsets
    if begin > end or end - begin != tensor_bytes(dtype, shape):
        raise bad(f"has offsets {offsets!r:.60} that do not fit its shape {shape} of {dtype}")
    if end > data_bytes:
        raise ConvertError(
            f"{path} is truncated: tensor {name:.200} ends at byte {data_start + end:,}, "
            f"the file at {data_start + data_bytes:,}; download it again"
        )
    return TensorRef(name, dtype, tuple(shape), path, data_start + begin, end - begin)


def _read(path: Path) -> tuple[bytes, int]:
    """A file's header without its length, and the file's size."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(HEAD_BYTES)
            standin = standin_reason(head)
            if standin:
                raise ConvertError(f"{path} {standin}")
            prefix = head[:8]
            length = int.from_bytes(prefix, "little")
            if head and not any(head):
                raise ConvertError(f"{path} holds zero bytes where its header should be: download it again")
            if len(prefix) < 8 or length > size - 8:
                raise ConvertError(f"{path} is truncated: its header does not fit; download it again")
            if length > MOST_HEADER_BYTES:
                raise ConvertError(f"{path} is damaged: its header claims {length:,} bytes")
            file.seek(8)
            return file.read(length), size
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None


def read_header(path: Path) -> dict[str, TensorRef]:
    """The tensors of one file, in the order of their data.

    Raises ConvertError naming the tensor for a header that is truncated, oversized, duplicated or mistyped, and for
    data that is truncated, overlapping or not contiguous.
    """
    return _parse(path, *_read(path))


def header_text(path: Path) -> str:
    """A file's header as it stands there, without its length. As read_header() has checked it."""
    return _read(path)[0].decode("utf-8")


def place_header(path: Path, text: str, data_bytes: int) -> tuple[bytes, dict[str, TensorRef]]:
    """The bytes with which a file of that header begins, and where each tensor goes. ConvertError as of read_header()."""
    data = text.encode("utf-8")
    refs = _parse(path, data, 8 + len(data) + data_bytes)
    return len(data).to_bytes(8, "little") + data, refs


def _parse(path: Path, data: bytes, size: int) -> dict[str, TensorRef]:
    """data: the header without its length. size: the file's."""
    length, header = len(data), parse_json_object(data, str(path))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ConvertError(f"{path} is damaged: __metadata__ does not map strings to strings")
    start = 8 + length
    refs = sorted(
        (_parse_entry(path, name, entry, start, size - start) for name, entry in header.items()),
        key=lambda ref: (ref.offset, ref.nbytes),
    )
    position = start
    for ref in refs:
        if ref.offset != position:
            what = "overlaps the tensor before it" if ref.offset < position else "leaves a gap before it"
            raise ConvertError(f"{path} is damaged: tensor {ref.name:.200} {what}")
        position += ref.nbytes
    if position != size:
        raise ConvertError(f"{path} is damaged: {size - position:,} bytes after its last tensor")
    return {ref.name: ref for ref in refs}


def build_header(path: Path, tensors: Sequence[tuple[str, str, tuple[int, ...]]]) -> tuple[bytes, list[TensorRef]]:
    """The header of a file that holds these (name, dtype, shape) in this order, and where each one goes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + tensor_bytes(dtype, shape)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    header = len(text).to_bytes(8, "little") + text
    refs = []
    for name, dtype, shape in tensors:
        begin, end = entries[name]["data_offsets"]
        refs.append(TensorRef(name, dtype, shape, path, len(header) + begin, end - begin))
    return header, refs


def shard_name(index: int, count: int) -> str:
    """Hugging Face's naming, from index 0."""
    return f"model-{index + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors"


def index_json(places: dict[str, str], total_bytes: int) -> bytes:
    """model.safetensors.index.json for tensor name -> file name."""
    value = {"metadata": {"total_size": total_bytes}, "weight_map": dict(sorted(places.items()))}
    return json.dumps(value, indent=2).encode() + b"\n"
