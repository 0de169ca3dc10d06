"""What each machine of a Ray cluster has, memory, read bandwidth, kernel sets, version, the model's file; what it lacks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gguf_export.outputs import write_output
from pyflash import demo
from pyflash.cluster.files import copies_folder, locate
from pyflash.cluster.identity import FileIdentity
from pyflash.cluster.layout import in_common
from pyflash.cluster.placement import Node
from pyflash.engine.model import Model
from pyflash.machine import hardware
from pyflash.machine.processor import processor
from pyflash.machine.units import format_bytes
from pyflash.native.errors import ArgumentError, DeviceError
from pyflash.native.library import __version__, lib

if TYPE_CHECKING:
    from pyflash.cluster.ray_runtime import Connection

SHARE_FREE: Final = 0.95  # of the memory that is available: the rest is left to what else runs there
_IDLE_LOAD: Final = 0.5  # a thread: above that load something else keeps the machine busy
_RATE: Final = "bytes_per_second"
_BUSY: Final = "busy"
PATIENCE: Final = 60.0  # seconds that a machine has to tell what it has; its first measurement takes a few

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class NodeFacts:
    """A machine. memory_bytes: that stages may take now; bandwidth: bytes a second that its threads read from memory.

    kernels: the kernel sets that it has, best first. file: as of files.Found.state, "" where none was asked for. disk_bytes:
    free where copies go. problem: why it could not tell the rest, "" where it could.
    """

    name: str
    address: str
    node_id: str
    memory_bytes: int = 0
    bandwidth: float = 0.0
    n_threads: int = 0
    kernels: tuple[str, ...] = ()
    version: str = ""
    arithmetic: int = 0
    file: str = ""
    disk_bytes: int = 0
    problem: str = ""

    def node(self) -> Node:
        """For place()."""
        return Node(self.name, self.memory_bytes, self.bandwidth)


# -- on the machine itself --


def look(path: str | None = None, identity: tuple[str, str] | None = None, layers: tuple[int, int] = (0, 0)) -> dict[str, Any]:
    """What this machine has: the fields of NodeFacts that it knows of itself. path, identity, layers: of a file to look for,
    the identity as FileIdentity's fields."""
    memory = hardware.memory()
    free = memory.available if memory.available is not None else memory.usable or 0
    place = next(each for each in (copies_folder(), *copies_folder().parents) if each.exists())
    rate, n_threads = read_bandwidth()
    return {
        "memory_bytes": int(free * SHARE_FREE), "bandwidth": rate, "n_threads": n_threads,
        "kernels": tuple(each.name for each in hardware.kernel_sets() if each.problem is None),
        "version": __version__, "arithmetic": int(lib.PF_ARITHMETIC_VERSION),
        "file": "" if path is None or identity is None else locate(path, FileIdentity(*identity), layers).state,
        "disk_bytes": shutil.disk_usage(place).free,
    }


def read_bandwidth() -> tuple[float, int]:
    """Bytes a second that pyflash's threads read from this machine's memory, and how many they are.

    Measured once, then kept in pyflash's cache folder for this processor, version and number of threads. What was measured
    while something else kept the machine busy counts until a later measurement is better.
    """
    file = copies_folder() / "bandwidth.json"
    cores = processor()
    with Model.open(demo.path(), "cpu") as model:
        n_threads = model.info.n_threads
        key = f"{cores.name}, {cores.usable or cores.logical} cores, {n_threads} threads, pyflash {__version__}"
        notes = _kept(file)
        known = notes.get(key)
        if known is None or known[_BUSY]:
            is_busy = os.getloadavg()[0] > _IDLE_LOAD * n_threads
            rate = model.read_bandwidth(max(1 << 28, 4 * hardware.outer_cache_bytes()))
            known = {_RATE: max(rate, known[_RATE] if known else 0.0), _BUSY: is_busy}
            file.parent.mkdir(parents=True, exist_ok=True)
            write_output(file, json.dumps({**notes, key: known}, indent=1).encode(), streams=False)
    return known[_RATE], n_threads


