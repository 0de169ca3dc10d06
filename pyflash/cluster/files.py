"""The model's file on each machine of a cluster: found by its path, or copied there as far as a stage reads it.

A copy is a sparse file: as long as the original, with its directory and the tensors that the stage opens in their places, and
holes between. It lies in pyflash's cache folder, since it is no model by itself, one folder for each range of layers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from gguf_export.checksums import TensorDigest, read_digests, read_entries
from gguf_export.engine import ProgressFn
from gguf_export.errors import ConvertError, reason
from gguf_export.outputs import check_space, find_place, resumable_files
from gguf_export.reader import read_gguf, shard_paths
from gguf_export.workplace import ResumableWorkplace, flush
from pyflash.cluster.identity import FileDirectory, FileIdentity
from pyflash.machine.places import cache_dir
from pyflash.native.errors import FileError
from pyflash.native.values import StrPath

PIECE_BYTES: Final = 8 << 20
_NOTE_BYTES: Final = 256 << 20  # so much is written between two notes of how far a copy is
_RANGE: Final = re.compile(r"layers-(\d+)-(\d+)")

Layers = tuple[int, int]


@dataclass(frozen=True)
class Found:
    """state: "here" (at the path that was asked for), "copied", "other" (another file has that path) or "missing". path: of the
    file to open, None without one."""

    state: str
    path: str | None


@dataclass(frozen=True)
class Head:
    """A file of a model, one of its shards or the only one: its name without folders, its bytes in all, and what lies
    before the weights."""

    name: str
    n_bytes: int
    directory: bytes


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: the number of its file, and its first byte there. digest: the checksum that the directory holds, ""
    without one."""

    name: str
    file: int
    offset: int
    n_bytes: int
    digest: str


@dataclass(frozen=True)
class Piece:
    """Bytes of a tensor; offset: in the tensor."""

    tensor: str
    offset: int
    n_bytes: int


