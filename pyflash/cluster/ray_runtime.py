"""Ray as pyflash uses it: no statistics sent, no dashboard, little memory, and quiet; a missing one is told in one line."""

from __future__ import annotations

import logging
import os
import socket
import sys
from pathlib import Path
from typing import Any, Final

from pyflash.native.errors import DeviceError, UnsupportedError

OBJECT_STORE_BYTES: Final = 512 << 20  # streams on their way, and parts of session files
NAMESPACE: Final = "pyflash"
# What Ray would write to this process's stdout, and the pipeline tells in a line: that stages and machines are gone.
_TOLD_BY_RAY: Final = r"^(A worker died or was killed|The node with node id)|has been marked dead"
_START_ONE: Final = "start one as docs/cluster.md tells"
_REACHED_SECONDS: Final = 10.0  # that a cluster's head may take to take a connection
_TRIES: Final = 3  # to start a cluster on a busy machine


def import_ray() -> Any:
    """The module. UnsupportedError without it, and on other systems than Linux."""
    if sys.platform != "linux":
        raise UnsupportedError("stages on several machines need Linux on all of them: run the model on this one alone")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray tells of a change of its own to come
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", _TOLD_BY_RAY)
    # 'ray start' asks for it by default, ray.init() gives it only so. Ray reads it when it is imported: where a program has
    # done that before, only the processes that Ray starts would ask for a token.
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ and _has_token():
        os.environ["RAY_AUTH_MODE"] = "token"
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("stages on several machines need Ray: pip install 'pyflash-llm[cluster]'") from error
    return ray


def _has_token() -> bool:
    """Whether this user has a token for clusters, where Ray looks for it."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token"
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or Path(named).is_file()


def _unreachable(address: str, seconds: float) -> str:
    """Why nobody takes a connection at HOST:PORT, "" where somebody does: Ray itself would try for minutes, and write of it."""
    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        return ""  # "auto", or of another kind that Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return ""


class Connection:
    """This process in a Ray cluster. is_ours: whether it was made here; close() then leaves it."""

    def __init__(self, address: str | None) -> None:
        """address: of a cluster's head, HOST:PORT, or "auto" for the one that runs on this machine; None: a cluster of this
        machine alone, for as long as this lasts. DeviceError where there is none."""
        ray = import_ray()
        self.ray: Final = ray
        self.is_ours = not ray.is_initialized()
        if not self.is_ours:
            return
        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.ERROR}
        if address is not None:
            if why := _unreachable(address, _REACHED_SECONDS):
                raise DeviceError(f"no Ray cluster answers at {address} ({why})", _START_ONE)
            self._start(options | {"address": address}, f"at {address}", _START_ONE)
            return
        options |= {"address": "local", "num_cpus": 1, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        for _ in range(_TRIES - 1):
            try:
                ray.init(**options)
                return
            except Exception:  # Ray gives a busy machine 30 s, which cannot be changed
                ray.shutdown()
        self._start(options, "on this machine", "end what keeps it busy, and try again")

    def _start(self, options: dict[str, Any], where: str, way_out: str) -> None:
        try:
            self.ray.init(**options)
        except Exception as error:  # of many kinds
            self.ray.shutdown()
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DeviceError(f"no Ray cluster answers {where} ({reason:.200})", way_out) from error

    def nodes(self) -> list[dict[str, Any]]:
        """The machines that are there, as Ray describes them, this one first."""
        own = self.ray.get_runtime_context().get_node_id()
        alive = [node for node in self.ray.nodes() if node["Alive"]]
        return sorted(alive, key=lambda node: (node["NodeID"] != own, node["NodeManagerAddress"], node["NodeID"]))

    def head_problem(self, seconds: float) -> str:
        """Why the cluster's head takes no connection within so long; "" where it does."""
        return _unreachable(self.head, seconds)

    @property
    def head(self) -> str:
        """HOST:PORT."""
        return str(self.ray.get_runtime_context().gcs_address)

    def close(self) -> None:
        if self.is_ours and self.ray.is_initialized():
            self.ray.shutdown()
