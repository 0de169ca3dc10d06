"""Chooses types for a file of at most a given size, so that the expected harm to the answers is least.

The harm that is expected of a group of tensors is the error that its values get, as quantisers really make it (on a sample
of its rows), times the group's sensitivity. Harms of groups add up where they are small.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_export import groups as known
from gguf_export.engine import ProgressFn
from gguf_export.errors import ConvertError
from gguf_export.groups import Sensitivity, complete, draft_layers, group_name, guessed_sensitivity, in_order, layer_part
from gguf_export.metadata import ARCH
from gguf_export.quantize_source import QuantizeSource, SourceTensor, open_source
from gguf_export.quantizing import (
    MOST_THREADS, OBJECTIVES, QuantizeOptions, QuantizePlan, n_processors, plan_of, read_importance_of,
)  # fmt: skip
from gguf_export.type_errors import Errors, mean_error, measure_errors, typical_errors
from gguf_export.units import gigabytes
from gguf_export.writer import TensorInfo, aligned
from quantize.allocation import Choice, allocate, least_bytes
from quantize.choice import DENSE_TYPES, EXPERT_TYPES, HEAD_TYPES, KEEP, ChoiceError, Chooser, Group, Wishes, group_of
from quantize.plan import GGMLType

CLASSES = ("experts", "dense", "head")  # QuantizeOptions' fields whose types can be chosen here
_TYPES = {Group.EXPERTS: EXPERT_TYPES, Group.DENSE: DENSE_TYPES, Group.HEAD: HEAD_TYPES}
_MOST_ROUNDS = 8


class TooSmallError(ConvertError):
    """least_bytes: of the smallest file that can be made."""

    def __init__(self, size: int, least_bytes: int) -> None:
        self.size, self.least_bytes = size, least_bytes
        super().__init__(f"{gigabytes(size)} are too few: the smallest file of this model has {least_bytes:,} bytes, "
                         f"so give at least {math.ceil(least_bytes / 1e6):,}M")  # fmt: skip


@dataclass(frozen=True)
class FittedGroup:
    """type: a name of quantize.choice's. error: the share of energy expected to be lost. damage: error times
    sensitivity."""

    name: str
    type: str
    nbytes: int
    error: float
    sensitivity: float

    @property
    def damage(self) -> float:
        return self.error * self.sensitivity


@dataclass(frozen=True)
class Fit:
    """size: the bound, in bytes. plan.options name every type, so that they make the same file without a fit. is_measured:
    errors are of the source's weights, not of random numbers. token_bytes: of weights that a token reads; usual_...: that it
    reads of the file that is made with the default types. draft_bytes: of the MTP block."""

    size: int
    plan: QuantizePlan
    groups: Mapping[str, FittedGroup]
    sensitivity: Sensitivity
    is_measured: bool
    token_bytes: int
    usual_token_bytes: int
    draft_bytes: int

    @property
    def options(self) -> QuantizeOptions:
        return self.plan.options

    @property
    def damage(self) -> float:
        """The expected divergence from the source, nats a token."""
        return math.fsum(group.damage for group in self.groups.values())

    @property
    def is_lossless(self) -> bool:
        return all(group.error == 0 for group in self.groups.values())


@dataclass(frozen=True)
class _Candidate:
    """kinds: of the group's tensors, in order."""

    name: str
    kinds: tuple[GGMLType, ...]


@dataclass(frozen=True)
class _Group:
    tensors: Sequence[SourceTensor]
    candidates: Sequence[_Candidate]

    def nbytes(self, candidate: _Candidate) -> int:
        return sum(aligned(TensorInfo(tensor.info.name, kind, tensor.info.ne).nbytes)
                   for tensor, kind in zip(self.tensors, candidate.kinds, strict=True))  # fmt: skip

    def error(self, candidate: _Candidate, errors: Errors) -> float:
        stored = {tensor.info.name: tensor.info.kind for tensor in self.tensors}
        members = {tensor.info.name: (kind, math.prod(tensor.info.ne))
                   for tensor, kind in zip(self.tensors, candidate.kinds, strict=True)}  # fmt: skip
        return mean_error(errors, members, stored)


def fit(
    source: Path | str,
    size: int,
    options: QuantizeOptions,
    *,
    free: Sequence[str] = CLASSES,
    sensitivity: Sensitivity | None = None,
    progress: ProgressFn | None = None,
) -> Fit:
    """Types for a file, or shards, of at most `size` bytes together.

    free: the fields of options that are chosen here; others, and options.tensor_types, hold as they are. sensitivity: None
    for the guess. progress gets bytes of floats that are measured. TooSmallError where no types are small enough.
    """
    options.check()
    opened = open_source(source, options.mtp, options.name)
    return _Fitting(opened, options, free, sensitivity, progress).fit(size)


