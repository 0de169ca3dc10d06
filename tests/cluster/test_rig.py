"""The rig itself: links that delay, are cut and mended, and nothing left behind by whoever is killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import rig
from rig import Network, wait_for

pytestmark = pytest.mark.cluster

ECHO = """
import socket
server = socket.create_server(("{address}", 5000))
print("ready", flush=True)
while True:
    link, _ = server.accept()
    while data := link.recv(100):
        link.sendall(data)
"""

# The shortest way there and back of twenty, in seconds; "silent" where nothing comes back.
ASK = """
import socket, time
try:
    link = socket.create_connection(("{address}", 5000), timeout=2)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    times = []
    for _ in range(20):
        began = time.perf_counter()
        link.sendall(b"x")
        link.recv(1)
        times.append(time.perf_counter() - began)
    print(min(times))
except OSError:
    print("silent")
"""


@pytest.fixture(autouse=True)
def possible() -> None:
    lacking = rig.missing()
    if lacking:
        pytest.skip(lacking)


def ask(net: Network) -> str:
    return net.run(0, sys.executable, "-c", ASK.format(address=net.addresses[1])).stdout.strip()


@pytest.mark.parametrize("delay", [None, "20ms"])
def test_links(delay: str | None) -> None:
    with Network(2, "1gbit", delay) as net:
        server = net.start(1, sys.executable, "-c", ECHO.format(address=net.addresses[1]), stdout=subprocess.PIPE)
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        assert net.listening(1) == {(net.addresses[1], 5000)} and net.listening(0) == set()
        assert float(ask(net)) > (0.04 if delay else 0.0)
        net.cut(1)
        assert ask(net) == "silent"
        net.mend(1)
        wait_for(lambda: ask(net) != "silent", "an answer")
        folder = net.folder
    assert not folder.exists() and server.wait(rig.PATIENCE) != 0


def test_a_killed_program_leaves_nothing() -> None:
    program = f"""
import sys, time
sys.path.insert(0, {str(Path(rig.__file__).parent)!r})
from rig import Network
net = Network(2)
net.start(0, "sleep", "1000")
print(*net._names, net.folder, flush=True)
time.sleep(1000)
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    *names, folder = process.stdout.readline().split()
    assert len(names) == 2 and all(Path("/run/netns", name).exists() for name in names)
    process.kill()
    process.wait()
    left = [Path(folder), *(Path("/run/netns", name) for name in names)]
    wait_for(lambda: not any(path.exists() for path in left), "a clean machine")
