"""Makes a smaller GGUF file of a GGUF file or a checkpoint: plan, search, read back; a killed run can go on."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_export import checksums
from gguf_export.convert import FilesPlan, PlannedFile, WarnFn, Warnings, write_headers
from gguf_export.engine import Job, ProgressFn, run_jobs
from gguf_export.errors import ConvertError, first_few, reason
from gguf_export.outputs import Place, check_distinct, check_name, check_space, find_place, resumable_files
from gguf_export.quantize_jobs import Finished, ImportanceLike, QuantisedTensor, TensorError, tensor_jobs
from gguf_export.quantize_source import QuantizeSource, SourceFile, SourceTensor, open_source
from gguf_export.safetensors_file import TensorRef
from gguf_export.tensors import OutputTensor
from gguf_export.values import ValueWatch
from gguf_export.workplace import ResumableWorkplace, clear_dead, flush, left_work
from gguf_export.writer import Metadata, TensorInfo
from pyflash.native.library import __version__
from quantize.blocks import Objective
from quantize.choice import KEEP, ChoiceError, Chooser, Group, Wishes, file_type, group_of
from quantize.importance import read as read_importance

OBJECTIVES = {"hessian": Objective.PLAIN, "ggml": Objective.GGML, "unbiased": Objective.UNBIASED}
MOST_THREADS = 256
_RECORD_SECONDS = 15.0


@dataclass(frozen=True)
class QuantizeOptions:
    """experts, dense, head, tensor_types: see quantize.choice.Wishes. imatrix: a file of importances, llama.cpp's.

    objective: what is made least, "hessian" (importance times error squared), "ggml" (as llama.cpp's quantisers do), or
    "unbiased" (as hessian, and rows keep their length).
    mtp: with the drafting block. shard_bytes: split the output into shards of at most that much tensor data. name: the
    model's, None for the source's. threads: None for one a core; the bytes do not depend on it. resume: go on with what an
    interrupted run of the same work left. restart: throw away what one left.
    """

    experts: str = KEEP
    dense: str = "Q8_0"
    head: str = "BF16"
    tensor_types: tuple[tuple[str, str], ...] = ()
    imatrix: Path | str | None = None
    objective: str = "unbiased"
    mtp: bool = False
    shard_bytes: int | None = None
    name: str | None = None
    threads: int | None = None
    resume: bool = False
    restart: bool = False

    def check(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ConvertError(f"objective is {self.objective!r:.40}, expected one of {', '.join(OBJECTIVES)}")
        if self.shard_bytes is not None and self.shard_bytes < 1:
            raise ConvertError("the shard size must be positive")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise ConvertError(f"threads is {self.threads}, expected 1 to {MOST_THREADS}")
        if self.name is not None and not (self.name.strip() and self.name.isprintable()):
            raise ConvertError(f"the name {self.name!r} must be text that can be shown, on one line")
        if self.resume and self.restart:
            raise ConvertError("resume=True goes on and restart=True begins anew; choose one of them")


@dataclass
class QuantizePlan(FilesPlan):
    """What will be written. Made from headers alone."""

    source: QuantizeSource
    options: QuantizeOptions
    files: list[PlannedFile]
    stored: dict[str, TensorInfo]  # the tensors before, by name
    notes: list[str]

    @property
    def shard_bytes(self) -> int | None:
        return self.options.shard_bytes

    def summary(self) -> str:
        from gguf_export.quantize_summary import summarize

        return summarize(self)

    def as_json(self) -> dict[str, Any]:
        from gguf_export.quantize_summary import plan_as_json

        return plan_as_json(self)


@dataclass(frozen=True)
class QuantizeReport:
    """files in the order a loader opens them. errors_file: the JSON beside them, with every tensor's error."""

    files: list[Path]
    errors_file: Path
    total_bytes: int
    seconds: float
    n_resumed: int  # tensors that an interrupted run had finished
    errors: dict[str, TensorError]  # of what was quantised, by tensor
    warnings: list[str]


def plan_quantization(source: Path | str, options: QuantizeOptions) -> QuantizePlan:
    """What quantize() would write. ConvertError for options that do not fit the source."""
    options.check()
    return plan_of(open_source(source, options.mtp, options.name), options, read_importance_of(options))


def read_importance_of(options: QuantizeOptions) -> ImportanceLike | None:
    return None if options.imatrix is None else read_importance(Path(options.imatrix))


def plan_of(source: QuantizeSource, options: QuantizeOptions, importance: ImportanceLike | None) -> QuantizePlan:
    files: list[PlannedFile] = []
    stored: dict[str, TensorInfo] = {}
    try:
        chooser = Chooser(Wishes(options.experts, options.dense, options.head, options.tensor_types))
        for part in source.files:
            tensors = [_tensor(tensor, chooser, options, importance) for tensor in part.tensors]
            stored.update({tensor.info.name: tensor.info for tensor in part.tensors})
            files.append(PlannedFile(part.prefix, _metadata(part, tensors, options, importance), tensors))
        notes = [*source.notes, *chooser.notes()]
    except ChoiceError as error:
        raise ConvertError(str(error)) from None
    changed = [tensor for file in files for tensor in file.tensors if isinstance(tensor, QuantisedTensor)]
    if importance is None and any(group_of(tensor.info.name) is Group.EXPERTS for tensor in changed):
        notes.append("there is no imatrix, so errors weigh the same in all columns; with one the experts lose less")
    for file in files:
        checksums.reserve(file.metadata, file.infos)
    return QuantizePlan(source, options, files, stored, notes)


def _tensor(
    tensor: SourceTensor, chooser: Chooser, options: QuantizeOptions, importance: ImportanceLike | None
) -> OutputTensor:
    info = tensor.info
    if not tensor.matrices:
        return tensor.kept
    kind = chooser.choose(info.name, info.kind, info.ne[0])
    if kind is info.kind:
        return tensor.kept
    new = TensorInfo(info.name, kind, info.ne)
    return QuantisedTensor(new, (), tensor.matrices, info.kind.name, OBJECTIVES[options.objective], importance)


def _metadata(
    file: SourceFile, tensors: Sequence[OutputTensor], options: QuantizeOptions, importance: ImportanceLike | None
) -> Metadata:
    """The source's, with what is true of the new file."""
    weights: dict[str, int] = {}
    for tensor in tensors:
        weights[tensor.info.kind.name] = weights.get(tensor.info.kind.name, 0) + math.prod(tensor.info.ne)
    kept, new = dict(file.metadata.pairs), Metadata()
    new.u32("general.file_type", file_type(weights))
    new.u32("general.quantization_version", 2)
    if any(isinstance(tensor, QuantisedTensor) for tensor in tensors):
        new.text("pyflash.quantize.version", __version__)
        new.text("pyflash.quantize.objective", options.objective)
    if importance is not None:
        kept = {key: value for key, value in kept.items() if not key.startswith("quantize.imatrix.")}
        for key, value in importance.metadata().items():
            new.text(key, value.encode("utf-8", "replace").decode()) if isinstance(value, str) else new.u32(key, value)
    return Metadata({**kept, **new.pairs})


def quantize(
    source: Path | str,
    out: Path | str,
    options: QuantizeOptions,
    progress: ProgressFn | None = None,
    warn: WarnFn | None = None,
) -> QuantizeReport:
    """Writes `out`, or shards named after it, and OUT.quantize.json, replacing files of those names.

    progress(done, total) gets output bytes; warn() each warning as soon as it is known. On an error, Ctrl-C or a kill
    the finished tensors wait in a folder .NAME.partial for a run of the same work with resume=True.
    """
    options.check()
    _check_out(out, options)
    return write_plan(plan_quantization(source, options), out, progress, warn)


def _check_out(out: Path | str, options: QuantizeOptions) -> Path:
    out = Path(check_name(out))
    if out.suffix != ".gguf":
        raise ConvertError(f"{out} does not end in .gguf")
    if options.shard_bytes is None:
        find_place(out)
    return out


def write_plan(
    plan: QuantizePlan, out: Path | str, progress: ProgressFn | None = None, warn: WarnFn | None = None
) -> QuantizeReport:
    """As quantize(), for a plan."""
    started = time.monotonic()
    out = _check_out(out, plan.options)
    if not plan.source.is_complete:
        raise ConvertError(f"{plan.source.path} has not all its files: download them first")
    warnings = Warnings(warn)
    warnings.add(*plan.notes)
    run = _Run(plan, out)
    run.find_room()
    plan.source.check_scales()
    warnings.add(*_unknown_importance(plan))
    n_resumed = run.write(progress, warnings)
    errors = {name: run.errors[name] for file in plan.files for name in _names(file) if name in run.errors}
    return QuantizeReport(run.targets, run.errors_file, plan.total_bytes, time.monotonic() - started, n_resumed, errors,
                          warnings.texts)  # fmt: skip


def has_left(out: Path | str) -> bool:
    """Whether an interrupted run for that name has finished tensors that resume=True can go on with."""
    try:
        place = find_place(out)
    except ConvertError:
        return False
    left = left_work(place.folder, place.name)
    return left is not None and bool(left["done"])


def _unknown_importance(plan: QuantizePlan) -> list[str]:
    """Looks at all importances before hours are spent: an error there is told now. Returns what has none."""
    changed = [tensor for file in plan.files for tensor in file.tensors if isinstance(tensor, QuantisedTensor)]
    if not changed or changed[0].importance is None:
        return []
    unknown = [each.info.name for each in changed if each.weights() is None and group_of(each.info.name) is not Group.HEAD]
    if not unknown:
        return []
    return [f"the imatrix has nothing of {first_few(unknown, ', ')}: there errors weigh the same in all columns"]


def _names(file: PlannedFile) -> list[str]:
    return [tensor.info.name for tensor in file.tensors]


@dataclass
class _Planned:
    """A tensor of the output and where it goes."""

    key: str  # of the file and the tensor
    tensor: OutputTensor
    file: PlannedFile
    path: Path
    offset: int

    @property
    def ref(self) -> TensorRef:
        info = self.tensor.info
        return TensorRef(self.key, info.kind.name, info.ne, self.path, self.offset, info.nbytes)


@dataclass
class _Run:
    """One run of quantize()."""

    plan: QuantizePlan
    out: Path
    errors: dict[str, TensorError] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._layouts = self.plan.layouts(self.out.name)
        self.targets = [self.out.parent / layout.name for _, layout in self._layouts]
        self.errors_file = self.out.with_suffix(".quantize.json")
        inputs: list[Path] = list(self.plan.source.inputs)
        if self.plan.options.imatrix is not None:
            inputs.append(Path(self.plan.options.imatrix))
        self._places: list[Place] = [find_place(path, inputs=inputs) for path in (*self.targets, self.errors_file)]
        check_distinct(self._places)
        self._sizes = [layout.size for _, layout in self._layouts] + [0]
        self._belongs_to = self._identity()

    def _identity(self) -> dict[str, Any]:
        """What makes two runs the same work: only then are tensors of one good for the other."""
        options = self.plan.options
        headers = hashlib.blake2b(digest_size=16)
        for _, layout in self._layouts:
            headers.update(layout.header)
        imatrix = None
        if options.imatrix is not None:
            try:
                with open(options.imatrix, "rb") as file:
                    imatrix = hashlib.blake2b(digest_size=16)
                    while data := file.read(1 << 20):
                        imatrix.update(data)
            except OSError as error:
                raise ConvertError(f"cannot read {options.imatrix}: {reason(error)}") from None
        return {
            "version": __version__, "source": self.plan.source.identity, "objective": options.objective,
            "imatrix": imatrix.hexdigest() if imatrix else None, "headers": headers.hexdigest(),
        }  # fmt: skip

    def _left(self) -> dict[str, Any]:
        """What an interrupted run finished. ConvertError where it is not said what to do with that."""
        folder, options = self._places[0].folder, self.plan.options
        left = left_work(folder, self.out.name)
        if left is None or not left["done"] or options.restart:
            return {}
        if left["belongs_to"] != self._belongs_to:
            if options.resume:
                raise ConvertError(
                    f"the interrupted run for {self.out} had another source, other options or another version: give "
                    "the same, or begin anew with restart=True"
                )
            raise ConvertError(
                f"an interrupted run with another source or other options left its work for {self.out}: "
                "restart=True throws it away"
            )
        if not options.resume:
            raise ConvertError(
                f"an interrupted run left {len(left['done']):,} finished tensors for {self.out}: go on with resume=True, "
                "or begin anew with restart=True"
            )
        return dict(left["done"])

    def find_room(self) -> None:
        done = self._left()
        folder = self._places[0].folder
        clear_dead(folder, self.out.name)
        finished = sum(tensor.info.nbytes for file in self.plan.files for tensor in file.tensors
                       if _key(file, tensor) in done)  # fmt: skip
        check_space({folder: sum(self._sizes) - finished})

    def write(self, progress: ProgressFn | None, warnings: Warnings) -> int:
        """Returns how many tensors an earlier run had finished."""
        with resumable_files(self._places, self._sizes, self.out.name, self._start()) as (paths, work):
            planned = list(self._planned(paths))
            resumed = self._resume(planned, work)
            total = sum(each.tensor.info.nbytes for each in planned if each.key not in resumed)
            watch = ValueWatch(self.plan.source.path)
            recorder = _Recorder(work, paths[:-1], planned, resumed, watch)
            try:
                run_jobs(self._jobs(planned, resumed, recorder.finished, watch), total,
                         recorder.watching(progress), threads=self._n_threads)  # fmt: skip
                watch.check()
            finally:
                recorder.record()
            self._verify(planned)
            self._collect(planned, resumed)
            write_headers(self.plan.files, self.out.name, self.plan.options.shard_bytes, paths)
            paths[-1].write_text(json.dumps(self._errors_json(), indent=1) + "\n", encoding="utf-8")
        if progress is not None:
            progress(total, total)
        return len(resumed)

    def _start(self) -> dict[str, Any]:
        if self.plan.options.restart:  # so that what lies there is not taken for this work's
            with ResumableWorkplace(self._places[0].folder, self.out.name, {}):
                pass
        return self._belongs_to

    @property
    def _n_threads(self) -> int:
        return self.plan.options.threads or min(MOST_THREADS, n_processors())

    def _planned(self, paths: Sequence[Path]) -> Iterator[_Planned]:
        for (file, layout), path in zip(self._layouts, paths, strict=False):
            for tensor in file.tensors:
                name = tensor.info.name
                if name in layout.offsets:
                    yield _Planned(_key(file, tensor), tensor, file, path, layout.offsets[name])

    def _resume(self, planned: Sequence[_Planned], work: ResumableWorkplace) -> dict[str, Any]:
        """The finished tensors that still are what they were: their digests are taken again."""
        done = work.done or {}
        found = checksums.read_digests(each.ref for each in planned if each.key in done)
        resumed = {key: done[key] for key, digest in found.items() if digest.hex() == done[key]["digest"]}
        for each in planned:
            if each.key in resumed:
                each.file.digests[each.tensor.info.name] = found[each.key]
        return resumed

    def _jobs(
        self, planned: Sequence[_Planned], resumed: dict[str, Any], finished: Finished, watch: ValueWatch
    ) -> Iterator[Job]:
        for each in planned:
            if each.key not in resumed:
                info = each.tensor.info
                digest = each.file.digests[info.name] = checksums.TensorDigest(info.nbytes)
                yield from finished.counted(each.key, tensor_jobs(each.tensor, each.path, each.offset, watch, digest))

    def _verify(self, planned: Sequence[_Planned]) -> None:
        """Everything once more from the disk."""
        found = checksums.read_digests(each.ref for each in planned)
        for each in planned:
            digest = found[each.key]
            if digest.hex() != each.file.digests[each.tensor.info.name].hex():
                raise ConvertError(f"{each.tensor.info.name} is not on the disk as it was written: check the disk")

    def _collect(self, planned: Sequence[_Planned], resumed: dict[str, Any]) -> None:
        for each in planned:
            if isinstance(each.tensor, QuantisedTensor):
                noted = resumed.get(each.key)
                error = TensorError(*noted["error"]) if noted else each.tensor.errors.result()
                self.errors[each.tensor.info.name] = error

    def _errors_json(self) -> dict[str, Any]:
        from gguf_export.quantize_summary import errors_as_json

        return errors_as_json(self.plan, self.errors)


def n_processors() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _key(file: PlannedFile, tensor: OutputTensor) -> str:
    return file.prefix + tensor.info.name


class _Recorder:
    """Notes finished tensors in the workplace's manifest, when they are on the disk."""

    def __init__(
        self, work: ResumableWorkplace, paths: Sequence[Path], planned: Sequence[_Planned], resumed: dict[str, Any],
        watch: ValueWatch,
    ) -> None:  # fmt: skip
        self.finished = Finished()
        self._work = work
        self._paths = paths
        self._planned = {each.key: each for each in planned}
        self._done = dict(resumed)
        self._n_noted = 0
        self._watch = watch
        self._last = time.monotonic()

    def watching(self, progress: ProgressFn | None) -> Callable[[int, int], None]:
        def report(done: int, total: int) -> None:
            if time.monotonic() - self._last >= _RECORD_SECONDS:
                self.record()
            if progress is not None:
                progress(done, total)

        return report

    def record(self) -> None:
        self._last = time.monotonic()
        names = list(self.finished.tensors)
        if len(names) == self._n_noted or self._watch.has_problems:  # where values were left out nothing is finished
            return
        for path in self._paths:
            flush(str(path))
        for key in names[self._n_noted :]:
            each = self._planned[key]
            error = each.tensor.errors.result() if isinstance(each.tensor, QuantisedTensor) else None
            digest = each.file.digests[each.tensor.info.name].hex()
            self._done[key] = {"digest": digest, "error": [error.plain, error.weighted] if error else None}
        self._n_noted = len(names)
        self._work.record(self._done)


__all__ = ["QuantizeOptions", "QuantizePlan", "QuantizeReport", "plan_quantization", "quantize"]
