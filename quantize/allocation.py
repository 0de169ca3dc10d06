"""Which choice each group gets so that the damage is least and the bytes stay within a budget: a knapsack, solved exactly.

Groups are taken one after another. Of the ways to choose for those so far only the ones matter that no other way beats in
bytes and damage both, and of these only the ones that can still become better than a solution that is known: the rest of
the groups cost at least what the convex hulls of their choices say. That leaves a few hundred of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MOST_WAYS = 1 << 17  # kept at once; where there are more, one for each of as many equal spans of bytes is kept
_SLACK = 1e-12  # relative: rounding of sums


@dataclass(frozen=True, slots=True)
class Choice:
    """What a group can become."""

    name: str
    nbytes: int
    damage: float


Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]


def least_bytes(groups: Mapping[str, Sequence[Choice]]) -> int:
    """Of all groups with their smallest choices."""
    return sum(min(choice.nbytes for choice in choices) for choices in groups.values())


def allocate(groups: Mapping[str, Sequence[Choice]], budget: int) -> dict[str, Choice]:
    """One choice for each group, of at most `budget` bytes in all and with the least sum of damages; of equal ones the
    one with fewer bytes. The order of groups and of choices does not matter. ValueError where nothing fits.
    """
    names = sorted(groups)
    if least_bytes(groups) > budget:
        raise ValueError(f"{budget} bytes are less than the {least_bytes(groups)} of the smallest choices")
    fronts = [_front(groups[name]) for name in names]
    rest = [_Relaxation(fronts[index:]) for index in range(len(fronts) + 1)]
    known = _greedy(fronts, budget)
    return dict(zip(names, _search(fronts, rest, budget, known) or known, strict=True))


def _front(choices: Sequence[Choice]) -> list[Choice]:
    """Those that no other beats, from few bytes to many."""
    kept: list[Choice] = []
    for choice in sorted(choices, key=lambda each: (each.nbytes, each.damage, each.name)):
        if not kept or choice.damage < kept[-1].damage:
            kept.append(choice)
    return kept


def _hull(front: Sequence[Choice]) -> list[Choice]:
    """The choices of the lower convex hull."""
    hull: list[Choice] = []
    for choice in front:
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], choice):
            hull.pop()
        hull.append(choice)
    return hull


def _gain(small: Choice, large: Choice) -> float:
    """Damage saved by a byte."""
    return (small.damage - large.damage) / (large.nbytes - small.nbytes)


class _Relaxation:
    """The least damage of some groups by bytes, if choices could be mixed: no real solution is below it."""

    def __init__(self, fronts: Sequence[Sequence[Choice]]) -> None:
        steps = [(_gain(a, b), b.nbytes - a.nbytes, a.damage - b.damage)
                 for hull in map(_hull, fronts) for a, b in itertools.pairwise(hull)]  # fmt: skip
        steps.sort(key=lambda step: -step[0])
        self.least = sum(front[0].nbytes for front in fronts)
        most = sum(front[0].damage for front in fronts)
        self._bytes = self.least + np.cumsum([0, *(step[1] for step in steps)], dtype=np.float64)
        self._damage = most - np.cumsum([0.0, *(step[2] for step in steps)])

    def at(self, budget: Doubles) -> Doubles:
        bound: Doubles = np.interp(budget, self._bytes, self._damage)
        return bound


def _greedy(fronts: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """A good solution: steps along the hulls, the most gainful first, where they still fit."""
    taken = [front[0] for front in fronts]
    steps = [(-_gain(a, b), index, a, b) for index, front in enumerate(fronts)
             for hull in (_hull(front),) for a, b in itertools.pairwise(hull)]  # fmt: skip
    spent = sum(choice.nbytes for choice in taken)
    for _, index, a, b in sorted(steps, key=lambda step: (step[0], step[1])):
        if taken[index] is a and spent + b.nbytes - a.nbytes <= budget:
            spent += b.nbytes - a.nbytes
            taken[index] = b
    return taken


def _search(
    fronts: Sequence[Sequence[Choice]], rest: Sequence[_Relaxation], budget: int, known: Sequence[Choice]
) -> list[Choice]:
    """The best solution; empty where ways were thinned so much that none left is as good as the known one."""
    nbytes, damage = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []  # of each group: the choice, and which way before it was chosen in
    limit = sum(choice.damage for choice in known) + _SLACK * sum(front[0].damage for front in fronts)
    for index, front in enumerate(fronts):
        n_before, after = len(nbytes), rest[index + 1]
        all_bytes = np.concatenate([nbytes + choice.nbytes for choice in front])
        all_damage = np.concatenate([damage + choice.damage for choice in front])
        left = budget - all_bytes - after.least
        found = np.flatnonzero((left >= 0) & (all_damage + after.at((budget - all_bytes).astype(np.float64)) <= limit))
        order = np.lexsort((found, all_damage[found], all_bytes[found]))
        found = found[order]
        if not len(found):
            return []
        best_before = np.concatenate([[np.inf], np.minimum.accumulate(all_damage[found])[:-1]])
        found = _thinned(found[all_damage[found] < best_before], all_bytes)
        nbytes, damage = all_bytes[found], all_damage[found]
        trail.append((found // n_before, found % n_before))
    way = int(np.lexsort((nbytes, damage))[0])
    chosen = []
    for front, (choices, before) in zip(reversed(fronts), reversed(trail), strict=True):
        chosen.append(front[int(choices[way])])
        way = int(before[way])
    return chosen[::-1]


def _thinned(found: Ints, all_bytes: Ints) -> Ints:
    """found: by bytes, each with less damage than the one before; of a span of bytes the last is kept."""
    if len(found) <= _MOST_WAYS:
        return found
    nbytes = all_bytes[found]
    grain = -(-int(nbytes[-1] - nbytes[0] + 1) // _MOST_WAYS)
    span = (nbytes - nbytes[0]) // grain
    kept: Ints = found[np.append(span[1:] != span[:-1], True)]
    return kept
