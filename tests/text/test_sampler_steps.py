"""Penalties, allowed tokens and top log-probabilities against a plain numpy rendering of their definition."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from .conftest import ARGUMENT, Native, NativeError
from .sampling import FILTERS, Logits, OpenSampler, softmax

pytestmark = pytest.mark.quick

# ---- Penalties ------------------------------------------------------------------------------------------------------

PENALTIES: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.7}, {"presence_penalty": 0.6}, {"frequency_penalty": 0.31},
    {"presence_penalty": -0.4, "frequency_penalty": -0.11},
    {"repetition_penalty": 1.17, "presence_penalty": 0.3, "frequency_penalty": 0.07},
]


def penalise(logits: Logits, history: Iterable[int], repetition_penalty: float = 1.0, presence_penalty: float = 0.0,
             frequency_penalty: float = 0.0) -> Logits:
    """From the definition in pyflash.h, every operation rounded to float32."""
    out: Logits = logits.copy()
    f = np.float32
    for token, count in Counter(history).items():
        x = out[token]
        x = x / f(repetition_penalty) if x > 0 else x * f(repetition_penalty)
        out[token] = x - (f(count) * f(frequency_penalty) + f(presence_penalty))
    return out


@pytest.mark.parametrize("params", PENALTIES, ids=str)
def test_penalties_are_exact(sampler: OpenSampler, params: dict[str, Any]) -> None:
    """A token whose logit is the penalised one ties, and one float32 beside it the tie is broken."""
    rng = np.random.default_rng(12)
    for _ in range(100):
        count = int(rng.integers(1, 9))
        logit = np.float32(rng.standard_normal() * 10.0 ** rng.integers(-2, 3))
        wanted = penalise(np.array([logit], np.float32), [0] * count, **params)[0]
        for first, second, expected in ((logit, wanted, 0), (logit, np.nextafter(wanted, np.float32(np.inf)), 1)):
            greedy = sampler(temperature=0, **params)
            greedy.accept([0] * count)
            assert greedy.pick(np.array([first, second], np.float32)) == expected
        for other, expected in ((wanted, 0), (np.nextafter(wanted, np.float32(-np.inf)), 1)):
            greedy = sampler(temperature=0, **params)
            greedy.accept([1] * count)
            assert greedy.pick(np.array([other, logit], np.float32)) == expected


@pytest.mark.parametrize("last_n", [-1, 0, 1, 2, 5, 64, 100])
def test_penalties_look_at_the_last_tokens(sampler: OpenSampler, last_n: int) -> None:
    """Picks and accepted tokens, mixed, against a list of all of them."""
    rng = np.random.default_rng(13)
    penalties = {"repetition_penalty": 1.25, "presence_penalty": 0.5, "frequency_penalty": 0.25}
    greedy = sampler(temperature=0, penalty_last_n=last_n, **penalties)
    history: list[int] = []
    seen_again = 0
    for _ in range(300):
        if rng.random() < 0.2:
            tokens = rng.integers(0, 12, rng.integers(0, 150)).tolist()
            greedy.accept(tokens)
            history += tokens
        logits = np.round(rng.standard_normal(10) * 8).astype(np.float32) / np.float32(4)  # coarse: many ties
        window = history if last_n < 0 else history[len(history) - min(last_n, len(history)):]
        expected = int(np.argmax(penalise(logits, [token for token in window if token < 10], **penalties)))
        picked = greedy.pick(logits)
        assert picked == expected
        seen_again += picked in window
        history.append(picked)
    assert last_n == 0 or seen_again > 0


def test_penalties_come_before_the_filters(sampler: OpenSampler) -> None:
    logits = np.array([5, 4, 3, 2], np.float32)
    for params, kept in (({"top_k": 2}, {1, 2}), ({"top_p": 0.6}, {1}), ({"min_p": 0.3}, {1, 2})):
        picker = sampler(temperature=50, presence_penalty=10, penalty_last_n=1, seed=3, **params)
        picks = set()
        for _ in range(200):
            picker.accept([0])
            picks.add(picker.pick(logits))
        assert picks == kept


def test_presence_penalty_walks_through_equal_tokens(sampler: OpenSampler) -> None:
    flat = np.zeros(5, np.float32)
    assert sampler(temperature=0, presence_penalty=1).picks(flat, 10) == [0, 1, 2, 3, 4] + [0] * 5
    assert sampler(temperature=0, presence_penalty=1, penalty_last_n=4).picks(flat, 10) == [0, 1, 2, 3, 4] * 2
    assert sampler(temperature=0, frequency_penalty=1).picks(np.zeros(3, np.float32), 9) == [0, 1, 2] * 3


def test_logprob_is_before_penalties_and_masks(sampler: OpenSampler) -> None:
    logits = np.random.default_rng(14).standard_normal(100).astype(np.float32)
    picker = sampler(temperature=0, presence_penalty=30)
    for _ in range(5):
        token = picker.pick(logits)
        assert picker.logprob[0] == pytest.approx(np.log(softmax(logits)[token]), rel=1e-6)
    token = picker.pick_allowed(logits, [7, 8])
    assert picker.logprob[0] == pytest.approx(np.log(softmax(logits)[token]), rel=1e-6)


def test_huge_penalties_stay_finite(sampler: OpenSampler) -> None:
    top = float(np.finfo(np.float32).max)
    logits = np.array([3, -3, -np.inf], np.float32)
    for params in ({"repetition_penalty": top}, {"repetition_penalty": 1e-40}, {"presence_penalty": top},
                   {"presence_penalty": -top}, {"frequency_penalty": top}, {"frequency_penalty": -top}):
        for temperature in (0.0, 1.0):
            picker = sampler(temperature=temperature, **params)
            picker.accept([0, 0, 1, 1, 2, 2])
            assert set(picker.picks(logits, 20)) <= {0, 1}


def test_neutral_penalties_change_no_pick(sampler: OpenSampler) -> None:
    logits = np.random.default_rng(15).standard_normal(300).astype(np.float32)
    for params in ({}, {"top_k": 20, "top_p": 0.9, "temperature": 0.8}):
        expected = sampler(seed=5, **params).picks(logits, 60)
        neutral = sampler(seed=5, repetition_penalty=1, presence_penalty=0, frequency_penalty=0, **params)
        off = sampler(seed=5, repetition_penalty=2, presence_penalty=1, penalty_last_n=0, **params)
        for picker in (neutral, off):
            picker.accept(list(range(300)))
            assert picker.picks(logits, 60) == expected


def test_accept_refuses_what_is_no_token(native: Native, sampler: OpenSampler) -> None:
    logits = np.zeros(4, np.float32)
    greedy = sampler(temperature=0, presence_penalty=1)
    greedy.accept([2**31 - 1, 4, 1000])  # of a larger vocabulary
    with pytest.raises(NativeError, match="token 1 is -1") as caught:
        greedy.accept([0, -1, 0])
    assert caught.value.code == ARGUMENT
    for arguments in ((native.ffi.NULL, native.ffi.NULL, 0), (greedy.handle, native.ffi.NULL, 1),
                      (greedy.handle, native.ffi.NULL, -1)):
        with pytest.raises(NativeError):
            native.call("pf_sampler_accept", *arguments)
    native.call("pf_sampler_accept", greedy.handle, native.ffi.NULL, 0)
    assert greedy.picks(logits, 4) == [0, 1, 2, 3]


# ---- Allowed tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("params", [*FILTERS, {"temperature": 0.0}, {"top_k": 5, **PENALTIES[5]}], ids=str)
@pytest.mark.parametrize("n", [1, 31, 32, 33, 100])
def test_allowed_tokens(sampler: OpenSampler, params: dict[str, Any], n: int) -> None:
    """As if the others had a logit of minus infinity; the filters count only what is allowed."""
    rng = np.random.default_rng(16)
    masked, plain = sampler(seed=6, **params), sampler(seed=6, **params)
    for step in range(30):
        logits = rng.standard_normal(n).astype(np.float32)
        allowed = np.flatnonzero(rng.random(n) < rng.choice([0.05, 0.5, 1.0])).tolist() or [int(rng.integers(n))]
        forbidden = np.full(n, -np.inf, np.float32)
        forbidden[allowed] = logits[allowed]
        assert masked.pick_allowed(logits, allowed, stray_bits=step % 2 == 0) == plain.pick(forbidden)


def test_no_allowed_token(sampler: OpenSampler) -> None:
    """An error that changes nothing: neither the random numbers nor the penalties' tokens."""
    logits = np.random.default_rng(17).standard_normal(70).astype(np.float32)
    logits[3] = -np.inf
    for params in ({"temperature": 0.0}, {}, {"top_k": 3}):
        clean, disturbed = (sampler(seed=7, presence_penalty=1, **params) for _ in range(2))
        for allowed, message in (([], "none is allowed"), ([3], "every allowed logit is minus infinity")):
            with pytest.raises(NativeError, match=message) as caught:
                disturbed.pick_allowed(logits, allowed, stray_bits=True)
            assert caught.value.code == ARGUMENT
            assert disturbed.token[0] == -7 and disturbed.logprob[0] == 5.0
        assert disturbed.picks(logits, 40) == clean.picks(logits, 40)


