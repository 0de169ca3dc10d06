"""What `pyflash info` tells: a model file and what it takes to run it."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyflash.engine.model import ModelInfo, Placement
from pyflash.engine.sampling import SamplingOptions
from pyflash.machine.layer_tensors import is_opened
from pyflash.machine.memory_plan import Plan, make_plan, open_measured
from pyflash.machine.units import format_bytes
from pyflash.native.text import visible_line
from pyflash.native.values import StrPath

_EXPERTS = "routed experts"
_PARTS = (
    (_EXPERTS, ("_exps.",)),
    ("shared experts", ("_shexp.",)),
    ("routing", ("ffn_gate_inp", "ffn_gate_tid2eid", "exp_probs_b")),
    ("attention", (".attn_", ".indexer")),
    ("residual streams", ("hc_",)),
    ("embedding", ("token_embd",)),
    ("output", ("output",)),
    ("norms", ("norm",)),
)


_STAGES, _OLD_STAGES = "DSpark stages", "DSpark stages of an older layout"


@dataclass(frozen=True)
class Report:
    """A model file and its memory plan.

    sampling: what the file recommends. part_bytes: the weights by part of the model, largest first. placement: what a
    device would hold; None without one.
    """

    file: str
    model: ModelInfo
    sampling: SamplingOptions
    part_bytes: dict[str, int]
    plan: Plan
    placement: Placement | None = None


def _part_of(name: str, n_layer: int) -> str:
    """The part of the model that a GGUF tensor belongs to."""
    if name.startswith(f"blk.{n_layer}."):  # the block after the layers
        return "MTP block"
    if name.startswith("dspark."):
        return _STAGES
    if name.startswith("mtp."):  # as the first native files had them
        return _OLD_STAGES
    return next((part for part, marks in _PARTS if any(mark in name for mark in marks)), "other")


def _part_bytes(file: StrPath, model: ModelInfo) -> dict[str, int]:
    from gguf_export.reader import read_gguf

    sizes: Counter[str] = Counter()
    for name, tensor in read_gguf(Path(os.fsdecode(file))).tensors.items():
        if is_opened(name, model):
            sizes[_part_of(name, model.n_layer)] += tensor.nbytes
    return dict(sizes.most_common())


def inspect(file: StrPath, n_ctx: int | None, precision: str = "fast", cache: str = "auto",
            device: Mapping[str, Any] | None = None, layers: tuple[int, int] | None = None) -> Report:
    """Opens the file and plans a context of n_ctx tokens (None: the default). device: Model.open()'s arguments for one.
    layers: of a stage, as in Model.open().

    Raises ConvertError where only the library can read the file.
    """
    model, program_bytes = open_measured(file, precision, {**(device or {}), "layers": layers})
    with model:
        parts = _part_bytes(file, model.info)
        read_bytes = parts.get(_EXPERTS, 0) * model.info.n_expert_used // model.info.n_expert
        sampling = model.sampling
        plan = make_plan(model, program_bytes, n_ctx, cache, read_bytes)
        placement = model.placement if model.placement.total_bytes or model.placement.kept else None
    return Report(os.fsdecode(file), model.info, sampling, parts, plan, placement)


def as_json(report: Report) -> dict[str, Any]:
    """The report as one JSON object: the plan's figures for the asked context lie at the top."""
    plan = dataclasses.asdict(report.plan)
    memory = plan.pop("memory")
    return {
        "file": report.file, "model": dataclasses.asdict(report.model), "sampling": report.sampling,
        "part_bytes": report.part_bytes,
        "placement": dataclasses.asdict(report.placement) if report.placement else None,
        **{name: value for name, value in plan.pop("cost").items() if name != "fits"},
        **plan, "n_contexts": report.plan.n_contexts, "machine_bytes": memory["total"], "available_bytes": memory["available"],
        "limit_bytes": memory["limit"],
    }


