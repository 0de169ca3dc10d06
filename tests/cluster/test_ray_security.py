"""What Ray's token and TLS keep out, as docs/cluster-security.md says. What is readable without: test_namespaces.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cluster_driver
import pytest
import rig
from listening import MARK, heard_of_a_call
from rig import RayNetwork

pytestmark = pytest.mark.cluster

COUNT = "import ray; ray.init(address='auto', log_to_driver=False); print(sum(node['Alive'] for node in ray.nodes()))"


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
    """A head with token and certificates; two machines that have not joined."""
    tls = certificates(tmp_path_factory.mktemp("certificates"), ["10.77.0.1", "10.77.0.2", "10.77.0.3"])
    with RayNetwork(3, environment={**TOKEN, **tls}, n_started=1) as net:
        yield net


def test_token_and_tls(secured: RayNetwork, demo_model: Path) -> None:
    """In one test, since the cluster grows. Three try at once, each on a node of its own."""

    def goes_on_asking() -> bool:
        try:
            secured.run(2, *secured.ray_command(2), environment={"RAY_USE_TLS": "0"}, timeout=12)
        except subprocess.TimeoutExpired:
            return True
        return False

    other = {"RAY_AUTH_TOKEN": "6" * 40}
    with ThreadPoolExecutor(3) as together:
        joining = together.submit(secured.run, 1, *secured.ray_command(1), environment=other)
        asking = together.submit(goes_on_asking)
        stranger = secured.python(0, "-c", COUNT, environment=other)
    assert joining.result().returncode != 0 and asking.result()
    assert stranger.returncode != 0 and not stranger.stdout.strip().endswith("1")
    secured.kill_node(1)
    secured.kill_node(2)
    assert secured.python(0, "-c", COUNT).stdout.splitlines()[-1] == "1"
    secured.start_ray(1)
    assert secured.python(0, "-c", COUNT).stdout.splitlines()[-1] == "2"
    assert MARK.encode() not in heard_of_a_call(secured)
    done = secured.python(0, cluster_driver.__file__, str(demo_model), "--tokens", "12", timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(json.loads(done.stdout.splitlines()[-1])["tokens"]) == 12
