"""Joins network namespaces by links of a given delay: a switch between TUN devices, for kernels without netem.

    sudo python scripts/link_relay.py --delay 0.5ms NAMESPACE=ADDRESS NAMESPACE=ADDRESS ...

In each namespace it makes a device pf0 with that address (10.0.0.1/24), and carries each packet to the device that has the
packet's destination, the delay after it came. It prints "ready" when all are up. A line such as 2ms on its stdin is another
delay from then on, and answered with "ready" too. It ends with its stdin, or by a signal; the devices go with it.
tests/cluster/rig.py starts it.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import heapq
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

DEVICE = "pf0"
MTU = 65000  # few and large packets: each costs this program a wake-up
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_CLONE_NEWNET = 0x40000000
_DESTINATION = slice(16, 20)  # in an IPv4 header
_MOST_WAITING = 4096  # packets; more are dropped, as a switch does


def seconds(text: str) -> float:
    """"0.5ms" -> 0.0005."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(us|ms|s)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no time such as 0.5ms")
    return float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]]


def enter(namespace: Path) -> None:
    """What this process opens from now on is in that network namespace."""
    file = os.open(namespace, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(file, _CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "cannot enter the namespace", str(namespace))
    finally:
        os.close(file)


def open_device(namespace: str, address: str) -> int:
    """A new TUN device in a namespace, up, with that address."""
    enter(Path("/run/netns", namespace))
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _IFF_TUN | _IFF_NO_PI))
    for command in (f"addr add {address} dev {DEVICE}", f"link set {DEVICE} mtu {MTU} txqueuelen 1000 up"):
        subprocess.run(["ip", *command.split()], check=True)
    return device


def relay(devices: dict[bytes, int], delay: float) -> None:
    """devices: by their IPv4 addresses. Until stdin ends; each line there is another delay."""
    waiting: list[tuple[float, int, int, bytes]] = []  # due, number, device, packet
    number = 0
    while True:
        timeout = max(0.0, waiting[0][0] - time.monotonic()) if waiting else None
        readable, _, _ = select.select([0, *devices.values()], [], [], timeout)
        if 0 in readable:
            line = os.read(0, 4096)
            if not line:
                return
            delay = seconds(line.decode().strip())
            print("ready", flush=True)
        for device in readable:
            if device == 0:
                continue
            with contextlib.suppress(BlockingIOError):
                while True:
                    packet = os.read(device, 65536)
                    target = devices.get(packet[_DESTINATION]) if packet[:1] and packet[0] >> 4 == 4 else None
                    if target is not None and len(waiting) < _MOST_WAITING:
                        heapq.heappush(waiting, (time.monotonic() + delay, number, target, packet))
                        number += 1
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, _, target, packet = heapq.heappop(waiting)
            with contextlib.suppress(OSError):  # a device that is down, or whose queue is full, drops it
                os.write(target, packet)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delay", type=seconds, required=True, help="one way, such as 0.5ms or 200us")
    parser.add_argument("nodes", nargs="+", metavar="NAMESPACE=ADDRESS/BITS")
    arguments = parser.parse_args()
    devices = {}
    for node in arguments.nodes:
        namespace, _, address = node.partition("=")
        devices[socket.inet_aton(address.split("/")[0])] = open_device(namespace, address)
    print("ready", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        relay(devices, arguments.delay)


if __name__ == "__main__":
    sys.exit(main())
