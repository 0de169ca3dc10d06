"""`pyflash cluster`: which machine would have which layers, and what machines lack."""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, Any

import click

import pyflash
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.options import Stages, converter_errors, option, parse_size
from pyflash.cli.output import columns, print_done
from pyflash.cli.streams import say, show
from pyflash.engine.options import CACHES, PRECISIONS

if TYPE_CHECKING:  # imported where they are used: the other commands start without them
    from pyflash.cluster.nodes import NodeFacts
    from pyflash.cluster.placement import Link, Node
    from pyflash.cluster.plan import ClusterPlan

Given = tuple[str, int | None, int | None]  # of a node: its name, memory, bandwidth


class NodeType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """NAME:MEMORY:BANDWIDTH; either may be empty, for what is measured."""

    name = "NAME:MEMORY:BANDWIDTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Given:
        if isinstance(value, tuple):
            return value
        name, *sizes = value.split(":")
        if not name or len(sizes) != 2:
            self.fail(f"{value!r} is no node such as big:96G:80G, its name, memory and bytes a second", param, ctx)
        memory, bandwidth = (parse_size(size) if size else None for size in sizes)
        return name, memory, bandwidth


class LinkType(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """BITS:DELAY as bytes a second and seconds."""

    name = "BITS:DELAY"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        rate, _, delay = value.partition(":")
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", delay)
        if match is None:
            self.fail(f"{value!r} is no link such as 10G:0.1ms, bits a second and the delay one way", param, ctx)
        return parse_size(rate) / 8, float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


@click.group()
def cluster() -> None:
    """Plan and check a model in stages on several machines, in a Ray cluster (Linux; pip install 'pyflash-llm[cluster]')."""


_ray = option("--ray", metavar="ADDRESS",
              help="Head of the Ray cluster, HOST:PORT, or auto for the one that this machine is in.")


@cluster.command("plan")
@click.argument("file", type=GGUFFile())
@click.option("--stages", type=Stages(), default="auto", show_default=True, metavar="auto|N",
              help="How many stages; auto: as few as have room.")
@_ray
@click.option("--node", "given", type=NodeType(), multiple=True, metavar="NAME:MEMORY:BANDWIDTH",
              help="A machine, such as big:96G:80G: its name, the memory that is free, and the bytes a second that it reads "
              "from memory. Without --ray all machines are named so; with it, it is said instead of what is measured, and either "
              "size may be empty.")
@click.option("--link", type=LinkType(), default="1G:0.1ms", show_default=True, metavar="BITS:DELAY",
              help="What lies between two machines: bits a second, and the delay one way.")
@click.option("--ctx", "-c", type=click.IntRange(1), metavar="N",
              help="Context in tokens to plan for.  [default: the model's, at most 65536]")
@click.option("--sessions", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N",
              help="Conversations at once to plan for.")
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="fast", show_default=True,
              help="Precision to plan for, as of run.")
@click.option("--cache-type", type=click.Choice(list(CACHES)), default="auto", show_default=True,
              help="Precision of the cache to plan for, as of run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def plan(file: str, stages: int | str, ray: str | None, given: tuple[Given, ...], link: tuple[float, float], ctx: int | None,
         sessions: int, precision: str, cache_type: str, as_json: bool) -> None:
    """Tell which layers of a file go to which machine, what they take there, and the speed to expect.

    Of all cuts that fit the machines' memory it is the one whose slowest stage is quickest. Nothing is opened on the machines.
    FILE must be on this one.
    """
    from pyflash.cluster.placement import Link

    with converter_errors():
        made = _plan(file, stages, ray, given, Link(*link), ctx, sessions, precision, cache_type)
    if as_json:
        print_done(made.as_json())
    else:
        show("\n".join([columns(made.rows()), *made.summary()]))


def _plan(file: str, stages: int | str, ray: str | None, given: tuple[Given, ...], link: Link, ctx: int | None,
          sessions: int, precision: str, cache_type: str) -> ClusterPlan:
    from pyflash.cluster.costs import model_costs
    from pyflash.cluster.placement import place
    from pyflash.cluster.plan import ClusterPlan

    costs = model_costs(file, ctx, sessions, cache_type, precision)
    nodes = _named_nodes(given) if ray is None else _nodes_of(ray, given)
    n_stages = None if isinstance(stages, str) else stages
    return ClusterPlan(file, costs.context, sessions, costs, place(costs, nodes, n_stages, link))


def _named_nodes(given: tuple[Given, ...]) -> list[Node]:
    from pyflash.cluster.placement import Node

    if not given:
        raise click.UsageError("name the machines: --ray ADDRESS, or --node NAME:MEMORY:BANDWIDTH for each")
    found = []
    for name, memory, bandwidth in given:
        if memory is None or bandwidth is None:
            raise click.UsageError(f"--node {name}: without --ray its memory and bandwidth must both be there")
        found.append(Node(name, memory, float(bandwidth)))
    return found


def _nodes_of(address: str, given: tuple[Given, ...]) -> list[Node]:
    from pyflash.cluster import nodes

    told = nodes.overridden(_survey(address, None), {name: (memory, rate) for name, memory, rate in given})
    usable = nodes.usable(told)
    for each in told:
        if each not in usable:
            say(f"pyflash: note: without {each.name}, which {nodes.lacks(each, told)[0]}")
    return [each.node() for each in usable]


def _survey(address: str, file: str | None) -> list[NodeFacts]:
    from pyflash.cluster import nodes
    from pyflash.cluster.identity import FileDirectory
    from pyflash.cluster.ray_runtime import Connection

    identity = None if file is None else FileDirectory(file).identity((0, 1))
    connection = Connection(address)
    try:
        return nodes.survey(connection, file, identity, (0, 1))
    finally:
        connection.close()


@cluster.command("check")
@click.argument("file", type=GGUFFile(), required=False)
@_ray
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: str | None, ray: str | None, as_json: bool) -> None:
    """Tell what each machine of a Ray cluster has, and lacks for having a stage; exits with 1 where one lacks something.

    What counts: the same version of pyflash and of its arithmetic, kernel sets of which one is everybody's, an answer in
    time, and no other file in FILE's place. A machine without FILE is given the part of it that its stage reads.
    """
    from pyflash.cluster import nodes

    with converter_errors():
        facts = _survey(ray or "auto", file)
    lacking = {each.name: found for each in facts if (found := nodes.lacks(each, facts))}
    common = nodes.common_kernels(facts)
    if as_json:
        print_done({"nodes": [{**dataclasses.asdict(each), "lacks": lacking.get(each.name, [])} for each in facts],
                    "kernels": common[0] if common else None})
    else:
        show(columns(nodes.rows(facts)))
        if common:
            show(f"all compute by {common[0]}")
        for name, found in lacking.items():
            for line in found:
                say(f"{name} {line}")
    if lacking:
        raise pyflash.UnsupportedError(f"{len(lacking)} of {len(facts)} nodes cannot have a stage: "
                                       + "; ".join(f"{name} {found[0]}" for name, found in lacking.items()))
