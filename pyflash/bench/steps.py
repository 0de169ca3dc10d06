"""Measures steps of a few tokens: what verifying drafts and several chats at once cost next to one token."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

from pyflash.machine import hardware

if TYPE_CHECKING:
    from pyflash.bench.measure import Bench
    from pyflash.engine.profiler import Operation

_ROUNDS = 8  # of every size, for one repetition of the others: a step takes no longer than a few tokens


@dataclass(frozen=True)
class StepSpeed:
    """Steps of n_tokens random tokens, all of whose logits are computed. seconds: of each step. one: median seconds of a
    step of one token, measured in turn with these. experts: different ones that a layer used, mean over steps and layers;
    weight_bytes: that a step reads, mean. bandwidth: bytes/s, measured before. None where a device reads some of it.
    """

    n_tokens: int
    depth: int
    seconds: tuple[float, ...]
    one: float
    experts: float | None
    weight_bytes: int | None
    bandwidth: float

    @property
    def typical(self) -> float:
        return statistics.median(self.seconds)

    @property
    def v(self) -> float:
        """V(T): the time of the step over that of one token."""
        return self.typical / self.one

    @property
    def bandwidth_share(self) -> float | None:
        return None if self.weight_bytes is None else self.weight_bytes / self.typical / self.bandwidth


def run(bench: Bench, depth: int) -> Iterator[StepSpeed]:
    """The plan's batches at the session's position. Sizes take turns, so that all meet the same machine."""
    sizes = sorted({1, *bench.plan.batches})
    seconds: dict[int, list[float]] = {size: [] for size in sizes}
    bandwidth = bench.model.read_bandwidth(max(1 << 28, 4 * hardware.outer_cache_bytes()))
    _step(bench, max(sizes))  # warms up
    rounds = _ROUNDS * bench.plan.repeat
    for number in range(rounds):
        bench.note(f"steps of {bench.plan.batches} tokens", number, rounds)
        for size in sizes:
            seconds[size].append(_step(bench, size))
    for size in sizes:
        experts, weight_bytes = _count(bench, size)
        yield StepSpeed(size, depth, tuple(seconds[size]), statistics.median(seconds[1]), experts, weight_bytes, bandwidth)


def _step(bench: Bench, size: int) -> float:
    tokens = bench.tokens(size)
    started = perf_counter()
    bench.session.eval(tokens, all_logits=True)
    took = perf_counter() - started
    bench.session.rollback(size)
    return took


def _count(bench: Bench, size: int) -> tuple[float | None, int | None]:
    """(different experts a layer, bytes of weights a step) of steps that are not timed."""
    if bench.model.placement.weight_bytes > 0:
        return None, None
    steps, profiler = 4, bench.model.profiler()
    bench.session.profile(profiler)
    try:
        for _ in range(steps):
            _step(bench, size)
        operations = profiler.operations()
    finally:
        bench.session.profile(None)
    used = sum(each.matrices for each in operations if each.name == "experts")
    return used / (steps * bench.model.info.n_layer), _weight_bytes(operations) // steps


def _weight_bytes(operations: list[Operation]) -> int:
    return sum(each.weight_bytes for each in operations)
