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

_PROFILED = 4  # steps of every size
_ROUNDS = 8  # of every size, for one repetition of the others: a step takes no longer than a few tokens


@dataclass(frozen=True)
class StepSpeed:
    """Steps of n_tokens random tokens, all of whose logits are computed. seconds: of each step. one: median seconds of a
    step of one token, measured in turn with these. experts: different ones that a layer used, mean over steps and layers;
    weight_bytes: that a step reads, mean. bandwidth: bytes/s, measured before. None where a device reads some of it.
    operations: of further steps, where the plan asks for them, and profiled: the seconds of each of those.
    """

    n_tokens: int
    depth: int
    seconds: tuple[float, ...]
    one: float
    experts: float | None
    weight_bytes: int | None
    bandwidth: float
    operations: tuple[Operation, ...] = ()
    profiled: tuple[float, ...] = ()

    @property
    def title(self) -> str:
        return f"step of {self.n_tokens} at depth {self.depth}"

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
        operations, profiled = _operations(bench, size)
        used = sum(each.matrices for each in operations if each.name == "experts")
        experts = used / (len(profiled) * bench.model.info.n_layer) if profiled else None
        weight_bytes = sum(each.weight_bytes for each in operations) // len(profiled) if profiled else None
        shown = (operations, profiled) if bench.plan.profile else ((), ())
        yield StepSpeed(size, depth, tuple(seconds[size]), statistics.median(seconds[1]), experts, weight_bytes, bandwidth,
                        *shown)


def _step(bench: Bench, size: int) -> float:
    tokens = bench.tokens(size)
    started = perf_counter()
    bench.session.eval(tokens, all_logits=True)
    took = perf_counter() - started
    bench.session.rollback(size)
    return took


def _operations(bench: Bench, size: int) -> tuple[tuple[Operation, ...], tuple[float, ...]]:
    """(the operations of a few more steps together, the seconds of each step); none where there is a device."""
    if bench.model.placement.weight_bytes > 0:
        return (), ()
    profiler = bench.model.profiler()
    bench.session.profile(profiler)
    try:
        seconds = tuple(_step(bench, size) for _ in range(_PROFILED))
        return tuple(profiler.operations()), seconds
    finally:
        bench.session.profile(None)
