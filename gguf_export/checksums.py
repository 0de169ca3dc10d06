"""A checksum for each tensor, in the GGUF file itself.

`pyflash.checksum.tensors` is an array of strings, one a tensor in the order of the files: "DIGEST TYPE NE0xNE1 NAME". A
digest is the BLAKE2b-128 of the digests of the tensor's leaves, pieces of 1 MiB, so that threads can compute it in any
order. `pyflash.checksum.header` is that of the first file's header outside of these keys: it tells a file that another
program has written again, keys and all, from one that the disk has damaged.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gguf_export.engine import Io, ProgressFn, run_jobs
from gguf_export.errors import ConvertError, first_few, reason
from gguf_export.reader import GGUFFile, read_gguf
from gguf_export.safetensors_file import TensorRef
from gguf_export.units import gigabytes
from gguf_export.writer import Metadata, TensorInfo, ValueType, encoded_key

HEADER_KEY = "pyflash.checksum.header"
TENSORS_KEY = "pyflash.checksum.tensors"
LEAF_BYTES = 1 << 20
DIGEST_BYTES = 16
_UNKNOWN = "0" * (2 * DIGEST_BYTES)
_JOB_BYTES = 8 * LEAF_BYTES


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest()


class TensorDigest:
    """The digest of `nbytes` bytes that come in pieces, in any order and from any thread, each byte once."""

    def __init__(self, nbytes: int) -> None:
        self._nbytes = nbytes
        self._leaves = [b""] * -(-nbytes // LEAF_BYTES)
        self._parts: dict[int, dict[int, bytes]] = {}  # of leaves that are not complete, by their place in the leaf
        self._lock = threading.Lock()

    def add(self, position: int, data: memoryview) -> None:
        """data: unsigned bytes, from `position` of the tensor on."""
        while data:
            leaf, begin = divmod(position, LEAF_BYTES)
            part = data[: LEAF_BYTES - begin]
            self._add(leaf, begin, part)
            position, data = position + len(part), data[len(part) :]

    def _add(self, leaf: int, begin: int, part: memoryview) -> None:
        size = min(LEAF_BYTES, self._nbytes - leaf * LEAF_BYTES)
        whole: bytes | memoryview = part
        if len(part) < size:
            with self._lock:
                parts = self._parts.setdefault(leaf, {})
                parts[begin] = bytes(part)
                if sum(map(len, parts.values())) < size:
                    return
                del self._parts[leaf]
            whole = b"".join(parts[at] for at in sorted(parts))
        self._leaves[leaf] = _digest(whole)

    def hex(self) -> str:
        """When every byte has come."""
        return _digest(b"".join(self._leaves)).hex()


def _entry(digest: str, name: str, kind: str, ne: Sequence[int]) -> str:
    return f"{digest} {kind} {'x'.join(map(str, ne))} {name}"


def _header_digest(header: bytes, keys: Metadata) -> str:
    """Of a header that holds the two keys as in `keys`, one after the other; else of no use."""
    block = b"".join(encoded_key(key, keys.pairs[key]) for key in (HEADER_KEY, TENSORS_KEY))
    before, _, after = header.partition(block)
    return _digest(before + after).hex()


def _keys(header: str, entries: Sequence[str]) -> Metadata:
    keys = Metadata()
    keys.text(HEADER_KEY, header)
    keys.add_array(TENSORS_KEY, ValueType.STRING, entries)
    return keys


def reserve(metadata: Metadata, tensors: Sequence[TensorInfo]) -> None:
    """Adds the keys with digests of zeros: their size is final."""
    entries = [_entry(_UNKNOWN, tensor.name, tensor.kind.name, tensor.ne) for tensor in tensors]
    metadata.pairs.update(_keys(_UNKNOWN, entries).pairs)


def seal(metadata: Metadata, header: bytes, tensors: Sequence[TensorInfo], digests: Mapping[str, TensorDigest]) -> None:
    """Puts the digests into the keys that reserve() added. header: of the (first) file, as reserved."""
    reserved = Metadata({key: metadata.pairs[key] for key in (HEADER_KEY, TENSORS_KEY)})
    entries = [_entry(digests[tensor.name].hex(), tensor.name, tensor.kind.name, tensor.ne) for tensor in tensors]
    metadata.pairs.update(_keys(_header_digest(header, reserved), entries).pairs)


# ---- Verifying ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verification:
    """state: "intact", "damaged" (tensors are not what was written), "rewritten" (by another program, which kept the
    keys: nothing can be said) or "unknown" (no checksums). other_keys: the metadata is not as it was written."""

    state: str
    n_tensors: int
    n_bytes: int
    damaged: tuple[str, ...] = ()
    other_keys: bool = False
    why: str = ""

    def summary(self) -> str:
        """Without the file's name."""
        if self.state == "unknown":
            return "holds no checksums, so nothing can be verified: `pyflash convert` writes them"
        if self.state == "rewritten":
            return f"rewritten by another program: its checksums no longer apply ({self.why})"
        if self.state == "damaged":
            return f"is damaged, download or convert it again: not as it was written: {first_few(self.damaged, ', ')}"
        note = "; its metadata has been changed since" if self.other_keys else ""
        return f"all {self.n_tensors:,} tensors, {gigabytes(self.n_bytes)}, are as they were written{note}"