def test_bad_logits_of_forbidden_tokens_are_refused(sampler: OpenSampler) -> None:
    picker = sampler(seed=1)
    for bad in (np.nan, np.inf):
        with pytest.raises(NativeError, match="logit 1 "):
            picker.pick_allowed(np.array([0, bad, 1], np.float32), [0])


# ---- Top log-probabilities ------------------------------------------------------------------------------------------


def top_logprobs(native: Native, logits: Logits, n: int) -> tuple[list[int], list[float]]:
    ffi = native.ffi
    tokens, logprobs = ffi.new("int32_t[]", [-9] * (n + 1)), ffi.new("float[]", [9.0] * (n + 1))
    native.call("pf_top_logprobs", ffi.from_buffer("float[]", logits), len(logits), n, tokens, logprobs)
    assert tokens[n] == -9 and logprobs[n] == 9.0
    return list(tokens)[:n], list(logprobs)[:n]


def test_top_logprobs(native: Native) -> None:
    rng = np.random.default_rng(18)
    for _ in range(200):
        size = int(rng.integers(1, 60))
        logits = np.round(rng.standard_normal(size) * 4, int(rng.integers(0, 3))).astype(np.float32)  # many ties
        logits[rng.random(size) < 0.1] = -np.inf
        logits[int(rng.integers(size))] = 1.0
        n = int(rng.choice([0, 1, 20, size]).clip(0, size))
        tokens, logprobs = top_logprobs(native, logits, n)
        order = np.lexsort((np.arange(size), -logits.astype(np.float64)))[:n]
        assert tokens == order.tolist()
        with np.errstate(divide="ignore"):
            assert logprobs == pytest.approx(np.log(softmax(logits))[order].tolist(), rel=1e-6, abs=1e-7)