def describe(report: Report, advice: Sequence[str]) -> str:
    """The report as lines for people. advice: lines on whether it fits and the way out."""
    model, plan = report.model, report.plan
    ratios = Counter(model.layer_ratios[model.first_layer : model.end_layer])
    is_stage = model.end_layer - model.first_layer < model.n_layer
    kinds = ", ".join(f"{ratios[ratio]} {name}" for ratio, name in
                      ((0, "window only"), (4, "compressed 4:1"), (128, "compressed 128:1")) if ratios[ratio])
    sampling = ", ".join(f"{name} {value}" for name, value in report.sampling.items())
    rows = [
        ("file", f"{report.file}: {format_bytes(model.file_bytes)}, {model.n_tensors} tensors, "
                 f"profile {model.profile}"),
        ("name", model.name or "(none)"),
        ("layers", (f"{model.first_layer} to {model.end_layer - 1} of " if is_stage else "") + f"{model.n_layer} ({kinds})"
         + _DRAFTERS[model.drafts]),
        ("width", f"{model.n_embd} in {model.n_stream} streams, {model.n_head} heads of {model.head_dim} "
                  f"({model.rope_dim} rotary), window {model.window}"),
        ("experts", f"{model.n_expert} of width {model.n_ff_expert}, {model.n_expert_used} used; "
                    f"{model.n_hash_layer} hash-routed layers"),
        ("vocabulary", f"{model.n_vocab} tokens"),
        ("context", f"{plan.cost.n_ctx} tokens of {model.n_ctx_train}"),
        *([("sampling", sampling)] if sampling else []),
        ("weights", format_bytes(model.weight_bytes)),
        *((f"  {part}", format_bytes(size)) for part, size in report.part_bytes.items()),
        *([("widened", f"{format_bytes(plan.widened_bytes)}: small tables of the file, in float32 for computing")]
          if plan.widened_bytes else []),
        *([("draft head", f"{format_bytes(plan.draft_bytes)}: a small copy of the head, to draft with")]
          if plan.draft_bytes else []),
        ("drafts", _drafts(report)),
        ("cache", f"{format_bytes(plan.cost.cache_bytes)}, full"),
        ("buffers", format_bytes(plan.cost.buffer_bytes)),
        ("checkpoints", format_bytes(plan.cost.checkpoint_bytes)),
        ("program", format_bytes(plan.program_bytes)),
        ("together", f"{format_bytes(plan.cost.needed_bytes)} at most"),
        *([("at once", f"{plan.n_contexts:,} such contexts fit with all weights, each a place for a conversation")]
          if plan.n_contexts else []),
        *_device_rows(report),
        *_machine_rows(plan, advice),
        *_context_rows(plan),
    ]
    return table(rows)


_DRAFTERS = {"none": "", "mtp": ", and an MTP block", "dspark": ", and DSpark stages"}


def _drafts(report: Report) -> str:
    """What the model can draft with, and what that costs."""
    model, cost = report.model, report.plan.cost
    if model.drafts == "none":
        old = _OLD_STAGES in report.part_bytes
        return "from the text's n-grams" + (f"; its {_OLD_STAGES} are not used: convert the checkpoint again" if old else "")
    what, most = ("the MTP block", 2) if model.drafts == "mtp" else (f"the {_STAGES}", model.draft_most)
    beside = " in a file beside" if model.draft_file_bytes else ""
    return (f"from the text's n-grams, and by {what}, up to {most} tokens: {format_bytes(model.draft_bytes)} of weights{beside}, "
            f"{format_bytes(cost.draft_cache_bytes)} of the cache")


def _device_rows(report: Report) -> list[tuple[str, str]]:
    placed = report.placement
    if placed is None:
        return []
    kept = [("not there", placed.kept)] if placed.kept else []
    if not placed.total_bytes:
        return [("on the device", "nothing"), *kept]
    together = placed.weight_bytes + placed.cache_bytes + placed.buffer_bytes + placed.stream_bytes + placed.hot_bytes
    sending = f", for sending experts {format_bytes(placed.stream_bytes)}" if placed.stream_bytes else ""
    hot = f", for often used experts {format_bytes(placed.hot_bytes)}" if placed.hot_bytes else ""
    head = " and the output" if placed.head else ""
    return [
        ("on the device", f"{placed.n_layer} of {report.model.n_layer} layers{head}, routed experts of "
                          f"{placed.n_expert_layer} of them"),
        ("", f"weights {format_bytes(placed.weight_bytes)}, cache {format_bytes(placed.cache_bytes)}, buffers "
             f"{format_bytes(placed.buffer_bytes)}{sending}{hot}"),
        ("", f"together {format_bytes(together)} of {format_bytes(placed.free_bytes)} free on {placed.name}"),
        *kept,
    ]


def _machine_rows(plan: Plan, advice: Sequence[str]) -> list[tuple[str, str]]:
    memory = plan.memory
    sizes = [f"{format_bytes(size)} {what}" for size, what in
             ((memory.total, "of memory"), (memory.limit, "allowed to this container"), (memory.available, "available"))
             if size is not None]
    rows = [("this machine", ", ".join(sizes) or "memory unknown")]
    return rows + [("", line) for line in advice]


def _context_rows(plan: Plan) -> list[tuple[str, str]]:
    marks = {True: "", False: "  does not fit", None: ""}
    rows = [(f"{_short(cost.n_ctx)} tokens",
             f"cache {format_bytes(cost.cache_bytes)}, together {format_bytes(cost.needed_bytes)}{marks[cost.fits]}")
            for cost in plan.contexts]
    if plan.most_tokens:
        rows.append(("fits", f"contexts of up to {plan.most_tokens} tokens"))
    elif plan.fits is not None:
        rows.append(("fits", "no context"))
    return rows


def _short(tokens: int) -> str:
    """65536 -> "64K": powers of two, as contexts are counted."""
    for unit, size in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= size and tokens % size == 0:
            return f"{tokens // size}{unit}"
    return str(tokens)


def table(rows: list[tuple[str, str]]) -> str:
    """Lines of names and values in two columns, whatever a file has for a name."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {visible_line(value)}" for name, value in rows)
