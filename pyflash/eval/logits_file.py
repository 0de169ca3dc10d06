"""Files of a base's log-probabilities, in the format of llama.cpp's perplexity tool: its --save-all-logits writes what
this reads, and its --kl-divergence-base reads what this writes.

Little-endian: the bytes "_logits_"; int32 n_ctx, n_vocab, n_windows; int32 [n_windows, n_ctx] the text's tokens; then
for each window a row for each of its positions n_ctx // 2 to n_ctx - 2. A row: float32 scale and least, then uint16
codes [n_vocab], padded to an even number of them. A token's log-probability is scale * code + least. The codes begin 16
below the likeliest token: everything less likely has the code 0. The choices that the base made may follow (kept_choices.py).
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from gguf_export.errors import ConvertError, reason
from gguf_export.outputs import find_place, make_room, output_file
from pyflash.engine.choices import Choices
from pyflash.eval.kept_choices import Sizes, decode, encode, read_header
from pyflash.eval.statistics import Doubles, Tokens32, blocks, log_softmax
from pyflash.eval.windows import LEAST_CONTEXT, Windows
from pyflash.native.errors import Error, FileError, FormatError
from pyflash.native.values import FloatArray, StrPath

MAGIC = b"_logits_"
FLOOR = -16.0  # llama.cpp leaves out what is this unlikely or more: codes cannot tell it apart
_HEADER = struct.Struct("<8s3i")
_SCALES = 4  # uint16 that hold the two float32 of a row
_MOST_CODE = 65535
_MOST_HEADER = 1 << 16  # bytes that tell whose choices follow
_MAKE_ONE = "make one with pyflash eval ppl --logits, or llama-perplexity --save-all-logits"

Codes = npt.NDArray[np.uint16]


def _row_codes(n_vocab: int) -> int:
    return 2 * ((n_vocab + 1) // 2) + _SCALES


def file_bytes(n_ctx: int, n_vocab: int, n_windows: int) -> int:
    """The size of such a file."""
    return _HEADER.size + n_windows * (4 * n_ctx + (n_ctx - 1 - n_ctx // 2) * 2 * _row_codes(n_vocab))


def encode_rows(logits: FloatArray) -> Codes:
    """Rows [n, row] of the file for logits [n, vocab], with llama.cpp's roundings: the same bits for the same logits,
    up to the last one of the float32 sum of exponentials in `least`."""
    n, n_vocab = logits.shape
    rows: Codes = np.zeros((n, _row_codes(n_vocab)), dtype="<u2")
    for block in blocks(n, n_vocab):
        piece = logits[block]
        most = piece.max(axis=1)
        least = np.maximum(piece.min(axis=1), most - np.float32(-FLOOR))
        log_sum = -log_softmax(piece).max(axis=1).astype(np.float32)
        scales = np.empty((len(piece), 2), dtype="<f4")
        scales[:, 0] = (most - least) / np.float32(_MOST_CODE)
        scales[:, 1] = least - most - log_sum
        with np.errstate(divide="ignore", over="ignore"):
            inverse = np.where(scales[:, 0] > 0, np.float32(1) / scales[:, 0], np.float32(0))
            codes = np.rint(inverse[:, np.newaxis] * np.maximum(piece - least[:, np.newaxis], 0))
        rows[block, :_SCALES] = scales.view("<u2")
        rows[block, _SCALES : _SCALES + n_vocab] = np.minimum(codes, _MOST_CODE).astype(np.uint16)
    return rows


class CodedRows:
    """statistics.BaseRows from rows of a file, [n, row]."""

    floor = FLOOR

    def __init__(self, rows: Codes, n_vocab: int) -> None:
        self._rows = rows
        self._n_vocab = n_vocab

    def log_probabilities(self, block: slice) -> Doubles:
        rows = self._rows[block]
        scales = np.ascontiguousarray(rows[:, :_SCALES]).view("<f4").astype(np.float64)
        codes = rows[:, _SCALES : _SCALES + self._n_vocab].astype(np.float64)
        return codes * scales[:, :1] + scales[:, 1:]


class LogitsFile:
    """An open file: its windows, and its rows on demand. sizes: of the model whose choices it holds; None: it holds none.
    FileError or FormatError for what cannot be one."""

    def __init__(self, path: StrPath) -> None:
        self.path = os.fspath(path)
        try:
            self._file = open(path, "rb")  # noqa: SIM115  # closed by close()
        except OSError as error:
            raise FileError(f"cannot read {self.path}: {reason(error)}") from error
        try:
            size = os.fstat(self._file.fileno()).st_size
            self.n_vocab, self.windows = self._read_head(size)
            self._rows_at = self._file.tell()
            self._choices_at = file_bytes(self.windows.n_ctx, self.n_vocab, self.windows.count)
            self.sizes = self._read_choices(self._choices_at, size) if size > self._choices_at else None
            if size > self._choices_at and self.sizes is None:
                raise self._wrong_size(size, self._choices_at)
        except BaseException:
            self._file.close()
            raise

    @property
    def n_positions(self) -> int:
        """Of a window, that are evaluated."""
        return self.windows.n_ctx - 1

    def _read_choices(self, at: int, size: int) -> Sizes | None:
        """What the bytes from `at` on are choices of; None where they are none."""
        self._file.seek(at)
        sizes = read_header(self._file.read(min(size - at, _MOST_HEADER)), self.n_positions)
        return sizes if sizes and at + sizes.file_bytes(self.n_positions, self.windows.count) == size else None

    def _read_head(self, size: int) -> tuple[int, Windows]:
        head = self._file.read(_HEADER.size)
        if not head.startswith(MAGIC) or len(head) < _HEADER.size:
            raise FormatError(f"{self.path} is no file of log-probabilities: {_MAKE_ONE}")
        _, n_ctx, n_vocab, n_windows = _HEADER.unpack(head)
        if n_ctx < LEAST_CONTEXT or n_vocab < 1 or n_windows < 1:
            raise FormatError(f"{self.path} is damaged: it claims {n_windows} windows of {n_ctx} tokens with a "
                              f"vocabulary of {n_vocab}; {_MAKE_ONE}")
        expected = file_bytes(n_ctx, n_vocab, n_windows)
        if size < expected:
            raise self._wrong_size(size, expected)
        tokens = np.frombuffer(self._file.read(4 * n_ctx * n_windows), dtype="<i4").astype(np.int32)
        if tokens.min() < 0 or tokens.max() >= n_vocab:
            raise FormatError(f"{self.path} is damaged: it has tokens outside its vocabulary; {_MAKE_ONE}")
        return n_vocab, Windows(tokens, n_ctx, n_windows, n_ctx, n_ctx // 2)

    def _wrong_size(self, size: int, expected: int) -> FormatError:
        return FormatError(f"{self.path} has {size:,} bytes, its head asks for {expected:,}: it is damaged or its writing was "
                           f"interrupted; {_MAKE_ONE}")

    def read_choices(self, window: int, into: Choices) -> None:
        """Those that the base made in a window; into: of the same sizes, for n_positions. FormatError."""
        assert self.sizes is not None
        n_bytes = self.sizes.window_bytes(self.n_positions)
        self._file.seek(self._choices_at + len(self.sizes.header(self.n_positions)) + window * n_bytes)
        data = self._file.read(n_bytes)
        if len(data) < n_bytes:
            raise FileError(f"{self.path} became shorter while it was read")
        decode(self.sizes, data, into, self.path)

    def rows(self, window: int, begin: int, end: int) -> CodedRows:
        """The scored positions begin to end of a window, counted from its first scored one."""
        width = 2 * _row_codes(self.n_vocab)
        self._file.seek(self._rows_at + (window * self.windows.n_scored + begin) * width)
        data = self._file.read((end - begin) * width)
        if len(data) < (end - begin) * width:
            raise FileError(f"{self.path} became shorter while it was read")
        rows = np.frombuffer(data, dtype="<u2").reshape(end - begin, -1)
        scales = np.ascontiguousarray(rows[:, :_SCALES]).view("<f4")
        if not np.isfinite(scales).all() or (scales[:, 0] < 0).any():
            raise FormatError(f"{self.path} is damaged: window {window + 1} has impossible scales; {_MAKE_ONE}")
        return CodedRows(rows, self.n_vocab)

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> LogitsFile:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class LogitsWriter:
    """Adds rows, window after window, to a file that written_file() opened. sizes: as there. held: where choices wait
    for the last row."""

    def __init__(self, file: BinaryIO, name: str, sizes: Sizes | None, held: BinaryIO) -> None:
        self._file = file
        self._name = name
        self.sizes = sizes
        self._held = held
        self.written = 0

    def add(self, logits: FloatArray) -> None:
        """Scored logits [n, vocab] of the next positions."""
        self.write(encode_rows(logits).data.cast("B"))

    def add_choices(self, choices: Choices) -> None:
        """Of the next window, where the file gets them."""
        assert self.sizes is not None
        data = encode(self.sizes, choices)
        try:
            self._held.write(data)
        except OSError as error:
            raise FileError(f"cannot keep choices for {self._name} in a temporary file: {reason(error)}") from error
        self.written += len(data)

    def write(self, data: bytes | memoryview) -> None:
        try:
            self._file.write(data)
        except OSError as error:
            raise FileError(f"cannot write {self._name}: {reason(error)}") from error
        self.written += len(data)

    def finish(self, n_positions: int) -> None:
        """Puts the choices behind the rows."""
        if self.sizes is not None:
            self.write(self.sizes.header(n_positions))
            self._held.seek(0)
            shutil.copyfileobj(self._held, self._file)


@contextmanager
def written_file(
    path: StrPath, windows: Windows, n_vocab: int, inputs: Iterable[StrPath] = (), sizes: Sizes | None = None
) -> Iterator[LogitsWriter]:
    """A new file for the rows of all windows, which appears under its name when the block ends without an error.

    A pipe or device gets them as they come. inputs: files that it must not replace. sizes: of the model whose choices the
    file gets, too; None: it gets none.
    """
    size = file_bytes(windows.n_ctx, n_vocab, windows.count)
    size += sizes.file_bytes(windows.n_ctx - 1, windows.count) if sizes else 0
    try:
        place = find_place(path, streams=True, inputs=inputs)
        make_room([place], [size])
        with tempfile.TemporaryFile() as held, output_file(place) as file:
            writer = LogitsWriter(file, os.fspath(path), sizes, held)
            writer.write(_HEADER.pack(MAGIC, windows.n_ctx, n_vocab, windows.count))
            writer.write(windows.tokens[: windows.count * windows.n_ctx].astype("<i4").tobytes())
            yield writer
            writer.finish(windows.n_ctx - 1)
            if writer.written != size:
                raise Error(f"{path} is not complete and was not kept")
    except ConvertError as error:
        raise FileError(str(error)) from error
