"""Two machines that are network namespaces: what they have and lack, files that are copied, stages that are killed, links that
are cut or slow, and what listens where."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_driver
import pyflash
import pytest
import rig
from listening import MARK, heard_of_a_call
from rig import RayNetwork, wait_for

from gguf_export.reader import read_gguf

pytestmark = pytest.mark.cluster

DRIVER = cluster_driver.__file__
N_TOKENS = 40


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory, demo_model: Path) -> Path:
    """The demo model in a folder that the second machine does not have."""
    folder = tmp_path_factory.mktemp("only-on-the-first")
    os.link(demo_model, folder / "demo.gguf")
    return folder


@pytest.fixture(scope="module")
def net(model_folder: Path, demo_model: Path) -> Iterator[RayNetwork]:
    lacking = rig.missing()
    if lacking:
        pytest.skip(lacking)
    pytest.importorskip("ray")
    with RayNetwork(2, hidden={1: [model_folder]}) as made:
        for node in (0, 1):  # what the bandwidth is measured with, which each would convert first
            os.link(demo_model, made.folder / str(node) / "cache" / demo_model.name)
        yield made


@pytest.fixture(scope="module")
def file(model_folder: Path) -> str:
    return str(model_folder / "demo.gguf")


@pytest.fixture(scope="module")
def undisturbed(file: str) -> list[int]:
    """What one process generates."""
    with pyflash.Model.open(file, "cpu", threads=1) as model, model.session(context=1024) as session:
        prompt = model.tokenizer.encode(cluster_driver.PROMPT)
        return [piece.token for piece in session.generate(prompt, N_TOKENS, draft="off", temperature=0)]


def generate(net: RayNetwork, file: str, *more: str) -> dict[str, Any]:
    done = net.python(0, DRIVER, file, "--tokens", str(N_TOKENS), *more, timeout=300)
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "told": [line for line in done.stdout.splitlines() if line.startswith("told ")]}


def test_three_machines_far_apart(file: str, undisturbed: list[int]) -> None:
    """Half a millisecond one way, and a stage that is killed."""
    if lacking := rig.missing():
        pytest.skip(lacking)
    pytest.importorskip("ray")
    with RayNetwork(3, rate="10gbit", delay="0.5ms") as three:
        found = generate(three, file, "--stages", "3", "--kills", "1")
    assert found["tokens"] == undisturbed and found["told"]
    assert len({node for _, node, *_ in found["places"]}) == 3


# -- files, nodes --


def test_the_second_machine_gets_what_its_stage_reads(net: RayNetwork, file: str, undisturbed: list[int]) -> None:
    found = generate(net, file)
    assert found["tokens"] == undisturbed
    assert len({node for _, node, *_ in found["places"]}) == 2
    copies = list((net.folder / "1/cache/cluster").rglob("demo.gguf"))
    assert len(copies) == 1 and copies[0].stat().st_blocks * 512 < Path(file).stat().st_size == copies[0].stat().st_size
    before = copies[0].stat().st_mtime_ns
    assert generate(net, file)["tokens"] == undisturbed
    assert copies[0].stat().st_mtime_ns == before  # found again


def cluster(net: RayNetwork, *arguments: str) -> subprocess.CompletedProcess[str]:
    return net.python(0, "-m", "pyflash", "cluster", *arguments)


def test_check_tells_what_machines_have(net: RayNetwork, file: str) -> None:
    done = cluster(net, "check", file, "--ray", net.address, "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [each["name"] for each in told["nodes"]] == ["node0", "node1"]
    assert told["nodes"][0]["file"] == "here"
    assert told["nodes"][1]["file"] in ("missing", "copied")  # as its stage had the first layer or not
    assert told["kernels"] == told["nodes"][0]["kernels"][0]
    for each in told["nodes"]:
        assert each["lacks"] == [] and each["version"] == pyflash.__version__ and each["memory_bytes"] > 1e9
        assert 1e6 < each["bandwidth"] < 1e13
    kept = json.loads((net.folder / "1/cache/cluster/bandwidth.json").read_text())
    assert [note["bytes_per_second"] for note in kept.values()] == [told["nodes"][1]["bandwidth"]]


def test_check_fails_where_a_machine_lacks_something(net: RayNetwork, file: str) -> None:
    other = net.folder / "other.gguf"  # the same directory, other weights
    other.write_bytes(Path(file).read_bytes())
    ref = read_gguf(other).tensors["blk.0.ffn_down_exps.weight"]
    with open(other, "r+b") as edited:
        edited.seek(ref.offset)
        edited.write(os.urandom(ref.nbytes))
    place = net.folder / "ray" / "model.gguf"  # each machine has its own folder there
    for node, source in ((0, file), (1, str(other))):
        assert net.run(node, "cp", source, str(place)).returncode == 0
    done = cluster(net, "check", str(place), "--ray", net.address)
    assert done.returncode == 1 and done.stdout.splitlines()[0].split()[:2] == ["node", "address"]
    assert done.stderr.splitlines()[-1].startswith(
        "pyflash: error: 1 of 2 nodes cannot have a stage: node1 has another file at that path: remove or rename it there")
    run = net.python(0, "-m", "pyflash", "run", str(place), "Hello", "--stages", "2", "--ray", net.address, timeout=120)
    assert run.returncode != 0 and run.stdout == ""
    assert "node1 has another file" in run.stderr.splitlines()[-1], run.stderr


def test_plan_by_what_machines_have(net: RayNetwork, file: str) -> None:
    done = cluster(net, "plan", file, "--stages", "2", "--ray", net.address, "--node", "node1:300M:", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert {each["node"] for each in told["stages"]} == {"node0", "node1"}
    assert [each["node_memory_bytes"] for each in told["stages"] if each["node"] == "node1"] == [300_000_000]
    refused = cluster(net, "plan", file, "--ray", net.address, "--node", "nobody:1G:1G")
    assert refused.returncode == 1 and "the cluster has no node 'nobody': it has node0, node1" in refused.stderr


# -- faults --


def test_killed_stages_change_no_token(net: RayNetwork, file: str, undisturbed: list[int]) -> None:
    """scripts/kill_stages.py does it fifty times."""
    found = generate(net, file, "--kills", "5", "--seed", "3")
    assert found["tokens"] == undisturbed and found["killed"] == 5
    assert any("is started again" in line for line in found["told"])


@pytest.mark.parametrize("mends", [True, False], ids=["for a moment", "for good"])
def test_a_cut_link_changes_no_token(net: RayNetwork, file: str, undisturbed: list[int], mends: bool) -> None:
    """Either generation goes on, on the machines that are left, or an error says so."""
    process = net.start_python(0, DRIVER, file, "--tokens", str(N_TOKENS), "--timeout", "6", stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("token") and sum(each.startswith("token") for each in lines) == 10:
                net.cut(1)
            if line.startswith("told") and mends:
                net.mend(1)
        process.wait(timeout=rig.PATIENCE)
    finally:
        net.mend(1)
        process.kill()
    found = json.loads(lines[-1])
    assert any("is lost" in line or "was lost" in line for line in lines if line.startswith("told")), lines
    if "error" in found:
        assert not mends and "stage" in found["error"] and found["tokens"] == undisturbed[: len(found["tokens"])]
    else:
        assert found["tokens"] == undisturbed


def test_a_slow_link_changes_no_token(net: RayNetwork, file: str, undisturbed: list[int]) -> None:
    for node in (0, 1):
        net.slow(node, "2mbit")
    try:
        assert generate(net, file)["tokens"] == undisturbed
    finally:
        for node in (0, 1):
            net.slow(node, "10gbit")


@pytest.mark.parametrize("again", [False, True], ids=["once", "again and again"])
def test_a_machine_out_of_memory(net: RayNetwork, file: str, undisturbed: list[int], again: bool) -> None:
    """The kernel kills the stage: it is started again, and where that comes to nothing, the error names memory."""
    try:
        limit = rig.MemoryLimit()
    except OSError as error:
        pytest.skip(f"no control group for memory: {error}")
    process = net.start_python(0, DRIVER, file, "--tokens", str(N_TOKENS), "--timeout", "10", stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines: list[str] = []
    taken: set[int] = set()
    over = threading.Event()

    def take() -> None:
        while not over.wait(0.01):
            for pid in {*net.stages(1)} - taken if again or not taken else ():
                taken.add(pid)
                with contextlib.suppress(OSError):  # it has gone meanwhile
                    limit.take(pid)

    taking = threading.Thread(target=take)
    try:
        for line in process.stdout:
            lines.append(line)
            if len(lines) == 5:
                taking.start()
        process.wait(timeout=rig.PATIENCE)
    finally:
        over.set()
        taking.join()
        process.kill()
        limit.close()
    found = json.loads(lines[-1])
    if again:
        assert "the stages were started 5 times" in found["error"] or "was lost 5 times" in found["error"], found
        assert "has memory for it" in found["error"] and found["tokens"] == undisturbed[: len(found["tokens"])]
    else:
        assert found["tokens"] == undisturbed
        assert any("has run out of memory" in line for line in lines if line.startswith("told all 2 stages")), lines


# -- security --


def test_only_documented_ports_listen(net: RayNetwork, file: str) -> None:
    """While a model is open: what listens is Ray's, at the ports that it was told, and nothing of ours."""
    process = net.start_python(0, DRIVER, file, "--tokens", "400", stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        wait_for(lambda: process.stdout is not None and process.stdout.readline().startswith("token"), "a token")
        for node in (0, 1):
            listening = net.listening(node)
            assert listening
            allowed = {*rig.PORTS.values(), *(rig.HEAD_PORTS if node == 0 else ())}
            odd = {(address, port) for address, port in listening
                   if port not in allowed and not rig.WORKER_PORTS[0] <= port <= rig.WORKER_PORTS[1]}
            assert odd == set(), f"node {node}"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def test_without_tls_everything_is_readable(net: RayNetwork) -> None:
    """What docs/cluster-security.md warns of; and that the test with TLS can fail."""
    assert MARK.encode() in heard_of_a_call(net)
