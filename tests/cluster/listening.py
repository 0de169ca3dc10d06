"""Listens at a node's link of a rig while an actor there is called: what others in that network can read."""

from __future__ import annotations

import subprocess
import sys

from rig import RayNetwork

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
