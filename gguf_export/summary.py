"""A conversion plan as text for people."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from gguf_export.safetensors_file import TensorRef
from gguf_export.units import gigabytes
from gguf_export.writer import FileLayout

if TYPE_CHECKING:
    from gguf_export.convert import ConversionPlan, PlannedFile

_DRAFTS = {"none": "no drafting block", "mtp": "an MTP block", "dspark": "DSpark stages"}


def _file_lines(file: PlannedFile, layouts: list[FileLayout]) -> list[str]:
    counts: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    for tensor in file.tensors:
        counts[tensor.info.kind.name] += 1
        sizes[tensor.info.kind.name] += tensor.info.nbytes
    titles = {"mtp-": "mtp-OUT: the MTP block for speculative decoding", "dspark-": "dspark-OUT: the DSpark stages, likewise"}
    title = titles.get(file.prefix, "OUT")
    lines = [f"{title}: {len(file.tensors):,} tensors, {gigabytes(sum(layout.size for layout in layouts))}"]
    for kind, count in sorted(counts.items(), key=lambda item: -sizes[item[0]]):
        lines.append(f"  {kind:6} {count:6,} tensors {gigabytes(sizes[kind]):>12}")
    if len(layouts) > 1:
        lines.append(f"  in {len(layouts)} shards:")
        lines += [f"    {layout.name}  {gigabytes(layout.size)}" for layout in layouts]
    return lines


def _skipped_lines(tensors: dict[str, TensorRef], names: list[str], kind: str) -> list[str]:
    """Drafting tensors by name: those of the plain block under one pattern, the special ones one by one."""
    blocks: dict[str, list[str]] = {}
    for name in names:
        blocks.setdefault(".".join(name.split(".")[:2]), []).append(name)
    what = "DSpark stage" if kind == "dspark" else "MTP block"
    lines = []
    for block, members in sorted(blocks.items()):
        size = sum(tensors[name].nbytes for name in members)
        special = [name for name in members if not name.startswith((f"{block}.attn", f"{block}.ffn", f"{block}.hc_"))]
        special += [name for name in members if name.startswith(f"{block}.hc_head")]
        named = ", ".join(sorted(name.removeprefix(f"{block}.") for name in special))
        extra = f", with {named}" if named else ""
        lines.append(f"  {block}.* ({what}: {len(members):,} tensors, {gigabytes(size)}{extra})")
    return lines


def summarize(plan: ConversionPlan) -> str:
    """Several lines: the model, every output file by tensor type, what is left out, and remarks."""
    checkpoint, options = plan.checkpoint, plan.options
    config = checkpoint.config
    experts = checkpoint.expert_form.value
    lines = [
        f"DeepSeek-V4 checkpoint {checkpoint.path}: {config.n_layers} layers, width {config.dim}, "
        f"{config.n_experts} experts ({experts}), {_DRAFTS[checkpoint.drafts]}, {len(checkpoint.tensors):,} tensors",
        f"profile {options.profile}"
        + ("" if options.profile == "native" else f", dense {options.dense}, experts {options.experts}"),
    ]
    if not checkpoint.is_complete:
        lines.append("The shards are not all there: sizes are those that config.json gives, nothing has been checked.")
    for file in plan.files:
        lines += _file_lines(file, file.layouts("OUT.gguf", options.shard_bytes))
    if not options.mtp and checkpoint.drafts != "none":
        lines.append("left out (mtp=True converts them):")
        lines += _skipped_lines(checkpoint.tensors, checkpoint.draft_names(), checkpoint.drafts)
    lines += [f"note: {note}" for note in plan.notes]
    lines.append(f"total: {gigabytes(plan.total_bytes)}")
    return "\n".join(lines)


def plan_as_json(plan: ConversionPlan) -> dict[str, Any]:
    """The same for programs; sizes in bytes."""
    checkpoint, options = plan.checkpoint, plan.options
    files = []
    for file in plan.files:
        layouts = file.layouts("OUT.gguf", options.shard_bytes)
        sizes: Counter[str] = Counter()
        for tensor in file.tensors:
            sizes[tensor.info.kind.name] += tensor.info.nbytes
        files.append({
            "kind": file.prefix.removesuffix("-") or "model", "bytes": sum(layout.size for layout in layouts),
            "n_tensors": len(file.tensors), "bytes_by_type": dict(sizes.most_common()),
            "shard_bytes": [layout.size for layout in layouts],
        })
    return {
        "checkpoint": str(checkpoint.path), "release": checkpoint.release, "complete": checkpoint.is_complete,
        "profile": options.profile, "drafts": checkpoint.drafts, "files": files, "total_bytes": plan.total_bytes,
        "notes": plan.notes,
    }
