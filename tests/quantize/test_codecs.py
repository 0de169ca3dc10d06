"""C codecs against the numpy reference and against pip gguf's dequantizers, over every code and awkward scales."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from quantize import codecs, native

pytestmark = pytest.mark.quick

RNG_SEED = 20260801


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(RNG_SEED)


def all_fp4_blocks() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A block for each of the 255 finite scales, rotated so that every code meets every place."""
    codes = (np.arange(32)[None, :] + np.arange(255)[:, None]) % 16
    return codecs.fp4_pack(codes.astype(np.uint8)), np.arange(255, dtype=np.uint8)


def same_bits(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    return left.dtype == right.dtype and left.tobytes() == right.tobytes()


def mxfp4(packed: np.ndarray[Any, Any], scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = np.empty(scales.size * 17, dtype=np.uint8)
    native.fp4_to_mxfp4(packed.reshape(-1), scales.reshape(-1), scales.size * 32, out)
    return out.reshape(-1, 17)


def test_mxfp4_repack_and_back() -> None:
    packed, scales = all_fp4_blocks()
    blocks = mxfp4(packed, scales)
    assert same_bits(blocks, codecs.mxfp4_encode(packed, scales))
    again, scales_again = np.empty(packed.size, dtype=np.uint8), np.empty(scales.size, dtype=np.uint8)
    native.mxfp4_to_fp4(blocks.reshape(-1), scales.size * 32, again, scales_again)
    assert again.tobytes() == packed.tobytes() and same_bits(scales_again, scales)


def test_mxfp4_values_for_every_code_and_scale() -> None:
    packed, scales = all_fp4_blocks()
    blocks = mxfp4(packed, scales)
    values = np.empty(scales.size * 32, dtype=np.float32)
    native.mxfp4_to_f32(blocks.reshape(-1), values.size, values)
    with np.errstate(over="ignore"):
        expected = codecs.fp4_decode(packed, scales[:, None])
        theirs = quants.dequantize(blocks, GGMLQuantizationType.MXFP4)
    assert same_bits(values.reshape(-1, 32), expected)
    # gguf's table has no negative zero; the numbers are what must agree, denormals (scales 0 and 1) included.
    np.testing.assert_array_equal(expected, theirs)
    exact = codecs.E2M1_VALUES.astype(np.float64)[codecs.fp4_unpack(packed)] * 2.0 ** (scales[:, None] - 127.0)
    finite = scales <= 252
    np.testing.assert_array_equal(expected[finite].astype(np.float64), exact[finite])


@pytest.mark.oracle
def test_e4m3_table() -> None:
    import torch

    codes = torch.arange(256, dtype=torch.uint8)
    theirs = codes.view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(codecs.E4M3_VALUES, theirs)
    finite = np.flatnonzero(np.isfinite(codecs.E4M3_VALUES)).astype(np.uint8)
    assert same_bits(codecs.e4m3_encode(codecs.e4m3_decode(finite)), finite)


@pytest.mark.oracle
def test_e4m3_encode_rounds_as_torch(rng: np.random.Generator) -> None:
    import torch

    values = np.concatenate([rng.normal(0, 2.0**k, 500) for k in range(-12, 8)]).astype(np.float32)
    table = np.sort(codecs.E4M3_VALUES[:127])
    values = np.concatenate([values, (table[1:] + table[:-1]) / 2])
    values = values[np.abs(values) <= 448]
    theirs = torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert same_bits(codecs.e4m3_encode(values), theirs)


def test_e2m1_encode_picks_the_nearest_even() -> None:
    assert codecs.e2m1_encode([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 9.0]).tolist() == [0, 2, 2, 4, 4, 6, 6, 7]
    assert codecs.e2m1_encode([-0.26, -0.0, -5.01]).tolist() == [9, 8, 15]
    grid = np.arange(16, dtype=np.uint8)
    assert same_bits(codecs.e2m1_encode(codecs.e2m1_decode(grid)), grid)


@pytest.mark.parametrize("rows, cols", [(1, 1), (3, 5), (128, 128), (130, 257), (260, 96)])
@pytest.mark.parametrize("scale_f32", [False, True])
def test_fp8_rows(rows: int, cols: int, scale_f32: bool, rng: np.random.Generator) -> None:
    codes = rng.integers(0, 256, (rows, cols), dtype=np.uint8)
    shape = (-(-rows // 128), -(-cols // 128))
    scales: np.ndarray[Any, Any] = rng.integers(0, 255, shape, dtype=np.uint8)
    if scale_f32:
        scales = rng.uniform(1e-3, 2, shape).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = codecs.fp8_decode(codes, scales)
    for row0 in {0, rows // 2, rows - 1}:
        out = np.empty((rows - row0, cols), dtype=np.float32)
        native.fp8_to_f32(codes[row0:].reshape(-1), scales.reshape(-1), row0, rows - row0, cols, out.reshape(-1))
        np.testing.assert_array_equal(out, expected[row0:])


def test_fp8_every_code_with_every_scale_is_exact_in_bf16() -> None:
    """For the exponents that the converter promises to be lossless, and not for the ones beside them."""
    from gguf_export.values import E8M0_EXACT_IN_BF16

    low, high = E8M0_EXACT_IN_BF16
    codes = np.flatnonzero(np.isfinite(codecs.E4M3_VALUES)).astype(np.uint8)[None, :]
    for scale in range(255):
        values = np.empty(codes.size, dtype=np.float32)
        native.fp8_to_f32(codes.reshape(-1)[:128], np.array([scale], np.uint8), 0, 1, 128, values[:128])
        native.fp8_to_f32(codes.reshape(-1)[128:], np.array([scale], np.uint8), 0, 1, codes.size - 128, values[128:])
        rounded = np.empty(codes.size, dtype=np.uint16)
        native.f32_to_bf16(values, values.size, rounded)
        exact = codecs.E4M3_VALUES.astype(np.float64)[codes[0]] * 2.0 ** (scale - 127.0)
        is_exact = np.array_equal(codecs.bf16_decode(rounded).astype(np.float64), exact)
        assert is_exact == (low <= scale <= high), scale


def awkward_floats(rng: np.random.Generator) -> np.ndarray[Any, Any]:
    bits = rng.integers(0, 1 << 32, 1 << 16, dtype=np.uint64).astype(np.uint32)
    special = np.array(
        [0, 1, 0x7FFFFF, 0x800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00000, 0x3F808000, 0x3F818000, 0x3F80FFFF],
        dtype=np.uint32,
    )
    bits = np.concatenate([bits, special, special | 0x80000000])
    return bits.view(np.float32)


@pytest.mark.oracle
def test_bf16_rounds_as_torch(rng: np.random.Generator) -> None:
    import torch

    values = awkward_floats(rng)
    out = np.empty(values.size, dtype=np.uint16)
    native.f32_to_bf16(values, values.size, out)
    assert same_bits(out, codecs.bf16_encode(values))
    theirs = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()
    finite = ~np.isnan(values)
    assert same_bits(out[finite], theirs[finite])
    assert np.isnan(codecs.bf16_decode(out[~finite])).all()
    back = np.empty(values.size, dtype=np.float32)
    native.bf16_to_f32(out, out.size, back)
    assert same_bits(back, codecs.bf16_decode(out))


def q8_0(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    out = np.empty(values.size // 32 * 34, dtype=np.uint8)
    native.f32_to_q8_0(np.ascontiguousarray(values, dtype=np.float32).reshape(-1), values.size, out)
    return out.reshape(-1, 34)


def test_q8_0_as_gguf_quantises(rng: np.random.Generator) -> None:
    scales = 2.0 ** rng.uniform(-120, 14, (4000, 1))
    values = (rng.standard_normal((4000, 32)) * scales).astype(np.float32)
    values[0] = 0
    values[1, 1:] = 0
    # Halves: with amax 127 the scale is 1, so x.5 must round away from zero.
    values[2] = np.concatenate([[127], np.arange(31) - 15.5])
    values[3] = np.nextafter(values[2], np.float32(0))
    ours = q8_0(values)
    assert same_bits(ours, codecs.q8_0_encode(values))
    theirs = quants.quantize(values, GGMLQuantizationType.Q8_0)
    assert same_bits(ours, theirs.reshape(-1, 34))
    back = np.empty(values.size, dtype=np.float32)
    native.q8_0_to_f32(ours.reshape(-1), back.size, back)
    assert same_bits(back.reshape(-1, 32), codecs.q8_0_decode(ours))
    np.testing.assert_array_equal(back.reshape(-1, 32), quants.dequantize(ours, GGMLQuantizationType.Q8_0))


def test_q8_0_scale_is_the_nearest_half(rng: np.random.Generator) -> None:
    """Every f16 scale from denormals to infinity, and the midpoints between neighbours."""
    halves = np.arange(0, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    scales = np.concatenate([halves, (halves[1:] + halves[:-1]) / 2, [65520.0, 70000.0]]).astype(np.float32)
    values = np.zeros((scales.size, 32), dtype=np.float32)
    values[:, 0] = scales * np.float32(127)
    with np.errstate(over="ignore"):
        expected = (values[:, 0] / np.float32(127)).astype(np.float16)
    assert same_bits(np.ascontiguousarray(q8_0(values)[:, :2]).view(np.float16)[:, 0], expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_q8_0_survives_values_that_are_no_numbers(bad: float) -> None:
    values = np.ones((1, 32), dtype=np.float32)
    values[0, 5] = bad
    assert np.abs(q8_0(values)[0, 2:].view(np.int8)).max() <= 127


@pytest.mark.parametrize("n", [0, 32, 96])
def test_no_codec_writes_past_its_output(n: int) -> None:
    """A canary behind each output, and sizes down to nothing."""
    canary = 0xA5
    floats = np.ones(n, dtype=np.float32)
    out = np.full(n // 32 * 34 + 16, canary, dtype=np.uint8)
    native.f32_to_q8_0(floats, n, out)
    assert (out[n // 32 * 34 :] == canary).all()
    blocks = np.full(n // 32 * 17 + 16, canary, dtype=np.uint8)
    native.fp4_to_mxfp4(np.zeros(n // 2, np.uint8), np.zeros(n // 32, np.uint8), n, blocks)
    assert (blocks[n // 32 * 17 :] == canary).all() and (blocks[: n // 32 * 17] == 0).all()


def test_wrappers_refuse_wrong_arrays() -> None:
    with pytest.raises(ValueError, match="32 elements"):
        native.f32_to_q8_0(np.ones(31, dtype=np.float32), 32, np.empty(34, dtype=np.uint8))
    with pytest.raises(ValueError, match="float32"):
        native.f32_to_bf16(np.ones(8), 8, np.empty(8, dtype=np.uint16))
    with pytest.raises(ValueError, match="block"):
        native.f32_to_q8_0(np.ones(33, dtype=np.float32), 33, np.empty(68, dtype=np.uint8))
