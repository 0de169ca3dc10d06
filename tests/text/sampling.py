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
        bits = np.zeros(-(-len(logits) // 32) * 32, bool)
        bits[list(allowed)] = True
        words = np.packbits(bits, bitorder="little").view("<u4").astype(np.uint32)
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


def random_numbers(seed: int, count: int) -> list[int]:
    """The first numbers of 53 bits that a sampler draws: xoshiro256** seeded by splitmix64, written out again."""
    mask = 2**64 - 1

    def rotate(x: int, k: int) -> int:
        return (x << k | x >> (64 - k)) & mask

    state = []
    z = seed
    for _ in range(4):
        z = (z + 0x9E3779B97F4A7C15) & mask
        y = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        y = (y ^ y >> 27) * 0x94D049BB133111EB & mask
        state.append(y ^ y >> 31)
    numbers = []
    for _ in range(count):
        numbers.append((rotate(state[1] * 5 & mask, 7) * 9 & mask) >> 11)
        t = state[1] << 17 & mask
        state[2] ^= state[0]
        state[3] ^= state[1]
        state[1] ^= state[2]
        state[0] ^= state[3]
        state[2] ^= t
        state[3] = rotate(state[3], 45)
    return numbers


FILTERS: list[dict[str, Any]] = [
    {}, {"temperature": 0.5}, {"temperature": 2.5}, {"top_k": 1}, {"top_k": 7}, {"top_k": 7, "temperature": 3.0},
    {"top_p": 0.9}, {"top_p": 0.3, "temperature": 1.7}, {"top_p": 0.0}, {"min_p": 0.2}, {"min_p": 1.0},
    {"min_p": 0.05, "temperature": 2.0}, {"top_k": 12, "top_p": 0.8}, {"top_k": 20, "top_p": 0.95, "min_p": 0.1},
    {"top_k": 1000, "top_p": 0.7},
]
