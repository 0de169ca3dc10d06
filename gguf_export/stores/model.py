"""What a store holds, and what a look at a file's header tells."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gguf_export.metadata import ARCH
from gguf_export.reader import peek_key, read_gguf

_HEAD = "token_embd.weight"  # what a model has and a draft has not

# general.file_type, as llama.cpp numbers what a file mostly holds.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A GGUF in a store.

    name: what find_model() takes for it. store: the store's title. path: the file, or its first shard. files: all that
    are there. missing: how many shards are not.
    """

    name: str
    store: str
    path: Path
    files: tuple[Path, ...]
    missing: int = 0


class Store(Protocol):
    """A place where a program keeps models. Both methods skip what cannot be read, and raise no error for it."""

    prefix: str
    title: str

    def folders(self) -> list[Path]:
        """Where it may lie, whether or not it is there."""

    def find(self, name: str) -> list[Stored]:
        """What that name may mean, without the prefix."""

    def walk(self) -> Iterator[Stored]:
        """All GGUF files, whatever they hold."""


@dataclass(frozen=True)
class Model:
    """A model of this architecture in a store.

    n_bytes: of all its files. file_type: general.file_type by name, "" where the file has none that is known.
    bytes_by_type: of the tensors, largest first.
    """

    stored: Stored
    n_bytes: int
    file_type: str
    bytes_by_type: dict[str, int]

    @property
    def types(self) -> str:
        """The types that a tenth of the weights or more have."""
        least = sum(self.bytes_by_type.values()) / 10
        return " + ".join(name for name, size in self.bytes_by_type.items() if size >= least)


def architecture(path: Path) -> str:
    """general.architecture, or what there is instead, read no further than that. ConvertError for a broken file."""
    found = peek_key(path, "general.architecture") or peek_key(path, "general.type")
    return found if isinstance(found, str) and found else "none"


def inspect(stored: Stored) -> Model | str:
    """The model, or the architecture of a file that is another's; a draft is its own. ConvertError: a broken file."""
    found = architecture(stored.path)
    if found != ARCH:
        return found
    gguf = read_gguf(stored.path, any_type=True)
    if _HEAD not in gguf.tensors:
        return f"{ARCH} without an embedding (drafts)"
    sizes: Counter[str] = Counter()
    for tensor in gguf.tensors.values():
        sizes[tensor.dtype] += tensor.nbytes
    number: Any = gguf.keys.get("general.file_type")
    file_type = _FILE_TYPES.get(number, "") if isinstance(number, int) else ""
    return Model(stored, sum(os.stat(path).st_size for path in stored.files), file_type, dict(sizes.most_common()))
