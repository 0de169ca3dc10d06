"""Builds GGUF bytes field by field, so that any one field can be wrong."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
GGML_F32, GGML_F16, GGML_Q8_0, GGML_UNKNOWN, GGML_I8, GGML_MXFP4 = 0, 1, 8, 139, 24, 39
PACK = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B", U64: "Q", I64: "q", F64: "d"}


def string(text: str | bytes, length: int | None = None) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data) if length is None else length) + data


def scalar(kind: int, value: object) -> bytes:
    return string(value) if kind == STRING else struct.pack("<" + PACK[kind], value)  # type: ignore[arg-type]


def key(name: str | bytes, kind: int, value: object) -> bytes:
    return string(name) + struct.pack("<I", kind) + scalar(kind, value)


def array(name: str, kind: int, values: list[object], count: int | None = None) -> bytes:
    head = string(name) + struct.pack("<IIQ", ARRAY, kind, len(values) if count is None else count)
    return head + b"".join(scalar(kind, v) for v in values)


def tensor(name: str | bytes, shape: list[int], kind: int, offset: int, n_dims: int | None = None) -> bytes:
    count = len(shape) if n_dims is None else n_dims
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, offset)


def default_keys() -> list[bytes]:
    return [
        key("general.architecture", STRING, "deepseek4"),
        key("deepseek4.block_count", U32, 43),
        array("deepseek4.attention.compress_ratios", I32, [0, 4, 128]),
        array("tokenizer.ggml.tokens", STRING, ["a", "", "the"]),
        key("expert_weights_norm", BOOL, 1),
    ]


def default_tensors() -> list[bytes]:
    """128 + 68 + 34 bytes of data at offsets 0, 128 and 224."""
    return [
        tensor("output_norm.weight", [32], GGML_F32, 0),
        tensor("blk.0.attn_kv.weight", [32, 2], GGML_Q8_0, 128),
        tensor("blk.0.ffn_up_exps.weight", [32, 1, 2], GGML_MXFP4, 224),
    ]


@dataclass
class Gguf:
    """A valid file of three tensors, unless told otherwise."""

    magic: bytes = b"GGUF"
    version: int = 3
    keys: list[bytes] = field(default_factory=default_keys)
    tensors: list[bytes] = field(default_factory=default_tensors)
    n_keys: int | None = None
    n_tensors: int | None = None
    alignment: int = 32
    data: bytes = bytes(i % 251 for i in range(258))

    def build(self) -> bytes:
        n_tensors = len(self.tensors) if self.n_tensors is None else self.n_tensors
        n_keys = len(self.keys) if self.n_keys is None else self.n_keys
        head = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        head += b"".join(self.keys) + b"".join(self.tensors)
        return head + bytes(-len(head) % self.alignment) + self.data