def test_top_logprobs_are_those_of_picks(native: Native, sampler: OpenSampler) -> None:
    logits = (np.random.default_rng(19).standard_normal(129280) * 4).astype(np.float32)
    tokens, logprobs = top_logprobs(native, logits, 20)
    greedy = sampler(temperature=0)
    assert greedy.pick(logits) == tokens[0] and greedy.logprob[0] == logprobs[0]
    for token, logprob in zip(tokens, logprobs, strict=True):
        assert greedy.pick_allowed(logits, [token]) == token and greedy.logprob[0] == logprob


def test_bad_calls_of_top_logprobs(native: Native) -> None:
    ffi = native.ffi
    tokens, logprobs = ffi.new("int32_t[4]", [-9] * 4), ffi.new("float[4]", [9.0] * 4)
    good = ffi.new("float[]", [1.0, 2.0, 3.0])
    for arguments, message in (
        ((ffi.NULL, 3, 1, tokens, logprobs), "null pointer"), ((good, 0, 0, tokens, logprobs), "no logits"),
        ((good, 3, 1, ffi.NULL, logprobs), "null pointer"), ((good, 3, 1, tokens, ffi.NULL), "null pointer"),
        ((good, 3, 4, tokens, logprobs), "0 to 3, not 4"), ((good, 3, -1, tokens, logprobs), "not -1"),
        ((ffi.new("float[]", [1.0, math.nan]), 2, 1, tokens, logprobs), "logit 1 is not a number"),
        ((ffi.new("float[]", [math.inf, 1.0]), 2, 1, tokens, logprobs), "logit 0 is infinite"),
        ((ffi.new("float[]", [-math.inf] * 2), 2, 1, tokens, logprobs), "every logit"),
    ):
        with pytest.raises(NativeError, match=message) as caught:
            native.call("pf_top_logprobs", *arguments)
        assert caught.value.code == ARGUMENT
    assert list(tokens) == [-9] * 4 and list(logprobs) == [9.0] * 4
    native.call("pf_top_logprobs", good, 3, 0, ffi.NULL, ffi.NULL)
