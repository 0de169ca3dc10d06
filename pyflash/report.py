"""What `pyflash info` and `pyflash doctor` tell."""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pyflash import demo, machine
from pyflash._native import installed_file
from pyflash.api import Model, ModelInfo, StrPath, __version__
from pyflash.progress import format_bytes


@dataclass(frozen=True)
class Report:
    """A model file and what it takes to run it: sizes in bytes, at a context of n_ctx tokens.

    fits: whether weights, cache and buffers together stay below the machine's memory; None where that is not known.
    """

    file: str
    model: ModelInfo
    part_bytes: dict[str, int]  # the weights' share of each part of the model
    n_ctx: int
    cache_bytes: int
    buffer_bytes: int
    needed_bytes: int
    machine_bytes: int | None
    fits: bool | None


_PARTS = (
    ("routed experts", ("_exps.",)),
    ("shared experts", ("_shexp.",)),
    ("routing", ("ffn_gate_inp", "ffn_gate_tid2eid", "exp_probs_b")),
    ("attention", (".attn_", ".indexer")),
    ("residual streams", ("hc_",)),
    ("embedding", ("token_embd",)),
    ("output", ("output",)),
    ("norms", ("norm",)),
)


def _part_of(name: str, n_layer: int) -> str:
    """The part of the model that a GGUF tensor belongs to."""
    if name.startswith((f"blk.{n_layer}.", "mtp.")):  # the block after the layers; DSpark's under their own names
        return "MTP block"
    return next((part for part, marks in _PARTS if any(mark in name for mark in marks)), "other")


def _part_bytes(file: StrPath, n_layer: int) -> dict[str, int]:
    """Bytes of weights by part, largest first."""
    from gguf_export.reader import read_gguf

    sizes: Counter[str] = Counter()
    for name, tensor in read_gguf(Path(os.fsdecode(file))).tensors.items():
        sizes[_part_of(name, n_layer)] += tensor.nbytes
    return dict(sizes.most_common())


def inspect(file: StrPath, n_ctx: int | None) -> Report:
    """Opens the file and a session of n_ctx tokens, whose cache takes no memory before it is used.

    Raises ConvertError where only the library can read the file.
    """
    with Model.open(file) as model, model.session(context=n_ctx) as session:
        memory = session.memory
        needed = model.info.weight_bytes + memory.cache_bytes + memory.buffer_bytes
        total = machine.total_memory()
        return Report(
            file=os.fsdecode(file), model=model.info, part_bytes=_part_bytes(file, model.info.n_layer),
            n_ctx=session.capacity, cache_bytes=memory.cache_bytes, buffer_bytes=memory.buffer_bytes,
            needed_bytes=needed, machine_bytes=total, fits=None if total is None else needed <= total,
        )


def describe(report: Report) -> str:
    """The report as lines for people."""
    model = report.model
    ratios = Counter(model.layer_ratios)
    kinds = ", ".join(f"{ratios[ratio]} {name}" for ratio, name in
                      ((0, "window only"), (4, "compressed 4:1"), (128, "compressed 128:1")) if ratios[ratio])
    rows = [
        ("file", f"{report.file}: {format_bytes(model.file_bytes)}, {model.n_tensors} tensors, "
                 f"profile {model.profile}"),
        ("name", model.name or "(none)"),
        ("layers", f"{model.n_layer} ({kinds})" + (", and an MTP block" if model.has_mtp else "")),
        ("width", f"{model.n_embd} in {model.n_stream} streams, {model.n_head} heads of {model.head_dim} "
                  f"({model.rope_dim} rotary), window {model.window}"),
        ("experts", f"{model.n_expert} of width {model.n_ff_expert}, {model.n_expert_used} used; "
                    f"{model.n_hash_layer} hash-routed layers"),
        ("vocabulary", f"{model.n_vocab} tokens"),
        ("context", f"{report.n_ctx} tokens of {model.n_ctx_train}"),
        ("weights", format_bytes(model.weight_bytes)),
        *((f"  {part}", format_bytes(size)) for part, size in report.part_bytes.items()),
        ("cache", f"{format_bytes(report.cache_bytes)} at {report.n_ctx} tokens"),
        ("buffers", format_bytes(report.buffer_bytes) if report.buffer_bytes else "not known before the first tokens"),
        ("together", format_bytes(report.needed_bytes)),
    ]
    if report.machine_bytes is not None:
        verdict = "fits" if report.fits else "does not fit: weights will be read from disk again and again"
        rows.append(("this machine", f"{format_bytes(report.machine_bytes)} of memory: {verdict}"))
    return _table(rows)


def doctor(wanted: str | None, kernels: list[machine.KernelSet]) -> str:
    """Lines on the installation and the machine. wanted: the kernel set that $PYFLASH_CPU names, if any."""
    total = machine.total_memory()
    default = next(each.name for each in kernels if each.problem is None)
    rows = [
        ("pyflash", f"{__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}"),
        ("library", str(installed_file("lib") or installed_file("bin") or "not found")),
        ("memory", "unknown" if total is None else format_bytes(total)),
        ("device cpu", "ready"),
    ]
    for each in kernels:
        state = each.problem or ("in use" if each.name == (wanted or default) else "usable")
        rows.append((f"kernels {each.name}", state))
    if wanted and wanted not in {each.name for each in kernels if each.problem is None}:
        rows.append(("PYFLASH_CPU", f"{wanted!r} cannot be used here: models will not open"))
    rows.append(("demo model", f"{demo.file()}" + ("" if demo.file().is_file() else " (made on first use)")))
    return _table(rows)


def _table(rows: list[tuple[str, str]]) -> str:
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
