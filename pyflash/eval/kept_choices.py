"""Choices of a base, kept behind its log-probabilities, where llama.cpp's tool does not look.

Little-endian: the bytes "_choices"; int32 n_layer, n_hash_layer, n_expert, A, index_topk and n, the positions of a window;
int32 [n_layer] compression ratios. Then for each window uint16 [n_layer, n, A] the experts of each token, best first; and
for each layer of ratio 4, and each position from which on a token sees more than index_topk rows, bits [n // 4] of the rows
that are kept, the lowest first, in whole bytes.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields

import numpy as np

from pyflash.engine.choices import SPARSE_RATIO, Choices
from pyflash.engine.model import ModelInfo
from pyflash.native.errors import ArgumentError, FormatError

MAGIC = b"_choices"
_HEADER = struct.Struct("<8s6i")
_MOST_EXPERTS = 1 << 16
_NAMES = {"n_layer": "layers", "n_hash_layer": "hash-routed layers", "n_expert": "experts", "n_expert_used": "experts a token",
          "index_topk": "rows that the indexer keeps"}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What two models must share for the choices of one to be made by the other."""

    n_layer: int
    n_hash_layer: int
    n_expert: int
    n_expert_used: int
    index_topk: int
    layer_ratios: tuple[int, ...]

    @classmethod
    def of(cls, info: ModelInfo) -> Sizes:
        return cls(**{field.name: getattr(info, field.name) for field in fields(cls)})

    @property
    def n_sparse(self) -> int:
        """Layers with an indexer."""
        return self.layer_ratios.count(SPARSE_RATIO)

    def header(self, n: int) -> bytes:
        head = (self.n_layer, self.n_hash_layer, self.n_expert, self.n_expert_used, self.index_topk, n)
        return _HEADER.pack(MAGIC, *head) + struct.pack(f"<{self.n_layer}i", *self.layer_ratios)

    def window_bytes(self, n: int) -> int:
        """Of the choices at n positions."""
        return 2 * self.n_layer * n * self.n_expert_used + self.n_sparse * (n - self.first_chosen(n)) * self.row_bytes(n)

    def file_bytes(self, n: int, n_windows: int) -> int:
        return len(self.header(n)) + n_windows * self.window_bytes(n)

    def first_chosen(self, n: int) -> int:
        """The first of n positions at which rows are left out, or n."""
        return min(n, SPARSE_RATIO * (self.index_topk + 1) - 1)

    @staticmethod
    def row_bytes(n: int) -> int:
        return (n // SPARSE_RATIO + 7) // 8


def check_same(ours: Sizes, file: str, theirs: Sizes, base: str) -> None:
    """ArgumentError where choices of base cannot be held in file."""
    for name, what in _NAMES.items():
        here, there = getattr(ours, name), getattr(theirs, name)
        if here != there:
            raise ArgumentError(f"the choices of {base} cannot be held in {file}: {there} {what} there, {here} here; compare "
                                "files of the same model")
    if ours.layer_ratios != theirs.layer_ratios:
        raise ArgumentError(f"the choices of {base} cannot be held in {file}: other layers are compressed; compare files of "
                            "the same model")


def read_header(head: bytes, n: int) -> Sizes | None:
    """The sizes that bytes behind the log-probabilities begin with; None where they are no header for n positions."""
    if not head.startswith(MAGIC) or len(head) < _HEADER.size:
        return None
    _, *numbers, positions = _HEADER.unpack_from(head)
    n_layer, n_hash, n_expert, n_used, topk = numbers
    ratios = head[_HEADER.size : _HEADER.size + 4 * max(n_layer, 0)]
    if min(n_layer, n_used, n_expert, topk) < 1 or n_hash < 0 or positions != n or len(ratios) < 4 * n_layer:
        return None
    return Sizes(n_layer, n_hash, n_expert, n_used, topk, struct.unpack(f"<{n_layer}i", ratios))


def can_keep(info: ModelInfo) -> bool:
    return info.n_expert <= _MOST_EXPERTS


def encode(sizes: Sizes, choices: Choices) -> bytes:
    """A window's."""
    n = choices.n_positions
    first = sizes.first_chosen(n)
    bits = np.zeros((sizes.n_sparse, n - first, 8 * sizes.row_bytes(n)), dtype=bool)
    if bits.size:
        np.put_along_axis(bits, choices.rows[:, first:], True, axis=2)
    return choices.experts.astype("<u2").tobytes() + np.packbits(bits, axis=2, bitorder="little").tobytes()


def decode(sizes: Sizes, data: bytes, into: Choices, file: str) -> None:
    """Fills `into` with a window's. FormatError where they cannot be any."""
    n = into.n_positions
    n_experts = sizes.n_layer * n * sizes.n_expert_used
    experts = np.frombuffer(data, dtype="<u2", count=n_experts)
    first, k = sizes.first_chosen(n), sizes.index_topk
    packed = np.frombuffer(data, dtype=np.uint8, offset=2 * n_experts)
    bits = np.unpackbits(packed.reshape(sizes.n_sparse, n - first, -1) if packed.size else
                         np.zeros((sizes.n_sparse, n - first, sizes.row_bytes(n)), dtype=np.uint8), axis=2, bitorder="little")
    if (experts >= sizes.n_expert).any() or (bits.size and (bits.sum(axis=2) != k).any()):
        raise FormatError(f"{file} is damaged: it holds impossible choices; make it again with pyflash eval ppl --logits")
    into.experts[...] = experts.reshape(into.experts.shape)
    into.rows[...] = np.arange(k)  # all that there are, up to there
    into.rows[:, first:] = np.nonzero(bits)[2].reshape(sizes.n_sparse, n - first, k) if bits.size else 0
