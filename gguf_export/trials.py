"""Files of one group of a model's tensors, to be laid over the model: quantised so much that the loss can be told from
roundings, and so little that losses still add up."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_export.errors import ConvertError, first_few
from gguf_export.groups import draft_layers, group_name, in_order
from gguf_export.quantize_source import QuantizeSource, SourceFile
from gguf_export.quantizing import QuantizeOptions, QuantizePlan, plan_of, read_importance_of, write_plan
from gguf_export.type_errors import mean_error
from gguf_export.writer import Metadata
from quantize.choice import Group, group_of

_TYPES = {Group.EXPERTS: "IQ2_XXS", Group.DENSE: "Q4_K", Group.HEAD: "Q4_K"}


@dataclass(frozen=True)
class Trial:
    """kind: the type of the group's tensors, by name."""

    group: str
    kind: str
    plan: QuantizePlan

    @contextlib.contextmanager
    def written(self, path: Path) -> Iterator[float]:
        """The file, for the length of the block; gives the share of energy that the group loses, weighted by importance
        where that is known."""
        report = write_plan(self.plan, path)
        tensors = [tensor.info for tensor in self.plan.files[0].tensors]
        errors = {}
        for info in tensors:
            lost = report.errors.get(info.name)
            if lost is not None:
                errors[info.name, info.kind] = lost.plain if lost.weighted is None else lost.weighted
        members = {info.name: (info.kind, math.prod(info.ne)) for info in tensors}
        try:
            yield mean_error(errors, members, {name: info.kind for name, info in self.plan.stored.items()})
        finally:
            for each in (path, report.errors_file):
                with contextlib.suppress(OSError):
                    os.unlink(each)


def trials(source: QuantizeSource, options: QuantizeOptions) -> dict[str, Trial]:
    """Of every group but the drafting block's, in the order of layers. options: imatrix, objective and threads count.
    ConvertError for a source of which a group cannot lose anything more."""
    importance = read_importance_of(options)
    found, kept = {}, []
    for group, names in _groups(source).items():
        kind = _TYPES[group_of(next(iter(names)))]
        whole = source.files[0]
        architecture = {key: value for key, value in whole.metadata.pairs.items() if key == "general.architecture"}
        tensors = [tensor for tensor in whole.tensors if tensor.info.name in names]
        part = replace(source, files=[SourceFile("", Metadata(architecture), tensors)], notes=[])
        types = replace(options, experts="keep", dense="keep", head="keep", tensor_types=(("", kind),), restart=True)
        plan = plan_of(part, types, importance)
        found[group] = Trial(group, kind, plan)
        if all(tensor.info.kind is plan.stored[tensor.info.name].kind for tensor in plan.files[0].tensors):
            kept.append(f"{group} to {kind}")
    if kept:
        raise ConvertError(f"{source.path} has groups that cannot be quantised further ({first_few(kept, ', ')}), so that "
                           "what their errors do cannot be measured: take the file with the largest types")  # fmt: skip
    return found


def _groups(source: QuantizeSource) -> dict[str, set[str]]:
    """The names of each group's tensors."""
    names = [tensor.info.name for tensor in source.files[0].tensors if tensor.matrices]
    drafts = tuple(f"blk.{layer}." for layer in draft_layers(names))
    found: dict[str, set[str]] = {}
    for name in names:
        group = group_name(name)
        if group is not None and not name.startswith(drafts):
            found.setdefault(group, set()).add(name)
    return {group: found[group] for group in in_order(found)}
