"""The kernels' number formats against numpy (quantize/codecs.py) and against the gguf package's own dequantizers."""

from __future__ import annotations

import ctypes
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from quantize import codecs

from .conftest import Builds

TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "BF16": 30, "MXFP4": 39, "FP8": 1000}  # csrc/format/dtypes.h
ROW_F32, ROW_F16, ROW_KV_FP8, ROW_IDX_FP4 = range(4)  # csrc/backend/backend.h
ISAS = ["scalar", "avx2", "avxvnni", "avx512", "amx"]


class Kernels:
    """One kernel set, through glue.c."""

    def __init__(self, library: ctypes.CDLL, isa: str) -> None:
        self.library, self.isa = library, isa.encode()

    def dequant(self, kind: str, data: NDArray[np.uint8], cols: int, scale: NDArray[Any] | None = None,
                row0: int = 0) -> NDArray[np.float32]:
        """data [rows, row bytes] to [rows, cols]."""
        out = np.empty((len(data), cols), np.float32)
        data = np.ascontiguousarray(data)
        keep = None if scale is None else np.ascontiguousarray(scale)
        self.library.glue_dequant(
            self.isa, TYPES[kind], data.ctypes, ctypes.c_int64(data.shape[1]), None if keep is None else keep.ctypes,
            int(keep is not None and keep.dtype == np.float32), ctypes.c_int64(row0), ctypes.c_int64(len(data)),
            ctypes.c_int64(cols), out.ctypes,
        )
        return out

    def store(self, layout: int, rope: int, x: NDArray[np.float32]) -> NDArray[np.uint8]:
        n, width = x.shape
        size = self.library.glue_row_bytes(layout, ctypes.c_int64(width), ctypes.c_int64(rope))
        data = np.zeros((n, size), np.uint8)
        self.library.glue_store_rows(self.isa, layout, width, rope, ctypes.c_int64(n), x.ctypes, data.ctypes)
        return data

    def load(self, layout: int, rope: int, width: int, data: NDArray[np.uint8]) -> NDArray[np.float32]:
        out = np.empty((len(data), width), np.float32)
        self.library.glue_load_rows(self.isa, layout, width, rope, ctypes.c_int64(len(data)), data.ctypes, out.ctypes)
        return out

    def in_place(self, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        x = np.array(x, np.float32, order="C")
        getattr(self.library, f"glue_{name}")(self.isa, x.ctypes, ctypes.c_int64(len(x)), ctypes.c_int64(x.shape[1]))
        return x

    def quantize_q16(self, x: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Integers [n] and scales [n/32]."""
        n = len(x)
        values, scales = np.zeros(n, np.int32), np.zeros(n // 32, np.float32)
        self.library.glue_quantize_q16(self.isa, x.ctypes, ctypes.c_int64(n), values.ctypes, scales.ctypes)
        return values, scales


@pytest.fixture(params=ISAS)
def kernels(builds: Builds, request: pytest.FixtureRequest) -> Kernels:
    library = load(builds, "native")
    if request.param == "avx512" and not library.glue_usable(b"avx512"):
        library = load(builds, "emulated")
    if not library.glue_usable(request.param.encode()):
        pytest.skip(f"{request.param} kernels cannot run here")
    return Kernels(library, request.param)


def load(builds: Builds, mode: str) -> ctypes.CDLL:
    library = ctypes.CDLL(str(builds.get(mode)[1]))
    library.glue_row_bytes.restype = ctypes.c_int64
    return library


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def same(a: NDArray[np.float32], b: NDArray[np.float32]) -> None:
    np.testing.assert_array_equal(a, b)  # NaN equals NaN


def some_floats(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Twenty orders of magnitude, with zeros and denormals."""
    x = rng.standard_normal(shape) * 10.0 ** rng.uniform(-12, 8, (shape[0], 1))
    x[rng.random(shape) < 0.02] = 0
    x[-1] *= 1e-42 / max(1e-300, np.abs(x[-1]).max())
    return x.astype(np.float32)


# ---- Weights ----


@pytest.mark.parametrize("cols", [32, 96, 4128])
def test_mxfp4(kernels: Kernels, rng: np.random.Generator, cols: int) -> None:
    data = rng.integers(0, 256, (16, cols // 32 * 17), dtype=np.uint8)
    data.reshape(16, -1, 17)[:, :, 0] %= 255  # ggml rejects NaN scales
    got = kernels.dequant("MXFP4", data, cols)
    with np.errstate(over="ignore"):
        same(got, codecs.mxfp4_decode(data.reshape(-1, 17)).reshape(got.shape))
        same(got, gguf.quants.dequantize(data, gguf.GGMLQuantizationType.MXFP4))


@pytest.mark.parametrize("cols", [32, 96, 4128])
def test_q8_0(kernels: Kernels, rng: np.random.Generator, cols: int) -> None:
    data = rng.integers(0, 256, (16, cols // 32 * 34), dtype=np.uint8)
    with np.errstate(invalid="ignore"):
        same(kernels.dequant("Q8_0", data, cols), gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q8_0))


@pytest.mark.parametrize("cols", [1, 33, 4128])
def test_plain_types(kernels: Kernels, rng: np.random.Generator, cols: int) -> None:
    bits = rng.integers(0, 1 << 16, (16, cols), dtype=np.uint16)
    same(kernels.dequant("F16", bits.view(np.uint8), cols), bits.view(np.float16).astype(np.float32))
    same(kernels.dequant("BF16", bits.view(np.uint8), cols), codecs.bf16_decode(bits))
    floats = rng.integers(0, 1 << 32, (16, cols), dtype=np.uint32)
    same(kernels.dequant("F32", floats.view(np.uint8), cols), floats.view(np.float32))


@pytest.mark.parametrize("kind", ["e8m0", "f32"])
@pytest.mark.parametrize("shape", [(1, 32), (300, 300), (257, 1024)])
def test_fp8(kernels: Kernels, rng: np.random.Generator, shape: tuple[int, int], kind: str) -> None:
    rows, cols = shape
    codes = rng.integers(0, 256, shape, dtype=np.uint8)
    blocks = (-(-rows // 128), -(-cols // 128))
    scales: NDArray[Any] = rng.integers(0, 256, blocks, dtype=np.uint8)
    if kind == "f32":
        scales = rng.standard_normal(blocks).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        each = scales if kind == "f32" else codecs.e8m0_decode(scales)
        want = codecs.e4m3_decode(codes) * np.repeat(np.repeat(each, 128, 0)[:rows], 128, 1)[:, :cols]
    same(kernels.dequant("FP8", codes, cols, scales), want)
    first = rows // 2  # a slice keeps the whole matrix's scales
    same(kernels.dequant("FP8", codes[first:], cols, scales, row0=first), want[first:])


# ---- Activations ----


def test_quantize_q16(kernels: Kernels, rng: np.random.Generator) -> None:
    x = some_floats(rng, 40, 96).ravel()
    x[32:64] = 0
    values, scales = kernels.quantize_q16(x)
    blocks = x.reshape(-1, 32)
    d = np.abs(blocks).max(1) / np.float32(32384)
    same(scales, d)
    with np.errstate(divide="ignore", invalid="ignore"):
        want = np.where(d[:, None] > 0, np.rint(blocks / d[:, None]), 0).clip(-32384, 32384)
    np.testing.assert_array_equal(values.reshape(-1, 32), want)


# ---- Cache rows ----


def groups(x: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    return x.reshape(len(x), -1, size)


def scale_bytes(x: NDArray[np.float32], largest: float, floor: float) -> NDArray[np.uint8]:
    """ceil(log2(max|x| / largest)) + 127 per group, in exact arithmetic."""
    amax = np.maximum(np.abs(x).max(-1).astype(np.float64), floor)
    mantissa, exponent = np.frexp(amax / largest)  # dividing by 7 * 2^n in float64 never rounds down to a power of two
    result: NDArray[np.uint8] = (np.where(mantissa == 0.5, exponent - 1, exponent) + 127).astype(np.uint8)
    return result


@pytest.mark.parametrize("width, rope", [(512, 64), (128, 64), (192, 0)])
def test_kv_rows(kernels: Kernels, rng: np.random.Generator, width: int, rope: int) -> None:
    x = some_floats(rng, 50, width)
    x[0, :64] = 448 * np.linspace(-1, 1, 64, dtype=np.float32)  # exactly at a power of two
    x[1, :64] = np.nextafter(np.float32(448), np.float32(1e9))
    data = kernels.store(ROW_KV_FP8, rope, x)
    plain = width - rope
    assert data.shape[1] == plain + plain // 64 + 2 * rope
    scales = scale_bytes(groups(x[:, :plain], 64), 448, float(np.float32(1e-4)))
    np.testing.assert_array_equal(data[:, plain : plain + plain // 64], scales)
    values = groups(x[:, :plain], 64) / codecs.e8m0_decode(scales)[..., None]
    np.testing.assert_array_equal(data[:, :plain], codecs.e4m3_encode(values).reshape(len(x), -1))
    tail = data[:, plain + plain // 64 :].copy().view(np.uint16)
    np.testing.assert_array_equal(tail, codecs.bf16_encode(x[:, plain:]))
    decoded = codecs.e4m3_decode(data[:, :plain]).reshape(len(x), -1, 64) * codecs.e8m0_decode(scales)[..., None]
    want = np.concatenate([decoded.reshape(len(x), -1), codecs.bf16_decode(tail)], 1)
    same(kernels.load(ROW_KV_FP8, rope, width, data), want)


def fp4_rounded(x: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float32]]:
    """Codes, scale bytes and values of rows rounded to e2m1 per 32."""
    scales = scale_bytes(groups(x, 32), 6, 6 * 2.0**-126)
    scale = codecs.e8m0_decode(scales)[..., None]
    codes = codecs.e2m1_encode(groups(x, 32) / scale)
    return codes, scales, (codecs.e2m1_decode(codes) * scale).reshape(x.shape)


def test_indexer_rows(kernels: Kernels, rng: np.random.Generator) -> None:
    x = some_floats(rng, 60, 128)
    x[0, :32] = np.arange(32, dtype=np.float32) * 0.25 - 2  # every tie below 6
    x[0, 0] = 6
    codes, scales, values = fp4_rounded(x)
    data = kernels.store(ROW_IDX_FP4, 0, x)
    assert data.shape[1] == 68
    np.testing.assert_array_equal(data[:, :64], codecs.fp4_pack(codes.reshape(len(x), -1)))
    np.testing.assert_array_equal(data[:, 64:], scales)
    same(kernels.load(ROW_IDX_FP4, 0, 128, data), values)
    same(kernels.in_place("round_fp4", x), values)


def test_float_rows(kernels: Kernels, rng: np.random.Generator) -> None:
    x = some_floats(rng, 20, 96)
    x[0, 0] = 1e6  # beyond half floats
    same(kernels.load(ROW_F32, 0, 96, kernels.store(ROW_F32, 0, x)), x)
    half = x.clip(-65504, 65504).astype(np.float16).astype(np.float32)
    same(kernels.load(ROW_F16, 0, 96, kernels.store(ROW_F16, 0, x)), half)


@pytest.mark.parametrize("n", [1, 2, 64, 128])
def test_hadamard(kernels: Kernels, rng: np.random.Generator, n: int) -> None:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])  # Sylvester's order
    x = rng.standard_normal((9, n)).astype(np.float32)
    want = x.astype(np.float64) @ matrix.T / np.sqrt(n)
    np.testing.assert_allclose(kernels.in_place("hadamard", x), want, rtol=0, atol=2e-6 * np.sqrt(n))
