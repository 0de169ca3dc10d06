"""Clients of several protocols against a server of its own for as long as one wants, some of them killed in the middle.

    python scripts/soak_serve.py --minutes 60

Each client is a process: an agent with turns of its own conversation, a client of short titles, one of completions. A killed
one is followed by the next. Every ten seconds the server's memory, descriptors and threads are noted, and what it says of
itself in /metrics. It ends with 1 where a request has waited without progress for --stuck seconds, an answer was an error
of the server's own, memory grew by more than --slope MB an hour over the second half (the bounded store of turns, which
fills for hours, apart), or descriptors are left over. In less than an hour --slope means little: allocators take minutes to
settle. Linux.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

_SAMPLE_SECONDS = 10.0
_WORDS = "rain library token answer bridge number story garden letter river".split()


def ask(port: int, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """An answer in one piece; {} where the server said that it is busy."""
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    asking.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = asking.getresponse()
    data = response.read()
    if response.status == 429:
        time.sleep(1)
        return {}
    if response.status != 200:
        raise SystemExit(f"{path}: {response.status} {data[:300]!r}")
    found: dict[str, Any] = json.loads(data)
    return found


def agent(port: int, number: int) -> None:
    """A conversation whose turns are sent again each time, now and then begun anew."""
    chosen = random.Random(number)
    while True:
        messages: list[dict[str, Any]] = [{"role": "system", "content": "Be brief. " * chosen.randrange(1, 60)}]
        for _ in range(chosen.randrange(2, 9)):
            messages.append({"role": "user", "content": " ".join(chosen.choices(_WORDS, k=chosen.randrange(3, 60)))})
            answer = ask(port, "/v1/chat/completions", {"messages": messages, "max_tokens": 60})
            if answer:
                messages.append(answer["choices"][0]["message"])


def titles(port: int, number: int) -> None:
    chosen = random.Random(number)
    while True:
        ask(port, "/v1/messages", {"max_tokens": 8, "thinking": {"type": "disabled"}, "messages": [
            {"role": "user", "content": f"A title for {chosen.choice(_WORDS)}."}]})
        time.sleep(chosen.random())


def completions(port: int, number: int) -> None:
    """Streams that are left at some byte."""
    chosen = random.Random(number)
    while True:
        with socket.create_connection(("127.0.0.1", port), timeout=600) as asking:
            body = json.dumps({"prompt": " ".join(chosen.choices(_WORDS, k=30)), "max_tokens": 40, "stream": True}).encode()
            asking.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            left = chosen.randrange(1, 20_000)
            while left > 0 and (data := asking.recv(min(left, 4096))):
                left -= len(data)


CLIENTS = (agent, agent, titles, completions)


def metrics(port: int) -> dict[str, float]:
    asking = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    asking.request("GET", "/metrics")
    text = asking.getresponse().read().decode()
    return {name: float(value) for name, value in re.findall(r"^(pyflash_\S+) (\S+)$", text, re.MULTILINE)}


def looked_at(process: int, port: int) -> dict[str, float]:
    """What the system and the server tell of it now."""
    status = Path(f"/proc/{process}/status").read_text()
    told = metrics(port)
    return {"time": time.monotonic(), "rss": int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1000,
            "threads": int(re.findall(r"Threads:\s+(\d+)", status)[0]), "fds": len(os.listdir(f"/proc/{process}/fd")),
            "kept": told['pyflash_cache_bytes{tier="turns"}'] / 1e6, "stalled": told["pyflash_engine_stalled_seconds"], "waiting": told["pyflash_requests_waiting"],
            "generated": told["pyflash_generated_tokens_total"], "cancelled": told["pyflash_cancelled_total"],
            "requests": sum(value for name, value in told.items() if name.startswith("pyflash_requests_total")),
            "broken": sum(value for name, value in told.items() if re.search(r'requests_total\{.*code="(5..|400)"', name))}


def started(model: str | None, folder: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "pyflash", "serve", *([model] if model else []), "--port", "0", "--ctx", "4096",
               "--parallel", "2", "--no-disk-cache"]  # fmt: skip
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYFLASH_STATE": folder})
    assert server.stderr is not None
    for line in server.stderr:
        if found := re.search(r"answers at http://127\.0\.0\.1:(\d+)", line):
            return server, int(found[1])
    raise SystemExit("the server did not start")


def slope(samples: list[dict[str, float]]) -> float:
    """MB an hour that the memory grew by over the second half, without the turns that are kept, whose store has a bound."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return 0.0
    return float(np.polyfit([each["time"] for each in half], [each["rss"] - each["kept"] for each in half], 1)[0] * 3600)


