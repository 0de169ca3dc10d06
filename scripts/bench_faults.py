"""What happens when something fails under a model in stages, and how long until it goes on: the table of docs/cluster.md.

    sudo python scripts/bench_faults.py model.gguf --timeout 10 [--only "node gone"]

Two Ray nodes in network namespaces, a stage on each, an answer that is being generated on the first one. After ten tokens comes
the fault; told are the seconds of the longest pause behind it, or until the error, and what the user is told. Every answer is
compared with one process's. Exits with 1 where one differs.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "cluster"))

import cluster_driver  # noqa: E402
import rig  # noqa: E402
from kill_stages import undisturbed  # noqa: E402
from rig import RayNetwork, missing  # noqa: E402

import pyflash  # noqa: E402

_BEFORE = 10  # tokens before the fault
_MOMENT = 3.0  # seconds that a link is cut for
_OTHER_VERSION = "import pyflash.native.library as library\nlibrary.__version__ = '0.0.0'\n"  # as sitecustomize.py


@dataclass
class Ran:
    """seconds: of the longest pause behind the fault, or from the start to an error. before, after: milliseconds a token, after
    that pause."""

    seconds: float
    before: float
    after: float
    tokens: list[int]
    said: str


def run(net: RayNetwork, arguments: argparse.Namespace, fault: Callable[[], None] | None, file: str | None = None) -> Ran:
    """An answer with a fault in it; without one, only as far as its beginning."""
    process = net.start_python(0, cluster_driver.__file__, file or arguments.file, "--tokens", str(arguments.tokens), "--timeout",
                               str(arguments.timeout), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    began, failed = time.monotonic(), 0.0
    times: list[float] = []
    said, last = "", ""
    for line in process.stdout:
        last = line
        if line.startswith("token"):
            times.append(time.monotonic())
            if len(times) == _BEFORE and fault is not None:
                fault()
                failed = time.monotonic()
        elif line.startswith("told") and not said:
            said = line[5:].strip()
    process.wait()
    found: dict[str, Any] = json.loads(last)
    ends = [] if fault is not None and "error" not in found else [time.monotonic()]
    later = [at for at in times if at > failed] if fault is not None else []
    moments = [failed or began, *later, *ends]
    pause, at = max((after - before, after) for before, after in itertools.pairwise(moments))
    return Ran(pause, a_token(times[:_BEFORE]), a_token([each for each in later if each >= at]), found["tokens"],
               found.get("error", said))  # fmt: skip


def a_token(times: list[float]) -> float:
    """Milliseconds from one to the next; 0 where there are none."""
    return 1000 * (times[-1] - times[0]) / (len(times) - 1) if len(times) > 1 else 0.0


class Faults:
    """Each method is a fault, and lets an answer meet it; the network is of no use then."""

    def __init__(self, net: RayNetwork, arguments: argparse.Namespace) -> None:
        self._net, self._arguments = net, arguments

    def _run(self, fault: Callable[[], None] | None, file: str | None = None) -> Ran:
        return run(self._net, self._arguments, fault, file)

    def _signal(self, what: signal.Signals) -> None:
        for pid in self._net.stages(1):
            os.kill(pid, what)

    def stage_killed(self) -> Ran:
        return self._run(lambda: self._signal(signal.SIGKILL))

    def stage_silent(self) -> Ran:
        return self._run(lambda: self._signal(signal.SIGSTOP))

    def out_of_memory(self) -> Ran:
        with rig.MemoryLimit() as limit:
            return self._run(lambda: [limit.take(pid) for pid in self._net.stages(1)] and None)

    def link_slow(self) -> Ran:
        def slow() -> None:
            for node in (0, 1):
                self._net.slow(node, "2mbit")

        return self._run(slow)

    def link_cut_for_a_moment(self) -> Ran:
        def cut() -> None:
            self._net.cut(1)
            time.sleep(_MOMENT)
            self._net.mend(1)

        found = self._run(cut)
        return Ran(found.seconds + _MOMENT, found.before, found.after, found.tokens, found.said)

    def link_cut_for_good(self) -> Ran:
        return self._run(lambda: self._net.cut(1))

    def node_gone(self) -> Ran:
        return self._run(lambda: self._net.kill_node(1))

    def file_differs(self) -> Ran:
        """Another fine-tune: the same directory."""
        place, data = self._net.folder / "ray" / "model.gguf", bytearray(Path(self._arguments.file).read_bytes())
        self._net.run(0, "cp", self._arguments.file, str(place))
        middle = len(data) // 2
        data[middle:] = bytes(byte ^ 1 for byte in data[middle:])
        other = self._net.folder / "other.gguf"
        other.write_bytes(data)
        self._net.run(1, "cp", str(other), str(place))
        return self._run(None, str(place))

    def version_differs(self) -> Ran:
        folder = self._net.folder / "other"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_OTHER_VERSION)
        self._net.kill_node(1)
        self._net.start_ray(1, environment={"PYTHONPATH": str(folder)})
        return self._run(None)

    def head_gone(self) -> Ran:
        def kill() -> None:
            for pid in self._net.processes(0):
                with contextlib.suppress(OSError):
                    if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]:
                        os.kill(pid, signal.SIGKILL)

        return self._run(kill)


FAULTS = ("stage_killed", "stage_silent", "out_of_memory", "link_slow", "link_cut_for_a_moment", "link_cut_for_good", "node_gone",
          "file_differs", "version_differs", "head_gone")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds, as of --stage-timeout")
    parser.add_argument("--tokens", type=int, default=40)
    names = ", ".join(each.replace("_", " ") for each in FAULTS)
    parser.add_argument("--only", nargs="+", metavar="FAULT", help=f"some of: {names}")
    arguments = parser.parse_args()
    lacking = missing()
    if lacking is not None:
        sys.exit(lacking)
    arguments.file = str(Path(arguments.file).resolve())
    expected = undisturbed(arguments.file, arguments.tokens)
    print("| fault | pause | ms a token before, after | tokens | told |\n|---|---|---|---|---|")
    for name in FAULTS:
        if arguments.only and name.replace("_", " ") not in arguments.only:
            continue
        with RayNetwork(2) as net:
            for node in range(net.n):  # what the bandwidth is measured with, which each would convert first
                shutil.copy(pyflash.demo.path(), net.folder / str(node) / "cache")
            run(net, arguments, None)
            found = getattr(Faults(net, arguments), name)()
        if found.tokens != expected[: len(found.tokens)]:
            sys.exit(f"{name}: other tokens")
        print(f"| {name.replace('_', ' ')} | {found.seconds:.1f} s | {found.before:.1f}, {found.after:.1f} | "
              f"{len(found.tokens)} of {len(expected)} as undisturbed | {found.said} |", flush=True)


if __name__ == "__main__":
    main()