class _Fitting:
    def __init__(
        self, source: QuantizeSource, options: QuantizeOptions, free: Sequence[str], sensitivity: Sensitivity | None,
        progress: ProgressFn | None,
    ) -> None:  # fmt: skip
        self._source, self._options, self._free = source, options, free
        self._importance = read_importance_of(options)
        tensors = [tensor for file in source.files for tensor in file.tensors]
        self._drafts = draft_layers(tensor.info.name for tensor in tensors)
        try:
            self._groups = self._collect(tensors)
        except ChoiceError as error:
            raise ConvertError(str(error)) from None
        if not self._groups:
            raise ConvertError(f"{source.path} has no weights that can be quantised: give another file")
        names = list(self._groups)
        self._sensitivity = (guessed_sensitivity(names, self._drafts) if sensitivity is None
                             else complete(sensitivity, names, self._drafts))  # fmt: skip
        self._errors = self._measure(progress)
        self._choices = {name: self._choices_of(name, group) for name, group in self._groups.items()}

    # -- what can become what --

    def _collect(self, tensors: Iterable[SourceTensor]) -> dict[str, _Group]:
        members: dict[str, list[SourceTensor]] = {}
        for tensor in tensors:
            name = group_name(tensor.info.name)
            if name is not None and tensor.matrices:
                members.setdefault(name, []).append(tensor)
        given = self._options
        every = sorted({kind for kinds in _TYPES.values() for kind in kinds})
        free = {kind: Chooser(Wishes(tensor_types=(("", kind), *given.tensor_types))) for kind in every}
        fixed = Chooser(Wishes(given.experts, given.dense, given.head, given.tensor_types))
        return {name: _Group(members[name], self._candidates(members[name], free, fixed)) for name in in_order(members)}

    def _candidates(
        self, tensors: Sequence[SourceTensor], free: Mapping[str, Chooser], fixed: Chooser
    ) -> list[_Candidate]:
        group = group_of(tensors[0].info.name)
        if group.value not in self._free:
            return [_Candidate(str(getattr(self._options, group.value)), _kinds(tensors, fixed))]
        found: dict[tuple[GGMLType, ...], _Candidate] = {}
        problem: ChoiceError | None = None
        for name in _TYPES[group]:
            try:
                kinds = _kinds(tensors, free[name])
            except ChoiceError as error:  # larger than MXFP4, or would quantise twice
                problem = error
                continue
            found.setdefault(kinds, _Candidate(name, kinds))
        if not found and problem is not None:  # what was asked for by name
            raise problem
        return list(found.values())

    # -- what that costs --

    def _measure(self, progress: ProgressFn | None) -> Errors:
        wanted = []
        for group in self._groups.values():
            for index, tensor in enumerate(group.tensors):
                kinds = {candidate.kinds[index] for candidate in group.candidates} - {tensor.info.kind}
                if kinds:
                    wanted.append((tensor, sorted(kinds)))
        objective = OBJECTIVES[self._options.objective]
        if not self._source.is_complete:
            return typical_errors(wanted, objective)
        threads = self._options.threads or min(MOST_THREADS, n_processors())
        return measure_errors(wanted, self._importance, objective, self._source.path, threads, progress)

    def _choices_of(self, name: str, group: _Group) -> list[Choice]:
        weight = self._sensitivity.values[name]
        return [Choice(each.name, group.nbytes(each), weight * group.error(each, self._errors))
                for each in group.candidates]  # fmt: skip

    # -- the choice --

    def fit(self, size: int) -> Fit:
        smallest = self._plan({name: min(choices, key=lambda each: (each.nbytes, each.name)).name
                               for name, choices in self._choices.items()})  # fmt: skip
        if smallest.total_bytes > size:
            raise TooSmallError(size, smallest.total_bytes)
        fixed = smallest.total_bytes - least_bytes(self._choices)
        for _ in range(_MOST_ROUNDS):
            chosen = {name: choice.name for name, choice in allocate(self._choices, size - fixed).items()}
            plan = self._plan(chosen)
            if plan.total_bytes <= size:
                return self._result(size, plan, chosen)
            fixed += plan.total_bytes - size  # more shards have more headers
        return self._result(size, smallest, {})

    def _plan(self, chosen: Mapping[str, str]) -> QuantizePlan:
        wishes = _wishes(chosen, self._options, self._free)
        return plan_of(self._source, wishes, self._importance)

    def _result(self, size: int, plan: QuantizePlan, chosen: Mapping[str, str]) -> Fit:
        kinds = {tensor.info.name: tensor.info.kind for file in plan.files for tensor in file.tensors}
        fitted = {}
        for name, group in self._groups.items():
            got = tuple(kinds[tensor.info.name] for tensor in group.tensors)
            candidate = next(each for each in group.candidates if each.kinds == got)
            fitted[name] = FittedGroup(name, candidate.name, group.nbytes(candidate), group.error(candidate, self._errors),
                                       self._sensitivity.values[name])  # fmt: skip
        infos = [tensor.info for file in plan.files for tensor in file.tensors]
        usual = plan_of(self._source, replace(QuantizeOptions(), mtp=self._options.mtp), None)
        usual_infos = [tensor.info for file in usual.files for tensor in file.tensors]
        return Fit(
            size, plan, fitted, self._sensitivity, self._source.is_complete, self._token_bytes(infos),
            self._token_bytes(usual_infos), sum(info.nbytes for info in infos if self._is_draft(info.name)),
        )  # fmt: skip

    def _is_draft(self, name: str) -> bool:
        return any(name.startswith(f"blk.{layer}.") for layer in self._drafts)

    def _token_bytes(self, infos: Iterable[TensorInfo]) -> int:
        """Of the experts those that a token is routed to, of tables a row, all of the others; no drafting block's."""
        used = _number(self._source, "expert_used_count")
        total = 0
        for info in infos:
            rows = math.prod(info.ne[1:])
            if self._is_draft(info.name):
                continue
            if group_of(info.name) is Group.EXPERTS:
                total += info.nbytes * min(used, info.ne[2]) // info.ne[2]
            elif info.name.startswith("token_embd") or "tid2eid" in info.name:
                total += info.nbytes // max(1, rows)
            else:
                total += info.nbytes
        return total


