"""Discrete choices (experts, compressed rows), their margins, and what a different choice would cost.

Two correct implementations may choose differently where two scores are equal up to rounding. A test runs the oracle
with the other side's choices imposed and then asks here whether each difference was such a near-tie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# (kind, layer) -> per token the ids to use, where kind is "experts" or "topk"
Forced = Mapping[tuple[str, int], Sequence[np.ndarray]]


@dataclass
class Choices:
    """What one layer chose. All lists have one entry per token."""

    kind: str
    layer: int
    ids: list[np.ndarray]  # the oracle's own choice, best first
    margin: np.ndarray  # [T] last kept minus first dropped score; inf where nothing was dropped
    scale: np.ndarray  # [T] largest |score| among the candidates
    differs: np.ndarray  # [T] whether the imposed choice is another set than the own one
    regret: np.ndarray  # [T] by how much the imposed choice is worse than the own one; 0 for an exact tie

    def relative_regret(self) -> np.ndarray:
        """[T] regret in units of the largest score."""
        return self.regret / np.maximum(self.scale, np.finfo(np.float64).tiny)


def choose(
    kind: str, layer: int, scores: np.ndarray, keep: int, candidates: np.ndarray, forced: Forced | None
) -> tuple[list[np.ndarray], Choices]:
    """Per token the `keep` highest of its first candidates[t] scores (lowest id among equals), or the imposed ids.

    scores [T, n]. Returns the ids in force (best first for an own choice, as given for an imposed one) and the record.
    """
    n_tokens = len(scores)
    own: list[np.ndarray] = []
    margin = np.full(n_tokens, np.inf)
    scale = np.zeros(n_tokens)
    regret = np.zeros(n_tokens)
    differs = np.zeros(n_tokens, dtype=bool)
    imposed = forced.get((kind, layer)) if forced else None
    used: list[np.ndarray] = []
    for t in range(n_tokens):
        row = scores[t, : candidates[t]]
        order = np.argsort(-row, kind="stable")
        ids = order[:keep].astype(np.int32)
        own.append(ids)
        if len(row):
            scale[t] = np.abs(row).max()
        if len(order) > keep:
            margin[t] = row[order[keep - 1]] - row[order[keep]]
        if imposed is None:
            used.append(ids)
            continue
        other = np.asarray(imposed[t])
        _check_imposed(kind, layer, t, other, ids, len(row))
        used.append(other)
        missed, extra = np.setdiff1d(ids, other), np.setdiff1d(other, ids)
        if len(missed):
            differs[t] = True
            regret[t] = row[missed].max() - row[extra].min()
    return used, Choices(kind, layer, own, margin, scale, differs, regret)


def _check_imposed(kind: str, layer: int, t: int, other: np.ndarray, own: np.ndarray, n: int) -> None:
    """An imposed choice must be as many distinct, allowed ids as the oracle would take."""
    where = f"{kind} of layer {layer}, token {t}"
    if len(other) != len(own) or len(np.unique(other)) != len(other):
        raise AssertionError(f"{where}: {len(own)} distinct ids expected, got {other.tolist()}")
    if len(other) and (other.min() < 0 or other.max() >= n):
        raise AssertionError(f"{where}: ids must lie in 0..{n - 1}, got {other.tolist()}")
