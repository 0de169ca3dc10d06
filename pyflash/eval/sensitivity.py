"""How much errors of each group of a model's tensors harm its answers.

One group after another is quantised and laid over the model, whose predictions for a text are compared with those of the
model as it is. Experts and the rows of the indexer are held to the ones that the latter chose: a choice that flips makes a
difference of its own, which says nothing about the weights and hides what they do. Where errors are small the divergence
grows with the share of energy that they are, and the ratio is the group's sensitivity.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_export.errors import ConvertError
from gguf_export.groups import FORMAT, VERSION
from gguf_export.outputs import Place, make_room, resumable_file
from gguf_export.quantize_source import QuantizeSource
from gguf_export.quantizing import QuantizeOptions
from gguf_export.trials import Trial, trials
from gguf_export.workplace import ResumableWorkplace
from pyflash.engine.model import Model
from pyflash.eval.imatrix import text_digest
from pyflash.eval.kept_choices import Sizes
from pyflash.eval.logits_file import LogitsFile, written_file
from pyflash.eval.measure import Evaluator, FileBase, measure_divergence, measure_perplexity
from pyflash.eval.windows import Windows
from pyflash.native.errors import ArgumentError
from pyflash.native.library import lib

_STATE_FORMAT = 1


@dataclass(frozen=True)
class Job:
    """open: the model, with the tensors of a file in the place of its own. source: the same file. options: imatrix,
    objective and threads count. cache: the sessions'."""

    open: Callable[[Path | None], Model]
    source: QuantizeSource
    options: QuantizeOptions
    windows: Windows
    cache: str
    text: str  # its name

    def identity(self, model: Model) -> dict[str, Any]:
        """What makes two runs the same work."""
        info, imatrix = model.info, self.options.imatrix
        status = None if imatrix is None else os.stat(imatrix)
        return {
            "format": _STATE_FORMAT, "source": self.source.identity, "text": text_digest(self.windows),
            "n_ctx": self.windows.n_ctx, "count": self.windows.count, "precision": info.precision, "cache": self.cache,
            "kernels": info.cpu_isa, "arithmetic": lib.PF_ARITHMETIC_VERSION, "objective": self.options.objective,
            "imatrix": None if status is None else [os.path.realpath(str(imatrix)), status.st_size, status.st_mtime_ns],
        }  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """A group's: the type it was given, the share of energy that this loses, the divergence in nats, its standard error."""

    group: str
    type: str
    error: float
    kld: float
    kld_error: float | None

    @property
    def sensitivity(self) -> float:
        return max(0.0, self.kld) / self.error

    def as_json(self) -> dict[str, Any]:
        return {"type": self.type, "error": self.error, "kld": self.kld, "kld_error": self.kld_error,
                "sensitivity": self.sensitivity}  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """done: groups; of them resumed by an earlier run. step: what is being done. latest: of this run."""

    done: int
    total: int
    resumed: int
    step: str
    latest: Measured | None = None


def measure_sensitivity(job: Job, place: Place, note: Callable[[Progress], None]) -> dict[str, Measured]:
    """Writes the table to place. note: called before each step and after each group; an exception in it, or Ctrl-C, keeps
    what was measured for a later run. ConvertError, Error."""
    groups = trials(job.source, job.options)
    with job.open(None) as model:
        sizes, n_vocab, identity = Sizes.of(model.info), model.info.n_vocab, job.identity(model)
    make_room([place], [0])
    with resumable_file(place, 0, identity) as (path, work):
        found = _resumed(work, groups)
        resumed = len(found)
        base = Path(work.path) / "base"
        if not base.exists():
            note(Progress(resumed, len(groups), resumed, "the model as it is"))
            _write_base(job, base, n_vocab, sizes)
            work.record({})
        with LogitsFile(base) as kept:
            for group in groups:
                if group in found:
                    continue
                note(Progress(len(found), len(groups), resumed, group))
                found[group] = _measure(job, groups[group], work, kept)
                work.record({name: _as_state(each) for name, each in found.items()})
                note(Progress(len(found), len(groups), resumed, group, found[group]))
        ordered = {group: found[group] for group in groups}
        table = {
            "format": FORMAT, "version": VERSION, "model": job.source.path.name, "text": job.text,
            "tokens_sha256": text_digest(job.windows), "n_ctx": job.windows.n_ctx, "windows": job.windows.count,
            "objective": job.options.objective, "groups": {group: each.as_json() for group, each in ordered.items()},
        }  # fmt: skip
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    return ordered


def _resumed(work: ResumableWorkplace, groups: Mapping[str, Trial]) -> dict[str, Measured]:
    try:
        return {group: Measured(group, *state) for group, state in (work.done or {}).items() if group in groups}
    except (AttributeError, TypeError):
        raise ConvertError(f"what an earlier run left in {work.path} cannot be read: remove that folder") from None


def _as_state(each: Measured) -> list[Any]:
    return [each.type, each.error, each.kld, each.kld_error]


def _write_base(job: Job, path: Path, n_vocab: int, sizes: Sizes) -> None:
    """The predictions and choices of the model as it is."""
    with (
        job.open(None) as model, Evaluator(model, job.windows.n_ctx, job.cache) as evaluator,
        written_file(path, job.windows, n_vocab, (), sizes) as writer,
    ):  # fmt: skip
        for _ in measure_perplexity(evaluator, job.windows, writer):
            pass


def _measure(job: Job, trial: Trial, work: ResumableWorkplace, kept: LogitsFile) -> Measured:
    overlay = Path(work.path) / "overlay.gguf"
    latest = None
    with (
        trial.written(overlay) as error, job.open(overlay) as model,
        Evaluator(model, job.windows.n_ctx, job.cache) as evaluator,
    ):  # fmt: skip
        for latest in measure_divergence(evaluator, job.windows, FileBase(kept), hold_choices=True):
            pass
    assert latest is not None
    kld = latest.kld_so_far()
    if error <= 0 or not math.isfinite(kld.value):
        raise ArgumentError(f"{trial.group} cannot be measured: its error is {error:g} and the divergence {kld.value:g}")
    return Measured(trial.group, trial.kind, error, kld.value, kld.error)
