"""Comparison of two runs of the model that may differ in near-tied choices."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from .choices import Choices
from .taps import Taps


def relative_l2(value: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """||value - reference|| / ||reference|| along the last axis."""
    difference = np.linalg.norm(np.asarray(value, np.float64) - reference, axis=-1)
    return difference / np.maximum(np.linalg.norm(reference, axis=-1), np.finfo(np.float64).tiny)


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.asarray(logits, np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def kl_divergence(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """KL(reference || other) of the distributions of two sets of logits, along the last axis, in nats."""
    p, q = log_softmax(reference), log_softmax(other)
    return (np.exp(p) * (p - q)).sum(-1)


def near_ties(choices: Iterable[Choices], limit: float) -> list[str]:
    """One line per layer and token where the imposed choice differs; fails where one was worse by more than `limit`.

    limit is relative to the token's largest score.
    """
    lines, wrong = [], []
    for choice in choices:
        relative = choice.relative_regret()
        for t in np.flatnonzero(choice.differs):
            gap = f"relative gap {relative[t]:.2e}" if relative[t] else "exact tie"
            line = f"{choice.kind} of layer {choice.layer}, token {t}: {gap}"
            (lines if relative[t] <= limit else wrong).append(line)
    assert not wrong, f"{len(wrong)} choices differ and are no near-ties (limit {limit}):\n" + "\n".join(wrong[:20])
    return lines


def first_difference(actual: Taps, expected: Taps, tolerance: float) -> str:
    """Names the first tap, in the order of computation, whose values differ by more than `tolerance` (relative L2)."""
    for name, layer in expected.keys():
        for position in expected.positions(name, layer):
            want, got = expected.get(name, layer, position), actual.get(name, layer, position)
            assert want is not None
            where = f"tap {name!r} of layer {layer} at position {position}"
            if got is None:
                return f"{where} is missing"
            if got.shape != want.shape:
                return f"{where} has shape {got.shape}, expected {want.shape}"
            if want.dtype.kind in "iu":
                if not np.array_equal(got, want):
                    return f"{where} is {got.tolist()}, expected {want.tolist()}"
            elif not (error := float(relative_l2(got, want))) <= tolerance:
                return f"{where} differs by {error:.2e} relative"
    extra = [key for key in actual.keys() if key not in expected.keys()]
    return f"taps nobody expects: {extra}" if extra else "no tap differs"
