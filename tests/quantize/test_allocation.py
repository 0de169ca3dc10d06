"""The knapsack of types: exact, within the budget, and the same for every order of what it is given."""

from __future__ import annotations

import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantize import allocation
from quantize.allocation import Choice, allocate, least_bytes

Groups = dict[str, list[Choice]]
# Few different numbers, so that there are ties.
CHOICE = st.builds(Choice, st.sampled_from(["a", "b", "c", "d"]), st.integers(1, 30), st.integers(0, 8).map(float))
GROUPS = st.dictionaries(st.sampled_from("uvwxyz"), st.lists(CHOICE, min_size=1, max_size=4), min_size=1, max_size=5)


def brute_force(groups: Groups, budget: int) -> tuple[float, int]:
    """The least damage within the budget, and with it the fewest bytes."""
    ways = itertools.product(*groups.values())
    return min((sum(each.damage for each in way), sum(each.nbytes for each in way))
               for way in ways if sum(each.nbytes for each in way) <= budget)  # fmt: skip


def sums(found: dict[str, Choice]) -> tuple[float, int]:
    return sum(each.damage for each in found.values()), sum(each.nbytes for each in found.values())


@settings(max_examples=400, deadline=None)
@given(GROUPS, st.integers(0, 150))
def test_as_good_as_trying_all(groups: Groups, more: int) -> None:
    budget = least_bytes(groups) + more
    found = allocate(groups, budget)
    assert found.keys() == groups.keys() and all(choice in groups[name] for name, choice in found.items())
    assert sums(found) == brute_force(groups, budget)


@settings(max_examples=100, deadline=None)
@given(GROUPS, st.integers(0, 150), st.randoms())
def test_the_order_does_not_matter(groups: Groups, more: int, order: random.Random) -> None:
    names = order.sample(sorted(groups), len(groups))
    shuffled = {name: order.sample(groups[name], len(groups[name])) for name in names}
    assert allocate(shuffled, least_bytes(groups) + more) == allocate(groups, least_bytes(groups) + more)


def test_nothing_fits() -> None:
    with pytest.raises(ValueError, match="9 bytes are less than the 10"):
        allocate({"a": [Choice("x", 4, 1.0)], "b": [Choice("x", 6, 1.0), Choice("y", 7, 0.0)]}, 9)


def flash() -> Groups:
    """As many groups and types as V4-Flash has, of its sizes."""
    rng = np.random.default_rng(3)
    types = {"MXFP4": (136, 0.0), "IQ3_S": (110, 0.019), "Q3_K": (110, 0.0198), "IQ3_XXS": (98, 0.0325), "Q2_K": (84, 0.0665),
             "IQ2_S": (82, 0.0604), "IQ2_XS": (74, 0.083), "IQ2_XXS": (66, 0.109)}  # fmt: skip
    dense = {"Q8_0": (272, 0.0), "Q6_K": (210, 0.0002), "Q5_K": (176, 0.001), "Q4_K": (144, 0.0042)}
    groups: Groups = {}
    for layer, (part, blocks) in itertools.product(range(43), (("gate_up", 1 << 24), ("down", 1 << 23))):
        weight = rng.lognormal(0, 0.6)
        groups[f"{layer}.{part}"] = [Choice(name, size * blocks, weight * error * rng.lognormal(0, 0.05))
                                     for name, (size, error) in types.items()]  # fmt: skip
    for name, blocks in (("attention", 18_652_000), ("shared", 4_226_000), ("head", 2_068_000), ("embedding", 2_068_123)):
        groups[name] = [Choice(kind, size * blocks, 40 * error) for kind, (size, error) in dense.items()]
    return groups


def test_a_real_size_takes_no_time() -> None:
    groups, uniform = flash(), {}
    for name in ("IQ2_XXS", "IQ2_S", "IQ3_XXS"):
        uniform[name] = sums({group: next((each for each in choices if each.name == name), choices[0])
                              for group, choices in groups.items()})  # fmt: skip
    started = time.monotonic()
    for damage, nbytes in uniform.values():
        found = sums(allocate(groups, nbytes))
        assert found[0] < 0.99 * damage and nbytes - (32 << 20) < found[1] <= nbytes
    assert time.monotonic() - started < 6  # 0.2 s where nothing else runs


@pytest.mark.parametrize("most", [1, 30, 3000])
def test_thinned_ways_stay_within_the_budget(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    groups, budget = flash(), 86 * 10**9
    exact = sums(allocate(groups, budget))
    monkeypatch.setattr(allocation, "_MOST_WAYS", most)
    found = sums(allocate(groups, budget))
    assert found[1] <= budget and exact[0] <= found[0] < 1.02 * exact[0]