def soak(server: int, port: int, options: argparse.Namespace) -> tuple[list[dict[str, float]], int, str]:
    """The samples, how many clients were killed, and what went wrong."""
    chosen = random.Random(options.seed)
    end = time.monotonic() + 60 * options.minutes
    running: list[multiprocessing.Process] = []
    samples, n_killed, problem = [looked_at(server, port)], 0, ""
    next_kill = time.monotonic()
    try:
        while time.monotonic() < end and not problem:
            for n in range(len(CLIENTS)):
                if n == len(running) or not running[n].is_alive():
                    if n < len(running) and running[n].exitcode == 1:
                        problem = "a client was refused"
                    process = multiprocessing.Process(target=CLIENTS[n], args=(port, chosen.randrange(1 << 30)), daemon=True)
                    process.start()
                    running[n : n + 1] = [process]
            if time.monotonic() >= next_kill:
                chosen.choice(running).kill()
                n_killed += 1
                next_kill = time.monotonic() + chosen.expovariate(1 / options.between_kills)
            if time.monotonic() - samples[-1]["time"] >= _SAMPLE_SECONDS:
                samples.append(looked_at(server, port))
                if samples[-1]["stalled"] > options.stuck:
                    problem = f"requests have waited for {samples[-1]['stalled']:.0f} s without progress"
            time.sleep(0.1)
    finally:
        for process in running:
            process.kill()
            process.join()
    return samples, n_killed, problem


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", help="a GGUF file; without one, the demo model")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--between-kills", type=float, default=2.0, help="seconds, on average")
    parser.add_argument("--stuck", type=float, default=60.0, help="seconds without progress that are too many")
    parser.add_argument("--slope", type=float, default=1.0, help="MB an hour that are too many")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        server, port = started(options.model, folder)
        try:
            samples, n_killed, problem = soak(server.pid, port, options)
            time.sleep(3)
            last = looked_at(server.pid, port)
        finally:
            server.terminate()
            code = server.wait(60)
    grown, first = slope(samples), samples[min(2, len(samples) - 1)]
    if not problem and last["broken"]:
        problem = f"{last['broken']:.0f} answers were errors"
    if not problem and grown > options.slope:
        problem = f"memory grew by {grown:.2f} MB an hour"
    if not problem and last["fds"] > samples[0]["fds"] + 5:
        problem = f"descriptors grew from {samples[0]['fds']:.0f} to {last['fds']:.0f}"
    if not problem and code != 0:
        problem = f"the server ended with {code}"
    print(f"seed {options.seed}: {options.minutes:g} min, {last['requests']:.0f} requests, {last['generated']:.0f} tokens, "
          f"{n_killed} clients killed, {last['cancelled']:.0f} answers cancelled; memory {first['rss']:.1f} MB after "
          f"{first['time'] - samples[0]['time']:.0f} s, {last['rss']:.1f} MB at the end, {last['kept']:.1f} MB of them turns that "
          f"are kept ({grown:+.2f} MB an hour over the second half without these); descriptors {samples[0]['fds']:.0f} and {last['fds']:.0f}, threads {first['threads']:.0f} and "
          f"{last['threads']:.0f}; longest stall {max(each['stalled'] for each in samples):.1f} s")
    if problem:
        print(problem, file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
