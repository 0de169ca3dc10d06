"""Converts a DeepSeek-V4 checkpoint to GGUF: plan, check, stream."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_export import checksums, hf_files
from gguf_export import metadata as keys
from gguf_export.checkpoint import Checkpoint, check_tensors, open_checkpoint, with_drafts_of
from gguf_export.engine import ProgressFn, run_jobs, write_header
from gguf_export.errors import MOST_NAMED, ConvertError, first_few
from gguf_export.hf import export_hf, plan_export_hf
from gguf_export.hub_cache import find_checkpoint
from gguf_export.inventory import Weight
from gguf_export.names import EH_PROJ, dspark_name, gguf_name, native_scale_name
from gguf_export.outputs import Place, check_distinct, check_name, find_place, make_room, output_files
from gguf_export.tensors import OutputTensor, Source, TensorJob, copied
from gguf_export.values import ValueCheck, ValueWatch
from gguf_export.writer import FileLayout, Metadata, TensorInfo, layout_files
from quantize.plan import DENSE, EXPERTS, PROFILES, Form, GGMLType, target_type

WarnFn = Callable[[str], None]

__all__ = [
    "ConversionPlan", "ConvertOptions", "ConvertReport", "convert", "export_hf", "plan_conversion", "plan_export_hf",
]


@dataclass(frozen=True)
class ConvertOptions:
    """profile: "compat" (what llama.cpp loads) or "native" (FP8 bytes kept; only pyflash reads it).

    dense: what FP8 weights become in compat, "q8_0", "bf16" (lossless) or "f32". experts: "keep" (FP4 becomes MXFP4,
    lossless), or "q8_0", "bf16", "f32". mtp: convert the drafting blocks too, of MTP or DSpark. shard_bytes: split the output
    into shards of at most that much tensor data. name: the model's, None for that of the checkpoint's folder. drafts: a folder
    with what drafts for the checkpoint's model (config.json, mtp.* tensors); its file is written, and not the model's.
    """

    profile: str = "compat"
    dense: str = "q8_0"
    experts: str = "keep"
    mtp: bool = False
    shard_bytes: int | None = None
    name: str | None = None
    drafts: Path | None = None

    def check(self) -> None:
        for name, allowed in (("profile", PROFILES), ("dense", DENSE), ("experts", EXPERTS)):
            if getattr(self, name) not in allowed:
                raise ConvertError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")
        if self.profile == "native" and (self.dense != "q8_0" or self.experts != "keep"):
            raise ConvertError("the native profile keeps every weight as it is; leave out dense and experts")
        if self.drafts is not None and not (self.mtp and self.profile == "compat"):
            raise ConvertError('drafts names what becomes a file of its own: it needs mtp=True and profile="compat"')
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise ConvertError("the shard size must be positive")
        if self.name is not None and not (self.name.strip() and self.name.isprintable()):
            raise ConvertError(f"the name {self.name!r} must be text that can be shown, on one line")


@dataclass
class PlannedFile:
    """One output file (or set of shards): "" is OUT itself, "mtp-" or "dspark-" the draft file beside it."""

    prefix: str
    metadata: Metadata
    tensors: list[OutputTensor]
    digests: dict[str, checksums.TensorDigest] = field(default_factory=dict)  # of what has been written

    @property
    def infos(self) -> list[TensorInfo]:
        return [tensor.info for tensor in self.tensors]

    def layouts(self, name: str, shard_bytes: int | None) -> list[FileLayout]:
        return layout_files(self.prefix + name, self.metadata, self.infos, shard_bytes)


class FilesPlan(ABC):
    """Files that will be written."""

    files: list[PlannedFile]

    @property
    @abstractmethod
    def shard_bytes(self) -> int | None:
        """Most tensor data of a shard; None: nothing is split."""

    def layouts(self, name: str) -> list[tuple[PlannedFile, FileLayout]]:
        """Every file, or its shards, where OUT is called name."""
        return [(file, each) for file in self.files for each in file.layouts(name, self.shard_bytes)]

    @property
    def total_bytes(self) -> int:
        """Size of the output, headers included."""
        return sum(layout.size for _, layout in self.layouts("x.gguf"))


@dataclass
class ConversionPlan(FilesPlan):
    """What a conversion will write. Made from the headers alone."""

    checkpoint: Checkpoint
    options: ConvertOptions
    files: list[PlannedFile]
    weights: list[Weight]  # of the checkpoint, that are converted
    notes: list[str] = field(default_factory=list)

    @property
    def shard_bytes(self) -> int | None:
        return self.options.shard_bytes

    def conversions(self) -> Counter[tuple[str, str]]:
        """How many weights go from one type to another, such as ("FP4", "MXFP4")."""
        planner = _Planner(self.checkpoint, self.options)
        return Counter((weight.stored_form.value, planner.kind_of(weight).name) for weight in self.weights)

    def summary(self) -> str:
        from gguf_export.summary import summarize

        return summarize(self)

    def as_json(self) -> dict[str, Any]:
        from gguf_export.summary import plan_as_json

        return plan_as_json(self)


@dataclass(frozen=True)
class ConvertReport:
    """files in the order a loader opens them: OUT or its shards, then the draft file."""

    files: list[Path]
    total_bytes: int
    seconds: float
    warnings: list[str]


def _require_compat(checkpoint: Checkpoint, options: ConvertOptions) -> None:
    if checkpoint.config.hc_mult != 4:
        raise ConvertError(
            f"llama.cpp runs only models with 4 residual streams, hc_mult is {checkpoint.config.hc_mult}; "
            'use profile="native"'
        )
    width = checkpoint.config.index_dim
    if any(ratio == 4 for ratio in checkpoint.config.compress_ratios) and (width < 64 or width & (width - 1)):
        raise ConvertError(
            f"llama.cpp needs indexer rows of 64, 128 or a higher power of two, index_head_dim is {width}; "
            'use profile="native"'
        )


class _Planner:
    """Turns weights into output tensors for one set of options."""

    def __init__(self, checkpoint: Checkpoint, options: ConvertOptions) -> None:
        self.checkpoint = checkpoint
        self.options = options

    def kind_of(self, weight: Weight) -> GGMLType:
        return target_type(
            weight.form,
            is_matrix=len(weight.shape) == 2,
            is_expert=weight.is_expert,
            profile=self.options.profile,
            dense=self.options.dense,
            experts=self.options.experts,
            is_plain=not weight.is_scaled,
        )

    def _source(self, weight: Weight) -> Source:
        cols = weight.shape[-1]
        rows = weight.shape[0] if len(weight.shape) == 2 else 1
        data = self.checkpoint.tensors[weight.data_name]
        return Source(data, self.checkpoint.scale_ref(weight), weight.stored_form, rows, cols)

    def tensors(self, weights: Sequence[Weight]) -> list[OutputTensor]:
        """Weights that share a GGUF name are the experts of one layer; they become its third dimension."""
        groups: dict[str, list[Weight]] = {}
        for weight in weights:
            groups.setdefault(self._name_of(weight), []).append(weight)
        result = []
        for name, members in groups.items():
            kind = self.kind_of(members[0])
            ne = tuple(reversed(members[0].shape)) + ((len(members),) if members[0].is_expert else ())
            info = TensorInfo(name, kind, ne)
            data = [self.checkpoint.tensors[weight.data_name] for weight in members]
            if kind is GGMLType.I8 or all(kind.name == weight.stored_form.value for weight in members):
                result.append(copied(info, data))
            else:
                result.append(OutputTensor(info, tuple((self._source(weight),) for weight in members)))
            if kind is GGMLType.I8:
                result.append(self._native_scale(name, members))
        return result

    def _name_of(self, weight: Weight) -> str:
        if self.checkpoint.drafts == "dspark" and weight.name.startswith("mtp."):
            return dspark_name(weight.name, self.options.profile == "native")
        return gguf_name(weight.name, self.checkpoint.config.n_layers)

    def _native_scale(self, name: str, members: list[Weight]) -> OutputTensor:
        refs = [self.checkpoint.tensors[weight.scale_name] for weight in members]
        kind = GGMLType.F32 if refs[0].dtype == "F32" else GGMLType.I8
        ne = tuple(reversed(refs[0].shape)) + ((len(members),) if members[0].is_expert else ())
        return copied(TensorInfo(native_scale_name(name), kind, ne), refs)

    def eh_proj(self, weights: dict[str, Weight]) -> OutputTensor:
        """e_proj and h_proj side by side, the embedding half first."""
        e, h = weights["mtp.0.e_proj"], weights["mtp.0.h_proj"]
        ne = (e.shape[1] + h.shape[1], e.shape[0])
        info = TensorInfo(f"blk.{self.checkpoint.config.n_layers}.{EH_PROJ}", self.kind_of(e), ne)
        return OutputTensor(info, ((self._source(e), self._source(h)),))

    def mtp_file(self, main: list[OutputTensor], drafts: list[Weight]) -> PlannedFile:
        """llama.cpp's draft file: the MTP block, the shared embedding and head, and the block's own hc_head."""
        by_name = {weight.name: weight for weight in drafts}
        by_info = {tensor.info.name: tensor for tensor in main}
        tensors = [by_info["token_embd.weight"], by_info["output.weight"], by_info["output_norm.weight"]]
        for part in ("fn", "base", "scale"):
            weight = by_name.pop(f"mtp.0.hc_head_{part}")
            info = TensorInfo(f"output_hc_{part}.weight", GGMLType.F32, tuple(reversed(weight.shape)))
            tensors.append(OutputTensor(info, ((self._source(weight),),)))
        tensors.append(self.eh_proj(by_name))
        rest = [weight for name, weight in by_name.items() if name not in ("mtp.0.e_proj", "mtp.0.h_proj")]
        tensors += self.tensors(rest)
        return PlannedFile("mtp-", Metadata(), tensors)


def plan_conversion(checkpoint: Path | str, options: ConvertOptions) -> ConversionPlan:
    """What convert() would write. Reads config.json and headers; without the shards it goes by config.json alone.

    Raises ConvertError for options that do not fit and for every tensor that is missing or not as config.json says.
    """
    options.check()
    return _plan(_open(checkpoint, options, allow_absent=True), options)


def _open(checkpoint: Path | str, options: ConvertOptions, allow_absent: bool = False) -> Checkpoint:
    found = open_checkpoint(find_checkpoint(checkpoint), allow_absent)
    return found if options.drafts is None else with_drafts_of(found, find_checkpoint(options.drafts))


def _plan(checkpoint: Checkpoint, options: ConvertOptions) -> ConversionPlan:
    if options.profile == "compat":
        _require_compat(checkpoint, options)
    elif not checkpoint.is_as_published:
        raise ConvertError(
            "the native profile keeps published checkpoints byte for byte, and this one has other names or types; "
            'use profile="compat", where dense="bf16" and experts="bf16" keep BF16 weights as they are'
        )
    if options.mtp and checkpoint.drafts == "none":
        raise ConvertError(f"{checkpoint.path} has no mtp.* tensors; leave out mtp=True")
    check_tensors(checkpoint, with_drafts=options.mtp)
    planner = _Planner(checkpoint, options)
    weights = checkpoint.main_weights()
    drafts = checkpoint.draft_weights() if options.mtp else []
    main = planner.tensors(weights)
    files = [PlannedFile("", Metadata(), main)] if options.drafts is None else []
    converted = weights + drafts if options.drafts is None else drafts
    plan = ConversionPlan(checkpoint, options, files, converted, list(checkpoint.notes))
    if options.mtp and options.profile == "native":
        main += planner.tensors(drafts)
    elif options.mtp and checkpoint.drafts == "mtp":
        files.append(planner.mtp_file(main, drafts))
    elif options.mtp:
        files.append(PlannedFile("dspark-", Metadata(), planner.tensors(drafts)))
    expert_kind = planner.kind_of(next(weight for weight in weights if weight.is_expert))
    for file in files:
        _add_keys(plan, file, expert_kind)
        notes = keys.add_tokenizer(file.metadata, checkpoint)
        plan.notes += notes if not file.prefix else []
    _note_rounding(plan, planner)
    if options.profile == "native":
        _plan_native(plan)
    elif checkpoint.expert_form is Form.FP8 and options.experts == "keep":
        plan.notes.append(f"the experts are FP8, which llama.cpp does not have; they become {options.dense.upper()}")
    for file in files:
        checksums.reserve(file.metadata, file.infos)
    return plan


def _add_keys(plan: ConversionPlan, file: PlannedFile, experts: GGMLType) -> None:
    """What a file is, and its sizes."""
    checkpoint, config, options = plan.checkpoint, plan.checkpoint.config, plan.options
    if file.prefix == "dspark-":
        assert config.dspark is not None
        keys.add_general(file.metadata, checkpoint, experts, options.name, keys.DRAFT_ARCH)
        keys.add_dspark_model(file.metadata, config, config.dspark)
        return
    has_block = file.prefix == "mtp-" or (options.mtp and options.profile == "native" and checkpoint.drafts == "mtp")
    keys.add_general(file.metadata, checkpoint, experts, options.name)
    keys.add_model(file.metadata, config, n_blocks=config.n_layers + (file.prefix == "mtp-"), n_nextn=int(has_block))
    if options.mtp and options.profile == "native" and config.dspark is not None:
        keys.add_native_dspark(file.metadata, config.dspark)


def _note_rounding(plan: ConversionPlan, planner: _Planner) -> None:
    """Embedding, head, router and compressors are BF16 as published; a fine-tune may have more digits."""
    wide = (Form.F16, Form.F32)
    rounded = [weight for weight in plan.weights if weight.form is Form.BF16 and weight.stored_form in wide]
    rounded = [weight for weight in rounded if planner.kind_of(weight) is GGMLType.BF16]
    if rounded:
        name = plan.checkpoint.tensors[rounded[0].data_name].name
        more = f" and {len(rounded) - 1} more matrices" if len(rounded) > 1 else ""
        plan.notes.append(f'{name}{more} are rounded to BF16; dense="f32" keeps every digit')


def _plan_native(plan: ConversionPlan) -> None:
    metadata = plan.files[0].metadata
    keys.add_native(metadata, plan.checkpoint)
    absent = hf_files.add_side_files(metadata, plan.checkpoint.path)
    if plan.options.mtp or plan.checkpoint.drafts == "none":  # every tensor is in it
        hf_files.add_layout(metadata, plan.checkpoint)
    if absent:
        plan.notes.append(f"the checkpoint has no {' and no '.join(absent)}, so an export will not either")


def convert(
    checkpoint: Path | str,
    out: Path | str,
    options: ConvertOptions,
    progress: ProgressFn | None = None,
    warn: WarnFn | None = None,
    ready: Callable[[Checkpoint], object] | None = None,
) -> ConvertReport:
    """Writes `out` (or shards named after it, and the draft file beside it), replacing files of those names.

    progress(done, total) gets output bytes; warn() each of the report's warnings as soon as it is known; ready() the
    checkpoint when nothing but its weights is left to look at. On an error or Ctrl-C nothing new is left on the disk,
    except that several files get their names one after the other at the very end. A killed process leaves a folder
    .NAME.TOKEN.part, which the next conversion to that name removes. What replaces what: see gguf_export.outputs.
    """
    started = time.monotonic()
    options.check()
    out = Path(check_name(out))
    if out.suffix != ".gguf":
        raise ConvertError(f"{out} does not end in .gguf")
    if options.shard_bytes is None:
        find_place(out)  # before the checkpoint is read: that can take a while
    plan = _plan(_open(checkpoint, options), options)
    warnings = Warnings(warn)
    warnings.add(*plan.notes)
    if options.profile == "native" and "native" not in out.name:
        warnings.add(f"only pyflash reads native files; put 'native' into the name {out.name}, so that people know")
    written = plan.layouts(out.name)
    targets = [out.parent / layout.name for _, layout in written]
    total = sum(layout.size for _, layout in written)
    places = _places(targets, plan.checkpoint)
    make_room(places, [layout.size for _, layout in written], out.name)
    if ready is not None:
        ready(plan.checkpoint)
    check = ValueCheck(plan.checkpoint, plan.weights)
    report = _Offset(progress, check.total_bytes + total)
    check.run(report)
    report.base = check.total_bytes
    warnings.add(*_bf16_warnings(plan, check))
    with output_files(places, [layout.size for _, layout in written], out.name) as paths:
        watch = ValueWatch(plan.checkpoint.path)
        run_jobs(_jobs(written, paths, watch), total, report)
        watch.check()
        write_headers(plan.files, out.name, options.shard_bytes, paths)
    warnings.add(*zero_warnings(check.zeros(), watch.zeros()))
    report(total, total)
    return ConvertReport(targets, total, time.monotonic() - started, warnings.texts)


def _jobs(written: list[tuple[PlannedFile, FileLayout]], paths: list[Path], watch: ValueWatch) -> Iterator[TensorJob]:
    for (file, layout), path in zip(written, paths, strict=True):
        for tensor in file.tensors:
            name = tensor.info.name
            if name in layout.offsets:
                digest = file.digests[name] = checksums.TensorDigest(tensor.info.nbytes)
                yield from tensor.jobs(path, layout.offsets[name], watch, digest)


def write_headers(files: Sequence[PlannedFile], name: str, shard_bytes: int | None, paths: Sequence[Path]) -> None:
    """When all data is written, because the first header holds its checksums."""
    remaining = iter(paths)
    for file in files:
        reserved = file.layouts(name, shard_bytes)[0].header
        checksums.seal(file.metadata, reserved, file.infos, file.digests)
        for layout in file.layouts(name, shard_bytes):
            write_header(next(remaining), layout.header)


def zero_warnings(scales: list[str], weights: list[str]) -> list[str]:
    """What can be meant, and can be a download that was never written to the disk."""
    return [
        f"there are only zeros in {first_few(names, ', ')}; if that is not meant, download the checkpoint again"
        for names in (scales, weights)
        if names
    ]


class Warnings:
    """Kept for the report and told at once."""

    def __init__(self, warn: WarnFn | None) -> None:
        self.texts: list[str] = []
        self._warn = warn

    def add(self, *texts: str) -> None:
        self.texts += texts
        for text in texts:
            if self._warn is not None:
                self._warn(text)


def _places(targets: Sequence[Path], checkpoint: Checkpoint) -> list[Place]:
    inputs = {ref.path for ref in checkpoint.tensors.values() if ref.path is not None}
    inputs |= set(checkpoint.path.glob("*.json"))
    places = [find_place(target, inputs=inputs) for target in targets]
    check_distinct(places)
    return places


class _Offset:
    """Progress over two phases as one."""

    def __init__(self, progress: ProgressFn | None, total: int) -> None:
        self.progress = progress
        self.base = 0
        self.total = total

    def __call__(self, done: int, _total: int) -> None:
        if self.progress is not None:
            self.progress(self.base + done, self.total)


def _bf16_warnings(plan: ConversionPlan, check: ValueCheck) -> list[str]:
    """What BF16 rounds: FP8 with float32 scales, and e8m0 scales at the ends of their range."""
    if plan.options.profile == "native" or "bf16" not in (plan.options.dense, plan.options.experts):
        return []
    warnings = [f"BF16 cannot hold {name} exactly; its smallest values are rounded" for name in check.inexact_in_bf16()]
    if plan.checkpoint.expert_scale == "F32":
        warnings.append("FP8 weights with float32 scales are rounded when they become BF16")
    return warnings[:MOST_NAMED]
