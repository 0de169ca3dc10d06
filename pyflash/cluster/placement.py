"""Which layers go to which node, and how fast that is: the best cut of a model for given machines, and the model of time
that says so.

Of a stage s with read_bytes r[s] a token, on a node that reads b[s] bytes a second:

    t[s] = r[s] / (SHARE * b[s])            evaluating a token; SHARE: what decoding reaches of the read bandwidth
    h(n) = call + delay + n / rate          n bytes from one stage to the next
    T    = sum(t) + h(0) + (S - 1) h(y) + h(v)

T is a token of one session: from the driver to the first stage, from stage to stage with the streams (y bytes), and the
logits (v bytes) back. With one stage, beside the driver, T = t + 2 call. One session decodes 1 / T tokens/s. As many sessions
as there are stages keep all of them at work, and together they decode 1 / max(t[s] + call, n / rate) tokens/s, n being the
most bytes that one link carries a token. A prompt of K chunks passes S stages in the time of K + S - 1 chunks of the slowest,
where what a stage w[s] has to do is as its layers' share of the bytes, the head's being asked for once:

    speed-up = sum(w[s] / b[s]) / max(w[s] / b[s]) * K / (K + S - 1)

over one machine that had room for the whole model, and all nodes' mean speed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from pyflash.cluster.costs import ModelCosts
from pyflash.machine.units import format_bytes
from pyflash.native.errors import ArgumentError, MemoryLimitError

# What decoding reaches of the bandwidth that plain reading has: docs/performance.md, "What limits it".
SHARE = 0.8


@dataclass(frozen=True)
class Node:
    """A machine: memory in bytes that a stage may take, and bytes a second that its threads read from memory."""

    name: str
    memory_bytes: int
    bandwidth: float


@dataclass(frozen=True)
class Link:
    """Between any two nodes. rate: bytes a second; delay: seconds one way; call: seconds that Ray and the
    stage take to pass a token from one process to another, without the network's: docs/cluster.md, "Why Ray's actor calls"."""

    rate: float = 125e6
    delay: float = 0.0001
    call: float = 0.002

    def seconds(self, n_bytes: int) -> float:
        """h(n) of the module's equations."""
        return self.call + self.delay + n_bytes / self.rate


@dataclass(frozen=True)
class Stage:
    """The layers (first, end) on a node. read_bytes, seconds: r and t of the module's equations; layer_bytes: w."""

    node: Node
    layers: tuple[int, int]
    memory_bytes: int
    read_bytes: int
    layer_bytes: int
    seconds: float


@dataclass(frozen=True)
class Placement:
    """Stages in order. The rates are tokens a second, from an empty context: of one session, and of as many sessions
    together as there are stages."""

    stages: tuple[Stage, ...]
    link: Link
    token_bytes: int
    logits_bytes: int

    @property
    def token_seconds(self) -> float:
        """T of the module's equations."""
        work, n = sum(stage.seconds for stage in self.stages), len(self.stages)
        if n == 1:
            return work + 2 * self.link.call
        link = self.link
        return work + link.seconds(0) + (n - 1) * link.seconds(self.token_bytes) + link.seconds(self.logits_bytes)

    @property
    def rate(self) -> float:
        return 1 / self.token_seconds

    @property
    def rate_together(self) -> float:
        slowest = max(stage.seconds for stage in self.stages) + self.link.call
        if len(self.stages) == 1:
            return 1 / slowest
        return 1 / max(slowest, max(self.token_bytes, self.logits_bytes) / self.link.rate)

    def prompt_gain(self, n_chunks: int) -> float:
        """The speed-up of the module's equations."""
        work, n = [stage.layer_bytes / stage.node.bandwidth for stage in self.stages], len(self.stages)
        return sum(work) / max(work) * n_chunks / (n_chunks + n - 1)


