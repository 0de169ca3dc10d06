"""Several machines on one: network namespaces with links of a given rate and delay, each with a Ray node of its own.

Everything that runs in a namespace is ended with it, whatever a test has left. A janitor, a process of its own, sees to that
where this one is killed; and a new rig clears what is left nevertheless. It needs root, `ip` and `tc` (missing() says what
lacks), and leaves the machine's own network alone: the namespaces know only each other.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

ROOT = Path(__file__).resolve().parent.parent.parent
RELAY = ROOT / "scripts" / "link_relay.py"
PATIENCE = 120.0  # seconds: more than anything here takes on a slow machine

# The ports of docs/cluster.md, beside GCS_PORT, which the head has.
GCS_PORT = 6379
PORTS = {"--node-manager-port": 6380, "--object-manager-port": 6381, "--runtime-env-agent-port": 6382,
         "--dashboard-agent-listen-port": 6383, "--dashboard-agent-grpc-port": 6384, "--metrics-export-port": 6385,
         "--ray-client-server-port": 6386}
WORKER_PORTS = (6400, 6499)
HEAD_PORTS = {GCS_PORT, 44217, 44227}  # the last two tell metrics of the head
_RAY_TRIES = 3


def missing() -> str | None:
    """Why there can be no rig here."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    for program in ("ip", "tc", "ss"):
        if shutil.which(program) is None:
            return f"there is no `{program}` (Debian's iproute2)"
    made = subprocess.run(["unshare", "--net", "true"], capture_output=True)
    return None if made.returncode == 0 else "this system makes no network namespaces"


def _sh(*command: str, check: bool = True) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


_SERIAL = itertools.count()


def clear_dead() -> None:
    """Removes the namespaces, with all that runs in them, of rigs whose process is gone."""
    for name in re.findall(r"^(pf\d+-\w+)", _sh("ip", "netns", "list"), re.MULTILINE):
        if not Path("/proc", name[2:].split("-")[0]).exists():
            remove_namespace(name)


def remove_namespace(name: str) -> None:
    """Ends what runs in it, and removes it."""
    deadline = time.monotonic() + PATIENCE
    while pids := [int(pid) for pid in _sh("ip", "netns", "pids", name, check=False).split()]:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes in the namespace {name} do not end: {pids}")
        time.sleep(0.05)
    _sh("ip", "netns", "del", name, check=False)


