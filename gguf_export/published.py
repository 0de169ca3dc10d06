"""Published checksums of a checkpoint's files, where the hub's client leaves them, and the files checked against them.

In the client's cache a file is a link to a blob that is named by its hash; beside a download into a folder lies
`.cache/huggingface/download/FILE.metadata` with the hash in its second line. 64 hex digits are the file's SHA-256
(large files), 40 are git's SHA-1 of it as a blob (small ones).
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gguf_export.checkpoint import INDEX, Checkpoint
from gguf_export.engine import Io, ProgressFn, run_jobs
from gguf_export.errors import ConvertError, first_few, reason, several
from gguf_export.hf_files import SIDE_FILES
from gguf_export.standins import is_there

_HASH = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
_RECORDS = Path(".cache", "huggingface", "download")
_CHUNK_BYTES = 4 << 20
_MOST_RECORD_BYTES = 4096


def published_hash(folder: Path, name: str) -> str | None:
    """The hash that the hub gave for a file of the folder, in hex; None where no record of it is left."""
    path = folder / name
    try:
        if path.is_symlink():
            blob = Path(os.path.realpath(path))
            return blob.name if blob.parent.name == "blobs" and _HASH.fullmatch(blob.name) else None
        with open(folder / _RECORDS / f"{name}.metadata", encoding="utf-8", errors="replace") as file:
            lines = file.read(_MOST_RECORD_BYTES).split("\n")
    except OSError:
        return None
    found = _HASH.fullmatch(lines[1].strip().removeprefix("W/").strip('"').lower()) if len(lines) > 1 else None
    return found[0] if found else None


@dataclass
class _State:
    done: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class _FileJob:
    path: Path
    expected: str
    state: _State

    def run(self, io: Io) -> int:
        try:
            with open(self.path, "rb", buffering=0) as file:
                size = os.fstat(file.fileno()).st_size
                is_sha256 = len(self.expected) == hashlib.sha256().digest_size * 2
                # SHA-1 is what git names a blob by; nothing here relies on it to resist an attacker.
                digest = hashlib.sha256() if is_sha256 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
                buffer = io.buffer("in", np.uint8, _CHUNK_BYTES).data
                while not io.is_stopped() and (n := file.readinto(buffer)):
                    digest.update(buffer[:n])
                    with self.state.lock:
                        self.state.done += n
        except OSError as error:
            raise ConvertError(f"cannot read {self.path}: {reason(error)}") from None
        if not io.is_stopped() and digest.hexdigest() != self.expected:
            with self.state.lock:
                self.state.wrong.append(self.path.name)
        return size


@dataclass(frozen=True)
class FileCheck:
    """verified: the files that are as published. unknown: those of which no checksum is left here."""

    verified: tuple[str, ...]
    unknown: tuple[str, ...]

    def summary(self) -> str:
        if not self.verified:
            return "no published checksums are left beside these files, so nothing could be verified"
        rest = f"; no published checksum is left for {first_few(self.unknown, ', ')}" if self.unknown else ""
        return f"{len(self.verified)} files are as published{rest}"


def _names(checkpoint: Checkpoint) -> list[str]:
    """The files that a conversion reads, the small ones first."""
    small = [name for name in (*SIDE_FILES, INDEX) if is_there(checkpoint.path / name)]
    return small + sorted({ref.path.name for ref in checkpoint.tensors.values() if ref.path is not None})


def verify_files(checkpoint: Checkpoint, progress: ProgressFn | None = None) -> FileCheck:
    """Reads every file of the checkpoint that has a published checksum. progress(done, total) gets bytes.

    Raises ConvertError naming the files that are not as published.
    """
    folder = checkpoint.path
    names = _names(checkpoint)
    hashes = {name: found for name in names if (found := published_hash(folder, name)) is not None}
    state = _State()
    jobs = [_FileJob(folder / name, expected, state) for name, expected in hashes.items()]
    total = sum(_size(job.path) for job in jobs)
    run_jobs(jobs, total, None if progress is None else lambda _done, total: progress(state.done, total))
    if state.wrong:
        raise several(
            f"files in {folder} are not as published: damaged, or changed here; delete them and download them again",
            sorted(state.wrong),
        )
    return FileCheck(tuple(hashes), tuple(name for name in names if name not in hashes))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None