def place(costs: ModelCosts, nodes: Sequence[Node], n_stages: int | None = None, link: Link | None = None,
          share: float = SHARE) -> Placement:
    """The stages that keep the slowest of them shortest, and among those cuts the one that a token passes soonest.

    n_stages: None for as few as have room. Each node has at most one stage; where there are more stages than nodes, each
    node is divided into equal parts, as many as that takes. MemoryLimitError where the model has no room.
    """
    n_layer = len(costs.layers)
    if not nodes:
        raise ArgumentError("there is no node to place a stage on")
    if n_stages is not None and not 1 <= n_stages <= n_layer:
        raise ArgumentError(f"{n_layer} layers cannot be cut into {n_stages} stages")
    if len({node.name for node in nodes}) < len(nodes):
        raise ArgumentError(f"two nodes have one name: {', '.join(sorted(node.name for node in nodes))}")
    parts = -(-n_stages // len(nodes)) if n_stages is not None else 1
    slots = [replace(node, memory_bytes=node.memory_bytes // parts) for node in nodes for _ in range(parts)]
    found = _Search(costs, slots, share).best(n_stages)
    if found is None:
        raise MemoryLimitError(*_no_room(costs, nodes, n_stages))
    stages = tuple(
        Stage(slot, layers, costs.memory_bytes(*layers), read := costs.read_bytes(*layers),
              sum(part.read_bytes for part in costs.layers[slice(*layers)]), read / (share * slot.bandwidth))
        for slot, layers in found
    )
    return Placement(stages, link or Link(), costs.token_bytes, costs.logits_bytes)


def _no_room(costs: ModelCosts, nodes: Sequence[Node], n_stages: int | None) -> tuple[str, str]:
    whole, n = costs.memory_bytes(0, len(costs.layers)), n_stages or len(nodes)
    needed, there = whole + (n - 1) * costs.stage_bytes, sum(node.memory_bytes for node in nodes)
    stages = f"{n} stage{'s' * (n > 1)}"
    if needed > there:
        return (f"the model takes {format_bytes(needed)} in {stages}, and the nodes have {format_bytes(there)} free",
                "add a node, or plan for a smaller context or file")
    return (f"no cut into {stages} fits the nodes, which have "
            f"{', '.join(f'{node.name} {format_bytes(node.memory_bytes)}' for node in nodes)} free for "
            f"{format_bytes(needed)}", "try another number of stages, or free memory on one of them")


_Path = list[tuple[Node, tuple[int, int]]]  # each stage's node and layers
_Seconds = npt.NDArray[np.float64]
_Used = tuple[int, ...]  # how many nodes of each kind have a stage


class _Search:
    """Exact dynamic programming over how many nodes of each kind are used and the layers that these have, in order.

    The slowest stage's time first: the least maximum of a prefix and its next stage is all that matters of the prefix. Then
    the least sum under that maximum. In one pass for both a prefix that is slower and quicker in sum would be lost.
    """

    def __init__(self, costs: ModelCosts, slots: Sequence[Node], share: float) -> None:
        self._n_layer = len(costs.layers)
        kinds: dict[tuple[int, float], list[Node]] = {}
        for slot in slots:
            kinds.setdefault((slot.memory_bytes, slot.bandwidth), []).append(slot)
        self._kinds = list(kinds.values())
        self._seconds = [_stage_seconds(costs, kind[0], share) for kind in self._kinds]

    def best(self, n_stages: int | None) -> _Path | None:
        """None: nothing has room."""
        counts = range(1, sum(map(len, self._kinds)) + 1) if n_stages is None else [n_stages]
        slowest = self._tables(self._seconds, np.maximum, max(counts))
        for n in counts:
            ends = [table[self._n_layer] for used, table in slowest.items() if sum(used) == n]
            limit = min(ends, default=np.inf)
            if np.isfinite(limit):
                allowed = [np.where(seconds <= limit, seconds, np.inf) for seconds in self._seconds]
                sums = self._tables(allowed, np.add, n)
                last = min((used for used in sums if sum(used) == n), key=lambda used: float(sums[used][self._n_layer]))
                return self._trace(sums, allowed, last)
        return None

    def _tables(self, seconds: Sequence[_Seconds], combine: np.ufunc, n_stages: int) -> dict[_Used, _Seconds]:
        """For every choice of up to n_stages nodes and every number of layers that they have: the least that combine makes
        of their stages' seconds."""
        start = np.full(self._n_layer + 1, np.inf)
        start[0] = 0
        tables = {(0,) * len(self._kinds): start}
        front = list(tables)
        for _ in range(n_stages):
            reached: dict[_Used, _Seconds] = {}
            for used in front:
                for kind, more in self._next(used):
                    found = combine(tables[used][:, None], seconds[kind]).min(axis=0)
                    reached[more] = np.minimum(reached[more], found) if more in reached else found
            tables |= reached
            front = list(reached)
        return tables

    def _next(self, used: _Used) -> Iterator[tuple[int, _Used]]:
        for kind, nodes in enumerate(self._kinds):
            if used[kind] < len(nodes):
                yield kind, (*used[:kind], used[kind] + 1, *used[kind + 1 :])

    def _trace(self, sums: dict[_Used, _Seconds], seconds: Sequence[_Seconds], used: _Used) -> _Path:
        """The stages that the sums come from, from the last one back."""
        path: _Path = []
        end = self._n_layer
        while any(used):
            first, kind, before = min(
                ((first, kind, (*used[:kind], n - 1, *used[kind + 1 :]))
                 for kind, n in reversed(list(enumerate(used))) if n for first in range(end)),
                key=lambda step: float(sums[step[2]][step[0]] + seconds[step[1]][step[0], end]),
            )
            path.append((self._kinds[kind][used[kind] - 1], (first, end)))
            used, end = before, first
        return path[::-1]


def _stage_seconds(costs: ModelCosts, node: Node, share: float) -> _Seconds:
    """[first, end]: seconds a token of a stage of these layers on that node; infinite where there is no room, or no layer."""
    n_layer = len(costs.layers)
    seconds = np.full((n_layer + 1, n_layer + 1), np.inf)
    for first in range(n_layer):
        for end in range(first + 1, n_layer + 1):
            if costs.memory_bytes(first, end) > node.memory_bytes:
                break
            seconds[first, end] = costs.read_bytes(first, end) / (share * node.bandwidth)
    return seconds