def _kept(file: Path) -> dict[str, dict[str, float]]:
    """The notes that can be read, by what they are of."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): {_RATE: float(note[_RATE]), _BUSY: bool(note[_BUSY])} for key, note in found.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


# -- from the driver --


def survey(connection: Connection, path: str | None = None, identity: FileIdentity | None = None,
           layers: tuple[int, int] = (0, 0), patience: float = PATIENCE) -> list[NodeFacts]:
    """Every machine of the cluster, this one first; each has so many seconds to answer."""
    wanted = {"path": path, "identity": None if identity is None else (identity.directory, identity.samples), "layers": layers}
    nodes = connection.nodes()
    ray = connection.ray
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    task = ray.remote(_prober())
    asked = {}
    for node in nodes:
        there = task.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy(node["NodeID"], soft=False))
        asked[there.remote(wanted)] = node
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=patience)
    found = []
    for reference, node in asked.items():
        base = NodeFacts(_name(node), node["NodeManagerAddress"], node["NodeID"])
        if reference not in ready:
            ray.cancel(reference, force=True)
            answer: dict[str, Any] = {"problem": f"does not answer within {patience:.0f} s"}
        else:
            try:
                answer = ray.get(reference)
            except Exception as error:  # of many kinds
                answer = {"problem": f"cannot tell what it has: {_last_line(error)}"}
        known = {field.name for field in fields(NodeFacts)}
        found.append(replace(base, **{name: value for name, value in answer.items() if name in known}))
    return _with_distinct_names(found)


def _prober() -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What asks a machine, sent to it as it is: there, pyflash may be another version, or absent."""

    def probe(wanted: dict[str, Any]) -> dict[str, Any]:
        try:
            from pyflash.native.errors import Error
            from pyflash.native.library import __version__ as version
        except ImportError:
            return {"problem": "has no pyflash: pip install 'pyflash-llm[cluster]' there, in the Python that Ray runs in"}
        try:
            from pyflash.cluster.nodes import look
        except ImportError:
            return {"version": version}
        try:
            return look(**wanted)
        except (Error, OSError) as error:
            return {"version": version, "problem": str(error)}

    return probe


def _last_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1][:200]


def _name(node: Mapping[str, Any]) -> str:
    return str(node.get("NodeName") or node.get("NodeManagerHostname") or node["NodeManagerAddress"])


def _with_distinct_names(found: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Machines of one name are told apart by their addresses."""
    names = [each.name for each in found]
    return [replace(each, name=f"{each.name}@{each.address}") if names.count(each.name) > 1 else each for each in found]


def overridden(facts: Sequence[NodeFacts], given: Mapping[str, tuple[int | None, float | None]]) -> list[NodeFacts]:
    """The machines, with memory and bandwidth as given by name or address; None leaves what is measured."""
    unknown = given.keys() - {name for each in facts for name in (each.name, each.address)}
    if unknown:
        raise ArgumentError(f"the cluster has no node {sorted(unknown)[0]!r}: it has {', '.join(each.name for each in facts)}")
    result = []
    for each in facts:
        memory, bandwidth = given.get(each.name, given.get(each.address, (None, None)))
        result.append(replace(each, memory_bytes=each.memory_bytes if memory is None else memory,
                              bandwidth=each.bandwidth if bandwidth is None else bandwidth))
    return result


def usable(facts: Sequence[NodeFacts]) -> list[NodeFacts]:
    """Those that lack nothing that a stage needs. DeviceError where none is left."""
    found = [each for each in facts if not lacks(each, facts)]
    if not found:
        first = facts[0]
        raise DeviceError(f"no node of the cluster can have a stage: {first.name} {lacks(first, facts)[0]}",
                          "pyflash cluster check tells all")
    return found


def lacks(facts: NodeFacts, everybody: Sequence[NodeFacts]) -> list[str]:
    """What keeps a machine from having a stage, each with the way out; said after its name."""
    if facts.problem:
        return [facts.problem]
    found = []
    if facts.version != __version__:
        found.append(f"has pyflash {facts.version or 'of another version'}, and here is {__version__}: install that there")
    elif facts.arithmetic != int(lib.PF_ARITHMETIC_VERSION):
        found.append("has a library of another build, whose arithmetic differs: install the same build there")
    elif not common_kernels([everybody[0], facts]):
        found.append(f"computes by {', '.join(facts.kernels)}, none of which {everybody[0].name} has: leave it out")
    if facts.file == "other":
        found.append("has another file at that path: remove or rename it there, so that the right one is copied")
    if facts.version and not facts.memory_bytes:
        found.append("does not tell how much memory is free: name it by the node's option")
    return found


def common_kernels(everybody: Sequence[NodeFacts]) -> list[str]:
    """The kernel sets that all machines have, best first."""
    return in_common([each.kernels for each in everybody if each.kernels])


def rows(facts: Sequence[NodeFacts]) -> list[tuple[str, ...]]:
    """A table for people: a heading, and a row a machine."""
    files = {"here": "there", "copied": "copied", "other": "another one", "missing": "to be copied", "": "-"}
    table: list[tuple[str, ...]] = [("node", "address", "pyflash", "kernels", "free memory", "reads", "file")]
    for each in facts:
        table.append((each.name, each.address, each.version or "-", each.kernels[0] if each.kernels else "-",
                      format_bytes(each.memory_bytes) if each.memory_bytes else "-",
                      f"{format_bytes(each.bandwidth)}/s" if each.bandwidth else "-", files.get(each.file, each.file)))
    return table
