"""`pyflash cluster plan` for machines that are named: without Ray, from the file alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pyflash.cli.main import cli
from pyflash.cluster.costs import model_costs
from pyflash.cluster.placement import Link, Node, place


def plan(file: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["cluster", "plan", str(file), *arguments])


NODES = ("--node", "big:400M:2G", "--node", "small:300M:1G")


def test_the_plan_is_the_placement(demo_model: Path) -> None:
    done = plan(demo_model, "--stages", "2", *NODES, "--ctx", "1000", "--sessions", "2", "--link", "10G:200us", "--json")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    costs = model_costs(demo_model, 1000, 2)
    nodes = [Node("big", 400_000_000, 2e9), Node("small", 300_000_000, 1e9)]
    expected = place(costs, nodes, 2, Link(1.25e9, 0.0002))
    assert [(each["node"], each["first_layer"], each["end_layer"]) for each in told["stages"]] == [
        (stage.node.name, *stage.layers) for stage in expected.stages]
    assert told["tokens_per_second"] == pytest.approx(expected.rate) and told["done"] is True
    assert told["link"] == pytest.approx({"bytes_per_second": 1.25e9, "delay_seconds": 0.0002, "call_seconds": Link().call})
    assert (told["context"], told["n_sessions"]) == (1000, 2)


def test_a_table_for_people(demo_model: Path) -> None:
    done = plan(demo_model, "--stages", "2", "--node", "big:4G:2G", "--node", "small:4G:1G")
    lines = done.stdout.splitlines()
    assert lines[0].split()[:3] == ["stage", "node", "layers"] and len(lines) == 8
    assert {line.split()[1] for line in lines[1:3]} == {"big", "small"}
    assert "tokens/s" in lines[4] and "links of 1 Gbit/s and 0.1 ms" in lines[-1]


@pytest.mark.parametrize(("arguments", "code", "said"), [
    ((), 2, "name the machines: --ray ADDRESS, or --node"),
    (("--node", "a:1G"), 2, "is no node such as big:96G:80G"),
    (("--node", "a:1G:"), 2, "its memory and bandwidth must both be there"),
    (("--node", "a:1G:fast"), 2, "'fast' is no size"),
    ((*NODES, "--stages", "many"), 2, "neither auto nor a number of stages"),
    ((*NODES, "--stages", "0"), 2, "a number of stages, 1 to 512"),
    ((*NODES, "--stages", "513"), 2, "a number of stages, 1 to 512"),
    ((*NODES, "--stages", "9" * 5000), 2, "a number of stages, 1 to 512"),
    ((*NODES, "--link", "10G"), 2, "is no link such as 10G:0.1ms"),
])  # fmt: skip
def test_what_is_refused(demo_model: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = plan(demo_model, *arguments)
    assert done.exit_code == code and said in done.output


@pytest.mark.parametrize(("arguments", "said"), [
    (("--node", "a:1M:1G"), "the model takes"),
    ((*NODES, "--stages", "99"), "5 layers cannot be cut into 99 stages"),
    (("--node", "a:1G:1G", "--node", "a:1G:1G"), "two nodes have one name"),
])  # fmt: skip
def test_what_fails_says_why(demo_model: Path, arguments: tuple[str, ...], said: str) -> None:
    done = plan(demo_model, *arguments)
    assert done.exit_code == 1 and said in str(done.exception)
