"""What a model and its sessions can be told: the choices by name, and where a device comes in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from pyflash.native.errors import ArgumentError
from pyflash.native.library import ffi, lib
from pyflash.native.values import integer

# The library's numbers by name. Other programs' choices, such as the command line's, are these names.
PRECISIONS = {"fast": lib.PF_PRECISION_FAST, "exact": lib.PF_PRECISION_EXACT, "int8": lib.PF_PRECISION_INT8}
CACHES = {
    "auto": lib.PF_CACHE_AUTO, "f16": lib.PF_CACHE_F16, "reference": lib.PF_CACHE_REFERENCE, "f32": lib.PF_CACHE_F32,
}
RELEASES = {"preview": lib.PF_CHAT_RELEASE_PREVIEW, "0731": lib.PF_CHAT_RELEASE_0731}
STREAMING = {"auto": lib.PF_STREAM_AUTO, "off": lib.PF_STREAM_OFF, "on": lib.PF_STREAM_ON}

_MOST_INT32, _MOST_INT64 = 2**31 - 1, 2**63 - 1


def chosen(what: str, name: str, numbers: dict[str, int]) -> int:
    """The number of a choice; ArgumentError, which names what it is, for one that there is not."""
    if not isinstance(name, str) or name not in numbers:
        raise ArgumentError(f"unknown {what} {name!r}; use one of {', '.join(numbers)}")
    return int(numbers[name])


def cache_in_use(precision: str, cache: str) -> str:
    """What "auto" stands for, which the library says."""
    number = lib.pf_cache_type_in_use(PRECISIONS[precision], CACHES[cache])
    return next(name for name, value in CACHES.items() if value == number)


class DeviceKeywords(TypedDict, total=False):
    """The fields of DeviceOptions but for the device, as keyword arguments of Model.open()."""

    gpu_layers: int | None
    cpu_moe: int | None
    gpu_context: int | None
    gpu_chunk: int | None
    gpu_cache: str
    gpu_budget: int
    stream_experts: str
    hot_experts: str | int


@dataclass(frozen=True)
class DeviceOptions:
    """What of a model a device computes, and how its memory is used.

    device: "cpu", or "cuda" (the second one: "cuda:1") for that device and the processor together; "auto": "cuda" if
    there is one that passes a short test of its operations and has room, else "cpu".
    gpu_layers: how many layers it computes, counted from the last one, the output being the first of them; None for as
    many as fit. cpu_moe: in how many layers, counted from the first one, the routed experts stay with the processor;
    None for as few as must. Both leave room on the device for a session(gpu_context, gpu_chunk, cache=gpu_cache), and
    take at most gpu_budget bytes there, or 0: what is free, less a reserve.
    stream_experts: "auto" sends the device the routed experts that stay with the processor for long chunks of tokens
    when that is quicker, which is measured; results then depend on how a sequence is split, within the rounding of float
    sums; "on": for every chunk of 32 tokens or more; "off".
    hot_experts: how much of the device's memory holds those of these experts that short steps use most of late: "auto"
    for what the rest leaves, less a reserve, a number of bytes for that much at most, or "off"; results then depend on
    what was evaluated before, within the same rounding. Neither under precision="exact" nor with an expert_budget.
    """

    device: str = "auto"
    gpu_layers: int | None = None
    cpu_moe: int | None = None
    gpu_context: int | None = None
    gpu_chunk: int | None = None
    gpu_cache: str = "auto"
    gpu_budget: int = 0
    stream_experts: str = "auto"
    hot_experts: str | int = "auto"

    def write(self, params: Any) -> Any:
        """Fills in pf_model_params. Returns what must live as long as they are used. ArgumentError."""
        if not isinstance(self.device, str):
            raise ArgumentError(f"device must be a name such as cpu or cuda, not {self.device!r:.40}")
        device = ffi.new("char[]", self.device.encode("utf-8", "replace"))
        params.device = device
        params.n_gpu_layers = _or_auto("gpu_layers", self.gpu_layers)
        params.n_cpu_moe = _or_auto("cpu_moe", self.cpu_moe)
        params.gpu_ctx = 0 if self.gpu_context is None else integer("gpu_context", self.gpu_context, 1, _MOST_INT32)
        params.gpu_chunk = 0 if self.gpu_chunk is None else integer("gpu_chunk", self.gpu_chunk, 1, _MOST_INT32)
        params.gpu_cache_type = chosen("cache precision", self.gpu_cache, CACHES)
        params.gpu_budget = integer("gpu_budget", self.gpu_budget, 0, _MOST_INT64)
        params.stream_experts = chosen("stream_experts", self.stream_experts, STREAMING)
        params.hot_experts = _hot_experts(self.hot_experts)
        return device


def _or_auto(name: str, value: int | None) -> int:
    return int(lib.PF_GPU_AUTO) if value is None else integer(name, value, 0, _MOST_INT32)


def _hot_experts(size: str | int) -> int:
    if size == "auto":
        return int(lib.PF_HOT_AUTO)
    if size == "off":
        return int(lib.PF_HOT_OFF)
    if isinstance(size, str):
        raise ArgumentError(f"unknown hot_experts {size!r}; use auto, off or a number of bytes")
    return integer("hot_experts", size, 1, _MOST_INT64)
