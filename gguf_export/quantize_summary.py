"""What a quantised file holds, by groups of tensors: for people and for programs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gguf_export.units import gigabytes
from pyflash.native.library import __version__

if TYPE_CHECKING:
    from gguf_export.quantize_jobs import TensorError
    from gguf_export.quantizing import QuantizePlan
    from gguf_export.writer import TensorInfo

# In the order of a summary; a tensor belongs to the first that its name has.
_GROUPS = (
    ("experts, gate and up", re.compile(r"\.ffn_(gate|up)_exps\.")),
    ("experts, down", re.compile(r"\.ffn_down_exps\.")),
    ("shared experts", re.compile(r"_shexp\.")),
    ("attention", re.compile(r"^blk\.\d+\.attn_(q_a|q_b|kv|output_a|output_b)\.weight")),
    ("embedding", re.compile(r"^token_embd\.")),
    ("head", re.compile(r"^output\.weight")),
    ("others", re.compile("")),
)  # fmt: skip


def part_of(name: str) -> str:
    return next(label for label, pattern in _GROUPS if pattern.search(name))


@dataclass
class _Part:
    n_tensors: Counter[str] = field(default_factory=Counter)  # by type
    n_bytes: Counter[str] = field(default_factory=Counter)
    n_weights: Counter[str] = field(default_factory=Counter)


    @property
    def bits_per_weight(self) -> float:
        return 8 * self.n_bytes.total() / max(1, self.n_weights.total())


def _parts(infos: Iterable[TensorInfo]) -> dict[str, _Part]:
    parts = {label: _Part() for label, _ in _GROUPS}
    for info in infos:
        part, kind = parts[part_of(info.name)], info.kind.name
        part.n_tensors[kind] += 1
        part.n_bytes[kind] += info.nbytes
        part.n_weights[kind] += math.prod(info.ne)
    return {label: part for label, part in parts.items() if part.n_tensors}


def _bits(infos: Iterable[TensorInfo]) -> float:
    listed = list(infos)
    return 8 * sum(info.nbytes for info in listed) / max(1, sum(math.prod(info.ne) for info in listed))


def _infos(plan: QuantizePlan) -> list[TensorInfo]:
    return [tensor.info for file in plan.files for tensor in file.tensors]


def summarize(plan: QuantizePlan) -> str:
    """Several lines: the source, what each group becomes, shards, remarks, sizes."""
    infos = _infos(plan)
    before = _parts(plan.stored[info.name] for info in infos)
    size_before = sum(plan.stored[info.name].nbytes for info in infos)
    lines = [f"{plan.source.path}: {len(infos):,} tensors, {gigabytes(size_before)} without loss"]
    for label, part in _parts(infos).items():
        was = ""
        if before[label].n_tensors != part.n_tensors:
            was = f" (from {'+'.join(sorted(before[label].n_tensors))}, {before[label].bits_per_weight:.4g})"
        for kind, count in sorted(part.n_tensors.items(), key=lambda item: -part.n_bytes[item[0]]):
            lines.append(
                f"  {label:20} {kind:8} {count:6,} tensors {gigabytes(part.n_bytes[kind]):>12}, "
                f"{8 * part.n_bytes[kind] / max(1, part.n_weights[kind]):.4g} bits a weight{was}"
            )
    shards = plan.layouts("OUT.gguf")
    if len(shards) > 1:
        lines += [f"in {len(shards)} files:", *(f"  {layout.name}  {gigabytes(layout.size)}" for _, layout in shards)]
    lines += [f"note: {note}" for note in plan.notes]
    lines.append(f"total: {gigabytes(plan.total_bytes)}, {_bits(infos):.4g} bits a weight")
    return "\n".join(lines)


def plan_as_json(plan: QuantizePlan) -> dict[str, Any]:
    """The same for programs; sizes in bytes."""
    infos = _infos(plan)
    groups = {
        label: {
            "types": dict(part.n_tensors), "bytes": part.n_bytes.total(), "weights": part.n_weights.total(),
            "bits_per_weight": round(part.bits_per_weight, 4),
        }
        for label, part in _parts(infos).items()
    }  # fmt: skip
    return {
        "source": str(plan.source.path), "objective": plan.options.objective,
        "imatrix": None if plan.options.imatrix is None else str(plan.options.imatrix), "groups": groups,
        "files": [{"name": layout.name, "bytes": layout.size} for _, layout in plan.layouts("OUT.gguf")],
        "total_bytes": plan.total_bytes, "bits_per_weight": round(_bits(infos), 4), "notes": plan.notes,
    }  # fmt: skip


def group_errors(errors: Mapping[str, TensorError]) -> dict[str, dict[str, float | None]]:
    """Means over a group's quantised tensors: {"experts, down": {"error": ..., "weighted_error": ...}}."""
    found: dict[str, list[TensorError]] = {}
    for name, error in errors.items():
        found.setdefault(part_of(name), []).append(error)
    result: dict[str, dict[str, float | None]] = {}
    for label, _ in _GROUPS:
        each = found.get(label, [])
        weighted = [error.weighted for error in each if error.weighted is not None]
        if each:
            result[label] = {
                "error": math.fsum(error.plain for error in each) / len(each),
                "weighted_error": math.fsum(weighted) / len(weighted) if weighted else None,
            }
    return result


def errors_as_json(plan: QuantizePlan, errors: Mapping[str, TensorError]) -> dict[str, Any]:
    """Of every tensor, for the file beside the output. Kept tensors have the error 0."""
    tensors = []
    for info in _infos(plan):
        error = errors.get(info.name)
        tensors.append({
            "name": info.name, "from": plan.stored[info.name].kind.name, "type": info.kind.name, "bytes": info.nbytes,
            "error": error.plain if error else 0.0, "weighted_error": error.weighted if error else None,
        })  # fmt: skip
    return {
        "version": __version__, "source": plan.source.path.name, "objective": plan.options.objective,
        "imatrix": None if plan.options.imatrix is None else str(plan.options.imatrix),
        "total_bytes": plan.total_bytes, "groups": group_errors(errors), "tensors": tensors,
    }  # fmt: skip
