"""Perplexity and KL divergence from logits: plain numpy, fed a piece at a time, with the errors of the means.

The definitions are those of llama.cpp's perplexity tool. All logarithms are natural. Sums are in float64 over the
float32 logits.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pyflash.native.errors import Error
from pyflash.native.values import FloatArray

Doubles = npt.NDArray[np.float64]
Tokens32 = npt.NDArray[np.int32]

PERCENTILES = (99.9, 99.0, 95.0, 90.0, 75.0, 50.0, 25.0, 10.0, 5.0, 1.0, 0.1)
_BLOCK_VALUES = 1 << 20  # float64 values that are worked on at once: a few rows of the real vocabulary


@dataclass(frozen=True)
class Estimate:
    """A mean, or what follows from one, and its standard error; None where too few tokens, or the value, allow none."""

    value: float
    error: float | None


def blocks(n_rows: int, n_vocab: int) -> Iterator[slice]:
    """Ranges of rows that are worked on at once."""
    step = max(1, _BLOCK_VALUES // n_vocab)
    return (slice(begin, min(begin + step, n_rows)) for begin in range(0, n_rows, step))


def log_softmax(logits: FloatArray) -> Doubles:
    """Log-probabilities float64 [n, vocab] of logits [n, vocab]. Raises Error where logits are not finite."""
    if not np.isfinite(logits).all():
        raise Error("the model gives logits that are not finite numbers: its weights may be damaged; check the file "
                    "with `pyflash info --verify FILE`, or convert it again")
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


class Moments:
    """Means and covariances of columns of values, merged block by block without the loss of sums of squares."""

    def __init__(self, n_columns: int) -> None:
        self.count = 0
        self.mean: Doubles = np.zeros(n_columns)
        self._comoment: Doubles = np.zeros((n_columns, n_columns))

    def add(self, values: Doubles) -> None:
        """values: [n, columns]."""
        n = len(values)
        if n == 0:
            return
        mean = values.mean(axis=0)
        centred = values - mean
        step = mean - self.mean
        total = self.count + n
        comoment = self._comoment + centred.T @ centred + np.outer(step, step) * (self.count * n / total)
        # All at once, so that what Ctrl-C leaves can be shown.
        self.count, self.mean, self._comoment = total, self.mean + step * (n / total), comoment

    def covariance_of_means(self, a: int, b: int) -> float:
        """Of the means of two columns; NaN for fewer than two rows."""
        return float(self._comoment[a, b]) / self.count / (self.count - 1) if self.count > 1 else math.nan

    def estimate(self, column: int) -> Estimate:
        return Estimate(float(self.mean[column]), _error(self.covariance_of_means(column, column)))


def _error(variance: float) -> float | None:
    return None if math.isnan(variance) else math.sqrt(max(variance, 0.0))


def _exponential(log: Estimate) -> Estimate:
    """exp of an estimate, by the first derivative."""
    try:
        value = math.exp(log.value)
    except OverflowError:
        return Estimate(math.inf, None)
    return Estimate(value, None if log.error is None else value * log.error)


# -- perplexity --


@dataclass(frozen=True)
class Perplexity:
    """count: scored tokens. nll: mean negative log-likelihood of a token; ppl is its exponential."""

    count: int
    nll: Estimate
    ppl: Estimate


class PerplexityStatistics:
    """`add()` pieces as they come; `result()` is what there is so far."""

    def __init__(self) -> None:
        self._moments = Moments(1)

    def add(self, logits: FloatArray, targets: Tokens32) -> None:
        """logits: float32 [n, vocab]; targets: [n], the tokens that followed."""
        for block in blocks(*logits.shape):
            followed = targets[block]
            nll = -log_softmax(logits[block])[np.arange(len(followed)), followed]
            self._moments.add(nll[:, np.newaxis])

    @property
    def count(self) -> int:
        return self._moments.count

    def result(self) -> Perplexity:
        nll = self._moments.estimate(0)
        return Perplexity(self.count, nll, _exponential(nll))


# -- divergence --


class BaseRows(Protocol):
    """Log-probabilities of the base at n positions, of which a block at a time is wanted."""

    floor: float  # tokens with a log-probability at or below it are left out of the divergence

    def log_probabilities(self, block: slice) -> Doubles: ...


class LogitRows:
    """BaseRows from a model's logits, float32 [n, vocab]."""

    floor = -math.inf

    def __init__(self, logits: FloatArray) -> None:
        self._logits = logits

    def log_probabilities(self, block: slice) -> Doubles:
        return log_softmax(self._logits[block])


@dataclass(frozen=True)
class Spread:
    """Extremes and percentiles, by linear interpolation, of a value of each token."""

    minimum: float
    maximum: float
    percentiles: dict[float, float]


