"""Importance matrices: a text is evaluated window by window while the squares of what matrix products take are summed.

What was summed lies beside the output every minute or so, and a later run of the same work goes on from there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_export.errors import ConvertError
from gguf_export.imatrix_file import Collected, write_importance
from gguf_export.outputs import Place, check_space, make_room, resumable_file
from gguf_export.reader import GGUFFile, shard_paths
from gguf_export.workplace import ResumableWorkplace, flush
from gguf_export.writer import Metadata, ValueType
from pyflash.engine.collector import Collector, Input, Sums
from pyflash.engine.model import Model
from pyflash.eval.measure import MOST_LOGITS_BYTES
from pyflash.eval.statistics import PerplexityStatistics, Tokens32
from pyflash.eval.windows import Windows
from pyflash.native.errors import FormatError
from pyflash.native.library import lib

_STATE_FORMAT = 1  # of the sums on the disk
_SAVE_SECONDS = 60.0
_SAVE_SHARE = 20  # and not before so many times what saving takes has passed

# The weights that take each input, of layers; those that a file has get an entry.
_TAKERS: dict[Input, tuple[str, ...]] = {
    Input.ATTENTION: ("attn_q_a", "attn_kv", "attn_compressor_kv", "attn_compressor_gate", "indexer.proj",
                      "indexer_compressor_kv", "indexer_compressor_gate"),
    Input.QUERY: ("attn_q_b", "indexer.attn_q_b"),
    Input.OUT_GROUPS: ("attn_output_a",),
    Input.OUT: ("attn_output_b",),
    Input.FFN: ("ffn_gate_inp", "ffn_gate_shexp", "ffn_up_shexp"),
    Input.SHARED_HIDDEN: ("ffn_down_shexp",),
    Input.EXPERTS: ("ffn_gate_exps", "ffn_up_exps"),
    Input.EXPERT_HIDDEN: ("ffn_down_exps",),
    Input.ATTENTION_MIX: ("hc_attn_fn",),
    Input.FFN_MIX: ("hc_ffn_fn",),
}  # fmt: skip
_HEAD_TAKERS = {Input.HEAD: "output", Input.HEAD_MIX: "output_hc_fn"}
_LAYER_INPUTS = tuple(each for each in Input if each not in _HEAD_TAKERS)


# -- what was collected --


def all_sums(collector: Collector, n_layer: int) -> Iterator[Sums]:
    """Every input's, in an order of their own."""
    for layer in range(n_layer):
        for kind in _LAYER_INPUTS:
            yield collector.sums(kind, layer)
    for kind in _HEAD_TAKERS:
        yield collector.sums(kind)


def entries(collector: Collector, n_layer: int, gguf: GGUFFile) -> dict[str, Collected]:
    """By the names of the tensors that the file has."""
    found: dict[str, Collected] = {}
    for layer in range(n_layer):
        for kind, takers in _TAKERS.items():
            entry = _entry(collector, kind, layer)
            found |= {f"blk.{layer}.{taker}.weight": entry for taker in takers}
    found |= {f"{taker}.weight": _entry(collector, kind, -1) for kind, taker in _HEAD_TAKERS.items()}
    return {name: entry for name, entry in found.items() if name in gguf.tensors and entry.counts.any()}


def _entry(collector: Collector, kind: Input, layer: int) -> Collected:
    found = collector.sums(kind, layer)
    sums, counts = found.sums, found.counts.astype(np.float64)
    if kind is Input.OUT_GROUPS:  # one matrix in files, and the same importance for all of its rows
        return Collected(sums.sum(axis=0, keepdims=True), counts.sum(keepdims=True))
    if kind is Input.EXPERT_HIDDEN:
        return Collected(sums, counts, collector.sums(Input.EXPERT_HIDDEN_WEIGHTED, layer).sums)
    return Collected(sums, counts)


# -- the report --


