"""Which stage is opened where: planned by what the machines have, or layers in equal parts, over the machines in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyflash.engine.stages import Layers, cut
from pyflash.native.errors import ArgumentError, DeviceError
from pyflash.native.values import StrPath

if TYPE_CHECKING:
    from pyflash.cluster.ray_runtime import Connection


@dataclass(frozen=True)
class StagePlace:
    """The layers (first, end) of a stage, and the machine: Ray's id of the node. file: its path there, "" where nobody has
    looked yet."""

    layers: Layers
    node: str
    file: str = ""


def lay_out(n_layer: int, stages: str | int | Sequence[Layers], nodes: Sequence[dict[str, Any]]) -> list[StagePlace]:
    """stages: "auto" for one on each machine, their number, or the layers of each. nodes: as of Connection.nodes()."""
    if not nodes:
        raise DeviceError("the Ray cluster has no machine to open a stage on")
    if isinstance(stages, str):
        if stages != "auto":
            raise ArgumentError(f'stages must be "auto", a number, or the layers of each stage, not {stages!r:.40}')
        stages = min(len(nodes), n_layer)
    ranges = cut(n_layer, stages) if isinstance(stages, int) else [(int(a), int(b)) for a, b in stages]
    # Neighbours on one machine, where there are more stages than machines: streams then stay there.
    return [StagePlace(layers, nodes[i * len(nodes) // len(ranges) if len(ranges) > len(nodes) else i]["NodeID"])
            for i, layers in enumerate(ranges)]  # fmt: skip


def in_common(sets: Sequence[Sequence[str]]) -> list[str]:
    """The kernel sets that are in all lists, in the order of the first; each machine lists its own best first."""
    return [name for name in sets[0] if all(name in each for each in sets)] if sets else []


def another_node(gone: str, nodes: Sequence[dict[str, Any]], used: Sequence[str]) -> str:
    """Where a stage is opened again: on its own machine if that is there, else on the one that has fewest stages."""
    names = [node["NodeID"] for node in nodes]
    if not names:
        raise DeviceError("the Ray cluster has no machine left to open a stage on")
    return gone if gone in names else min(names, key=lambda name: used.count(name))


def planned(connection: Connection, path: StrPath, stages: str | int | Sequence[Layers], n_layer: int) -> list[StagePlace]:
    """Which stage is opened where: as lay_out() where this machine is alone, or the layers are given; else by each machine's
    memory and bandwidth, "auto" being as few stages as have room. MemoryLimitError where there is no room."""
    from pyflash.cluster.costs import model_costs
    from pyflash.cluster.nodes import survey, usable
    from pyflash.cluster.placement import place

    nodes = connection.nodes()
    if len(nodes) < 2 or not (stages == "auto" or isinstance(stages, int)):
        return lay_out(n_layer, stages, nodes)
    facts = usable(survey(connection))
    by_name = {each.name: each.node_id for each in facts}
    placement = place(model_costs(path), [each.node() for each in facts], None if stages == "auto" else int(stages))
    return [StagePlace(stage.layers, by_name[stage.node.name]) for stage in placement.stages]
