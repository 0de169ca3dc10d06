"""What several commands share: options, errors of the converter."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import click

import pyflash
from pyflash import demo
from pyflash.cli.advice import in_options
from pyflash.cli.chat.settings import MAX_TOKENS, SAMPLING, Setting
from pyflash.cli.progress import Progress
from pyflash.cli.streams import say
from pyflash.engine.model import DRAFT_HEAD, MAX_THREADS
from pyflash.engine.options import CACHES, PRECISIONS, STREAMING
from pyflash.engine.sampling import RECOMMENDED
from pyflash.engine.speculation import DRAFTERS, MOST_DRAFTED
from pyflash.machine import hardware, memory_plan
from pyflash.machine.units import format_bytes

_F = TypeVar("_F", bound=Callable[..., Any])


def option(*names: str, command: str = "", **settings: Any) -> Callable[[_F], _F]:
    """A click option that PYFLASH_<NAME> sets as well. command: its name in the variable's, PYFLASH_<COMMAND>_<NAME>,
    where the same option of another command means something else."""
    long_name = next(name for name in names if name.startswith("--"))
    variable = "_".join(filter(None, ("PYFLASH", command, long_name.strip("-")))).replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **settings)


def _with_device(_context: click.Context, _option: click.Parameter, value: Any) -> Any:
    """Refuses, also for `pyflash doctor`, what needs a device when none can be used."""
    if (isinstance(value, int) and value > 0) or (isinstance(value, str) and value.startswith("cuda")):
        problem = hardware.device_problem("cuda")
        if problem:
            raise pyflash.DeviceError(f'device "cuda" cannot be used, do without it: {problem}')
    return value


class HotExperts(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Bytes, or "auto" or "off"."""

    name = "auto|off|SIZE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        return value if value in ("auto", "off") or isinstance(value, int) else parse_size(value)


def device_options() -> tuple[Callable[[Any], Any], ...]:
    """Where the layers are computed."""
    return (
        option("--device", metavar="auto|cpu|cuda[:N]", callback=_with_device,
               help="cuda: compute on that GPU what fits there, the rest on the processor; auto: if there is one and it "
               "passes a short test.  [default: cuda with --gpu-layers, else auto]"),
        option("--gpu-layers", "-ngl", type=click.IntRange(0), metavar="N", callback=_with_device,
               help="Layers on the GPU, from the last one down; the output counts as the first of them. 999: all, 0: "
               "none.  [default: as many as fit]"),
        option("--n-cpu-moe", type=click.IntRange(0), metavar="N",
               help="Leave the routed experts of the first N layers to the processor.  [default: as many as must]"),
        option("--cpu-moe", is_flag=True, help="Leave all routed experts to the processor."),
        option("--stream-experts", type=click.Choice(list(STREAMING)), default="auto", show_default=True,
               help="Send the GPU the experts that the processor has for long pieces of a prompt. auto: when that is "
               "quicker, which is measured; on: from 32 tokens on."),
        option("--hot-experts", type=HotExperts(), default="auto", show_default=True,
               help="How much of the GPU's memory holds the most used of these experts, such as 8G; auto: what the rest "
               "leaves."),
    )


def with_device_options(command: _F) -> _F:
    for add in reversed(device_options()):
        command = add(command)
    return command


def device_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """What device_options say, as arguments of Model.open(). device_context among the options: the context to leave room
    for on the device, where it is not --ctx."""
    layers, device = options["gpu_layers"], options["device"] or "auto"
    if device == "auto" and layers:
        device = "cuda"
    if device == "cpu" or (device == "auto" and hardware.device_problem("cuda") is not None):
        if layers or options["cpu_moe"] or options["n_cpu_moe"] is not None:
            raise click.UsageError("--cpu-moe and --n-cpu-moe are for --device cuda, as is --gpu-layers above 0")
        return {"device": "cpu"}
    if options["cpu_moe"] and options["n_cpu_moe"] is not None:
        raise click.UsageError("choose one of --cpu-moe and --n-cpu-moe")
    if layers == 0:
        return {"device": "cpu"}
    return {"device": device, "gpu_layers": layers,
            "cpu_moe": 2**31 - 1 if options["cpu_moe"] else options["n_cpu_moe"],
            "gpu_context": options.get("device_context", options.get("context")), "gpu_chunk": options.get("chunk"),
            "gpu_cache": options["cache_type"], "stream_experts": options["stream_experts"],
            "hot_experts": options["hot_experts"]}


def model_options(command: _F) -> _F:
    """How a model is opened and run."""
    return _add_model_options(command, device_options())


def processor_options(command: _F) -> _F:
    """The same for what runs on the processor only; open_model() is given WITHOUT_DEVICE beside."""
    return _add_model_options(command, ())


