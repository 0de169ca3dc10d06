"""Native GGUF files back to the checkpoint they came from: every tensor byte for byte, and the very files where the GGUF
keeps how those were laid out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gguf_export.checkpoint import INDEX
from gguf_export.checksums import TensorDigest, digests_of
from gguf_export.config import ModelConfig, parse_config, parse_json_object
from gguf_export.engine import Job, ProgressFn, run_jobs
from gguf_export.errors import ConvertError, first_few, several
from gguf_export.hf_files import LAYOUT_KEY, PUBLISHED_FILES, Layout, read_layout, side_files
from gguf_export.hf_jobs import CopyJob, Digests, FP4Job, WidthJob
from gguf_export.inventory import E8M0, Weight, dspark_weights, main_weights, mtp_weights, shard_of, tensors_of
from gguf_export.metadata import ARCH, DRAFT_ARCH
from gguf_export.names import dspark_name, gguf_name, native_scale_name
from gguf_export.outputs import check_name, check_space, output_folder
from gguf_export.reader import GGUFFile, read_gguf
from gguf_export.safetensors_file import (
    TensorRef,
    build_header,
    index_json,
    place_header,
    shard_name,
    tensor_bytes,
)
from gguf_export.units import gigabytes
from quantize.plan import Form, GGMLType, target_type

WarnFn = Callable[[str], None]

_CONVERTED = {"F32", "F16", "BF16", "I32", "MXFP4", "Q8_0"}  # types of the compat profile


def _require_native(path: Path, gguf: GGUFFile) -> None:
    """ConvertError that says why the checkpoint's bytes are not in another file."""
    if gguf.keys.get("pyflash.profile") == "native":
        return
    arch = gguf.keys.get("general.architecture")
    quantised = sorted({ref.dtype for ref in gguf.tensors.values()} - _CONVERTED)
    experts, dense = (gguf.tensors.get(f"blk.0.{name}.weight") for name in ("ffn_gate_exps", "attn_q_a"))
    if arch == DRAFT_ARCH or (arch == ARCH and experts is None):
        why = "it holds only what drafts"
    elif arch != ARCH:
        why = f"it is a model of another architecture, {arch!r:.40}"
    elif quantised or "pyflash.quantize.version" in gguf.keys:
        why = f"it is quantised, to {first_few(quantised, ', ')}" if quantised else "it is quantised"
    else:
        kind = dense.dtype if dense is not None else "something else"
        why = f"it is of the compat profile: FP8 became {kind}, and the scales are gone"
    raise ConvertError(f"{path} is no native file, so the checkpoint's bytes are not in it: {why}; give the file of "
                       '`pyflash convert` with profile="native"')


@dataclass
class _File:
    """A safetensors file to be: how it begins, and where its tensors go, by the checkpoint's names."""

    name: str
    header: bytes
    tensors: dict[str, TensorRef]

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(ref.nbytes for ref in self.tensors.values())


