"""ggml's block formats: decoders to the bit as gguf-py's, and what quantisers must keep for any rows."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

import pyflash
from pyflash.native.block_types import BLOCK_TYPES
from quantize.blocks import WRITABLE, Objective, decode, quantise

GGUF_PY = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS",
           "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4")  # fmt: skip
Array = np.ndarray[Any, Any]


def random_blocks(name: str, count: int) -> Array:
    kind = GGMLQuantizationType[name]
    return np.random.default_rng(kind.value).integers(0, 256, (count, GGML_QUANT_SIZES[kind][1]), dtype=np.uint8)


@pytest.mark.quick
@pytest.mark.parametrize("name", GGUF_PY)
def test_decoders_have_the_bits_of_gguf_py(name: str) -> None:
    kind = GGMLQuantizationType[name]
    blocks = random_blocks(name, 3000)
    with np.errstate(all="ignore"):
        wanted = quants.dequantize(blocks.reshape(-1), kind).astype(np.float32).reshape(len(blocks), -1)
    found = decode(kind.value, blocks).reshape(len(blocks), -1)
    finite = np.isfinite(wanted).all(axis=1) & np.isfinite(found).all(axis=1)  # MXFP4's scale 255: a number there
    assert finite.sum() > 2700
    assert found[finite].tobytes() == wanted[finite].tobytes()


@pytest.mark.quick
def test_decoders_of_what_gguf_py_lacks() -> None:
    rng = np.random.default_rng(3)
    scale = np.float16(0.37)
    codes = rng.integers(0, 256, 16, dtype=np.uint8)
    block = np.concatenate([np.frombuffer(scale.tobytes(), dtype=np.uint8), codes])
    bits = np.unpackbits(codes, bitorder="little").astype(np.float32)
    np.testing.assert_array_equal(decode(41, block), np.float32(scale) * (2 * bits - 1))  # Q1_0
    pairs = (codes[:, None] >> np.array([0, 2, 4, 6]) & 3).reshape(-1).astype(np.float32)
    np.testing.assert_array_equal(decode(42, block), np.float32(scale) * (pairs - 1))  # Q2_0


def test_every_block_type_has_a_decoder() -> None:
    for kind in BLOCK_TYPES.values():
        if kind.values <= 1 or kind.name in ("Q8_1", "Q8_K"):  # ggml's own, for activations: in no file
            with pytest.raises(pyflash.UnsupportedError, match="cannot be decoded"):
                decode(kind.number, np.zeros(0, dtype=np.uint8))
        else:
            assert decode(kind.number, np.zeros(2 * kind.bytes, dtype=np.uint8)).size == 2 * kind.values
    with pytest.raises(pyflash.ArgumentError, match="no whole number of blocks"):
        decode(WRITABLE["Q2_K"], np.zeros(85, dtype=np.uint8))
    with pytest.raises(pyflash.UnsupportedError, match="139"):
        decode(139, np.zeros(0, dtype=np.uint8))


# -- quantisers --

# The share of the weights' energy that is lost at most, of Gaussian rows with all columns alike: a tenth above what it is.
LOST = {"IQ2_XXS": 0.119, "IQ2_XS": 0.090, "IQ2_S": 0.064, "Q2_K": 0.075, "IQ3_XXS": 0.036, "IQ3_S": 0.0205,
        "Q3_K": 0.023, "Q4_K": 0.0055, "Q5_K": 0.0014, "Q6_K": 0.00034}  # fmt: skip


def lost(name: str, rows: Array, blocks: Array, importance: Array | None = None) -> float:
    weights = np.ones(rows.shape[1]) if importance is None else importance.astype(np.float64)
    error = rows.astype(np.float64) - decode(WRITABLE[name], blocks).reshape(rows.shape)
    return float((weights * error**2).sum() / (weights * rows.astype(np.float64) ** 2).sum())


@pytest.fixture(scope="module")
def rows() -> Array:
    return (0.02 * np.random.default_rng(7).standard_normal((4, 1024))).astype(np.float32)


@pytest.fixture(scope="module")
def importance() -> Array:
    return np.exp(1.5 * np.random.default_rng(8).standard_normal(1024)).astype(np.float32)


@pytest.mark.parametrize("name", WRITABLE)
def test_quantisers_lose_little(name: str, rows: Array) -> None:
    assert lost(name, rows, quantise(WRITABLE[name], rows)) < LOST[name]


@pytest.mark.parametrize("name", WRITABLE)
def test_importance_lowers_the_error_that_it_weighs(name: str, rows: Array, importance: Array) -> None:
    plain, weighted = (quantise(WRITABLE[name], rows, weights) for weights in (None, importance))
    assert lost(name, rows, weighted, importance) < 0.9 * lost(name, rows, plain, importance)
    assert lost(name, rows, weighted) > lost(name, rows, plain)
    ggml = quantise(WRITABLE[name], rows, importance, Objective.GGML)
    assert lost(name, rows, weighted, importance) <= lost(name, rows, ggml, importance)


@pytest.mark.parametrize("name", WRITABLE)
def test_unbiased_rows_keep_their_length(name: str, rows: Array, importance: Array) -> None:
    """Least squares makes them shorter by what is lost; only scales differ."""
    kind = WRITABLE[name]
    plain, unbiased = (quantise(kind, rows, importance, objective) for objective in (Objective.PLAIN, Objective.UNBIASED))
    energy = (importance * rows.astype(np.float64) ** 2).sum(axis=1)
    kept, restored = ((importance * rows * decode(kind, data).reshape(rows.shape).astype(np.float64)).sum(axis=1) / energy
                      for data in (plain, unbiased))  # fmt: skip
    assert abs(kept.mean() - (1 - lost(name, rows, plain, importance))) < 3e-3
    assert np.abs(restored - 1).max() < 2e-3
    assert lost(name, rows, unbiased, importance) < 1.08 * lost(name, rows, plain, importance)
    n_blocks = rows.shape[1] // 256
    assert (plain.reshape(len(rows), n_blocks, -1) != unbiased.reshape(len(rows), n_blocks, -1)).any(axis=(0, 1)).sum() <= 4
    nothing = np.zeros((1, 512), dtype=np.float32)
    assert not decode(kind, quantise(kind, nothing, None, Objective.UNBIASED)).any()


@pytest.mark.parametrize("name", WRITABLE)
def test_rows_stand_for_themselves(name: str, rows: Array, importance: Array) -> None:
    """Bytes depend neither on the rows beside them nor on powers of two in the importance."""
    whole = quantise(WRITABLE[name], rows, importance)
    assert whole.tobytes() == b"".join(quantise(WRITABLE[name], row[None], importance).tobytes() for row in rows)
    assert whole.tobytes() == quantise(WRITABLE[name], rows, 1024 * importance).tobytes()


@pytest.mark.parametrize("name", WRITABLE)
def test_extreme_rows(name: str) -> None:
    rng = np.random.default_rng(9)
    one = np.zeros((1, 256), dtype=np.float32)
    assert not decode(WRITABLE[name], quantise(WRITABLE[name], one)).any()
    one[0, 17] = -3.0  # one value only, whose scale others share
    values = decode(WRITABLE[name], quantise(WRITABLE[name], one))
    assert abs(values[17] + 3.0) < 1.6 and np.abs(np.delete(values, 17)).max() < 1.5
    for scale in (1e-30, 1e-6, 1e4):  # too small for halves; small for them; large
        rows = (scale * rng.standard_normal((1, 256))).astype(np.float32)
        values = decode(WRITABLE[name], quantise(WRITABLE[name], rows))
        assert np.isfinite(values).all() and np.abs(values).max() <= 2 * np.abs(rows).max()
    nothing = quantise(WRITABLE[name], rows, np.zeros(256, dtype=np.float32))
    assert nothing.tobytes() == quantise(WRITABLE[name], rows).tobytes()  # no importance at all: all the same


DIGESTS = {
    "IQ2_XXS": "54b5ebf6f24aff0c", "IQ2_XS": "a29de20948492d19", "IQ2_S": "1944fd2126da68b8",
    "Q2_K": "2b5e412d3b8fdcc9", "IQ3_XXS": "4dd738ab79d30383", "IQ3_S": "bd1263c332ed2f6e",
    "Q3_K": "ea7d5e9ceeda6ad1", "Q4_K": "b7a508a6117d4aef", "Q5_K": "e77095f6e12b5a0d",
    "Q6_K": "239404ede76ea96b",
}  # fmt: skip


@pytest.mark.parametrize("name", WRITABLE)
def test_the_same_bytes_on_every_machine(name: str) -> None:
    """Of rows and importance that are exact in floats; the digests are those of all kernel sets."""
    numbers = np.arange(8 * 512, dtype=np.uint64)
    uniform = ((numbers * 2654435761 >> 7) % 4096).astype(np.float32) / 2048 - 1
    rows = (uniform * uniform * uniform).reshape(8, 512)
    importance = (1 + (numbers[:512] * 40503 % 97)).astype(np.float32) / 16
    blocks = quantise(WRITABLE[name], rows, importance)
    assert hashlib.blake2b(blocks.tobytes(), digest_size=8).hexdigest() == DIGESTS[name]


def test_what_is_refused(rows: Array) -> None:
    kind = WRITABLE["Q4_K"]
    for wrong in (np.nan, np.inf):
        bad = rows.copy()
        bad[2, 5] = wrong
        with pytest.raises(pyflash.ArgumentError, match="not finite"):
            quantise(kind, bad)
        weights = np.ones(1024, dtype=np.float32)
        weights[7] = -wrong
        with pytest.raises(pyflash.ArgumentError, match="importance"):
            quantise(kind, rows, weights)
    with pytest.raises(pyflash.ArgumentError, match="multiple of 256"):
        quantise(kind, rows[:, :128])
    with pytest.raises(pyflash.ArgumentError, match="importance has the shape"):
        quantise(kind, rows, np.ones(5, dtype=np.float32))
    with pytest.raises(pyflash.UnsupportedError, match="IQ4_XS"):
        quantise(23, rows)
