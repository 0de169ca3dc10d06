"""Files of log-probabilities: the format, and what is no such file."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pyflash
import pytest
from pyflash.eval import statistics
from pyflash.eval.logits_file import LogitsFile, encode_rows, file_bytes, written_file
from pyflash.eval.statistics import DivergenceStatistics, LogitRows, log_softmax
from pyflash.eval.windows import Windows, plan_windows

pytestmark = pytest.mark.quick

N_CTX = 10
ALL = slice(0, None)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 100)


def draw(n: int, vocab: int, scale: float = 3) -> np.ndarray:
    return (scale * np.random.default_rng(n).standard_normal((n, vocab))).astype(np.float32)


def plan(vocab: int, n_windows: int = 3) -> Windows:
    tokens = np.random.default_rng(1).integers(0, vocab, N_CTX * n_windows + 5).astype(np.int32)
    return plan_windows(tokens, N_CTX)


def write(path: Path, vocab: int) -> tuple[Windows, np.ndarray]:
    windows = plan(vocab)
    logits = draw(windows.count * windows.n_scored, vocab)
    with written_file(path, windows, vocab) as writer:
        assert not path.exists()
        writer.add(logits[:5])
        writer.add(logits[5:])
    return windows, logits


@pytest.mark.parametrize("vocab", [40, 41])
def test_round_trip(tmp_path: Path, vocab: int) -> None:
    path = tmp_path / "base.kld"
    windows, logits = write(path, vocab)
    assert [each.name for each in tmp_path.iterdir()] == ["base.kld"]
    with LogitsFile(path) as kept:
        assert kept.n_vocab == vocab and kept.windows.count == windows.count
        assert kept.windows.tokens.tolist() == windows.tokens[: 3 * N_CTX].tolist()
        assert kept.windows.targets(2).tolist() == windows.targets(2).tolist()
        for window in range(3):
            found = np.concatenate([kept.rows(window, 0, 3).log_probabilities(ALL),
                                    kept.rows(window, 3, 4).log_probabilities(ALL)])
            expected = log_softmax(logits[4 * window : 4 * window + 4])
            assert np.abs(found - expected).max() < 16 / 65535  # the range here is below 16: half a step


def test_layout(tmp_path: Path) -> None:
    """Byte by byte, as llama.cpp's perplexity.cpp writes it."""
    path, vocab = tmp_path / "base.kld", 41
    windows, logits = write(path, vocab)
    data = path.read_bytes()
    assert data[:20] == b"_logits_" + struct.pack("<3i", N_CTX, vocab, 3)
    assert data[20:140] == struct.pack("<30i", *windows.tokens[:30])
    width = 2 * (4 + 42)
    assert len(data) == 140 + 12 * width == file_bytes(N_CTX, vocab, 3)
    for number in (0, 7):
        row = data[140 + number * width : 140 + (number + 1) * width]
        scale, least = struct.unpack("<2f", row[:8])
        codes = np.array(struct.unpack("<42H", row[8:]))
        exact = logits[number].astype(np.float64)
        assert scale == pytest.approx((exact.max() - exact.min()) / 65535, rel=1e-6)
        assert least == pytest.approx(exact.min() - np.log(np.exp(exact).sum()), rel=1e-6)
        assert np.abs(codes[:41] - (exact - exact.min()) / scale).max() <= 0.51 and codes[41] == 0
        assert codes.min() == 0 and codes.max() == 65535


def test_unlikely_tokens_share_the_lowest_code() -> None:
    logits = np.array([[0, -1, -15.9, -16.1, -40]], dtype=np.float32)
    codes = encode_rows(logits)[0, 4:9]
    assert codes[0] == 65535 and codes[2] == pytest.approx(0.1 / 16 * 65535, abs=1)
    assert codes[3:].tolist() == [0, 0]
    flat = encode_rows(np.full((1, 4), 7, dtype=np.float32))[0]
    assert flat[4:].tolist() == [0] * 4
    assert flat[:4].tobytes() == struct.pack("<2f", 0, np.float32(-np.log(4)))