class Network:
    """n namespaces, each with an address that all the others reach.

    rate: of every node's link, as tc has it ("1gbit"); delay: one way ("0.5ms"), by scripts/link_relay.py. Without a delay the
    links are veth pairs to a bridge. A node has a folder of its own, its HOME and its PYFLASH_CACHE. cores: of this machine, which
    the nodes have one each of, in turn; none: all of them.
    """

    def __init__(self, n: int, rate: str | None = None, delay: str | None = None, cores: Sequence[int] = ()) -> None:
        clear_dead()
        self._cores = cores
        self.n = n
        self.addresses = [f"10.77.0.{i + 1}" for i in range(n)]
        own = f"pf{os.getpid()}-{next(_SERIAL)}"  # several may be there at once
        self._names = [f"{own}n{i}" for i in range(n)]
        self._switch = f"{own}switch"
        self._relay: subprocess.Popen[bytes] | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="pfrig-", dir="/tmp"))  # short: sockets lie in it
        self._janitor = subprocess.Popen([sys.executable, __file__, str(self.folder), *self._names, self._switch],
                                         stdin=subprocess.PIPE, start_new_session=True)
        try:
            for i, name in enumerate(self._names):
                _sh("ip", "netns", "add", name)
                _sh("ip", "-n", name, "link", "set", "lo", "up")
                for part in ("home", "cache", "ray"):
                    (self.folder / str(i) / part).mkdir(parents=True)
            (self.folder / "ray").mkdir()
            device = self._join_by_bridge() if delay is None else self._join_by_relay(delay)
            if rate is not None:
                for name in self._names:
                    _sh("tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb",
                        "limit", "16mb")
        except BaseException:
            self.close()
            raise

    def _join_by_bridge(self) -> str:
        _sh("ip", "netns", "add", self._switch)
        _sh("ip", "-n", self._switch, "link", "add", "bridge", "type", "bridge")
        _sh("ip", "-n", self._switch, "link", "set", "bridge", "up")
        for i, name in enumerate(self._names):
            _sh("ip", "-n", self._switch, "link", "add", f"port{i}", "type", "veth", "peer", "name", "eth0", "netns", name)
            _sh("ip", "-n", self._switch, "link", "set", f"port{i}", "master", "bridge", "up")
            _sh("ip", "-n", name, "addr", "add", f"{self.addresses[i]}/24", "dev", "eth0")
            _sh("ip", "-n", name, "link", "set", "eth0", "up")
        return "eth0"

    def _join_by_relay(self, delay: str) -> str:
        nodes = [f"{name}={address}/24" for name, address in zip(self._names, self.addresses, strict=True)]
        self._relay = subprocess.Popen([sys.executable, str(RELAY), "--delay", delay, *nodes], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE)
        assert self._relay.stdout is not None
        if self._relay.stdout.readline() != b"ready\n":
            raise RuntimeError("scripts/link_relay.py did not start")
        return "pf0"

    def cut(self, node: int) -> None:
        """Nothing passes to or from a node any more, as when a cable is pulled out of the switch; of all where a relay is."""
        if self._relay is not None:
            self._relay.send_signal(signal.SIGSTOP)
        else:
            _sh("ip", "-n", self._switch, "link", "set", f"port{node}", "down")

    def mend(self, node: int) -> None:
        if self._relay is not None:
            self._relay.send_signal(signal.SIGCONT)
        else:
            _sh("ip", "-n", self._switch, "link", "set", f"port{node}", "up")

    def delay(self, delay: str) -> None:
        """Another delay of all links, where there is one."""
        assert self._relay is not None and self._relay.stdin is not None and self._relay.stdout is not None
        self._relay.stdin.write(f"{delay}\n".encode())
        self._relay.stdin.flush()
        if self._relay.stdout.readline() != b"ready\n":
            raise RuntimeError("scripts/link_relay.py has ended")

    def slow(self, node: int, rate: str) -> None:
        """Another rate of a node's link, in the direction from it."""
        device = "eth0" if self._relay is None else "pf0"
        _sh("tc", "-n", self._names[node], "qdisc", "replace", "dev", device, "root", "tbf", "rate", rate, "burst", "256kb",
            "limit", "16mb")

    def environment(self, node: int) -> dict[str, str]:
        own = self.folder / str(node)
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("RAY_", "PYTEST_")) and not name.lower().endswith("_proxy")}
        return {**kept, "HOME": str(own / "home"), "PYFLASH_CACHE": str(own / "cache"), "RAY_USAGE_STATS_ENABLED": "0"}

    def command(self, node: int, *command: str, hidden: Sequence[Path] = ()) -> list[str]:
        """What runs a command in a node's namespace. hidden: folders that this machine does not have."""
        mounts = [f"mount --bind {self.folder / str(node) / 'ray'} {self.folder / 'ray'}",
                  *(f"mount -t tmpfs none '{folder}'" for folder in hidden)]
        script = " && ".join([*mounts, 'exec "$@"'])
        bound = ["taskset", "-c", str(self._cores[node % len(self._cores)])] if self._cores else []
        return [*bound, "ip", "netns", "exec", self._names[node], "sh", "-c", script, "sh", *command]

    def run(self, node: int, *command: str, hidden: Sequence[Path] = (), timeout: float = PATIENCE,
            environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """As on that machine, to the end."""
        return subprocess.run(self.command(node, *command, hidden=hidden), capture_output=True, text=True, timeout=timeout,
                              env={**self.environment(node), **(environment or {})}, cwd=self.folder)

    def start(self, node: int, *command: str, hidden: Sequence[Path] = (), environment: Mapping[str, str] | None = None,
              **more: Any) -> subprocess.Popen[str]:
        """The same, meanwhile. close() ends it."""
        return subprocess.Popen(self.command(node, *command, hidden=hidden), text=True, cwd=self.folder,
                                env={**self.environment(node), **(environment or {})}, **more)

    def listening(self, node: int) -> set[tuple[str, int]]:
        """The addresses and ports that TCP connections are taken at."""
        lines = self.run(node, "ss", "-H", "-ltn").stdout.splitlines()
        found = (line.split()[3].rpartition(":") for line in lines)
        return {(address.strip("[]").removeprefix("::ffff:"), int(port)) for address, _, port in found}

    def processes(self, node: int) -> list[int]:
        return [int(pid) for pid in _sh("ip", "netns", "pids", self._names[node], check=False).split()]

    def stages(self, node: int) -> list[int]:
        """The processes of stages there."""
        found = []
        for pid in self.processes(node):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"ray::StageActor"):
                    found.append(pid)
        return found

    def kill_node(self, node: int) -> None:
        """Everything that runs there, at once."""
        for pid in self.processes(node):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for name in (*self._names, self._switch):
            remove_namespace(name)
        if self._relay is not None:
            self._relay.kill()
            self._relay.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        assert self._janitor.stdin is not None
        self._janitor.stdin.close()
        self._janitor.wait()

    def __enter__(self) -> Network:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class RayNetwork(Network):
    """The same with a Ray node in every namespace, the head in the first, started as docs/cluster.md has it."""

    def __init__(self, n: int, rate: str | None = None, delay: str | None = None, cores: Sequence[int] = (), *,
                 n_started: int | None = None, environment: Mapping[str, str] | None = None,
                 hidden: Mapping[int, Sequence[Path]] | None = None) -> None:
        """n_started: how many have a Ray node from the beginning, all by default. environment: of every node; hidden: folders
        that a node does not have."""
        super().__init__(n, rate, delay, cores)
        self.address = f"{self.addresses[0]}:{GCS_PORT}"
        self._more = dict(environment or {})
        self._hidden = dict(hidden or {})
        try:
            self.start_ray(0)
            with ThreadPoolExecutor(n) as together:
                list(together.map(self.start_ray, range(1, n if n_started is None else n_started)))
        except BaseException:
            self.close()
            raise

    def environment(self, node: int) -> dict[str, str]:
        return {**super().environment(node), **self._more}

    def ray_command(self, node: int) -> list[str]:
        role = ["--head", "--port", str(GCS_PORT), "--include-dashboard=false", "--temp-dir", str(self.folder / "ray")] \
            if node == 0 else ["--address", self.address]
        ports = [word for option, port in PORTS.items() for word in (option, str(port))
                 if node == 0 or option != "--ray-client-server-port"]
        return [sys.executable, "-m", "ray.scripts.scripts", "start", *role, "--node-ip-address", self.addresses[node],
                "--node-name", f"node{node}", *ports, "--min-worker-port", str(WORKER_PORTS[0]), "--max-worker-port",
                str(WORKER_PORTS[1]), "--num-cpus", "1", "--object-store-memory", str(100 << 20), "--disable-usage-stats"]

    def start_ray(self, node: int, environment: Mapping[str, str] | None = None) -> None:
        """environment: more of it, for all that runs there. RuntimeError with what Ray said where it does not start. Ray gives a busy machine 30 s, which cannot be changed."""
        for _ in range(_RAY_TRIES):
            done = self.run(node, *self.ray_command(node), hidden=self._hidden.get(node, ()), environment=environment)
            if done.returncode == 0:
                return
            self.kill_node(node)
        raise RuntimeError(f"ray start on node {node}: {done.stdout[-2000:]} {done.stderr[-2000:]}")

    def python(self, node: int, *arguments: str, environment: Mapping[str, str] | None = None,
               **more: Any) -> subprocess.CompletedProcess[str]:
        """Python on that node, which sees what a driver there would, to the end."""
        return self.run(node, sys.executable, *arguments, hidden=self._hidden.get(node, ()),
                        environment=self._as_driver(environment), **more)

    def start_python(self, node: int, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """The same, meanwhile."""
        return self.start(node, sys.executable, *arguments, hidden=self._hidden.get(node, ()),
                          environment=self._as_driver(None), **more)

    def _as_driver(self, environment: Mapping[str, str] | None) -> dict[str, str]:
        """By itself Ray looks for a cluster among all processes of the machine, also those of other namespaces."""
        return {"RAY_ADDRESS": self.address, **(environment or {})}


class MemoryLimit:
    """A control group whose processes are killed by the kernel as soon as they need more memory than what they have."""

    def __init__(self) -> None:
        """OSError where this system makes none."""
        first = Path("/sys/fs/cgroup/memory")  # of version 1
        self._group = (first if first.is_dir() else Path("/sys/fs/cgroup")) / f"pfrig-{os.getpid()}-{next(_SERIAL)}"
        self._group.mkdir()
        try:
            limit = self._group / ("memory.limit_in_bytes" if first.is_dir() else "memory.max")
            limit.write_text(str(64 << 10))
        except OSError:
            self._group.rmdir()
            raise

    def take(self, pid: int) -> None:
        """What it has already counts elsewhere."""
        (self._group / "cgroup.procs").write_text(str(pid))

    def close(self) -> None:
        for pid in (self._group / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        wait_for(lambda: not (self._group / "cgroup.procs").read_text().split(), "an empty control group")
        self._group.rmdir()

    def __enter__(self) -> MemoryLimit:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def wait_for(condition: Callable[[], _T], what: str, seconds: float = PATIENCE) -> _T:
    """The condition's value as soon as it is true; TimeoutError after so long."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come in {seconds:.0f} s")
        time.sleep(0.1)
    return found


def clean_up_after() -> None:
    """The janitor: waits until whoever started it is gone or done, and removes what that has left."""
    folder, *names = sys.argv[1:]
    sys.stdin.buffer.read()
    for name in names:
        if Path("/run/netns", name).exists():
            remove_namespace(name)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    clean_up_after()