class _Export:
    """Matches the inventory of the stored config with the file's tensors."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.gguf: GGUFFile = read_gguf(path)
        _require_native(path, self.gguf)
        self.side_files = side_files(self.gguf.keys, path)
        if "config.json" not in self.side_files:
            raise ConvertError(f"{path} does not carry the checkpoint's config.json, which an export needs")
        config = parse_json_object(self.side_files["config.json"], f"{path}: config.json")
        self.config: ModelConfig = parse_config(config)
        experts = self.gguf.tensors.get("blk.0.ffn_gate_exps.weight")
        self.expert_form = Form.FP8 if experts is not None and experts.dtype == "I8" else Form.FP4
        self.weights = list(main_weights(self.config, self.expert_form))
        self.verbatim: list[Weight] = []  # DSpark's, as older native files have them: under their own names
        self.has_stages = "dspark.main_proj.weight" in self.gguf.tensors and self.config.dspark is not None
        self.drafts = "none"
        if f"blk.{self.config.n_layers}.nextn.e_proj.weight" in self.gguf.tensors:
            self.drafts = "mtp"
            self.weights += mtp_weights(self.config, self.expert_form)
        elif self.has_stages:
            self.drafts = "dspark"
            self.weights += dspark_weights(self.config, self.expert_form)
        elif "mtp.0.main_proj.weight" in self.gguf.tensors and self.config.dspark is not None:
            self.drafts = "dspark"
            self.verbatim = list(dspark_weights(self.config, self.expert_form))
        self._check()
        self.layout: Layout | None = read_layout(self.gguf.keys, path)

    def _source_name(self, weight: Weight) -> str:
        if self.has_stages and weight.name.startswith("mtp."):
            return dspark_name(weight.name, native=True)
        return gguf_name(weight.name, self.config.n_layers)

    def _check(self) -> None:
        """Every tensor is there with the type and shape that a native conversion gives it."""
        problems: list[str] = []
        for weight in self.weights:
            name = self._source_name(weight)
            kind = target_type(
                weight.form, is_matrix=len(weight.shape) == 2, is_expert=weight.is_expert, profile="native"
            )
            last = (self.config.n_experts,) if weight.is_expert else ()
            expected: list[tuple[str, tuple[GGMLType, ...], tuple[int, ...]]] = [
                (name, (kind,), tuple(reversed(weight.shape)) + last)
            ]
            if kind is GGMLType.I8:
                shape = tuple(reversed(weight.scale_shape)) + last
                expected.append((native_scale_name(name), (GGMLType.I8, GGMLType.F32), shape))
            problems += filter(None, (self._problem(*entry) for entry in expected))
        for weight in self.verbatim:
            for name, _, shape in tensors_of(weight, self._scale_dtype(weight)):
                ref = self.gguf.tensors.get(name)
                if ref is None or ref.shape != tuple(reversed(shape)):
                    problems.append(f"{name} is missing or misshaped")
        if problems:
            raise several(f"{self.path} does not fit the config.json in it", list(dict.fromkeys(problems)))

    def _problem(self, name: str, kinds: tuple[GGMLType, ...], shape: tuple[int, ...]) -> str | None:
        ref = self.gguf.tensors.get(name)
        if ref is None:
            return f"{name} is missing"
        if ref.dtype not in [kind.name for kind in kinds]:
            return f"{name} is {ref.dtype}, expected {kinds[0].name}"
        return None if ref.shape == shape else f"{name} has shape {list(ref.shape)}, expected {list(shape)}"

    def _scale_dtype(self, weight: Weight) -> str:
        is_verbatim = weight.name.startswith("mtp.") and bool(self.verbatim)
        name = weight.scale_name if is_verbatim else native_scale_name(self._source_name(weight))
        ref = self.gguf.tensors.get(name)
        return "F32" if ref is not None and ref.dtype == "F32" else E8M0

    def _official_shards(self) -> list[list[tuple[str, str, tuple[int, ...]]]]:
        """The tensors of each safetensors file, as published checkpoints are split."""
        groups: dict[int, list[tuple[str, str, tuple[int, ...]]]] = {}
        for weight in self.weights + self.verbatim:
            group = groups.setdefault(shard_of(weight.name, self.config), [])
            group += tensors_of(weight, self._scale_dtype(weight))
        return [group for _, group in sorted(groups.items())]

    def files(self, folder: Path) -> list[_File]:
        """The safetensors files, whose tensors' places are in `folder`: the checkpoint's own, or as published ones are
        split where the GGUF does not tell how those were."""
        if self.layout is not None:
            return self._files_as_they_were(folder, self.layout)
        files = []
        shards = self._official_shards()
        for index, tensors in enumerate(shards):
            name = shard_name(index, len(shards))
            header, refs = build_header(folder / name, tensors)
            files.append(_File(name, header, {ref.name: ref for ref in refs}))
        return files

    def _files_as_they_were(self, folder: Path, layout: Layout) -> list[_File]:
        expected = {name: (dtype, shape) for shard in self._official_shards() for name, dtype, shape in shard}
        files = []
        found: dict[str, tuple[str, tuple[int, ...]]] = {}
        n_tensors = 0
        try:
            for name, text in layout.shards.items():
                names = [each for each in parse_json_object(text.encode("utf-8"), name) if each in expected]
                header, refs = place_header(folder / name, text, sum(tensor_bytes(*expected[each]) for each in names))
                files.append(_File(name, header, refs))
                found |= {ref.name: (ref.dtype, ref.shape) for ref in refs.values()}
                n_tensors += len(refs)
        except ConvertError:
            found = {}
        if found != expected or n_tensors != len(expected):
            raise ConvertError(f"{self.path} is damaged or was changed: how the checkpoint's files were laid out "
                               f"({LAYOUT_KEY}) does not fit its tensors; convert or download it again")
        return files

    def index(self, files: list[_File]) -> bytes | None:
        """The bytes of the index; None where there is to be none."""
        if self.layout is not None:
            return None if self.layout.index is None else self.layout.index.encode("utf-8")
        if len(files) == 1:
            return None
        refs = [(ref, file.name) for file in files for ref in file.tensors.values()]
        return index_json({ref.name: name for ref, name in refs}, sum(ref.nbytes for ref, _ in refs))

    def sources(self) -> set[str]:
        """The GGUF tensors that an export reads, each of them whole."""
        names = {self._source_name(weight) for weight in self.weights}
        names |= {native_scale_name(self._source_name(weight)) for weight in self.weights if weight.form is Form.FP8}
        return names | {name for weight in self.verbatim for name, _, _ in tensors_of(weight)}

    def jobs(self, targets: dict[str, TensorRef], digests: Digests) -> Iterator[Job]:
        for weight in self.verbatim:
            for name, _, _ in tensors_of(weight):
                yield CopyJob(self.gguf.tensors[name], 0, targets[name], digests)
        experts_seen: dict[str, int] = {}
        for weight in self.weights:
            name = self._source_name(weight)
            index = experts_seen.get(name, 0)
            experts_seen[name] = index + 1
            source, data = self.gguf.tensors[name], targets[weight.data_name]
            if weight.form is Form.FP4:
                scale = targets[weight.scale_name]
                yield FP4Job(source, index * scale.nbytes, data, scale, digests)
            elif weight.form is Form.FP8:
                yield CopyJob(source, index * data.nbytes, data, digests)
                scale = targets[weight.scale_name]
                yield CopyJob(self.gguf.tensors[native_scale_name(name)], index * scale.nbytes, scale, digests)
            elif source.dtype == data.dtype:
                yield CopyJob(source, 0, data, digests)
            else:
                yield WidthJob(source, data, digests)

    def notes(self) -> list[str]:
        """What of the checkpoint will not be as it was, a line each."""
        notes = []
        if self.drafts == "none" and (self.config.n_mtp or self.config.dspark):
            notes.append("the drafting blocks are not in it: the checkpoint is complete for answering, and cannot draft; "
                         "converting with mtp=True keeps them")
        if self.layout is None:
            notes.append("every tensor is as it was, and the files are split as published ones are: how this checkpoint's "
                         "were is not in it")
        absent = [name for name in PUBLISHED_FILES if name not in self.side_files]
        if absent:
            notes.append(f"there was no {' and no '.join(absent)} to keep: programs that load checkpoints may want them")
        return notes


@dataclass(frozen=True)
class ExportPlan:
    """What an export writes. files: (name, bytes) in the order in which they get their names. is_same_files: the
    safetensors files and the index are the checkpoint's to the byte, and not only the tensors in them."""

    source: Path
    files: list[tuple[str, int]]
    n_tensors: int
    drafts: str  # "none", "mtp" or "dspark"
    is_same_files: bool
    notes: list[str] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        return sum(size for _, size in self.files)

    def summary(self) -> str:
        """Several lines for people."""
        what = {"none": "no drafting block", "mtp": "the MTP block", "dspark": "the DSpark stages"}[self.drafts]
        same = "the files that it was made from" if self.is_same_files else "split as published checkpoints are"
        return "\n".join([
            f"{self.source}: {self.n_tensors:,} tensors, with {what}; {same}",
            *(f"  {name:45} {gigabytes(size):>12}" for name, size in self.files),
            *(f"note: {note}" for note in self.notes),
            f"total: {gigabytes(self.total_bytes)}",
        ])

    def as_json(self) -> dict[str, Any]:
        return {"source": str(self.source), "files": [{"name": name, "bytes": size} for name, size in self.files],
                "n_tensors": self.n_tensors, "drafts": self.drafts, "same_files": self.is_same_files, "notes": self.notes,
                "total_bytes": self.total_bytes}