WITHOUT_DEVICE: Mapping[str, Any] = {"device": "cpu", "gpu_layers": None, "n_cpu_moe": None, "cpu_moe": False}


def _add_model_options(command: _F, device: Sequence[Callable[[Any], Any]]) -> _F:
    options = (
        option("--threads", "-t", type=click.IntRange(1, MAX_THREADS), metavar="N",
               help="Worker threads.  [default: one a core]"),
        *device,
        option("--precision", type=click.Choice(list(PRECISIONS)), default="fast", show_default=True,
               help="exact: float32 activations and, by itself, cache; int8: 8-bit activations, quicker and less accurate."),
        option("--cache-type", type=click.Choice(list(CACHES)), default="auto", show_default=True,
               help="Precision of the cache. reference: the published model's, about half the memory of f16; auto: that, and "
               "f32 with --precision exact."),
        option("--expert-budget", type=ExpertBudget(), default="auto", show_default=True,
               help="For files larger than memory: how much of the experts stays there, such as 20G; the others are "
               "read ahead from disk when they are chosen. off: leave it to the system."),
        option("--prefault", is_flag=True, help="Read all weights into memory first."),
        option("--mlock", is_flag=True, help="The same, and keep them there."),
        option("--pin", is_flag=True, help="Keep each worker thread on a core of its own."),
        option("--verbose", is_flag=True, help="Tell on stderr what happens, and the speed."),
    )
    for add in reversed(options):  # the help lists them from the last one added
        command = add(command)
    return command


