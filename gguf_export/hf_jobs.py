"""The copying of an export: pieces of a native GGUF's tensors into a checkpoint's, byte for byte."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gguf_export.checksums import TensorDigest
from gguf_export.engine import Io
from gguf_export.errors import ConvertError
from gguf_export.safetensors_file import TensorRef
from quantize import native
from quantize.codecs import BLOCK, MXFP4_BYTES

_JOB_BYTES = 8 << 20

Digests = dict[str, TensorDigest]  # by the GGUF tensor's name, of what has been read


def _read(io: Io, source: TensorRef, begin: int, size: int, digests: Digests) -> NDArray[np.uint8]:
    data = io.read(source, begin, size, "in")
    digests[source.name].add(begin, data.data)
    return data


@dataclass(frozen=True, slots=True)
class CopyJob:
    """Bytes of a GGUF tensor from `begin` on, into all of `target`."""

    source: TensorRef
    begin: int
    target: TensorRef
    digests: Digests

    def run(self, io: Io) -> int:
        assert self.target.path is not None
        for done in range(0, self.target.nbytes, _JOB_BYTES):
            size = min(_JOB_BYTES, self.target.nbytes - done)
            data = _read(io, self.source, self.begin + done, size, self.digests)
            io.write(self.target.path, self.target.offset + done, data)
        return self.target.nbytes


@dataclass(frozen=True, slots=True)
class FP4Job:
    """One expert's MXFP4 blocks, from block `begin` on, into packed codes and scales."""

    source: TensorRef
    begin: int
    data: TensorRef
    scale: TensorRef
    digests: Digests

    def run(self, io: Io) -> int:
        assert self.data.path is not None and self.scale.path is not None
        step = _JOB_BYTES // MXFP4_BYTES
        for done in range(0, self.scale.nbytes, step):
            n = min(step, self.scale.nbytes - done)
            blocks = _read(io, self.source, (self.begin + done) * MXFP4_BYTES, n * MXFP4_BYTES, self.digests)
            packed, scales = io.buffer("packed", np.uint8, n * 16), io.buffer("scales", np.uint8, n)
            native.mxfp4_to_fp4(blocks, n * BLOCK, packed, scales)
            io.write(self.data.path, self.data.offset + done * 16, packed)
            io.write(self.scale.path, self.scale.offset + done, scales)
        return self.data.nbytes + self.scale.nbytes


@dataclass(frozen=True, slots=True)
class WidthJob:
    """float32 vectors back to BF16, or int32 ids back to int64."""

    source: TensorRef
    target: TensorRef
    digests: Digests

    def run(self, io: Io) -> int:
        assert self.target.path is not None
        item = 8 if self.target.dtype == "I64" else 2
        for done in range(0, self.source.nbytes, _JOB_BYTES):
            data = _read(io, self.source, done, min(_JOB_BYTES, self.source.nbytes - done), self.digests)
            if item == 8:
                io.write(self.target.path, self.target.offset + done * 2, data.view("<i4").astype("<i8"))
                continue
            bits = data.view("<u4")
            if np.any(bits & 0xFFFF):
                raise ConvertError(f"tensor {self.source.name} holds values that are not BF16; the file was changed")
            io.write(self.target.path, self.target.offset + done // 2, (bits >> 16).astype("<u2"))
        return self.target.nbytes
