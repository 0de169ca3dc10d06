"""The C sampler for tests, and what several of them compare it with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .conftest import Native

Logits = NDArray[np.float32]


class Sampler:
    def __init__(self, native: Native, **params: float) -> None:
        self.native = native
        ffi = native.ffi
        values = ffi.new("pf_sampler_params *")
        native.lib.pf_sampler_params_init(values)
        for name, value in params.items():
            setattr(values, name, value)
        out = ffi.new("pf_sampler **")
        native.call("pf_sampler_open", values, out)
        self.handle = out[0]
        self.token = ffi.new("int32_t *", -7)
        self.logprob = ffi.new("float *", 5.0)

    def pick(self, logits: Logits) -> int:
        pointer = self.native.ffi.from_buffer("float[]", logits)
        self.native.call("pf_sampler_pick", self.handle, pointer, len(logits), self.token, self.logprob)
        return int(self.token[0])

    def pick_allowed(self, logits: Logits, allowed: Iterable[int], stray_bits: bool = False) -> int:
        """stray_bits: sets the bits of the last word beyond the vocabulary too."""
        words = np.zeros(-(-len(logits) // 32), np.uint32)
        for token in allowed:
            words[token // 32] |= np.uint32(1 << token % 32)
        if stray_bits and len(logits) % 32:
            words[-1] |= np.uint32(0xFFFFFFFF << len(logits) % 32 & 0xFFFFFFFF)
        from_buffer = self.native.ffi.from_buffer
        self.native.call("pf_sampler_pick_allowed", self.handle, from_buffer("float[]", logits), len(logits),
                         from_buffer("uint32_t[]", words), self.token, self.logprob)
        return int(self.token[0])

    def accept(self, tokens: Sequence[int]) -> None:
        self.native.call("pf_sampler_accept", self.handle, self.native.ffi.new("int32_t[]", list(tokens)), len(tokens))

    def picks(self, logits: Logits, count: int) -> list[int]:
        return [self.pick(logits) for _ in range(count)]


OpenSampler = Callable[..., Sampler]


def softmax(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    scaled = (logits.astype(np.float64) - logits.max()) / temperature
    weights = np.exp(scaled)
    return np.asarray(weights / weights.sum())


FILTERS: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 7}, {"top_k": 7, "temperature": 3.0},
    {"top_p": 0.9}, {"top_p": 0.3, "temperature": 1.7}, {"top_p": 0.0}, {"min_p": 0.2}, {"min_p": 1.0},
    {"min_p": 0.05, "temperature": 2.0}, {"top_k": 12, "top_p": 0.8}, {"top_k": 20, "top_p": 0.95, "min_p": 0.1},
    {"top_k": 1000, "top_p": 0.7},
]