def test_divergence_from_a_file(tmp_path: Path) -> None:
    """By llama.cpp's rule: without the tokens whose log-probability in the base is -16 or less."""
    path = tmp_path / "base.kld"
    vocab = 40
    windows = plan(vocab)
    base = draw(windows.count * windows.n_scored, vocab, 12)
    model = base + draw(len(base), vocab, 0.2)[::-1]
    with written_file(path, windows, vocab) as writer:
        writer.add(base)
    targets = np.concatenate([windows.targets(index) for index in range(3)])
    kept_out = log_softmax(base) <= -16
    assert kept_out.any()
    terms = np.exp(log_softmax(base)) * (log_softmax(base) - log_softmax(model))
    terms[kept_out] = 0
    from_file, direct = DivergenceStatistics(), DivergenceStatistics()
    with LogitsFile(path) as kept:
        for window in range(3):
            rows = slice(4 * window, 4 * window + 4)
            from_file.add(model[rows], kept.rows(window, 0, 4), targets[rows])
    direct.add(model, LogitRows(base), targets)
    assert from_file.kld_so_far().value == pytest.approx(terms.sum(axis=1).mean(), rel=0.02, abs=2e-5)
    found, exact = from_file.result(), direct.result()
    assert found.nll == exact.nll and found.same_top == exact.same_top
    assert found.p_diff.value == pytest.approx(exact.p_diff.value, abs=1e-4)


# -- what is no such file --


def damaged(path: Path, at: int, data: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(data)


@pytest.mark.parametrize(("at", "data", "words"), [
    (0, b"_LOGITS_", "no file of log-probabilities"),
    (8, struct.pack("<i", 2), "claims 3 windows of 2 tokens"),
    (8, struct.pack("<i", -1), "damaged"),
    (8, struct.pack("<i", 2**31 - 1), "its head asks for"),
    (12, struct.pack("<i", 0), "a vocabulary of 0"),
    (16, struct.pack("<i", 4), "its head asks for"),
    (24, struct.pack("<i", 40), "outside its vocabulary"),
    (24, struct.pack("<i", -1), "outside its vocabulary"),
])  # fmt: skip
def test_damaged_heads(tmp_path: Path, at: int, data: bytes, words: str) -> None:
    path = tmp_path / "base.kld"
    write(path, 40)
    damaged(path, at, data)
    with pytest.raises(pyflash.FormatError, match=words) as caught:
        LogitsFile(path)
    assert "\n" not in str(caught.value) and "--save-all-logits" in str(caught.value)


def test_truncated(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    write(path, 40)
    whole = path.read_bytes()
    for size in (0, 5, 19, 20, 100, 140, len(whole) - 1, len(whole) + 1):
        path.write_bytes((whole + b"\0")[:size])
        with pytest.raises(pyflash.FormatError):
            LogitsFile(path)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -1.0])
def test_damaged_scales(tmp_path: Path, scale: float) -> None:
    path = tmp_path / "base.kld"
    write(path, 40)
    damaged(path, 140 + 4 * 88, struct.pack("<f", scale))
    with LogitsFile(path) as kept:
        kept.rows(0, 0, 4)
        with pytest.raises(pyflash.FormatError, match="window 2 has impossible scales"):
            kept.rows(1, 0, 4)


def test_shrinking_file(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    write(path, 4000)  # rows that nobody reads ahead
    with LogitsFile(path) as kept:
        os.truncate(path, 200)
        with pytest.raises(pyflash.FileError, match="became shorter"):
            kept.rows(2, 0, 4)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(pyflash.FileError, match="cannot read"):
        LogitsFile(tmp_path / "absent.kld")


# -- writing --


def test_nothing_is_left_of_what_fails(tmp_path: Path) -> None:
    path = tmp_path / "base.kld"
    path.write_bytes(b"the one before")
    windows = plan(40)
    with pytest.raises(KeyboardInterrupt), written_file(path, windows, 40) as writer:
        writer.add(draw(2, 40))
        raise KeyboardInterrupt
    with pytest.raises(pyflash.Error, match="not complete"), written_file(path, windows, 40) as writer:
        writer.add(draw(2, 40))
    assert [each.name for each in tmp_path.iterdir()] == ["base.kld"] and path.read_bytes() == b"the one before"


def test_where_no_file_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, words in ((tmp_path / "none" / "x", "there is no folder"), (tmp_path, "is a folder")):
        with pytest.raises(pyflash.FileError, match=words), written_file(target, plan(40), 40):
            pass
    huge = Windows(np.zeros(8, dtype=np.int32), 1 << 20, 1 << 20, 1 << 20, 1 << 19)
    with pytest.raises(pyflash.FileError, match="free"), written_file(tmp_path / "x", huge, 129280):
        pass
    assert not list(tmp_path.iterdir())