class Source(Protocol):
    """Where a copy comes from."""

    def heads(self) -> Sequence[Head]: ...

    def tensors(self) -> Sequence[Tensor]: ...

    def read(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        """The pieces, in order."""

    def digest(self, name: str) -> str:
        """Of a tensor as it lies there: TensorDigest.hex()."""


class LocalSource:
    """A file of this machine. ConvertError and FileError for one that cannot be read."""

    def __init__(self, path: StrPath) -> None:
        path = Path(os.fsdecode(path))
        self._gguf = read_gguf(path, any_type=True)
        self._shards = shard_paths(path, self._gguf)
        entries = read_entries(path, self._gguf) or {}
        self._tensors = {
            name: Tensor(name, self._shards.index(ref.path), ref.offset, ref.nbytes, entries.get(name, ("",))[0])
            for name, ref in self._gguf.tensors.items() if ref.path is not None
        }

    def heads(self) -> Sequence[Head]:
        found = []
        for number, shard in enumerate(self._shards):
            begins = [each.offset for each in self._tensors.values() if each.file == number]
            with _readable(shard), open(shard, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                found.append(Head(shard.name, size, file.read(min(begins, default=size))))
        return found

    def tensors(self) -> Sequence[Tensor]:
        return list(self._tensors.values())

    def read(self, pieces: Iterable[Piece]) -> Iterator[bytes]:
        for piece in pieces:
            tensor = self._tensors[piece.tensor]
            shard = self._shards[tensor.file]
            with _readable(shard), open(shard, "rb") as file:
                file.seek(tensor.offset + piece.offset)
                yield file.read(piece.n_bytes)

    def digest(self, name: str) -> str:
        return read_digests([self._gguf.tensors[name]])[name].hex()


class _readable:
    """FileError for what the system refuses within."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, OSError):
            raise FileError(f"cannot read {self._path}: {reason(error)}") from error


# -- what there is --


def copies_folder() -> Path:
    """Of this machine."""
    return cache_dir() / "cluster"


def _copies(directory: str) -> Path:
    return copies_folder() / directory[:16]


def locate(path: StrPath, wanted: FileIdentity, layers: Layers) -> Found:
    """The file of that identity on this machine, for these layers. Without samples in it those are not compared."""
    here = Path(os.fsdecode(path))
    if here.is_file() and _is(here, wanted, layers):
        return Found("here", str(here))
    for folder in sorted(_copies(wanted.directory).glob("layers-*")):
        match = _RANGE.fullmatch(folder.name)
        if match and int(match[1]) <= layers[0] and layers[1] <= int(match[2]) and _is(folder / here.name, wanted, layers):
            return Found("copied", str(folder / here.name))
    return Found("other" if here.exists() else "missing", None)


def _is(path: Path, wanted: FileIdentity, layers: Layers) -> bool:
    try:
        found = FileDirectory(path).identity(layers)
    except FileError:
        return False
    return found.directory == wanted.directory and wanted.samples in ("", found.samples)


# -- copying --


def fetch(source: Source, directory: str, layers: Layers, names: Sequence[str], progress: ProgressFn | None = None) -> Path:
    """Copies these tensors, with the directory, into this machine's cache folder. Gives the (first) file's path.

    directory: FileIdentity.directory of the source's file. names: of the tensors that a stage of these layers opens. What an
    earlier run has brought is not fetched again; the file has its name only when each tensor has the checksum that the file
    itself tells, or else the source. progress(done, total) gets bytes. ConvertError for a disk without room, and for bytes that
    arrive damaged.
    """
    heads, tensors = source.heads(), {each.name: each for each in source.tensors()}
    unknown = [name for name in names if name not in tensors]
    if unknown:
        raise ConvertError(f"{heads[0].name} has no tensor {unknown[0]}: name the file that the plan was made from")
    wanted = sorted((tensors[name] for name in names), key=lambda each: (each.file, each.offset))
    folder = _copies(directory) / f"layers-{layers[0]}-{layers[1]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConvertError(f"cannot make {folder}: {reason(error)}") from error
    places = [find_place(folder / head.name) for head in heads]
    belongs_to = {"directory": directory, "tensors": [each.name for each in wanted]}
    with resumable_files(places, [head.n_bytes for head in heads], "copy", belongs_to) as (paths, work):
        for head, path in zip(heads, paths, strict=True):
            with open(path, "r+b") as file:
                file.write(head.directory)
        _Copy(source, wanted, paths, work, progress or (lambda _done, _total: None)).run()
    return folder / heads[0].name


class _Copy:
    """Tensors on their way into files; those that are there are noted by record()."""

    def __init__(self, source: Source, wanted: Sequence[Tensor], paths: Sequence[Path], work: ResumableWorkplace,
                 progress: ProgressFn) -> None:
        self._source, self._paths, self._work, self._progress = source, paths, work, progress
        self._there: set[str] = set(work.done or ())
        self._left = [tensor for tensor in wanted if tensor.name not in self._there]
        self._total = sum(tensor.n_bytes for tensor in wanted)
        self._done = self._total - sum(tensor.n_bytes for tensor in self._left)

    def run(self) -> None:
        check_space({str(self._paths[0].parent): self._total - self._done})
        self._progress(self._done, self._total)
        pieces = self._source.read(Piece(tensor.name, begin, min(PIECE_BYTES, tensor.n_bytes - begin))
                                   for tensor in self._left for begin in range(0, tensor.n_bytes, PIECE_BYTES))
        noted = self._done
        try:
            for tensor in self._left:
                self._write(tensor, pieces)
                self._there.add(tensor.name)
                if self._done - noted >= _NOTE_BYTES:
                    noted = self._done
                    self._note()
        except BaseException:
            self._note()
            raise

    def _note(self) -> None:
        for path in self._paths:
            flush(str(path))
        self._work.record(sorted(self._there))

    def _write(self, tensor: Tensor, pieces: Iterator[bytes]) -> None:
        digest = TensorDigest(tensor.n_bytes)
        with open(self._paths[tensor.file], "r+b") as file:
            file.seek(tensor.offset)
            for begin in range(0, tensor.n_bytes, PIECE_BYTES):
                data = next(pieces, b"")
                if len(data) != min(PIECE_BYTES, tensor.n_bytes - begin):
                    raise ConvertError(f"{tensor.name} came short: the file has been changed meanwhile; begin again")
                digest.add(begin, memoryview(data))
                file.write(data)
                self._done += len(data)
                self._progress(self._done, self._total)
        # What a program that wrote the file again has left of its checksums is of another file: then the source tells.
        if digest.hex() != tensor.digest and digest.hex() != self._source.digest(tensor.name):
            raise ConvertError(f"{tensor.name} arrived damaged: its checksum is another than where it came from; copy it again")