def plan_export_hf(gguf_path: Path | str) -> ExportPlan:
    """What export_hf() would write. Reads the GGUF's directory, no weights. ConvertError for what cannot be exported."""
    return _plan(_Export(Path(gguf_path)))


def _plan(export: _Export) -> ExportPlan:
    files = export.files(Path())
    index = export.index(files)
    sizes = [(file.name, file.nbytes) for file in files]
    sizes += [] if index is None else [(INDEX, len(index))]
    sizes += [(name, len(data)) for name, data in export.side_files.items()]
    return ExportPlan(export.path, sizes, sum(len(file.tensors) for file in files), export.drafts,
                      export.layout is not None, export.notes())


def export_hf(
    gguf_path: Path | str, dest: Path | str, progress: ProgressFn | None = None, warn: WarnFn | None = None
) -> list[Path]:
    """Writes the folder `dest`: the checkpoint's safetensors files, the index, config.json, tokenizer files.

    Every tensor has the name, dtype, shape and bytes of the checkpoint that the native file was made from; drafting
    blocks only where they were converted (--mtp). What is read is compared with the checksums that the conversion wrote.
    warn() gets what is not as it was. Returns the files. dest may be an empty folder, which is kept. On any error or
    Ctrl-C it is as it was.
    """
    dest = Path(check_name(dest))
    export = _Export(Path(gguf_path))
    plan = _plan(export)
    with output_folder(dest) as (work, names):
        check_space({os.fspath(dest): plan.total_bytes})
        if warn is not None:
            for note in plan.notes:
                warn(note)
        _write_folder(export, work, progress)
        names += [name for name, _ in plan.files]
    return [dest / name for name in names]


def _write_folder(export: _Export, work: Path, progress: ProgressFn | None) -> None:
    files = export.files(work)
    targets: dict[str, TensorRef] = {}
    for file in files:
        with open(work / file.name, "xb") as made:
            made.write(file.header)
            made.truncate(file.nbytes)
        targets |= file.tensors
    digests = {name: TensorDigest(export.gguf.tensors[name].nbytes) for name in export.sources()}
    run_jobs(export.jobs(targets, digests), sum(ref.nbytes for ref in targets.values()), progress)
    _check_digests(export, digests)
    index = export.index(files)
    small = export.side_files if index is None else {INDEX: index, **export.side_files}
    for name, data in small.items():
        (work / name).write_bytes(data)


def _check_digests(export: _Export, digests: Digests) -> None:
    """ConvertError where tensors are not as the conversion wrote them."""
    expected = digests_of(export.path, export.gguf)
    damaged = [name for name, digest in digests.items() if name in expected and digest.hex() != expected[name]]
    if damaged:
        raise ConvertError(f"{export.path} is damaged, download or convert it again: not as it was written: "
                           f"{first_few(damaged, ', ')}")
