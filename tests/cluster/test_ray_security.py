"""What Ray's token and TLS keep out, and what without them is readable: as docs/cluster-security.md says."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cluster_driver
import pytest
import rig
from rig import RayNetwork

pytestmark = pytest.mark.cluster

MARK = "pyflash-sent-this"

# Every packet that passes this node's link, until it is killed.
LISTEN = """
import socket, sys
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
link.bind(("eth0", 0))
print("ready", flush=True)
with open(sys.argv[1], "wb", buffering=0) as heard:
    while True:
        heard.write(link.recv(1 << 17))
"""

# A call of an actor on the other machine, with the mark in its bytes.
CALL = f"""
import json, ray
ray.init(address="auto", log_to_driver=False)
own = ray.get_runtime_context().get_node_id()
other = next(node["NodeID"] for node in ray.nodes() if node["Alive"] and node["NodeID"] != own)
strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(other, soft=False)
@ray.remote(num_cpus=0)
class Echo:
    def take(self, data):
        return len(data)
n = ray.get(Echo.options(scheduling_strategy=strategy).remote().take.remote(b"{MARK}" * 3000), timeout=100)
print(json.dumps(n))
"""

COUNT = "import ray; ray.init(address='auto', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"


def heard_of_a_call(net: RayNetwork) -> bytes:
    """What passes the second machine's link while an actor there is called."""
    file = net.folder / "1" / "heard"
    listener = net.start(1, sys.executable, "-c", LISTEN, str(file), stdout=subprocess.PIPE)
    try:
        assert listener.stdout is not None and listener.stdout.readline() == "ready\n"
        done = net.python(0, "-c", CALL)
        assert done.stdout.strip() == str(3000 * len(MARK)), (done.stdout, done.stderr[-3000:])
    finally:
        listener.kill()
        listener.wait()
    return file.read_bytes()


def certificates(folder: Path, addresses: list[str]) -> dict[str, str]:
    """A certificate authority and a certificate of all nodes, as Ray's variables."""
    names = ",".join(f"IP:{address}" for address in ["127.0.0.1", *addresses]) + ",DNS:localhost"

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=ca", "-keyout", "ca.key",
            "-out", "ca.crt")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=node", "-keyout", "node.key", "-out", "node.csr")
    (folder / "extensions").write_text(f"subjectAltName={names}\n")
    openssl("x509", "-req", "-in", "node.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2", "-extfile",
            "extensions", "-out", "node.crt")
    return {"RAY_USE_TLS": "1", "RAY_TLS_SERVER_CERT": str(folder / "node.crt"), "RAY_TLS_SERVER_KEY": str(folder / "node.key"),
            "RAY_TLS_CA_CERT": str(folder / "ca.crt")}


TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "5" * 40}


@pytest.fixture(scope="module", autouse=True)
def possible() -> None:
    lacking = rig.missing()
    if lacking:
        pytest.skip(lacking)
    pytest.importorskip("ray")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayNetwork]:
    """A head with token and certificates; a second machine that has not joined."""
    tls = certificates(tmp_path_factory.mktemp("certificates"), ["10.77.0.1", "10.77.0.2"])
    with RayNetwork(2, environment={**TOKEN, **tls}, n_started=1) as net:
        yield net


def test_token_and_tls(secured: RayNetwork, demo_model: Path) -> None:
    """In one test, since the cluster grows."""
    assert secured.run(1, *secured.ray_command(1), environment={"RAY_AUTH_TOKEN": "6" * 40}).returncode != 0
    secured.kill_node(1)
    with pytest.raises(subprocess.TimeoutExpired):  # it goes on asking
        secured.run(1, *secured.ray_command(1), environment={"RAY_USE_TLS": "0"}, timeout=15)
    secured.kill_node(1)
    stranger = secured.python(0, "-c", COUNT, environment={"RAY_AUTH_TOKEN": "6" * 40})
    assert stranger.returncode != 0 and not stranger.stdout.strip().endswith("1")
    assert secured.python(0, "-c", COUNT).stdout.splitlines()[-1] == "1"
    secured.start_ray(1)
    assert secured.python(0, "-c", COUNT).stdout.splitlines()[-1] == "2"
    assert MARK.encode() not in heard_of_a_call(secured)
    done = secured.python(0, cluster_driver.__file__, str(demo_model), "--tokens", "12", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout.splitlines()[-1])["tokens"]) == 12


def test_without_tls_everything_is_readable() -> None:
    """What the page warns of; and that the test above can fail."""
    with RayNetwork(2) as net:
        assert MARK.encode() in heard_of_a_call(net)
