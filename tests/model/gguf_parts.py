"""GGUF files taken apart and put together again, to say the same model as other programs' files do."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from gguf import GGUFValueType as Kind

_ALIGNMENT = 32
_FORMS = {Kind.UINT8: "B", Kind.INT8: "b", Kind.UINT16: "H", Kind.INT16: "h", Kind.UINT32: "I", Kind.INT32: "i",
          Kind.FLOAT32: "f", Kind.BOOL: "?", Kind.UINT64: "Q", Kind.INT64: "q", Kind.FLOAT64: "d"}  # fmt: skip


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def scalar(kind: Kind, value: Any) -> bytes:
    """A key's value as it stands behind its name."""
    body = _text(value) if kind is Kind.STRING else struct.pack("<" + _FORMS[kind], value)
    return struct.pack("<I", kind) + body


def array(kind: Kind, values: Sequence[Any]) -> bytes:
    body = b"".join(scalar(kind, value)[4:] for value in values)
    return struct.pack("<IIQ", Kind.ARRAY, kind, len(values)) + body


@dataclass(frozen=True)
class Tensor:
    number: int  # of its type
    ne: tuple[int, ...]
    data: bytes


@dataclass
class Parts:
    keys: dict[str, bytes]
    tensors: dict[str, Tensor]

    def key(self, name: str) -> Any:
        """The value of a number or array of numbers."""
        value = self.keys[name]
        (kind,) = struct.unpack_from("<I", value)
        if kind != Kind.ARRAY:
            return struct.unpack_from("<" + _FORMS[Kind(kind)], value, 4)[0]
        inner, n = struct.unpack_from("<IQ", value, 4)
        return list(struct.unpack_from(f"<{n}{_FORMS[Kind(inner)]}", value, 16))

    def write(self, path: Path) -> Path:
        path.write_bytes(_file(self.keys, self.tensors))
        return path

    def write_shards(self, folder: Path, groups: Sequence[Sequence[str]]) -> list[Path]:
        """As llama-gguf-split does: each shard has its group of tensors, the first one the keys as well."""
        assert sorted(name for group in groups for name in group) == sorted(self.tensors)
        paths = []
        for no, group in enumerate(groups):
            split = {"split.no": scalar(Kind.UINT16, no), "split.count": scalar(Kind.UINT16, len(groups)),
                     "split.tensors.count": scalar(Kind.INT32, len(self.tensors))}  # fmt: skip
            path = folder / f"model-{no + 1:05d}-of-{len(groups):05d}.gguf"
            data = _file((self.keys if no == 0 else {}) | split, {name: self.tensors[name] for name in group})
            path.write_bytes(data)
            paths.append(path)
        return paths


def _file(keys: dict[str, bytes], tensors: dict[str, Tensor]) -> bytes:
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(keys))]
    head += [_text(name) + value for name, value in keys.items()]
    body: list[bytes] = []
    at = 0
    for name, tensor in tensors.items():
        head += [_text(name), struct.pack("<I", len(tensor.ne)), struct.pack(f"<{len(tensor.ne)}Q", *tensor.ne),
                 struct.pack("<IQ", tensor.number, at)]  # fmt: skip
        body.append(tensor.data + bytes(-len(tensor.data) % _ALIGNMENT))
        at += len(body[-1])
    start = b"".join(head)
    return start + bytes(-len(start) % _ALIGNMENT if tensors else 0) + b"".join(body)


def read_parts(path: Path) -> Parts:
    reader = gguf.GGUFReader(path)
    keys = {name: b"".join(part.tobytes() for part in field.parts[2:])
            for name, field in reader.fields.items() if not name.startswith("GGUF.")}  # fmt: skip
    keys.pop("pyflash.checksum.tensors", None)
    tensors = {tensor.name: Tensor(int(tensor.tensor_type), tuple(map(int, tensor.shape)), tensor.data.tobytes())
               for tensor in reader.tensors}  # fmt: skip
    return Parts(keys, tensors)
