"""Choosing tokens from logits."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict, cast

import numpy as np
import numpy.typing as npt

from gguf_export.sampling import RECOMMENDABLE, recommended
from pyflash.native.errors import ArgumentError, check
from pyflash.native.library import ffi, lib
from pyflash.native.values import FloatArray, Tokens, floats, integer, ints, token_array

MAX_LOGPROBS = 20


class SamplingOptions(TypedDict, total=False):
    """How tokens are chosen, as keyword arguments of Session.generate() and Session.chat().

    What is not given is as the model's file recommends, which Model.sampling tells, or else as below.

    In the order in which they act:

    - repetition_penalty (1: off), frequency_penalty, presence_penalty (0: off): make tokens less likely that stand
      among the last penalty_last_n of what the session holds, the prompt's and the answer's (64; 0: none, -1: all).
    - top_k: keep the k likeliest (0: all). top_p: keep the likeliest that together have this probability (1: all).
      min_p: keep those at least this share as likely as the likeliest (0: all).
    - temperature: 1; 0 takes the likeliest token.
    - seed: makes the choice repeatable; None, or -1 as elsewhere, for a random one.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int | None
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    penalty_last_n: int


# The options that a model's file can recommend values of.
RECOMMENDED = frozenset(each.field for each in RECOMMENDABLE)


def recommended_sampling(number_of: Callable[[str], Any]) -> SamplingOptions:
    """What a file recommends. number_of: its value of a GGUF key, or None."""
    return cast(SamplingOptions, recommended(lambda each: number_of(each.key)))


_PENALTIES = {"repetition_penalty", "presence_penalty", "frequency_penalty"}
_NUMBERS = ("temperature", "top_p", "min_p", *_PENALTIES)


@dataclass(frozen=True)
class TokenLogprob:
    """A token that was likely at some place. text: its bytes as text, U+FFFD where they are no whole character."""

    token: int
    text: str
    logprob: float


class Sampler:
    """A pf_sampler: options, random state and the tokens that the penalties look at. For one thread."""

    def __init__(self, options: SamplingOptions, *, with_logprobs: bool = True) -> None:
        """with_logprobs: False where nobody asks for them: they take as long as the picking."""
        params = ffi.new("pf_sampler_params *")
        lib.pf_sampler_params_init(params)
        for name, value in options.items():
            if name in _NUMBERS:
                setattr(params, name, _number(name, value))
            elif name not in SamplingOptions.__annotations__:
                known = ", ".join(SamplingOptions.__annotations__)
                raise TypeError(f"unknown argument {name!r}; the sampling options are {known}")
        if "top_k" in options:
            params.top_k = integer("top_k", options["top_k"], 0, 2**31 - 1)
        if "penalty_last_n" in options:
            params.penalty_last_n = integer("penalty_last_n", options["penalty_last_n"], -1, 2**31 - 1)
        seed = options.get("seed")
        number = -1 if seed is None else integer("seed", seed)
        params.seed = secrets.randbits(64) if number == -1 else number & (2**64 - 1)
        out, error = ffi.new("pf_sampler **"), ffi.new("pf_error *")
        check(lib.pf_sampler_open(params, out, error), error)
        self._native = ffi.gc(out[0], lib.pf_sampler_close)
        self._with_logprobs = with_logprobs
        self._remembers = bool(options.keys() & _PENALTIES)

    def accept(self, tokens: Tokens) -> None:
        """Lets the penalties, if there are any, see tokens that were not picked here, such as the prompt's."""
        if not self._remembers:
            return
        ids, error = token_array(tokens), ffi.new("pf_error *")
        check(lib.pf_sampler_accept(self._native, ints(ids), len(ids), error), error)

    def pick(self, logits: FloatArray, allowed: npt.NDArray[np.uint32] | None = None) -> tuple[int, float]:
        """A token, and its log-probability by the logits as given, NaN without logprobs. allowed: a bit for each token, lowest
        first."""
        token, error = ffi.new("int32_t *"), ffi.new("pf_error *")
        logprob = ffi.new("float *") if self._with_logprobs else ffi.NULL
        bits = ffi.NULL if allowed is None else ffi.cast("uint32_t *", allowed.ctypes.data)
        check(lib.pf_sampler_pick_allowed(self._native, floats(logits), logits.size, bits, token, logprob, error), error)
        return int(token[0]), float(logprob[0]) if self._with_logprobs else math.nan


def _number(name: str, value: object) -> float:
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise ArgumentError(f"{name} must be a number, not {value!r:.40}")


def top_logprobs(logits: FloatArray, n: int) -> list[tuple[int, float]]:
    """The n likeliest tokens and their log-probabilities, likeliest first."""
    n = min(n, logits.size)
    tokens, logprobs = np.empty(n, dtype=np.int32), np.empty(n, dtype=np.float32)
    error = ffi.new("pf_error *")
    check(lib.pf_top_logprobs(floats(logits), logits.size, n, ints(tokens), floats(logprobs), error), error)
    return list(zip(tokens.tolist(), logprobs.tolist(), strict=True))
