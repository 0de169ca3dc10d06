"""What it takes to send residual streams through two stages with Ray, in three ways: see docs/cluster.md.

    python scripts/measure_ray_transport.py [--busy N]     # N processes that compute beside

Prints the median and the 90th percentile in milliseconds, from the driver through two actors and back, for a token of
V4-Flash (64 KB), for eight, and for 512.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pyflash.cluster.ray_runtime import Connection
from pyflash.cluster.streams import pack, unpack

STREAMS = (4, 4096)


class Hop:
    """A stage that computes nothing."""

    def __init__(self) -> None:
        self._next: Any = None
        self._results: dict[int, asyncio.Future[int]] = {}

    async def connect(self, following: Any) -> None:
        self._next = following

    async def step(self, key: int, n: int, *arrays: np.ndarray) -> None:
        """Hands streams to the next actor itself, as stages do."""
        streams = unpack(arrays, [n])
        if self._next is None:
            self._result(key).set_result(n)
        else:
            self._next.step.remote(key, n, *pack(streams))

    def _result(self, key: int) -> asyncio.Future[int]:
        return self._results.setdefault(key, asyncio.get_running_loop().create_future())

    async def result(self, key: int) -> int:
        try:
            return await self._result(key)
        finally:
            del self._results[key]

    async def hand_back(self, streams: np.ndarray) -> np.ndarray:
        return np.array(streams)

    async def swallow(self, streams: np.ndarray) -> int:
        return len(streams)


class PlainHop:
    """The same for a compiled graph, which has a thread of its own."""

    def hand_on(self, streams: np.ndarray) -> np.ndarray:
        return np.array(streams)

    def swallow(self, streams: np.ndarray) -> int:
        return len(streams)


def timed(call: Callable[[], object], n: int) -> str:
    for _ in range(3):
        call()
    seconds = []
    for _ in range(n):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    seconds.sort()
    return f"{1000 * seconds[len(seconds) // 2]:8.2f} {1000 * seconds[int(len(seconds) * 0.9)]:8.2f}"


def measure(ray: Any) -> None:
    remote = ray.remote(Hop).options(num_cpus=0, max_concurrency=100)
    first, last = remote.remote(), remote.remote()
    ray.get([first.connect.remote(last), last.connect.remote(None)])
    keys = itertools.count()
    for tokens, n in ((1, 300), (8, 100), (512, 10)):
        streams = np.random.default_rng(1).random((tokens, *STREAMS), dtype=np.float32)

        def direct(streams: np.ndarray = streams) -> None:
            key = next(keys)
            result = last.result.remote(key)
            first.step.remote(key, len(streams), *pack([streams]))
            ray.get(result)

        def by_driver(streams: np.ndarray = streams) -> None:
            ray.get(last.swallow.remote(first.hand_back.remote(streams)))

        print(f"{tokens:4} tokens, actor to actor    {timed(direct, n)}", flush=True)
        print(f"{tokens:4} tokens, references        {timed(by_driver, n)}", flush=True)
        print(f"{tokens:4} tokens, compiled graph    {compiled(ray, streams, n)}", flush=True)


def compiled(ray: Any, streams: np.ndarray, n: int) -> str:
    from ray.dag import InputNode

    remote = ray.remote(PlainHop).options(num_cpus=0)
    first, last = remote.remote(), remote.remote()
    with InputNode() as given:
        graph = last.swallow.bind(first.hand_on.bind(given))
    try:
        graph = graph.experimental_compile(_buffer_size_bytes=streams.nbytes + (1 << 16))
    except Exception as error:
        return f"cannot be made: {str(error).splitlines()[0]:.80}"
    try:
        return timed(lambda: ray.get(graph.execute(streams)), n)
    except ray.exceptions.RayError as error:
        return f"gives nothing: {type(error).__name__}"
    finally:
        graph.teardown()
        for actor in (first, last):
            ray.kill(actor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--busy", type=int, default=0)
    parser.add_argument("--ray")
    options = parser.parse_args()
    connection = Connection(options.ray)
    beside = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(options.busy)]
    try:
        measure(connection.ray)
    finally:
        for process in beside:
            process.terminate()
        connection.close()


if __name__ == "__main__":
    main()
