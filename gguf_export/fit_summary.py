"""What a fit chose, and what is expected of it: for people and for programs."""

from __future__ import annotations

from typing import Any

from gguf_export.fitting import Fit
from gguf_export.groups import layer_part
from gguf_export.units import gigabytes

_PARTS = {"gate_up": "gate and up", "down": "down"}


def summarize(fit: Fit) -> str:
    """Several lines: the plan, the types of the groups, the expected damage, what a token reads."""
    lines = [fit.plan.summary(), f"at most {gigabytes(fit.size)} were asked for; {_rest(fit)}", *_type_lines(fit)]
    if fit.is_lossless:
        lines.append("nothing is lost: every tensor stays as it is")
    else:
        lines += [_damage_line(fit), *_doubts(fit)]
    lines.append(_speed_line(fit))
    return "\n".join(lines)


def _rest(fit: Fit) -> str:
    rest = fit.size - fit.plan.total_bytes
    return f"{gigabytes(rest)} stay free" + (", more than any type could use" if fit.is_lossless else "")


def _type_lines(fit: Fit) -> list[str]:
    """Of each part of the experts the types and their layers, of each class its type."""
    layers: dict[tuple[str, str], list[int]] = {}
    lines = []
    for group in fit.groups.values():
        part = layer_part(group.name)
        if part is not None:
            layers.setdefault((part[1], group.type), []).append(part[0])
    for (part_name, kind), of_kind in sorted(layers.items(), key=lambda item: (item[0][0] == "down", item[1])):
        errors = [fit.groups[f"blk.{layer}.{part_name}"].error for layer in of_kind]
        label = f"experts, {_PARTS[part_name]}"
        lines.append(f"  {label:20} {kind:8} loses {sum(errors) / len(errors):.3g} in layers {_ranges(of_kind)}")
    lines += [
        f"  {group.name.replace('_', ' '):20} {group.type:8} loses {group.error:.3g}"
        for group in fit.groups.values() if layer_part(group.name) is None
    ]  # fmt: skip
    return lines


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0-2, 5"."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1].append(number)
        else:
            parts.append([number])
    return ", ".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in parts)


def _damage_line(fit: Fit) -> str:
    return f"expected: a KL divergence of {fit.damage:.3g} from the source, summed over what the groups lose"


def _doubts(fit: Fit) -> list[str]:
    found = []
    if fit.sensitivity.is_guess:
        found.append("note: how much each group's loss matters is a guess, not measured on this model: compare files by the "
                     "figure, it is no forecast")
    if not fit.is_measured:
        found.append("note: the weights are not there, so what types lose is that of random numbers in their place")
    return found


def _speed_line(fit: Fit) -> str:
    change = fit.usual_token_bytes / fit.token_bytes - 1
    return (f"a token reads {gigabytes(fit.token_bytes)} of weights, {gigabytes(fit.usual_token_bytes)} with the default "
            f"types: {change:+.0%} tokens a second where the speed of memory decides")


def fit_as_json(fit: Fit) -> dict[str, Any]:
    """The same for programs; sizes in bytes."""
    return {
        "size": fit.size, "total_bytes": fit.plan.total_bytes, "is_lossless": fit.is_lossless,
        "expected_divergence": fit.damage, "errors_measured": fit.is_measured,
        "sensitivity": None if fit.sensitivity.origin is None else str(fit.sensitivity.origin),
        "token_bytes": fit.token_bytes, "default_token_bytes": fit.usual_token_bytes, "draft_bytes": fit.draft_bytes,
        "types": {
            group.name: {"type": group.type, "bytes": group.nbytes, "error": group.error, "sensitivity": group.sensitivity,
                         "damage": group.damage}
            for group in fit.groups.values()
        },
        "options": {"experts": fit.options.experts, "dense": fit.options.dense, "head": fit.options.head,
                    "tensor_types": [list(each) for each in fit.options.tensor_types]},
    }  # fmt: skip
