"""The sampler: steps against a plain numpy rendering of their definition, distributions, determinism, bad input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from .conftest import ARGUMENT, Native, NativeError
from .sampling import FILTERS, Logits, OpenSampler, Sampler, random_numbers, softmax

pytestmark = pytest.mark.quick


def expected_distribution(logits: Logits, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0,
                          temperature: float = 1.0) -> NDArray[np.float64]:
    """Probability of each token, from the definition in pyflash.h."""
    order = np.lexsort((np.arange(len(logits)), -logits.astype(np.float64)))
    if top_k:
        order = order[:top_k]
    share = softmax(logits[order])
    if top_p < 1:
        order = order[:int(np.searchsorted(np.cumsum(share), top_p)) + 1]
        share = softmax(logits[order])
    order = order[share >= min_p * share[0]]
    result = np.zeros(len(logits))
    result[order] = softmax(logits[order], temperature)
    return result


def chi_square_is_plausible(counts: NDArray[Any], probabilities: NDArray[np.float64]) -> bool:
    """Five standard deviations of the statistic; tokens with fewer than 10 expected draws are taken together."""
    draws = counts.sum()
    rare = probabilities * draws < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(probabilities[~rare], probabilities[rare].sum()) * draws
    observed, expected = observed[expected > 0], expected[expected > 0]
    freedom = len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return abs(statistic - freedom) <= 5 * math.sqrt(2 * max(freedom, 1))


@pytest.mark.parametrize("params", FILTERS, ids=str)
def test_distribution(sampler: OpenSampler, params: dict[str, Any]) -> None:
    logits = (np.random.default_rng(3).standard_normal(60) * 1.5).astype(np.float32)
    expected = expected_distribution(logits, **params)
    draws = 40_000
    counts = np.bincount(sampler(seed=5, **params).picks(logits, draws), minlength=len(logits))
    assert not counts[expected == 0].any()
    assert counts[expected * draws > 30].all()
    assert chi_square_is_plausible(counts, expected)


def test_filters_keep_exactly_the_defined_set(sampler: OpenSampler) -> None:
    """A high temperature draws all that is left alike, so that 1,500 draws of at most 40 tokens miss none."""
    rng = np.random.default_rng(4)
    for case in range(40):
        n = int(rng.integers(1, 40))
        logits = np.round(rng.standard_normal(n) * 3, 1).astype(np.float32)  # rounded: many ties
        params: dict[str, Any] = {"top_k": int(rng.integers(0, n + 3)), "min_p": float(rng.choice([0, 0.013, 0.21])),
                                  "top_p": float(rng.choice([0.17, 0.537, 0.913, 1.0]))}
        kept = set(np.flatnonzero(expected_distribution(logits, **params)).tolist())
        assert set(sampler(seed=case, temperature=1e6, **params).picks(logits, 1500)) == kept, params


def test_ties_at_the_border_go_to_the_lower_id(sampler: OpenSampler) -> None:
    logits = np.array([0, 1, 0, 1, 0, 1], np.float32)
    assert set(sampler(top_k=2, seed=1).picks(logits, 200)) == {1, 3}
    assert set(sampler(top_k=4, temperature=100, seed=1).picks(logits, 300)) == {0, 1, 3, 5}
    assert set(sampler(top_p=0.3, seed=1).picks(logits, 200)) == {1, 3}


def test_temperature_zero(sampler: OpenSampler) -> None:
    greedy = sampler(temperature=0, seed=9)
    assert greedy.pick(np.array([1, 3, 2, 3], np.float32)) == 1
    assert greedy.pick(np.array([-np.inf, -np.inf, -5], np.float32)) == 2
    assert greedy.pick(np.zeros(1000, np.float32)) == 0
    assert greedy.pick(np.array([-0.0, 0.0], np.float32)) == 0


def test_masked_tokens_are_never_drawn(sampler: OpenSampler) -> None:
    logits = np.full(50, -np.inf, np.float32)
    logits[[4, 40]] = 0.5
    for params in ({}, {"top_k": 10}, {"top_p": 0.99}, {"temperature": 1e30}):
        assert set(sampler(seed=2, **params).picks(logits, 100)) == {4, 40}


@pytest.mark.parametrize("temperature", [0.0, 1e-40, 1e-6, 1.0])
def test_extreme_logits(sampler: OpenSampler, temperature: float) -> None:
    top = float(np.finfo(np.float32).max)
    assert sampler(temperature=temperature, seed=1).picks(np.array([-top, top, 0, -top], np.float32), 20) == [1] * 20


def test_logprob_is_before_any_filter(sampler: OpenSampler) -> None:
    rng = np.random.default_rng(6)
    for params in ({"temperature": 0}, {"top_k": 3, "temperature": 0.3}, {"top_p": 0.5}, {}):
        picker = sampler(seed=8, **params)
        for scale in (0.0, 1.0, 30.0):
            logits = (rng.standard_normal(5000) * scale).astype(np.float32)
            token = picker.pick(logits)
            exact = np.log(softmax(logits)[token])
            assert picker.logprob[0] == pytest.approx(exact, rel=1e-6, abs=1e-9)


def test_seeds(sampler: OpenSampler) -> None:
    logits = np.random.default_rng(1).standard_normal(500).astype(np.float32)
    first = sampler(seed=123).picks(logits, 100)
    assert sampler(seed=123).picks(logits, 100) == first
    assert sampler(seed=124).picks(logits, 100) != first
    assert sampler(seed=2**64 - 1).picks(logits, 100) != sampler(seed=0).picks(logits, 100)


def test_tokens_of_a_seed_never_change(sampler: OpenSampler) -> None:
    """The promise that a seed means the same tokens on every platform and in every release: recorded values."""
    logits = (np.arange(1000) * 7919 % 1000 / 125).astype(np.float32)
    assert sampler(seed=42).picks(logits, 8) == RECORDED["plain"]
    assert sampler(seed=42, top_k=40, top_p=0.9, min_p=0.3, temperature=0.7).picks(logits, 8) == RECORDED["filtered"]


RECORDED: dict[str, list[int]] = {"plain": [88, 383, 672, 926, 988, 771, 718, 852],
                                  "filtered": [963, 852, 383, 593, 556, 667, 25, 630]}


def test_first_draws_follow_the_published_generator(sampler: OpenSampler) -> None:
    """Equal logits turn a draw into floor(u * n)."""
    expected = [number * 4096 >> 53 for number in random_numbers(77, 200)]
    assert sampler(seed=77).picks(np.zeros(4096, np.float32), 200) == expected


def whole_vocabulary(kind: str) -> Logits:
    rng = np.random.default_rng(20)
    logits = rng.standard_normal(129_280) * {"flat": 0.1, "ties": 2.0, "steep": 6.0}[kind]
    if kind == "ties":
        logits = np.where(rng.random(logits.size) < 0.3, -0.0, np.round(logits * 4) / 4)  # 0.0 equals -0.0
    found: Logits = logits.astype(np.float32)
    return found


@pytest.mark.parametrize("kind", ["flat", "ties", "steep"])
@pytest.mark.parametrize("params", [{}, {"temperature": 0.7}, {"top_p": 0.95}, {"top_p": 0.5, "temperature": 1.3},
                                    {"top_k": 40}, {"top_k": 100_000}, {"top_k": 5000, "top_p": 0.9}, {"min_p": 0.05}], ids=str)
def test_the_very_tokens_of_a_whole_vocabulary(sampler: OpenSampler, params: dict[str, Any], kind: str) -> None:
    """What is drawn stands where the random number falls: by ids, or by logits where top_k or top_p have sorted them."""
    logits = whole_vocabulary(kind)
    allowed = np.flatnonzero(np.random.default_rng(21).random(logits.size) < 0.4)
    for tokens in (np.arange(logits.size), allowed):
        kept = tokens[expected_distribution(logits[tokens], **params) > 0]
        if "top_k" in params or "top_p" in params:
            kept = kept[np.lexsort((kept, -logits[kept].astype(np.float64)))]
        reached = np.cumsum(softmax(logits[kept], params.get("temperature", 1.0)))
        drawn = np.array([number / 2**53 for number in random_numbers(22, 5)]) * reached[-1]
        picker = sampler(seed=22, **params)
        picks = [picker.pick(logits) if tokens is not allowed else picker.pick_allowed(logits, tokens) for _ in drawn]
        assert picks == kept[np.searchsorted(reached, drawn, side="right")].tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("params", [{"temperature": 0}, {}, {"top_k": 2}], ids=str)
def test_bad_logits_are_refused_and_change_nothing(sampler: OpenSampler, params: dict[str, float], bad: float) -> None:
    good = np.random.default_rng(2).standard_normal(64).astype(np.float32)
    clean, disturbed = sampler(seed=3, **params), sampler(seed=3, **params)
    for position in (0, 31, 63):
        logits = good.copy()
        logits[position] = bad
        with pytest.raises(NativeError) as caught:
            disturbed.pick(logits)
        assert caught.value.code == ARGUMENT and str(position) in caught.value.message
        assert disturbed.token[0] == -7 and disturbed.logprob[0] == 5.0
    with pytest.raises(NativeError, match="every logit"):
        disturbed.pick(np.full(8, -np.inf, np.float32))
    assert disturbed.picks(good, 50) == clean.picks(good, 50)


@pytest.mark.parametrize("params", [
    {"temperature": -0.1}, {"temperature": math.nan}, {"temperature": math.inf}, {"top_k": -1}, {"top_p": -0.1},
    {"top_p": 1.1}, {"top_p": math.nan}, {"min_p": -0.1}, {"min_p": 1.5}, {"min_p": math.nan},
    {"repetition_penalty": 0.0}, {"repetition_penalty": -1.0}, {"repetition_penalty": math.inf},
    {"repetition_penalty": math.nan}, {"presence_penalty": math.inf}, {"presence_penalty": math.nan},
    {"frequency_penalty": -math.inf}, {"frequency_penalty": math.nan}, {"penalty_last_n": -2},
    {"struct_size": 0}, {"struct_size": 3}], ids=str)
def test_bad_parameters(native: Native, params: dict[str, float]) -> None:
    name, value = next(iter(params.items()))
    with pytest.raises(NativeError) as caught:
        Sampler(native, **params)
    assert caught.value.code == ARGUMENT
    assert ("pf_sampler_params_init" if name == "struct_size" else f"{name} must be ") in caught.value.message
    assert name == "struct_size" or f"not {value:g}" in caught.value.message


def test_callers_of_other_versions(sampler: OpenSampler) -> None:
    """An older caller's struct ends earlier and leaves the rest at its default; a newer one's end is passed over."""
    flat = np.zeros(64, np.float32)
    older = sampler(struct_size=8, top_k=0, temperature=0.0)  # ends before temperature, which stays 1
    assert len(set(older.picks(flat, 50))) > 1
    newer = sampler(struct_size=4096, temperature=0.0)
    assert set(newer.picks(flat, 50)) == {0}
    before_penalties = sampler(struct_size=32, temperature=0.0, repetition_penalty=9.0, presence_penalty=9.0)
    assert set(before_penalties.picks(flat, 50)) == {0}


def test_bad_calls(native: Native, sampler: OpenSampler) -> None:
    ffi = native.ffi
    handle = sampler(seed=1).handle
    token = ffi.new("int32_t *", -7)
    logits = ffi.new("float[]", [1.0, 2.0])
    for arguments in ((ffi.NULL, logits, 2, token), (handle, ffi.NULL, 2, token), (handle, logits, 0, token),
                      (handle, logits, -1, token), (handle, logits, 2, ffi.NULL)):
        with pytest.raises(NativeError) as caught:
            native.call("pf_sampler_pick", *arguments, ffi.NULL)
        assert caught.value.code == ARGUMENT
    assert token[0] == -7
    native.call("pf_sampler_pick", handle, logits, 2, token, ffi.NULL)
    assert token[0] in (0, 1)
    native.lib.pf_sampler_close(ffi.NULL)