class LayerRange(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Layers "2-5" as the pair (2, 6): the first one, and the end."""

    name = "FIRST-LAST"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        if isinstance(value, tuple):
            return value
        match = re.fullmatch(r"(\d{1,6})-(\d{1,6})", value)
        if match is None or int(match[1]) > int(match[2]):
            self.fail(f"{value!r} is no range of layers such as 0-20", param, ctx)
        return int(match[1]), int(match[2]) + 1


class ExpertBudget(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """Bytes; 0 for "off", None for "auto"."""

    name = "SIZE|auto|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | None:
        if value is None or isinstance(value, int):
            return value
        if value in ("auto", "off"):
            return None if value == "auto" else 0
        return parse_size(value)


def parse_size(text: str) -> int:
    """ "40G" -> 40,000,000,000; "40Gi" -> 40 * 2^30."""
    number, base = (text[:-1], 1024) if text[-2:-1].isalpha() and text[-1:].upper() == "I" else (text, 1000)
    powers = {"K": 1, "M": 2, "G": 3, "T": 4}
    is_scaled = number[-1:].upper() in powers
    digits, unit = (number[:-1], base ** powers[number[-1:].upper()]) if is_scaled else (text, 1)
    if not (digits.isascii() and digits.isdecimal()) or len(digits) > 30 or int(digits) == 0:
        raise click.UsageError(f"{text!r} is no size; write a number of bytes, or one with K, M, G or T: 40G")
    return int(digits) * unit


_MOST_STAGES: Final = 512  # as PF_MAX_LAYERS in the library: every stage has a layer


class Stages(click.ParamType):  # type: ignore[type-arg,unused-ignore]
    """A number of stages, or "auto"."""

    name = "N|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str | int:
        if value == "auto" or isinstance(value, int):
            return cast("str | int", value)
        if not (value.isascii() and value.isdecimal() and len(value) < 10 and 1 <= int(value) <= _MOST_STAGES):
            self.fail(f"{value!r} is neither auto nor a number of stages, 1 to {_MOST_STAGES}", param, ctx)
        return int(value)


def stage_options(command: _F) -> _F:
    """A model in stages on several machines."""
    options = (
        option("--stages", type=Stages(), help="Cut the model into so many stages of consecutive layers, on the machines of a "
               "Ray cluster; auto: as few as have room. docs/cluster.md tells how."),
        option("--ray", metavar="ADDRESS", help="The Ray cluster of --stages: HOST:PORT of its head, or auto for the one that "
               "runs on this machine.  [default: one of this machine alone]"),
        option("--streams", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True,
               help="How stages hand activations on. bfloat16: half the bytes, and other last bits than the whole model."),
        option("--stage-timeout", type=click.FloatRange(1), default=30.0, show_default=True, metavar="SECONDS",
               help="Longest silence: a stage that does not answer is lost by then, told of and started again."),
    )
    for add in reversed(options):
        command = add(command)
    return command


def _open_stages(file: str, options: Mapping[str, Any]) -> pyflash.Model:
    if device_arguments({**options, "device": options["device"] or "cpu"}) != {"device": "cpu"}:
        raise click.UsageError("--stages are computed by the processor: leave out --device and --gpu-layers")
    from pyflash import cluster

    found: Any = cluster.Model.open(
        file, options["stages"], options["ray"], streams=options["streams"], stage_timeout=options["stage_timeout"],
        tell=lambda line: say(f"pyflash: {line}"),
        threads=options["threads"], precision=options["precision"], pin=options["pin"], prefault=options["prefault"],
        mlock=options["mlock"], expert_budget=options["expert_budget"] or 0, release=options.get("release"),
        mtp=options.get("mtp"), draft_head=options.get("draft_head", DRAFT_HEAD),
    )
    return cast("pyflash.Model", found)  # what commands ask of a model it has as well


def open_model(file: str | None, options: Mapping[str, Any]) -> tuple[pyflash.Model, int]:
    """The model, opened as model_options say, and its expert_budget. None: the demo model, with what drafts for it."""
    if options.get("ray") and options.get("stages") is None:
        raise click.UsageError("--ray belongs to --stages: give --stages auto or a number")
    if file is None:
        with Progress("converting", sys.stderr) as progress:
            file = str(demo.path(progress.update, progress.say))
        options = {**options, "mtp": options.get("mtp") or demo.draft_path(options.get("draft") or "auto")}
    if options.get("stages") is not None:
        return _open_stages(file, options), options["expert_budget"] or 0
    model = _open(file, options, options["expert_budget"] or 0)
    if options["expert_budget"] is not None or options["prefault"] or options["mlock"]:
        return model, options["expert_budget"] or 0
    try:
        budget = memory_plan.expert_budget(model, options.get("context"), options["cache_type"],
                                           options.get("parallel") or 1)
    except BaseException:
        model.close()
        raise
    if budget is None:
        return model, 0
    model.close()
    return _open(file, options, budget), budget


def _open(file: str, options: Mapping[str, Any], expert_budget: int) -> pyflash.Model:
    device = device_arguments(options)
    with Progress("reading the weights", sys.stderr) as progress:
        return pyflash.Model.open(
            file, threads=options["threads"], precision=options["precision"], pin=options["pin"],
            prefault=options["prefault"], mlock=options["mlock"], progress=progress.update,
            expert_budget=expert_budget, release=options.get("release"), overlay=options.get("overlay"), mtp=options.get("mtp"),
            draft_head=options.get("draft_head", DRAFT_HEAD), **device,
        )


def draft_options(command: _F) -> _F:
    """What proposes tokens that are checked several in a step, and the file of a block that does."""
    options = (
        option("--draft", type=click.Choice(DRAFTERS), default="auto", show_default=True,
               help="What proposes the next tokens, which are then checked several at once: no answer is changed by it, only "
               "how soon it is there. ngram: what followed like passages; mtp, dspark: the model's MTP block or DSpark "
               "stages; auto: what there is of these, as far as it gains."),
        option("--draft-max", type=click.IntRange(1, MOST_DRAFTED), metavar="N",
               help=f"Most tokens that are proposed at once.  [default: {MOST_DRAFTED}]"),
        option("--draft-head", type=click.IntRange(0, 1 << 20), metavar="N", default=DRAFT_HEAD, show_default=True,
               help="Rows of the small copy of the output head that an MTP block drafts with; 0: the head itself."),
        option("--mtp", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
               help="GGUF file that drafts for the model: its MTP block or DSpark stages, where these have one of their own."),
    )
    for add in reversed(options):
        command = add(command)
    return command


def sampling_options(command: _F) -> _F:
    """Options for how tokens are chosen, by the names in cli.chat.settings."""
    command = option("--stop", multiple=True, help=r"End the answer before this text; may be given several times. "
                     r"\n is a line end.")(command)
    for setting in reversed((MAX_TOKENS, *SAMPLING)):
        names = [f"--{setting.name.replace('_', '-')}", *([setting.short] if setting.short else [])]
        metavar = "X" if isinstance(setting.default, float) else "N"
        add = option(*names, type=setting.kind, metavar=metavar, default=setting.default,
                     help=setting.help + _default_note(setting))
        command = add(command)
    return command


def _default_note(setting: Setting) -> str:
    if setting is MAX_TOKENS:
        return ""
    default = "random" if setting.default is None else f"{setting.default:g}"
    models = "the model's, else " if setting.keyword in RECOMMENDED else ""
    return f"  [default: {models}{default}]"


@contextlib.contextmanager
def converter_errors() -> Iterator[None]:
    from gguf_export.errors import ConvertError

    try:
        yield
    except ConvertError as error:
        raise pyflash.Error(in_options(str(error))) from error


def print_written(files: Sequence[Path], total_bytes: int) -> None:
    more = f" and {len(files) - 1} more files" if len(files) > 1 else ""
    say(f"wrote {files[0]}{more}: {format_bytes(total_bytes)}")