@dataclass(frozen=True)
class Visits:
    """How often tokens chose a layer's experts. unvisited: the ids of those that none did. by_token: the layer looks
    experts up by the token, so that the text's tokens alone tell."""

    layer: int
    least: int
    median: float
    unvisited: list[int]
    by_token: bool

    @classmethod
    def of(cls, layer: int, counts: npt.NDArray[np.int64], by_token: bool) -> Visits:
        return cls(layer, int(counts.min()), float(np.median(counts)), np.flatnonzero(counts == 0).tolist(), by_token)


def visits(collector: Collector, n_layer: int, n_hash_layer: int) -> list[Visits]:
    return [Visits.of(layer, collector.sums(Input.EXPERTS, layer).counts, layer < n_hash_layer) for layer in range(n_layer)]


def hash_visits(gguf: GGUFFile, tokens: Tokens32, n_hash_layer: int, n_expert: int) -> list[Visits]:
    """Of the layers that look experts up by the token, from a text's tokens without evaluating them."""
    found = []
    for layer in range(n_hash_layer):
        ref = gguf.tensors.get(f"blk.{layer}.ffn_gate_tid2eid.weight")
        if ref is None or ref.path is None or ref.dtype != "I32" or len(ref.shape) != 2:
            raise FormatError(f"the file has no table of experts by token for layer {layer}: convert again")
        table = np.fromfile(ref.path, dtype="<i4", count=ref.nbytes // 4, offset=ref.offset).reshape(ref.shape[::-1])
        times = np.bincount(tokens, minlength=len(table))
        counts = np.zeros(n_expert, dtype=np.int64)
        for chosen in table.T:
            counts += np.bincount(chosen, weights=times, minlength=n_expert).astype(np.int64)[:n_expert]
        found.append(Visits.of(layer, counts, True))
    return found


def window_tokens(windows: Windows, index: int) -> Tokens32:
    """All tokens of a window, each of which is evaluated."""
    begin = index * windows.step
    tokens: Tokens32 = windows.tokens[begin : begin + windows.n_ctx].copy()
    if windows.bos is not None:
        tokens[0] = windows.bos
    return tokens


def text_digest(windows: Windows) -> str:
    """SHA-256 of the tokens that are evaluated, as little-endian int32."""
    digest = hashlib.sha256()
    for index in range(windows.count):
        digest.update(window_tokens(windows, index).astype("<i4").tobytes())
    return digest.hexdigest()


# -- collecting --


@dataclass(frozen=True)
class Job:
    """One importance matrix. source: the text's name, as the file tells it."""

    model: Model
    gguf: GGUFFile
    file: str
    windows: Windows
    source: str
    cache: str

    def identity(self) -> dict[str, Any]:
        """What makes two runs the same work."""
        info = self.model.info
        files = [(os.path.realpath(path), os.stat(path)) for path in shard_paths(Path(self.file), self.gguf)]
        return {"format": _STATE_FORMAT, "files": [[path, found.st_size, found.st_mtime_ns] for path, found in files],
                "text": text_digest(self.windows), "n_ctx": self.windows.n_ctx, "count": self.windows.count,
                "precision": info.precision, "cache": self.cache, "kernels": info.cpu_isa,
                "arithmetic": lib.PF_ARITHMETIC_VERSION}


@dataclass(frozen=True)
class Progress:
    """windows: done so far. resumed: of these, done by earlier runs. nll: mean of the scored tokens, NaN before any."""

    windows: int
    resumed: int
    nll: float


class _State:
    """The sums on the disk, in two files that take turns: one is whole at any time."""

    def __init__(self, work: ResumableWorkplace, collector: Collector, n_layer: int) -> None:
        self._work, self._collector, self._n_layer = work, collector, n_layer
        self._next, self._saved, self._took = 1, time.monotonic(), 0.0
        self.windows, self.nll, self.scored = 0, 0.0, 0
        if work.done is not None:
            self._load()

    def _load(self) -> None:
        done = self._work.done
        try:
            number, windows, nll, scored = int(done["file"]), int(done["windows"]), float(done["nll"]), int(done["scored"])
            with open(self._work.file(number), "rb") as file:
                for each in all_sums(self._collector, self._n_layer):
                    for values in (each.sums, each.counts):
                        data = np.fromfile(file, dtype=values.dtype, count=values.size)
                        values[...] = data.reshape(values.shape)
        except (OSError, ValueError, LookupError, TypeError):
            raise ConvertError(f"what an earlier run left in {self._work.path} cannot be read: remove that folder") from None
        self.windows, self.nll, self.scored, self._next = windows, nll, scored, 3 - number

    def is_due(self) -> bool:
        return time.monotonic() - self._saved >= max(_SAVE_SECONDS, _SAVE_SHARE * self._took)

    def save(self) -> None:
        began = time.monotonic()
        path = self._work.file(self._next)
        with open(path, "wb") as file:
            for each in all_sums(self._collector, self._n_layer):
                file.write(each.sums.tobytes())
                file.write(each.counts.tobytes())
        flush(path)
        self._work.record({"file": self._next, "windows": self.windows, "nll": self.nll, "scored": self.scored})
        self._next = 3 - self._next
        self._saved = time.monotonic()
        self._took = self._saved - began


def collect(job: Job, place: Place, note: Callable[[Progress], None]) -> list[Visits]:
    """Writes the importance matrix to place. note: called at first and after each window; an exception in it, or Ctrl-C,
    keeps what was summed for a later run. ConvertError, Error."""
    info, windows = job.model.info, job.windows
    collector = job.model.collector()
    state_bytes = sum(each.sums.nbytes + each.counts.nbytes for each in all_sums(collector, info.n_layer))
    make_room([place], [0])
    check_space({place.folder: 3 * state_bytes})
    with resumable_file(place, 0, job.identity()) as (path, work):
        state = _State(work, collector, info.n_layer)
        resumed = state.windows
        note(Progress(state.windows, resumed, _mean(state)))
        with job.model.session(context=windows.n_ctx, cache=job.cache, checkpoints=0) as session:
            session.collect(collector)
            most = min(session.chunk, max(1, MOST_LOGITS_BYTES // (4 * info.n_vocab)))
            while state.windows < windows.count:
                statistics = PerplexityStatistics()
                session.rollback(session.position)
                tokens, targets = window_tokens(windows, state.windows), windows.targets(state.windows)
                for begin in range(0, len(tokens), most):
                    logits = session.eval(tokens[begin : begin + most], all_logits=True)
                    first, last = max(windows.first - begin, 0), min(windows.n_ctx - 1 - begin, len(logits))
                    if first < last:
                        at = begin + first - windows.first
                        statistics.add(logits[first:last], targets[at : at + last - first])
                    del logits
                state.windows += 1
                state.nll += statistics.result().nll.value * statistics.count
                state.scored += statistics.count
                if state.is_due() and state.windows < windows.count:
                    state.save()
                note(Progress(state.windows, resumed, _mean(state)))
        found = visits(collector, info.n_layer, info.n_hash_layer)
        write_importance(path, entries(collector, info.n_layer, job.gguf), [job.source], windows.count, windows.n_ctx,
                         _report_keys(job, found))
    return found


def _mean(state: _State) -> float:
    return state.nll / state.scored if state.scored else float("nan")


def _report_keys(job: Job, found: list[Visits]) -> Metadata:
    """Visits in the order of layers, and what was evaluated."""
    keys = Metadata()
    keys.text("general.name", f"importance of {job.model.info.name}" if job.model.info.name else "importance")
    keys.text("pyflash.imatrix.tokens_sha256", text_digest(job.windows))
    keys.add("pyflash.imatrix.tokens", ValueType.U64, job.windows.count * job.windows.n_ctx)
    keys.u32("pyflash.imatrix.hash_layers", job.model.info.n_hash_layer)
    keys.add_array("pyflash.imatrix.visits_min", ValueType.U64, [each.least for each in found])
    keys.add_array("pyflash.imatrix.visits_median", ValueType.F64, [each.median for each in found])
    keys.add_array("pyflash.imatrix.unvisited", ValueType.U32, [len(each.unvisited) for each in found])
    return keys
