"""What `pyflash cluster plan` tells: stages, where they go, what they take, and how fast that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyflash.cluster.costs import ModelCosts
from pyflash.cluster.placement import SHARE, Placement
from pyflash.machine.units import format_bytes

PROMPT: int = 8192  # tokens of the prompt that the plan speaks of
PIECE: int = 512  # and of the pieces in which it goes through the stages


@dataclass(frozen=True)
class ClusterPlan:
    """file: its name; context, n_sessions: that the memory is planned for."""

    file: str
    context: int
    n_sessions: int
    costs: ModelCosts
    placement: Placement

    @property
    def prompt_gain(self) -> float:
        return self.placement.prompt_gain(-(-PROMPT // PIECE))

    def as_json(self) -> dict[str, Any]:
        placement, link = self.placement, self.placement.link
        stages = [
            {"stage": number, "node": stage.node.name, "first_layer": stage.layers[0], "end_layer": stage.layers[1],
             "memory_bytes": stage.memory_bytes, "node_memory_bytes": stage.node.memory_bytes,
             "node_bandwidth": stage.node.bandwidth, "read_bytes": stage.read_bytes, "seconds": stage.seconds}
            for number, stage in enumerate(placement.stages)
        ]
        return {"file": self.file, "context": self.context, "n_sessions": self.n_sessions, "stages": stages,
                "link": {"bytes_per_second": link.rate, "delay_seconds": link.delay, "call_seconds": link.call},
                "token_seconds": placement.token_seconds, "tokens_per_second": placement.rate,
                "tokens_per_second_together": placement.rate_together, "prompt_gain": self.prompt_gain,
                "bandwidth_share": SHARE}  # fmt: skip

    def rows(self) -> list[tuple[str, ...]]:
        """A table for people: a heading, and a row a stage."""
        table: list[tuple[str, ...]] = [("stage", "node", "layers", "memory", "free there", "reads a token", "ms a token")]
        for number, stage in enumerate(self.placement.stages):
            first, end = stage.layers
            table.append((str(number), stage.node.name, f"{first}-{end - 1}", format_bytes(stage.memory_bytes),
                          format_bytes(stage.node.memory_bytes), format_bytes(stage.read_bytes), f"{1000 * stage.seconds:.2f}"))
        return table

    def summary(self) -> list[str]:
        """Lines below the table."""
        placement, link = self.placement, self.placement.link
        n = len(placement.stages)
        network = placement.token_seconds - sum(stage.seconds for stage in placement.stages)
        sessions = "one session" if self.n_sessions == 1 else f"each of {self.n_sessions} sessions"
        lines = [
            f"memory for {sessions} of {self.context:,} tokens; predicted, from an empty context:",
            f"one session: {placement.rate:.2f} tokens/s, {1000 * network:.1f} ms of each token between the stages",
        ]
        if n > 1:
            lines += [
                f"{n} sessions or more: {placement.rate_together:.2f} tokens/s together",
                f"a prompt of {PROMPT:,} tokens: {self.prompt_gain:.2f} times as fast as on one such machine with room for all",
            ]
        return [*lines, f"taken for that: links of {8 * link.rate / 1e9:g} Gbit/s and {1000 * link.delay:g} ms, "
                        f"{1000 * link.call:g} ms a call, decoding at {SHARE:.0%} of the read bandwidth"]
