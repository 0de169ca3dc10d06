"""The statistics of `pyflash eval` against their definitions, written out in float64."""

from __future__ import annotations

import math

import numpy as np
import pyflash
import pytest
from pyflash.eval import output, statistics
from pyflash.eval.statistics import (
    PERCENTILES,
    Divergence,
    DivergenceStatistics,
    Estimate,
    LogitRows,
    Moments,
    PerplexityStatistics,
    log_softmax,
)

pytestmark = pytest.mark.quick

N, VOCAB = 211, 37


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few rows, so that pieces have several and a rest."""
    monkeypatch.setattr(statistics, "_BLOCK_VALUES", 5 * VOCAB)


def draw(seed: int, like: np.ndarray | None = None) -> np.ndarray:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((N, VOCAB)).astype(np.float32)
    return 3 * noise if like is None else like + np.float32(0.3) * noise


def targets(seed: int = 9) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, VOCAB, N).astype(np.int32)


def probabilities(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum(axis=1, keepdims=True)


def mean_and_error(values: np.ndarray) -> tuple[float, float]:
    """As llama.cpp has them: sqrt((mean of squares - squared mean) / (n - 1))."""
    mean = float(np.sum(values) / len(values))
    return mean, math.sqrt((float(np.sum(values**2)) / len(values) - mean**2) / (len(values) - 1))


def check(estimate: Estimate, value: float, error: float | None) -> None:
    assert estimate.value == pytest.approx(value, rel=1e-9)
    assert estimate.error == (None if error is None else pytest.approx(error, rel=1e-6))


@pytest.mark.parametrize("pieces", [[N], [1] * N, [5, 1, 100, N - 106]])
def test_perplexity(pieces: list[int]) -> None:
    logits, followed = draw(1), targets()
    found = PerplexityStatistics()
    begin = 0
    for n in pieces:
        found.add(logits[begin : begin + n], followed[begin : begin + n])
        begin += n
    nll = -np.log(probabilities(logits)[np.arange(N), followed])
    mean, error = mean_and_error(nll)
    result = found.result()
    assert result.count == N
    check(result.nll, mean, error)
    check(result.ppl, math.exp(mean), math.exp(mean) * error)


def divergence(logits: np.ndarray, base: np.ndarray, followed: np.ndarray) -> Divergence:
    found = DivergenceStatistics()
    for piece in (slice(0, 17), slice(17, 18), slice(18, N)):
        found.add(logits[piece], LogitRows(base[piece]), followed[piece])
    assert found.perplexity_so_far().ppl == found.result().ppl
    assert found.kld_so_far() == found.result().kld
    return found.result()


def test_divergence() -> None:
    base = draw(1)
    logits, followed, rows = draw(2, base), targets(), np.arange(N)
    found = divergence(logits, base, followed)
    p, p_base = probabilities(logits), probabilities(base)
    nll, base_nll = -np.log(p[rows, followed]), -np.log(p_base[rows, followed])
    check(found.nll, *mean_and_error(nll))
    check(found.base_nll, *mean_and_error(base_nll))
    # What is left of two errors when both come from the same text is the error of the difference, token by token.
    log_ratio, ratio_error = mean_and_error(nll - base_nll)
    check(found.log_ratio, log_ratio, ratio_error)
    check(found.ratio, math.exp(log_ratio), math.exp(log_ratio) * ratio_error)
    ppl, base_ppl = math.exp(nll.mean()), math.exp(base_nll.mean())
    check(found.difference, ppl - base_ppl, mean_and_error(ppl * nll - base_ppl * base_nll)[1])
    assert found.correlation == pytest.approx(np.corrcoef(nll, base_nll)[0, 1])

    kld = (p_base * np.log(p_base / p)).sum(axis=1)
    check(found.kld, *mean_and_error(kld))
    p_diff = p[rows, followed] - p_base[rows, followed]
    check(found.p_diff, *mean_and_error(p_diff))
    mean_square, error = mean_and_error(p_diff**2)
    check(found.rms_p_diff, math.sqrt(mean_square), 0.5 / math.sqrt(mean_square) * error)
    same = (p.argmax(axis=1) == p_base.argmax(axis=1)).mean()
    assert 0.5 < same < 1
    check(found.same_top, same, math.sqrt(same * (1 - same) / (N - 1)))
    for spread, values in ((found.kld_spread, kld), (found.p_diff_spread, p_diff)):
        ordered = np.sort(values)
        assert spread.minimum == pytest.approx(ordered[0], rel=1e-6)
        assert spread.maximum == pytest.approx(ordered[-1], rel=1e-6)
        assert list(spread.percentiles) == list(PERCENTILES)
        for each, value in spread.percentiles.items():
            place = each / 100 * (N - 1)
            low = int(place)
            between = (1 - (place - low)) * ordered[low] + (place - low) * ordered[min(low + 1, N - 1)]
            assert value == pytest.approx(between, rel=1e-5, abs=1e-9)


def test_nothing_differs() -> None:
    base = draw(1)
    found = divergence(base + np.float32(0), base, targets())
    assert found.kld == Estimate(0.0, 0.0) and found.rms_p_diff == Estimate(0.0, None)
    assert found.same_top == Estimate(1.0, 0.0) and found.ratio.value == 1.0
    assert found.ratio.error == pytest.approx(0, abs=1e-7)
    assert found.correlation == pytest.approx(1)
    assert found.kld_spread.maximum == 0 and found.p_diff_spread.minimum == 0


def test_few_tokens_have_no_errors() -> None:
    found = DivergenceStatistics()
    found.add(draw(1)[:1], LogitRows(draw(2)[:1]), targets()[:1])
    result = found.result()
    assert result.count == 1
    for estimate in (result.nll, result.ppl, result.log_ratio, result.difference, result.kld, result.rms_p_diff,
                     result.same_top):
        assert estimate.error is None and math.isfinite(estimate.value)
    assert result.correlation is None


def test_moments_keep_small_spreads_of_large_values() -> None:
    values = 1e8 + np.random.default_rng(3).standard_normal((1000, 2))
    moments = Moments(2)
    moments.add(values[:0])
    for begin in range(0, 1000, 7):
        moments.add(values[begin : begin + 7])
    expected = np.cov(values.T) * 999 / 1000 / 999  # llama.cpp divides by n and by n - 1
    for a in range(2):
        for b in range(2):
            assert moments.covariance_of_means(a, b) == pytest.approx(expected[a, b], rel=1e-6)


def test_large_logits() -> None:
    """float32 exponentials of these overflow."""
    found = log_softmax(np.array([[1e5, 1e5 - 1, -1e5]], dtype=np.float32))
    assert found[0, :2].tolist() == pytest.approx([-math.log1p(math.exp(-1)), -1 - math.log1p(math.exp(-1))])
    assert found[0, 2] == pytest.approx(-2e5 - math.log1p(math.exp(-1)))


def test_impossible_perplexity() -> None:
    """A wrong token that is all but impossible: no figure, and no crash."""
    logits = np.full((3, VOCAB), -1e5, dtype=np.float32)
    logits[:, 0] = 0
    found = PerplexityStatistics()
    found.add(logits, np.ones(3, dtype=np.int32))
    result = found.result()
    assert result.nll.value == pytest.approx(1e5) and result.ppl.value == math.inf
    assert output.perplexity_fields(result)["ppl"] is None
    assert "inf" in output.perplexity_text(result)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_no_numbers(value: float) -> None:
    logits = draw(1)
    logits[100, 3] = value
    with pytest.raises(pyflash.Error, match="not finite"):
        PerplexityStatistics().add(logits, targets())


@pytest.mark.parametrize(("value", "error", "text"), [
    (13.51059, 0.07312, "13.5106 ± 0.0731"),
    (13.51059, None, "13.5106"),
    (2e-6, 1.234e-7, "0.00000200 ± 0.00000012"),
    (21964.4, 1658.39, "21964.4000 ± 1658.3900"),
    (0.0, 0.0, "0.0000 ± 0.0000"),
])  # fmt: skip
def test_figures_show_their_errors(value: float, error: float | None, text: str) -> None:
    assert output.estimate_text(Estimate(value, error)) == text
