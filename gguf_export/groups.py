"""Groups of a model's tensors that types are chosen for together, and how much an error of each harms the answers."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_export.errors import ConvertError, first_few, reason
from quantize.choice import Group, group_of

FORMAT = "pyflash.sensitivity"
VERSION = 1
MOST_TABLE_BYTES = 16 << 20

ATTENTION, SHARED, HEAD, EMBEDDING, DRAFTING = "attention", "shared_experts", "head", "embedding", "drafting"
_EXPERTS = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down)_exps\.weight")
_DRAFT = re.compile(r"blk\.(\d+)\.nextn\.")
_LAYER = re.compile(r"blk\.(\d+)\.(gate_up|down)")


def group_name(name: str) -> str | None:
    """Of the tensor's group: "blk.7.gate_up" and "blk.7.down" for experts, a class of tensors of all layers for others;
    None for what is always kept."""
    experts = _EXPERTS.fullmatch(name)
    if experts:
        return f"blk.{experts[1]}.{'down' if experts[2] == 'down' else 'gate_up'}"
    group = group_of(name)
    if group is Group.HEAD:
        return EMBEDDING if name.startswith("token_embd") else HEAD
    if group is not Group.DENSE:
        return None
    if ".nextn." in name:
        return DRAFTING
    return SHARED if "_shexp" in name else ATTENTION


def draft_layers(names: Iterable[str]) -> set[int]:
    """Of the MTP block, among tensors of those names."""
    return {int(match[1]) for name in names if (match := _DRAFT.match(name))}


def layer_part(group: str) -> tuple[int, str] | None:
    """(7, "down") of "blk.7.down"; None of a class of tensors of all layers."""
    found = _LAYER.fullmatch(group)
    return (int(found[1]), found[2]) if found else None


def in_order(groups: Iterable[str]) -> list[str]:
    """By layer, gate and up first; the classes after them."""
    return sorted(groups, key=lambda group: (layer_part(group) is None, _order(group)))


def _order(group: str) -> tuple[int, int, str]:
    part = layer_part(group)
    return (part[0], part[1] == "down", "") if part else (0, 0, group)


@dataclass(frozen=True)
class Sensitivity:
    """values: damage, the mean KL divergence in nats, by group of an error (share of energy lost) of 1, if it grew as it
    does where it is small. origin: the file; None for the guess."""

    values: Mapping[str, float]
    origin: Path | None = None

    @property
    def is_guess(self) -> bool:
        return self.origin is None


# The guess. All routed experts together: over a ladder of published files the divergence is about twice the experts' error.
# What of it is whose follows what those who publish files give more bits: down projections, the last layers.
_ALL_EXPERTS = 2.1
_DOWN, _LAST_LAYERS, _LAST_SHARE = 1.5, 2.0, 6 / 43
_CLASSES = {ATTENTION: 2.0, SHARED: 1.0, HEAD: 0.5, EMBEDDING: 0.25, DRAFTING: 0.1}
_DRAFT_SHARE = 0.1  # of a layer's: a worse draft costs speed only


def guessed_sensitivity(groups: Iterable[str], draft_layers: Iterable[int] = ()) -> Sensitivity:
    """Without any measurement. draft_layers: of the MTP block."""
    drafts = set(draft_layers)
    parts = {group: part for group in groups if (part := layer_part(group))}
    layers = sorted({layer for layer, _ in parts.values()} - drafts)
    last = set(layers[len(layers) - math.ceil(len(layers) * _LAST_SHARE) :]) if layers else set()

    def weight(layer: int, part: str) -> float:
        return (_DOWN if part == "down" else 1.0) * (_LAST_LAYERS if layer in last else 1.0)

    total = sum(weight(*part) for part in parts.values() if part[0] not in drafts) or 1.0
    values = dict(_CLASSES)
    for group, part in parts.items():
        values[group] = _ALL_EXPERTS * weight(*part) / total * (_DRAFT_SHARE if part[0] in drafts else 1.0)
    return Sensitivity(values)


def read_sensitivity(path: Path | str) -> Sensitivity:
    """A table of `pyflash eval sensitivity`. ConvertError for what is none."""
    path = Path(path)
    table = read_table(path)
    values = {}
    for group, entry in table["groups"].items():
        value = entry.get("sensitivity") if isinstance(entry, dict) else None
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise ConvertError(f"{path} has no sensitivity of {group!r:.40} that is a number from 0 on: measure it again")
        values[group] = float(value)
    return Sensitivity(values, path)


def read_table(path: Path) -> dict[str, Any]:
    """The JSON object of such a table, whose groups are a JSON object."""
    try:
        with open(path, "rb") as file:
            data = file.read(MOST_TABLE_BYTES + 1)
        table = json.loads(data)
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None
    except (ValueError, RecursionError):
        table = None
    if not isinstance(table, dict) or table.get("format") != FORMAT or not isinstance(table.get("groups"), dict):
        raise ConvertError(f"{path} is no table of sensitivities: `pyflash eval sensitivity` writes one")
    if table.get("version") != VERSION:
        raise ConvertError(f"{path} is of version {table.get('version')!r:.20}, and {VERSION} is known: measure it again")
    return table


def complete(sensitivity: Sensitivity, groups: Iterable[str], draft_layers: Iterable[int] = ()) -> Sensitivity:
    """With the guess for the drafting block, which is not measured. ConvertError where other groups are missing."""
    listed = list(groups)
    guess, drafts = guessed_sensitivity(listed, draft_layers), set(draft_layers)
    values, missing = dict(sensitivity.values), []
    for group in in_order(listed):
        part = layer_part(group)
        if group in values:
            continue
        if group != DRAFTING and (part is None or part[0] not in drafts):
            missing.append(group)
        values[group] = guess.values[group]
    if missing:
        raise ConvertError(f"{sensitivity.origin} does not know {first_few(missing, ', ')}: it is another model's, or its "
                           "measurement was not ended")
    return Sensitivity(values, sensitivity.origin)
