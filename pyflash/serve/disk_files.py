"""The files of the prefix cache: what they are called, what is in them, and how damage shows.

Rows of CHUNK tokens are a file, named by a digest of those tokens and of all before them: conversations that begin alike
share it. A tail is a file, named by what tells where it belongs, so that a listing of names is the index. Every file ends
with a digest of its name and of all in it. What does not fit is damaged: to be evaluated again.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

CHUNK = 256  # tokens of a file of rows; every layer's rows end at its multiples
ROWS, PART = ".rows", ".part"

_DIGEST = 16
_MAGIC = {".rows": b"pyflash rows 1\n\n", ".turn": b"pyflash tail 1\n\n", ".base": b"pyflash tail 1\n\n"}
_HEADER = struct.Struct("<II")  # tokens, bytes of rows
_TAIL_NAME = re.compile(r"(\d{9})-([0-9a-f]{32})-(\d{3})-([0-9a-f]{32})-(\d{2})-([0-9a-f]{32})\.(turn|base)")
_ROWS_NAME = re.compile(r"(\d{9})-([0-9a-f]{32})\.rows")
_numbers = itertools.count()

Ids = npt.NDArray[np.int32]
Bytes = bytes | bytearray | memoryview
Kind = Literal["turn", "base"]  # of tails: at the end of a turn; where other conversations begin, too


class Damaged(Exception):
    """A file that is not as it was written."""


def _digest(*pieces: Bytes) -> str:
    return _hashed(pieces).hexdigest()


def _hashed(pieces: Iterable[Bytes]) -> hashlib.blake2b:
    total = hashlib.blake2b(digest_size=_DIGEST)
    for piece in pieces:
        total.update(piece)
    return total


def _data(ids: Ids) -> bytes:
    return ids.astype("<i4").tobytes()


def root(salt: bytes) -> str:
    """What the chain of a conversation begins with. salt: of whose key it is."""
    return _digest(b"root", salt)


def link(parent: str, ids: Ids) -> str:
    """The digest of tokens that follow those of another digest."""
    return _digest(parent.encode(), _data(ids))


def chain(start: str, ids: Ids, known: Iterable[str] = ()) -> list[str]:
    """The digests up to the end of each whole chunk of tokens. start: see root(). known: the first ones of them."""
    found = list(known)
    for begin in range(len(found) * CHUNK, len(ids) - CHUNK + 1, CHUNK):
        found.append(link(found[-1] if found else start, ids[begin : begin + CHUNK]))
    return found


def rows_name(digest: str, end: int) -> str:
    """end: tokens up to the end of the chunk."""
    return f"{end:09d}-{digest}{ROWS}"


@dataclass(frozen=True)
class Tail:
    """Where a tail belongs. end: its position. back: how many tokens less can be returned to. parent: the digest of the
    whole chunks before that. n, at_floor: tokens from there up to what can be returned to, and the digest there; full: the
    one at the end."""

    end: int
    parent: str
    n: int
    at_floor: str
    back: int
    full: str
    kind: Kind

    @classmethod
    def of(cls, start: str, names: list[str], ids: Ids, floor: int, kind: Kind) -> Tail:
        """Of the tokens ids. names: their chain(). floor: the lowest position that it leads back to."""
        k = floor // CHUNK
        parent = names[k - 1] if k else start
        at_floor = link(parent, ids[k * CHUNK : floor])
        return cls(len(ids), parent, floor - k * CHUNK, at_floor, len(ids) - floor, link(at_floor, ids[floor:]), kind)

    @property
    def floor(self) -> int:
        return self.end - self.back

    @property
    def begin(self) -> int:
        """Tokens whose rows are in files of their own."""
        return self.floor - self.n

    @property
    def name(self) -> str:
        return f"{self.end:09d}-{self.parent}-{self.n:03d}-{self.at_floor}-{self.back:02d}-{self.full}.{self.kind}"

    def usable(self, ids: Ids, most: int) -> int:
        """How many of the tokens are evaluated there, most at most; 0 for another conversation's. Whoever asks has found
        that the parent's tokens are among them."""
        if self.floor > most or link(self.parent, ids[self.begin : self.floor]) != self.at_floor:
            return 0
        whole = self.end <= most and link(self.at_floor, ids[self.floor : self.end]) == self.full
        return self.end if whole else self.floor


def read_name(name: str) -> Tail | int | None:
    """What a file is: a tail, rows (their end), or neither."""
    if found := _ROWS_NAME.fullmatch(name):
        return int(found[1])
    if found := _TAIL_NAME.fullmatch(name):
        kind: Kind = "base" if found[7] == "base" else "turn"
        return Tail(int(found[1]), found[2], int(found[3]), found[4], int(found[5]), found[6], kind)
    return None


# -- what is in them --


@dataclass(frozen=True)
class TailContent:
    """tokens, rows: those behind Tail.begin. tail: Session.export_tail()."""

    tokens: Ids
    rows: Bytes
    tail: Bytes

    def pieces(self) -> list[Bytes]:
        return [_HEADER.pack(len(self.tokens), len(self.rows)), _data(self.tokens), self.rows, self.tail]


def write(path: Path, pieces: Iterable[Bytes]) -> int:
    """A file of this user's alone, whole or not at all; returns its bytes. OSError."""
    magic = _MAGIC[path.suffix]
    body = [magic, *pieces]
    digest = _hashed([path.name.encode(), *body]).digest()
    write_private(path, [*body, digest])
    return sum(len(piece) for piece in body) + len(digest)


def write_private(path: Path, pieces: Iterable[Bytes]) -> None:
    """Bytes that appear under their name when they are complete. Not forced to the disk: after a power failure a digest
    tells. OSError."""
    part = path.with_name(f"{os.getpid()}-{next(_numbers)}{PART}")
    try:
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600), "wb") as file:
            file.writelines(pieces)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def read(path: Path) -> memoryview:
    """What write() was given. OSError where it cannot be read, Damaged where it is another."""
    data = memoryview(path.read_bytes())
    magic = _MAGIC[path.suffix]
    body, digest = data[:-_DIGEST], data[-_DIGEST:]
    if bytes(data[: len(magic)]) != magic or _hashed([path.name.encode(), body]).digest() != bytes(digest):
        raise Damaged(path.name)
    return body[len(magic) :]


def read_tail(path: Path) -> TailContent:
    """OSError, Damaged."""
    data = read(path)
    if len(data) < _HEADER.size:
        raise Damaged(path.name)
    n_tokens, n_rows = _HEADER.unpack_from(data)
    begin = _HEADER.size + 4 * n_tokens
    if begin + n_rows > len(data):
        raise Damaged(path.name)
    tokens = np.frombuffer(data[_HEADER.size : begin], dtype="<i4").astype(np.int32)
    return TailContent(tokens, data[begin : begin + n_rows], data[begin + n_rows :])


# -- the log of turns: one a line, each with its digest --


def sealed(line: bytes) -> bytes:
    """A line for a log. It holds no line break."""
    return _digest(line)[:_DIGEST].encode() + b" " + line + b"\n"


def unsealed(data: bytes) -> list[bytes]:
    """The lines of a log that are as they were written."""
    out = []
    for line in data.split(b"\n"):
        digest, _, text = line.partition(b" ")
        if digest and digest == _digest(text)[:_DIGEST].encode():
            out.append(text)
    return out
