"""What machines tell of themselves, what is said instead, and what keeps one from having a stage."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pyflash
import pytest
from click.testing import CliRunner

from pyflash.cli.commands import cluster as commands
from pyflash.cli.main import cli
from pyflash.cluster import nodes
from pyflash.cluster.identity import FileDirectory
from pyflash.cluster.nodes import NodeFacts, common_kernels, lacks, look, overridden, usable
from pyflash.native.library import __version__, lib

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="stages on several machines are Linux's")

GOOD = NodeFacts("a", "10.0.0.1", "id", 10**9, 1e10, 2, ("avx2", "scalar"), __version__, lib.PF_ARITHMETIC_VERSION, "here",
                 10**9)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, demo_model: Path) -> Path:
    """A folder that has the demo model, which the bandwidth is measured with."""
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / demo_model.name).symlink_to(demo_model)
    monkeypatch.setenv("PYFLASH_CACHE", str(folder))
    return folder


def test_what_this_machine_tells(demo_model: Path, own_cache: Path) -> None:
    identity = FileDirectory(demo_model).identity((0, 1))
    told = look(str(demo_model), (identity.directory, identity.samples), (0, 1))
    assert set(told) < {field.name for field in fields(NodeFacts)}
    facts = replace(NodeFacts("here", "", ""), **told)
    assert facts.file == "here" and facts.version == __version__ and not lacks(facts, [facts])
    assert 0 < facts.memory_bytes and facts.disk_bytes > 0 and facts.n_threads >= 1
    assert look(str(demo_model) + "x", (identity.directory, identity.samples), (0, 1))["file"] == "missing"


@pytest.mark.parametrize("load", [0.0, 1000.0], ids=["idle", "busy"])
def test_bandwidth_is_measured_once_on_an_idle_machine(own_cache: Path, monkeypatch: pytest.MonkeyPatch, load: float) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, load, load))
    monkeypatch.setattr(pyflash.Model, "read_bandwidth", lambda model, size: 5e9)
    assert nodes.read_bandwidth()[0] == 5e9
    monkeypatch.setattr(pyflash.Model, "read_bandwidth", lambda model, size: 7e9)
    assert nodes.read_bandwidth()[0] == (7e9 if load else 5e9)
    monkeypatch.setattr(pyflash.Model, "read_bandwidth", lambda model, size: 6e9)
    assert nodes.read_bandwidth()[0] == (7e9 if load else 5e9)  # the better one counts
    assert len(json.loads((own_cache / "cluster" / "bandwidth.json").read_text())) == 1


@pytest.mark.parametrize("text", ["", "[]", '{"a": "b"}', "{", "[1]", '{"a": {"bytes_per_second": "x"}}'])
def test_a_damaged_note_of_bandwidths_is_made_again(own_cache: Path, text: str) -> None:
    (own_cache / "cluster").mkdir()
    (own_cache / "cluster" / "bandwidth.json").write_text(text)
    assert nodes.read_bandwidth()[0] > 1e6
    assert len(json.loads((own_cache / "cluster" / "bandwidth.json").read_text())) == 1


@pytest.mark.parametrize(("change", "said"), [
    ({"problem": "does not answer within 60 s"}, "does not answer"),
    ({"version": "0.0.1"}, "has pyflash 0.0.1, and here is"),
    ({"version": ""}, "of another version"),
    ({"arithmetic": -1}, "whose arithmetic differs"),
    ({"kernels": ("neon",)}, "computes by neon, none of which a has"),
    ({"file": "other"}, "another file at that path"),
    ({"memory_bytes": 0}, "how much memory is free"),
])  # fmt: skip
def test_what_is_lacking(change: dict[str, Any], said: str) -> None:
    bad = replace(GOOD, name="b", **change)
    assert any(said in line for line in lacks(bad, [GOOD, bad]))
    assert usable([GOOD, bad]) == [GOOD]


def test_no_machine_is_left() -> None:
    bad = replace(GOOD, name="b", version="0.0.1")
    with pytest.raises(pyflash.DeviceError, match="no node of the cluster can have a stage: b has pyflash 0.0.1, and here is"):
        usable([bad])


def test_a_machine_without_the_file_lacks_nothing() -> None:
    assert lacks(replace(GOOD, file="missing"), [GOOD]) == [] == lacks(replace(GOOD, file="copied"), [GOOD])


def test_kernel_sets_of_all() -> None:
    other = replace(GOOD, kernels=("avx512", "avx2", "scalar"))
    assert common_kernels([other, GOOD]) == ["avx2", "scalar"]
    assert common_kernels([GOOD, replace(GOOD, kernels=())]) == ["avx2", "scalar"]  # one that tells nothing counts not


def test_what_is_said_instead() -> None:
    other = replace(GOOD, name="b", address="10.0.0.2")
    said = overridden([GOOD, other], {"a": (5, None), "10.0.0.2": (None, 7.0)})
    assert [(each.memory_bytes, each.bandwidth) for each in said] == [(5, 1e10), (10**9, 7.0)]
    assert said[0].node() == nodes.Node("a", 5, 1e10)
    with pytest.raises(pyflash.ArgumentError, match="the cluster has no node 'c': it has a, b"):
        overridden([GOOD, other], {"c": (1, 1.0)})


def test_check_exits_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [GOOD]
    monkeypatch.setattr(commands, "_survey", lambda address, file: found)
    good = CliRunner().invoke(cli, ["cluster", "check", "--json"])
    assert good.exit_code == 0
    assert json.loads(good.stdout)["nodes"] == [{**asdict(GOOD), "kernels": ["avx2", "scalar"], "lacks": []}]
    found.append(replace(GOOD, name="b", version="0.0.1"))
    bad = CliRunner().invoke(cli, ["cluster", "check"])
    assert bad.exit_code == 1 and "1 of 2 nodes cannot have a stage: b has pyflash 0.0.1" in str(bad.exception)
    assert bad.stdout.splitlines()[1].split()[:3] == ["a", "10.0.0.1", __version__]
