"""Files of importance matrices: llama.cpp's GGUF form, read and written, and its older .dat form, read.

Beside a tensor's NAME.in_sum2 [matrices, columns] and NAME.counts, which are llama.cpp's, files of ours have
NAME.pyflash.in_sum2_weighted for the experts' down projections: squares of inputs times the weight of the route. llama.cpp's
tools pass over it.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gguf_export.errors import ConvertError, reason
from gguf_export.reader import read_gguf
from gguf_export.safetensors_file import TensorRef
from gguf_export.writer import MAGIC, Metadata, TensorInfo, ValueType, layout_files
from pyflash.native.errors import FileError, FormatError
from quantize.importance import Doubles, Entry, Floats, Importance
from quantize.plan import GGMLType

KIND = "imatrix"
_SUMS, _COUNTS, _WEIGHTED = ".in_sum2", ".counts", ".pyflash.in_sum2_weighted"
_MOST_NAME = 4096  # bytes; of the old form, where anything may stand


# ---- Reading -------------------------------------------------------------------------------------------------------------


def read_importance(path: Path) -> Importance:
    """See quantize.importance.read()."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                file.seek(0)
                return _read_old(path, file)
        return _read_gguf(path)
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason(error)}") from error
    except ConvertError as error:
        raise FormatError(str(error)) from error


def _read_gguf(path: Path) -> Importance:
    gguf = read_gguf(path)
    if gguf.keys.get("general.type") != KIND:
        raise FormatError(f"{path} is a GGUF file but no importance matrix: `pyflash imatrix` makes one")
    entries: dict[str, Entry] = {}
    for name in (each.removesuffix(_SUMS) for each in gguf.tensors if each.endswith(_SUMS)):
        sums, counts = gguf.tensors[name + _SUMS], gguf.tensors.get(name + _COUNTS)
        weighted = gguf.tensors.get(name + _WEIGHTED)
        if counts is None:
            raise FormatError(f"{path} has no counts for {name}: take another importance matrix")
        for ref in filter(None, (sums, counts, weighted)):
            if ref.dtype != "F32":
                raise FormatError(f"{path}: {ref.name} is {ref.dtype}, and not F32: take another importance matrix")
        if math.prod(counts.shape) < 1 or (weighted is not None and weighted.nbytes != sums.nbytes):
            raise FormatError(f"{path}: the tensors of {name} do not go together: take another importance matrix")
        entries[name] = Entry(math.prod(sums.shape), _values(counts).astype(np.float64), functools.partial(_values, sums),
                              functools.partial(_values, weighted) if weighted is not None else None)
    if not entries:
        raise FormatError(f"{path} has no entries: collect it again")
    datasets = gguf.keys.get("imatrix.datasets", [])
    return Importance(path, [str(each) for each in datasets] if isinstance(datasets, list) else [],
                      _count(gguf.keys.get("imatrix.chunk_count")), _count(gguf.keys.get("imatrix.chunk_size")), entries)


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else 0


def _values(ref: TensorRef) -> Floats:
    assert ref.path is not None
    try:
        values = np.fromfile(ref.path, dtype="<f4", count=ref.nbytes // 4, offset=ref.offset)
    except OSError as error:
        raise FileError(f"cannot read {ref.path}: {reason(error)}") from error
    if values.size != ref.nbytes // 4:
        raise FormatError(f"{ref.path} has become shorter while it was read: collect it again")
    return values.astype(np.float32, copy=False)


class _Old:
    """Bounds-checked reads of the old form."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        file.seek(0, 2)
        self.left = file.tell()
        file.seek(0)

    def bytes(self, n: int) -> bytes:
        if not 0 <= n <= self.left:
            raise FormatError(f"{self.path} is no importance matrix, or cut short: give a GGUF of `pyflash imatrix` or "
                              "llama-imatrix, or a .dat file of the latter")
        self.left -= n
        return self.file.read(n)

    def number(self) -> int:
        return int(struct.unpack("<i", self.bytes(4))[0])

    def text(self) -> str:
        n = self.number()
        return self.bytes(n if n <= _MOST_NAME else -1).decode("utf-8", "replace")


def _read_old(path: Path, file: BinaryIO) -> Importance:
    """int32 entries; of each int32 length, name, int32 calls, int32 values, and the values: means times calls. Then,
    perhaps, int32 calls and the text's name, after its int32 length."""
    old = _Old(path, file)
    entries: dict[str, Entry] = {}
    n_entries = old.number()
    if n_entries < 1:
        old.bytes(-1)
    for _ in range(n_entries):
        name, n_call, n_value = old.text(), old.number(), old.number()
        place = file.tell()
        old.bytes(4 * n_value if n_value > 0 else -1)
        ref = TensorRef(name, "F32", (n_value,), path, place, 4 * n_value)
        entries[name] = Entry(n_value, np.array([float(max(n_call, 1))]), functools.partial(_values, ref), has_visits=False)
    chunks = old.number() if old.left else 0
    datasets = [old.text()] if old.left else []
    return Importance(path, datasets, _count(chunks), 0, entries)


# ---- Writing -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collected:
    """Sums of a tensor, [matrices, columns], and what they are of, [matrices]."""

    sums: Doubles
    counts: Doubles
    weighted: Doubles | None = None


def write_importance(
    path: Path, entries: Mapping[str, Collected], datasets: Sequence[str], chunk_count: int, chunk_size: int, more: Metadata
) -> int:
    """Writes the GGUF form into a file that is there or not. more: keys beside. Returns its size in bytes.

    FormatError for sums that are not finite as float32.
    """
    metadata = Metadata()
    metadata.text("general.type", KIND)
    metadata.add_array("imatrix.datasets", ValueType.STRING, datasets)
    metadata.u32("imatrix.chunk_count", chunk_count)
    metadata.u32("imatrix.chunk_size", chunk_size)
    metadata.pairs.update(more.pairs)
    tensors = list(_tensors(entries))
    (layout,) = layout_files(path.name, metadata, [TensorInfo(name, GGMLType.F32, values.shape[::-1])
                                                   for name, values in tensors])
    with open(path, "wb") as file:
        file.write(layout.header)
        for name, values in tensors:
            narrow = values.astype("<f4")
            if not np.isfinite(narrow).all():
                raise FormatError(f"{name} has sums that are no finite numbers: the model's weights may be damaged; check "
                                  "the file with `pyflash info --verify FILE`")
            file.write(bytes(layout.offsets[name] - file.tell()))
            file.write(narrow.tobytes())
        file.write(bytes(layout.size - file.tell()))
    return layout.size


def _tensors(entries: Mapping[str, Collected]) -> Iterator[tuple[str, Doubles]]:
    """Names sorted, as llama.cpp has them."""
    for name, entry in sorted(entries.items()):
        yield name + _SUMS, entry.sums
        yield name + _COUNTS, entry.counts.reshape(-1, 1)
        if entry.weighted is not None:
            yield name + _WEIGHTED, entry.weighted