def _kinds(tensors: Sequence[SourceTensor], chooser: Chooser) -> tuple[GGMLType, ...]:
    return tuple(chooser.choose(each.info.name, each.info.kind, each.info.ne[0]) for each in tensors)


def _number(source: QuantizeSource, key: str) -> int:
    """Of the metadata; 1 where it is not there as a number of 32 bits."""
    value = source.files[0].metadata.pairs.get(f"{ARCH}.{key}", b"")
    return int(struct.unpack("<I", value[4:])[0]) if len(value) == 8 else 1


def _wishes(chosen: Mapping[str, str], options: QuantizeOptions, free: Sequence[str]) -> QuantizeOptions:
    """Options that give every group its type: the most frequent by its class, others by patterns."""
    fields: dict[str, str] = {}
    patterns: list[tuple[str, str]] = []
    experts = {group: kind for group, kind in chosen.items() if layer_part(group)}
    if "experts" in free and experts:
        usual = fields["experts"] = _most_frequent(experts.values())
        patterns += _expert_patterns(experts, usual)
    for field, members in (("dense", (known.ATTENTION, known.SHARED, known.DRAFTING)),
                           ("head", (known.HEAD, known.EMBEDDING))):  # fmt: skip
        found = {group: chosen[group] for group in members if group in chosen}
        if field in free and found:
            usual = fields[field] = next(iter(found.values()))
            patterns += [(_CLASS_PATTERNS[group], kind) for group, kind in found.items() if kind != usual]
    fields = {field: KEEP for field in free} | fields
    return replace(options, **fields, tensor_types=(*patterns, *options.tensor_types))  # type: ignore[arg-type]


_CLASS_PATTERNS = {known.SHARED: "_shexp", known.DRAFTING: r"\.nextn\.", known.HEAD: r"^output\.",
                   known.EMBEDDING: "^token_embd", known.ATTENTION: r"\.attn_(q_a|q_b|kv|output_a|output_b)\."}  # fmt: skip


def _most_frequent(kinds: Iterable[str]) -> str:
    counts = Counter(kinds)
    return min(counts, key=lambda kind: (-counts[kind], EXPERT_TYPES.index(kind)))


def _expert_patterns(chosen: Mapping[str, str], usual: str) -> list[tuple[str, str]]:
    """For the groups with another type than the usual one: a pattern for each part and type."""
    layers: dict[tuple[str, str], list[int]] = {}
    for group in in_order(chosen):
        layer, part = layer_part(group) or (0, "")
        if chosen[group] != usual:
            layers.setdefault((part, chosen[group]), []).append(layer)
    names = {"gate_up": "(gate|up)", "down": "down"}
    return [
        (rf"^blk\.({'|'.join(map(str, of_kind))})\.ffn_{names[part]}_exps", kind)
        for (part, kind), of_kind in layers.items()
    ]
