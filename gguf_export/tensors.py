"""Output tensors of a conversion: where their values come from, and the jobs that stream them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_export.checksums import TensorDigest
from gguf_export.engine import Io
from gguf_export.safetensors_file import TensorRef
from gguf_export.values import Unusable, ValueWatch
from gguf_export.writer import TensorInfo
from quantize import native
from quantize.codecs import BLOCK
from quantize.plan import Form, GGMLType, row_bytes

# A job covers about this many values, an expert's matrix of V4-Flash, so that a thread reads some MB in sequence. It goes
# in steps whose buffers stay in the processor's cache, which halves the time that the system spends on copying.
_JOB_VALUES = 8 << 20
_STEP_VALUES = 1 << 20
_STEP_FP4_VALUES = 2 << 20


@dataclass(frozen=True, slots=True)
class Source:
    """A weight of the checkpoint as a matrix; form None means bytes to copy as they are, one "value" a byte."""

    data: TensorRef
    scale: TensorRef | None
    form: Form | None
    rows: int
    cols: int


@dataclass(frozen=True)
class OutputTensor:
    """A tensor of the output. Each piece is a group of matrices side by side; pieces follow one another (experts)."""

    info: TensorInfo
    pieces: tuple[tuple[Source, ...], ...]

    @property
    def row_bytes(self) -> int:
        if self.pieces[0][0].form is None:
            return self.pieces[0][0].cols
        return row_bytes(self.info.kind, sum(source.cols for source in self.pieces[0]))

    def jobs(self, path: Path, offset: int, watch: ValueWatch, digest: TensorDigest) -> Iterator[TensorJob]:
        """path, offset: where the tensor goes. watch gets what is read, digest what is written."""
        output = Output(path, offset, watch, digest)
        position = 0
        for piece in self.pieces:
            rows, cols = piece[0].rows, sum(source.cols for source in piece)
            step = max(1, _JOB_VALUES // cols)
            for row in range(0, rows, step):
                yield TensorJob(self, piece, row, min(step, rows - row), output, position + row * self.row_bytes)
            position += rows * self.row_bytes


def copied(info: TensorInfo, refs: list[TensorRef]) -> OutputTensor:
    """The bytes of these tensors, one after another."""
    pieces = []
    for ref in refs:
        # Any row width does for bytes; a divisor of the size keeps rows whole.
        cols = math.gcd(ref.nbytes, 1 << 16) if ref.nbytes else 1
        pieces.append((Source(ref, None, None, ref.nbytes // cols, cols),))
    return OutputTensor(info, tuple(pieces))


@dataclass(frozen=True, slots=True)
class Output:
    """Where a tensor goes, and who looks on."""

    path: Path
    offset: int
    watch: ValueWatch
    digest: TensorDigest

    def write(self, io: Io, position: int, data: NDArray[Any]) -> None:
        """position: in the tensor."""
        io.write(self.path, self.offset + position, data)
        self.digest.add(position, data.data.cast("B"))


@dataclass(frozen=True, slots=True)
class TensorJob:
    """Rows [row, row + n_rows) of one piece of an output tensor, which go to its bytes from `position` on."""

    tensor: OutputTensor
    piece: tuple[Source, ...]
    row: int
    n_rows: int
    output: Output
    position: int

    def run(self, io: Io) -> int:
        is_repack = self.piece[0].form is Form.FP4 and self.tensor.info.kind is GGMLType.MXFP4
        values = _STEP_FP4_VALUES if is_repack else _STEP_VALUES
        step = max(1, values // sum(source.cols for source in self.piece))
        row_bytes = self.tensor.row_bytes
        for row in range(self.row, self.row + self.n_rows, step):
            n_rows = min(step, self.row + self.n_rows - row)
            rows = Rows(self.tensor.info.kind, self.piece, row, n_rows, self.output.watch)
            with contextlib.suppress(Unusable):
                self.output.write(io, self.position + (row - self.row) * row_bytes, rows.encode(io))
        return self.n_rows * row_bytes


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows [row, row + n_rows) of matrices side by side, on their way to one tensor type."""

    kind: GGMLType
    piece: tuple[Source, ...]
    row: int
    n_rows: int
    watch: ValueWatch

    def _read(self, io: Io, ref: TensorRef, begin: int, nbytes: int) -> NDArray[np.uint8]:
        data = io.read(ref, begin, nbytes, "in")
        self.watch.look(ref, data)
        return data

    def encode(self, io: Io) -> NDArray[Any]:
        source, kind = self.piece[0], self.kind
        n_values = self.n_rows * source.cols
        if source.form is None:
            return self._read(io, source.data, self.row * source.cols, n_values)
        if source.form is Form.I64:
            ids = io.read(source.data, self.row * source.cols * 8, n_values * 8, "in").view("<i8")
            return ids.astype(np.int32)
        if source.form is Form.FP4 and kind is GGMLType.MXFP4:
            return self._mxfp4(io, source)
        data = _encode_floats(io, self.floats(io), kind)
        self.watch.look_encoded(source.data.name, kind, data)
        return data

    def _mxfp4(self, io: Io, source: Source) -> NDArray[np.uint8]:
        n_values = self.n_rows * source.cols
        assert source.scale is not None
        packed = self._read(io, source.data, self.row * source.cols // 2, n_values // 2)
        scales = io.read(source.scale, self.row * source.cols // BLOCK, n_values // BLOCK, "scales")
        out: NDArray[np.uint8] = io.buffer("out", np.uint8, row_bytes(GGMLType.MXFP4, n_values))
        native.fp4_to_mxfp4(packed, scales, n_values, out)
        return out

    def floats(self, io: Io) -> NDArray[np.float32]:
        """[n_rows * cols] of all the sources side by side."""
        if len(self.piece) == 1:
            return self._source_floats(io, self.piece[0])
        cols = sum(source.cols for source in self.piece)
        joined = io.buffer("joined", np.float32, self.n_rows * cols).reshape(self.n_rows, cols)
        begin = 0
        for source in self.piece:
            values = self._source_floats(io, source).reshape(self.n_rows, source.cols)
            joined[:, begin : begin + source.cols] = values
            begin += source.cols
        return joined.reshape(-1)

    def _source_floats(self, io: Io, source: Source) -> NDArray[np.float32]:
        n_values, cols = self.n_rows * source.cols, source.cols
        out: NDArray[np.float32] = io.buffer("floats", np.float32, n_values)
        if source.form is Form.F32:
            return self._read(io, source.data, self.row * cols * 4, n_values * 4).view(np.float32)
        if source.form is Form.BF16:
            codes = self._read(io, source.data, self.row * cols * 2, n_values * 2)
            native.bf16_to_f32(codes.view("<u2"), n_values, out)
        elif source.form is Form.F16:
            out[:] = self._read(io, source.data, self.row * cols * 2, n_values * 2).view("<f2")
        elif source.form is Form.FP4:
            native.mxfp4_to_f32(self._mxfp4(io, source), n_values, out)
        else:
            assert source.scale is not None
            codes = self._read(io, source.data, self.row * cols, n_values)
            scale_bytes = io.read(source.scale, 0, source.scale.nbytes, "scales")
            scales = scale_bytes.view(np.float32) if source.scale.dtype == "F32" else scale_bytes
            native.fp8_to_f32(codes, scales, self.row, self.n_rows, cols, out)
        return out


def _encode_floats(io: Io, values: NDArray[np.float32], kind: GGMLType) -> NDArray[Any]:
    if kind is GGMLType.F32:
        return values
    if kind is GGMLType.BF16:
        codes = io.buffer("out", np.uint16, values.size)
        native.f32_to_bf16(values, values.size, codes)
        return codes
    out = io.buffer("out", np.uint8, row_bytes(GGMLType.Q8_0, values.size))
    native.f32_to_q8_0(values, values.size, out)
    return out
