"""Where stages go: against every cut there is, and against what a model file really takes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyflash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflash.cluster.costs import ModelCosts, PartCost, model_costs
from pyflash.cluster.placement import Link, Node, Placement, place

Cut = list[tuple[Node, tuple[int, int]]]


def all_cuts(n_layer: int, nodes: list[Node], n_stages: int) -> Iterator[Cut]:
    """Every way to cut the layers into that many stages, on every choice and order of nodes."""
    for inner in itertools.combinations(range(1, n_layer), n_stages - 1):
        ends = [0, *inner, n_layer]
        for chosen in itertools.permutations(nodes, n_stages):
            yield list(zip(chosen, itertools.pairwise(ends)))


def figures(costs: ModelCosts, cut: Cut, share: float) -> tuple[float, float]:
    """The slowest stage's seconds and all stages'."""
    seconds = [costs.read_bytes(*layers) / (share * node.bandwidth) for node, layers in cut]
    return max(seconds), sum(seconds)


def fits(costs: ModelCosts, cut: Cut) -> bool:
    return all(costs.memory_bytes(*layers) <= node.memory_bytes for node, layers in cut)


sizes = st.integers(1, 60)
parts = st.builds(PartCost, sizes, sizes, st.integers(0, 9))


@st.composite
def problems(draw: st.DrawFn) -> tuple[ModelCosts, list[Node]]:
    layers = draw(st.lists(parts, min_size=1, max_size=6))
    costs = ModelCosts(tuple(layers), draw(parts), draw(parts), draw(st.integers(0, 20)), 64, 128)
    kinds = draw(st.lists(st.tuples(st.integers(20, 300), st.integers(1, 4)), min_size=1, max_size=2))
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=4))  # some are alike
    return costs, [Node(f"n{i}", memory, float(speed)) for i, (memory, speed) in enumerate(chosen)]


@settings(max_examples=250, deadline=None)
@given(problems(), st.integers(1, 4))
def test_no_cut_is_better(problem: tuple[ModelCosts, list[Node]], n_stages: int) -> None:
    costs, nodes = problem
    n_stages = min(n_stages, len(costs.layers), len(nodes))
    there_are = [cut for cut in all_cuts(len(costs.layers), nodes, n_stages) if fits(costs, cut)]
    if not there_are:
        with pytest.raises(pyflash.MemoryLimitError):
            place(costs, nodes, n_stages)
        return
    found = place(costs, nodes, n_stages, share=0.5)
    cut = [(stage.node, stage.layers) for stage in found.stages]
    assert len({node.name for node, _ in cut}) == n_stages and fits(costs, cut)
    assert [layers[0] for _, layers in cut] == [0, *(layers[1] for _, layers in cut[:-1])]
    assert cut[-1][1][1] == len(costs.layers)
    best = min(figures(costs, each, 0.5) for each in there_are)
    assert figures(costs, cut, 0.5) == pytest.approx(best)
    for stage in found.stages:
        assert stage.memory_bytes == costs.memory_bytes(*stage.layers)
        assert stage.seconds == costs.read_bytes(*stage.layers) / (0.5 * stage.node.bandwidth)


@settings(max_examples=100, deadline=None)
@given(problems())
def test_by_itself_as_few_stages_as_have_room(problem: tuple[ModelCosts, list[Node]]) -> None:
    costs, nodes = problem
    most = min(len(costs.layers), len(nodes))
    least = next((n for n in range(1, most + 1)
                  if any(fits(costs, cut) for cut in all_cuts(len(costs.layers), nodes, n))), None)
    if least is None:
        with pytest.raises(pyflash.MemoryLimitError):
            place(costs, nodes)
    else:
        assert len(place(costs, nodes).stages) == least


PART = PartCost(100, 10, 5)
COSTS = ModelCosts((PART,) * 8, PartCost(50, 0), PartCost(80, 20), 7, 1000, 4000)


def test_many_machines_that_differ_are_placed() -> None:
    """The size of V4-Pro on nine machines, no two alike."""
    costs = replace(COSTS, layers=(PART,) * 61)
    nodes = [Node(f"n{i}", 900 + i, 10.0 + i) for i in range(9)]
    assert sum(end - first for first, end in (stage.layers for stage in place(costs, nodes, 9).stages)) == 61


def test_more_stages_than_nodes_divide_them() -> None:
    nodes = [Node("a", 2 * 500, 1.0), Node("b", 2 * 500, 1.0)]
    stages = place(COSTS, nodes, 4).stages
    assert [stage.layers for stage in stages] == [(0, 1), (1, 4), (4, 7), (7, 8)]  # the head is as much as two layers
    assert sorted(stage.node.name for stage in stages) == ["a", "a", "b", "b"]
    assert all(stage.memory_bytes <= 500 for stage in stages)


@pytest.mark.parametrize(("n_stages", "said"), [(0, "8 layers cannot be cut into 0"), (9, "cannot be cut into 9 stages")])
def test_impossible_numbers(n_stages: int, said: str) -> None:
    with pytest.raises(pyflash.ArgumentError, match=said):
        place(COSTS, [Node("a", 10**6, 1.0)], n_stages)


def test_what_has_no_room_is_told() -> None:
    with pytest.raises(pyflash.MemoryLimitError, match=r"takes 984 B in 2 stages, and the nodes have 900 B free: add"):
        place(COSTS, [Node("a", 500, 1.0), Node("b", 400, 1.0)])
    with pytest.raises(pyflash.MemoryLimitError, match=r"no cut into 2 stages fits the nodes, which have a 980 B, b 100 B"):
        place(COSTS, [Node("a", 980, 1.0), Node("b", 100, 1.0)], 2)
    with pytest.raises(pyflash.ArgumentError, match="two nodes have one name"):
        place(COSTS, [Node("a", 980, 1.0), Node("a", 100, 1.0)])


def placed(n: int, link: Link) -> Placement:
    return place(COSTS, [Node(f"n{i}", 10**6, 100.0) for i in range(n)], n, link, share=1.0)


def test_the_model_of_time() -> None:
    """By hand: 100 bytes are read for a token, at 100 a second; streams are 1,000 bytes, logits 4,000."""
    link = Link(rate=1e6, delay=0.01, call=0.001)
    one, two = placed(1, link), placed(2, link)
    assert one.rate == pytest.approx(1 / 1.002) and one.rate_together == pytest.approx(1 / 1.001)
    assert two.token_seconds == pytest.approx(1.0 + 3 * 0.011 + 0.001 + 0.004)
    assert two.rate_together == pytest.approx(1 / 0.501)
    assert two.prompt_gain(1) == pytest.approx(0.8) and two.prompt_gain(19) == pytest.approx(1.6 * 0.95)
    assert placed(2, Link(rate=4000, delay=0.0, call=0.0)).rate_together == pytest.approx(1)  # bound by the logits


@pytest.fixture(scope="module")
def demo_costs(demo_model: Path) -> ModelCosts:
    return model_costs(demo_model, n_ctx=4096)


@pytest.mark.parametrize("layers", [(0, 1), (0, 2), (1, 3), (4, 5), (2, 5), (0, 5)])
def test_costs_are_what_stages_take(demo_model: Path, demo_costs: ModelCosts, layers: tuple[int, int]) -> None:
    """Never less, and no more than a hundredth above."""
    with pyflash.Model.open(demo_model, layers=layers) as model, model.session(context=4096) as session:
        memory = session.memory
        took = (model.info.weight_bytes + model.info.widened_bytes + model.draft_head_bytes + memory.cache_bytes
                + memory.checkpoint_bytes)  # fmt: skip
        assert memory.buffer_bytes <= demo_costs.stage_bytes
    assert took <= demo_costs.memory_bytes(*layers) - demo_costs.stage_bytes <= 1.01 * took


def test_costs_of_reading(demo_model: Path, demo_costs: ModelCosts) -> None:
    """The stages together read what the whole model does, the head once; the embedding's rows are next to nothing."""
    whole = demo_costs.read_bytes(0, 5)
    assert sum(demo_costs.read_bytes(layer, layer + 1) for layer in range(5)) == whole
    assert demo_costs.embedding.read_bytes == 0 < demo_costs.head.read_bytes < demo_costs.head.memory_bytes + 1
    with pyflash.Model.open(demo_model) as model:
        assert demo_costs.token_bytes == 4 * model.info.n_stream * model.info.n_embd
        weights = sum(layer.weight_bytes for layer in demo_costs.layers)
        assert whole < weights + demo_costs.head.weight_bytes < 1.01 * (model.info.weight_bytes + model.info.widened_bytes)


def test_sessions_are_counted(demo_model: Path, demo_costs: ModelCosts) -> None:
    three = model_costs(demo_model, n_ctx=4096, n_sessions=3)
    for one, many in zip(demo_costs.layers, three.layers, strict=True):
        assert many.cache_bytes == 3 * one.cache_bytes and many.weight_bytes == one.weight_bytes
