"""What each layer of a model file takes of a machine: what a placement of stages is computed from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gguf_export.reader import GGUFFile, read_gguf
from pyflash.engine.model import Model, ModelInfo
from pyflash.engine.session import Memory, Session
from pyflash.machine.layer_tensors import is_opened, layer_of
from pyflash.native.values import StrPath

_EXPERTS = "_exps."
_EMBEDDING = "token_embd.weight"
_LOGIT_BYTES = 4
PROGRAM_BYTES: Final = 200 << 20  # of a stage's process: Python with Ray, numpy and the library


@dataclass(frozen=True)
class PartCost:
    """Bytes of a part of the model. weight_bytes: its tensors, with copies of them that are made at opening. read_bytes: what
    evaluating one token reads of them, the chosen experts alone. cache_bytes: of all sessions, full, with checkpoints."""

    weight_bytes: int
    read_bytes: int
    cache_bytes: int = 0

    @property
    def memory_bytes(self) -> int:
        return self.weight_bytes + self.cache_bytes


@dataclass(frozen=True)
class ModelCosts:
    """Bytes. embedding: of the stage with the first layer; head: of the one with the last, with what drafts; stage_bytes:
    of every stage, its program and the sessions' working buffers. token_bytes: the streams of one token, from stage to stage;
    logits_bytes: the last stage's answer to one. context: tokens of a session that
    the caches are for."""

    layers: tuple[PartCost, ...]
    embedding: PartCost
    head: PartCost
    stage_bytes: int
    token_bytes: int
    logits_bytes: int
    context: int = 0

    def memory_bytes(self, first: int, end: int) -> int:
        """What a stage of the layers first to end - 1 takes, at most."""
        ends = [self.embedding] * (first == 0) + [self.head] * (end == len(self.layers))
        return self.stage_bytes + sum(part.memory_bytes for part in (*self.layers[first:end], *ends))

    def read_bytes(self, first: int, end: int) -> int:
        """What such a stage reads of its weights for one token."""
        ends = [self.embedding] * (first == 0) + [self.head] * (end == len(self.layers))
        return sum(part.read_bytes for part in (*self.layers[first:end], *ends))


def model_costs(file: StrPath, n_ctx: int | None = None, n_sessions: int = 1, cache: str = "auto",
                precision: str = "fast") -> ModelCosts:
    """The costs of a file with so many sessions of n_ctx tokens (None: the default), from its directory and from what the
    library tells of stages of one layer each, before any of it is touched.

    pyflash.Error or ConvertError for a file that does not run.
    """
    gguf = read_gguf(Path(os.fsdecode(file)))
    probes = _Probes(file, n_ctx, cache, precision)
    last = probes.look(probes.info.n_layer - 1)
    info = probes.info
    sessions = n_sessions * max(probe.memory.buffer_bytes for probe in probes.all())
    program = info.directory_bytes + PROGRAM_BYTES
    layers = tuple(
        PartCost(weight + probes.of(layer).widened_bytes, read, n_sessions * _cache(probes.of(layer).memory))
        for layer, (weight, read) in enumerate(_layer_bytes(gguf, info))
    )
    embedding = sum(ref.nbytes for name, ref in gguf.tensors.items() if name == _EMBEDDING)
    ends = {name: ref.nbytes for name, ref in gguf.tensors.items()
            if layer_of(name, info.n_layer) is None and is_opened(name, info, (info.n_layer - 1, info.n_layer))}
    head = PartCost(
        sum(ends.values()) + last.draft_head_bytes,
        sum(size for name, size in ends.items() if name.startswith("output")),
        n_sessions * max(0, _cache(last.memory) - _cache(probes.of(info.n_layer - 1).memory)),
    )
    return ModelCosts(layers, PartCost(embedding, 0), head, program + sessions, 4 * info.n_stream * info.n_embd,
                      _LOGIT_BYTES * info.n_vocab, last.context)


def _cache(memory: Memory) -> int:
    return memory.cache_bytes + memory.checkpoint_bytes


def _layer_bytes(gguf: GGUFFile, info: ModelInfo) -> list[tuple[int, int]]:
    """Of each layer the bytes of its weights, and those that a token reads."""
    dense, experts = [0] * info.n_layer, [0] * info.n_layer
    for name, ref in gguf.tensors.items():
        layer = layer_of(name, info.n_layer)
        if layer is not None:
            (experts if _EXPERTS in name else dense)[layer] += ref.nbytes
    return [(plain + routed, plain + routed * info.n_expert_used // info.n_expert)
            for plain, routed in zip(dense, experts, strict=True)]


@dataclass(frozen=True)
class _Probe:
    context: int
    memory: Memory
    widened_bytes: int
    draft_head_bytes: int


class _Probes:
    """Stages of one layer, opened for what they would take: one of each kind of layer, since all of a kind take the same."""

    def __init__(self, file: StrPath, n_ctx: int | None, cache: str, precision: str) -> None:
        self._file, self._n_ctx, self._cache, self._precision = file, n_ctx, cache, precision
        self._found: dict[int, _Probe] = {}
        with Model.open(file, precision=precision, layers=(0, 1), upload=False) as model:
            self.info = model.info
            self._found[0] = self._measure(model)

    def _measure(self, model: Model) -> _Probe:
        session: Session
        with model.session(context=self._n_ctx, cache=self._cache) as session:
            return _Probe(session.capacity, session.memory, model.info.widened_bytes, model.draft_head_bytes)

    def look(self, layer: int) -> _Probe:
        """A stage of that layer alone."""
        if layer not in self._found:
            with Model.open(self._file, precision=self._precision, layers=(layer, layer + 1), upload=False) as model:
                self.info = model.info if layer == model.info.n_layer - 1 else self.info
                self._found[layer] = self._measure(model)
        return self._found[layer]

    def of(self, layer: int) -> _Probe:
        """A stage of the first layer like that one, which has no head unless it is the only one of its kind."""
        ratios = self.info.layer_ratios
        alike = [other for other, ratio in enumerate(ratios) if ratio == ratios[layer]]
        return self.look(alike[0])

    def all(self) -> list[_Probe]:
        return list(self._found.values())
