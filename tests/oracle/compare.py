"""Comparison of two runs of the model that may differ in near-tied choices."""

from __future__ import annotations

from collections.abc import Collection, Iterable

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


def agreement(reference: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Mean KL divergence in nats and the share of tokens with the same likeliest next token."""
    same = reference.argmax(-1) == other.argmax(-1)
    return float(kl_divergence(reference, other).mean()), float(same.mean())


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


def first_difference(
    actual: Taps, expected: Taps, tolerance: float, may_lack: Collection[str] = frozenset()
) -> str:
    """Names the first tap, in the order of computation, whose values differ by more than `tolerance` (relative L2).

    may_lack: names of taps that `actual` need not have everywhere.
    """
    for name, layer in expected.keys():
        positions = expected.positions(name, layer)
        want = [expected.get(name, layer, p) for p in positions]
        got = [actual.get(name, layer, p) for p in positions]
        wrong = _first_wrong(got, want, tolerance, missing_is_wrong=name not in may_lack)
        if wrong is not None:
            where = f"tap {name!r} of layer {layer} at position {positions[wrong]}"
            return f"{where} {_describe(got[wrong], want[wrong])}"
    extra = [key for key in actual.keys() if key not in expected.keys()]
    return f"taps nobody expects: {extra}" if extra else "no tap differs"


def _first_wrong(
    got: list[np.ndarray | None], want: list[np.ndarray], tolerance: float, missing_is_wrong: bool
) -> int | None:
    """Index of the first value that is missing, of another shape, another id, or too far away."""
    present = []
    for i, (g, w) in enumerate(zip(got, want, strict=True)):
        if g is None and not missing_is_wrong:
            continue
        if g is None or g.shape != w.shape or (w.dtype.kind in "iu" and not np.array_equal(g, w)):
            return i
        present.append(i)
    if not present or want[0].dtype.kind in "iu":
        return None
    error = relative_l2(np.stack([got[i] for i in present]), np.stack([want[i] for i in present]))
    wrong = np.flatnonzero(~(error <= tolerance))  # NaN is wrong too
    return present[wrong[0]] if len(wrong) else None


def _describe(got: np.ndarray | None, want: np.ndarray) -> str:
    if got is None:
        return "is missing"
    if got.shape != want.shape:
        return f"has shape {got.shape}, expected {want.shape}"
    if want.dtype.kind in "iu":
        return f"is {got.tolist()}, expected {want.tolist()}"
    return f"differs by {float(relative_l2(got, want)):.2e} relative"