@dataclass(frozen=True)
class Divergence:
    """How a model's distributions over the next token differ from a base's, over count tokens.

    nll, ppl, base_nll, base_ppl: of the model and of the base. log_ratio: ln(ppl / base_ppl), with ratio and difference
    of the two; their errors count that both saw the same text. correlation: of nll and base_nll between tokens; None
    where one does not vary. kld: KL divergence of the model from the base, sum of p_base ln(p_base / p). p_diff:
    p - p_base of the token that followed; rms_p_diff: its root mean square. same_top: share of positions where both
    think the same token likeliest. p_diff and same_top are fractions of 1.
    """

    count: int
    nll: Estimate
    ppl: Estimate
    base_nll: Estimate
    base_ppl: Estimate
    correlation: float | None
    log_ratio: Estimate
    ratio: Estimate
    difference: Estimate
    kld: Estimate
    kld_spread: Spread
    p_diff: Estimate
    rms_p_diff: Estimate
    p_diff_spread: Spread
    same_top: Estimate


_NLL, _BASE_NLL, _KLD, _P_DIFF, _P_DIFF_SQUARED = range(5)


class DivergenceStatistics:
    """`add()` pieces as they come; `result()` is what there is so far. Keeps 8 bytes a token, for the percentiles."""

    def __init__(self) -> None:
        self._moments = Moments(5)
        self._n_same_top = 0
        self._kld: list[FloatArray] = []
        self._p_diff: list[FloatArray] = []

    @property
    def count(self) -> int:
        return self._moments.count

    def add(self, logits: FloatArray, base: BaseRows, targets: Tokens32) -> None:
        """logits: the model's, float32 [n, vocab]; base: of the same positions; targets: [n], the tokens that
        followed."""
        for block in blocks(*logits.shape):
            followed = targets[block]
            self._add_block(log_softmax(logits[block]), base.log_probabilities(block), base.floor, followed)

    def _add_block(self, model: Doubles, base: Doubles, floor: float, targets: Tokens32) -> None:
        rows = np.arange(len(targets))
        nll, base_nll = -model[rows, targets], -base[rows, targets]
        self._n_same_top += int((model.argmax(axis=1) == base.argmax(axis=1)).sum())
        terms = np.exp(base) * (base - model)
        if floor > -math.inf:
            terms[base <= floor] = 0
        kld: Doubles = terms.sum(axis=1)
        p_diff = np.exp(-nll) - np.exp(-base_nll)
        self._moments.add(np.stack((nll, base_nll, kld, p_diff, p_diff**2), axis=1))
        self._kld.append(kld.astype(np.float32))
        self._p_diff.append(p_diff.astype(np.float32))

    def result(self) -> Divergence:
        moments, n = self._moments, self.count
        nll, base_nll = moments.estimate(_NLL), moments.estimate(_BASE_NLL)
        covariance = moments.covariance_of_means(_NLL, _BASE_NLL)
        log_ratio = Estimate(nll.value - base_nll.value, _difference_error(nll, base_nll, covariance))
        ppl, base_ppl = _exponential(nll), _exponential(base_nll)
        correlation = covariance / (nll.error * base_nll.error) if nll.error and base_nll.error else None
        same = self._n_same_top / n
        mean_square = moments.estimate(_P_DIFF_SQUARED)
        rms = math.sqrt(mean_square.value)
        return Divergence(
            count=n, nll=nll, ppl=ppl, base_nll=base_nll, base_ppl=base_ppl, correlation=correlation,
            log_ratio=log_ratio, ratio=_exponential(log_ratio),
            difference=Estimate(ppl.value - base_ppl.value,
                                _difference_error(ppl, base_ppl, covariance * ppl.value * base_ppl.value)),
            kld=moments.estimate(_KLD), kld_spread=_spread(self._kld),
            p_diff=moments.estimate(_P_DIFF),
            rms_p_diff=Estimate(rms, 0.5 / rms * mean_square.error if rms and mean_square.error is not None else None),
            p_diff_spread=_spread(self._p_diff),
            same_top=Estimate(same, math.sqrt(same * (1 - same) / (n - 1)) if n > 1 else None),
        )

    def kld_so_far(self) -> Estimate:
        return self._moments.estimate(_KLD)

    def perplexity_so_far(self) -> Perplexity:
        nll = self._moments.estimate(_NLL)
        return Perplexity(self.count, nll, _exponential(nll))


def _difference_error(a: Estimate, b: Estimate, covariance: float) -> float | None:
    """Standard error of a - b."""
    if a.error is None or b.error is None:
        return None
    return _error(a.error**2 + b.error**2 - 2 * covariance)


def _spread(pieces: list[FloatArray]) -> Spread:
    values: npt.NDArray[Any] = np.concatenate(pieces)
    found = np.percentile(values.astype(np.float64), PERCENTILES)
    return Spread(float(values.min()), float(values.max()), dict(zip(PERCENTILES, map(float, found), strict=True)))
