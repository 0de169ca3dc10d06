"""Ray as pyflash uses it: no statistics sent, no dashboard, little memory, and quiet; a missing one is told in one line."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final

from pyflash.native.errors import DeviceError, UnsupportedError

OBJECT_STORE_BYTES: Final = 512 << 20  # streams on their way, and parts of session files
NAMESPACE: Final = "pyflash"
_TRIES: Final = 3  # to start a cluster on a busy machine


def import_ray() -> Any:
    """The module. UnsupportedError without it, and on other systems than Linux."""
    if sys.platform != "linux":
        raise UnsupportedError("stages on several machines need Linux on all of them: run the model on this one alone")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray tells of a change of its own to come
    try:
        import ray
    except ImportError as error:
        raise UnsupportedError("stages on several machines need Ray: pip install 'pyflash-llm[cluster]'") from error
    return ray


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
            self._start(options | {"address": address}, f"at {address}", "start one with 'ray start --head', see docs/cluster.md")
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

    def close(self) -> None:
        if self.is_ours and self.ray.is_initialized():
            self.ray.shutdown()