@dataclass(frozen=True)
class _LeavesJob:
    ref: TensorRef
    begin: int
    digest: TensorDigest

    def run(self, io: Io) -> int:
        size = min(_JOB_BYTES, self.ref.nbytes - self.begin)
        self.digest.add(self.begin, io.read(self.ref, self.begin, size, "in").data)
        return size


def read_digests(tensors: Iterable[TensorRef], progress: ProgressFn | None = None) -> dict[str, TensorDigest]:
    """By name, of what lies on the disk."""
    refs = list(tensors)
    digests = {ref.name: TensorDigest(ref.nbytes) for ref in refs}
    jobs = (_LeavesJob(ref, begin, digests[ref.name]) for ref in refs for begin in range(0, ref.nbytes, _JOB_BYTES))
    run_jobs(jobs, sum(ref.nbytes for ref in refs), progress)
    return digests


def read_entries(path: Path, gguf: GGUFFile) -> dict[str, tuple[str, str]] | None:
    """name -> (digest, "TYPE NE"); None for a file without checksums."""
    entries = gguf.keys.get(TENSORS_KEY)
    if entries is None:
        return None
    result = {}
    for entry in entries if isinstance(entries, list) else [None]:
        words = entry.split(" ", 3) if isinstance(entry, str) else []
        if len(words) != 4 or len(words[0]) != len(_UNKNOWN) or words[3] in result:
            raise ConvertError(f"{path} is damaged: its checksums cannot be read; convert or download it again")
        result[words[3]] = (words[0], f"{words[1]} {words[2]}")
    return result


def _has_other_keys(path: Path, gguf: GGUFFile) -> bool:
    expected, entries = gguf.keys.get(HEADER_KEY), gguf.keys[TENSORS_KEY]
    if not isinstance(expected, str):
        return True
    length = min((ref.offset for ref in gguf.tensors.values() if ref.path == path), default=0)
    try:
        with open(path, "rb") as file:
            header = file.read(length)
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None
    # The digest was taken with zeros in the place of the digests.
    blank = [_UNKNOWN + entry[len(_UNKNOWN) :] for entry in entries]
    try:
        found, blanked = _keys(expected, entries), _keys(_UNKNOWN, blank)
    except UnicodeEncodeError:
        return True
    for key in (HEADER_KEY, TENSORS_KEY):
        header = header.replace(encoded_key(key, found.pairs[key]), encoded_key(key, blanked.pairs[key]), 1)
    return _header_digest(header, blanked) != expected


def _difference(gguf: GGUFFile, entries: Mapping[str, tuple[str, str]]) -> str:
    """How the tensors differ from those that the checksums are of; "" where they do not."""
    if len(entries) != len(gguf.tensors) or entries.keys() != gguf.tensors.keys():
        return f"it holds {len(gguf.tensors):,} tensors, the checksums are of {len(entries):,}, or others"
    for name, ref in gguf.tensors.items():
        found = f"{ref.dtype} {'x'.join(map(str, ref.shape))}"
        if entries[name][1] != found:
            return f"{name} is {found}, the checksums are of {entries[name][1]}"
    return ""


def digests_of(path: Path, gguf: GGUFFile) -> dict[str, str]:
    """What the conversion wrote of each tensor, by name: TensorDigest.hex(). Empty where the checksums are not of this
    file's tensors, or there are none. ConvertError where they cannot be read."""
    entries = read_entries(path, gguf) or {}
    return {} if _difference(gguf, entries) else {name: digest for name, (digest, _) in entries.items()}


def verify(path: Path | str, progress: ProgressFn | None = None) -> Verification:
    """Reads a GGUF file, with its shards, and compares every tensor with the checksum that its conversion wrote.

    progress(done, total) gets bytes. ConvertError for a file that cannot be read or is truncated.
    """
    path = Path(path)
    gguf = read_gguf(path, any_type=True)
    total = sum(ref.nbytes for ref in gguf.tensors.values())
    entries = read_entries(path, gguf)
    if entries is None:
        return Verification("unknown", len(gguf.tensors), total)
    difference = _difference(gguf, entries)
    if difference:
        return Verification("rewritten", len(gguf.tensors), total, other_keys=True, why=difference)
    digests = read_digests(gguf.tensors.values(), progress)
    damaged = tuple(name for name, digest in digests.items() if digest.hex() != entries[name][0])
    other_keys = _has_other_keys(path, gguf)
    if damaged and other_keys:
        why = f"{len(damaged):,} tensors and the metadata are not as they were"
        return Verification("rewritten", len(digests), total, damaged, True, why)
    return Verification("damaged" if damaged else "intact", len(digests), total, damaged, other_keys)
