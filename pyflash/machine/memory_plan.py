"""How much memory running a model takes, and what fits this machine.

The figures are upper bounds that a long run comes close to: every weight read once, a full context, all checkpoints in
use. They come from the library itself, which knows them when a session is opened, before any of it is touched.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.machine import hardware
from pyflash.machine.units import format_bytes
from pyflash.native.errors import MemoryLimitError
from pyflash.native.values import StrPath

SHOWN_CONTEXTS = (8192, 65536, 262144, 1048576)
_STEP = 1024  # tokens: the longest context that fits is told in multiples of it
_SPARE = 0.05  # of the memory: left to the rest of the system where experts are read from disk


@dataclass(frozen=True)
class Cost:
    """Bytes that a context of n_ctx tokens costs: its cache when full (draft_cache_bytes of it for drafting), the working
    buffers, all checkpoints, and needed_bytes, which counts weights and program too. fits: see Plan."""

    n_ctx: int
    cache_bytes: int
    buffer_bytes: int
    checkpoint_bytes: int
    needed_bytes: int
    fits: bool | None
    draft_cache_bytes: int = 0


@dataclass(frozen=True)
class Plan:
    """Memory in bytes of running one model file with one precision and cache type. weight_bytes: those that no device
    holds. widened_bytes: copies in float32 of the small tables that the file has in another type. draft_bytes: the small
    copy of the head that an MTP block drafts with.

    program_bytes: Python, the library, numpy and the file's directory with its tokenizer, as measured in this process.
    fits: whether everything stays in the memory that this process may ever have (the machine's, or a container's
    limit); fits_now: in what is available at the moment; None where the system does not tell. most_tokens: the longest
    context that fits; None when none does, or that is not known. read_bytes: what a token needs of the routed experts,
    which is read from disk where they are not in memory. expert_budget: how much of them a run keeps there; None when
    everything fits, or that is not known. reference_fits: whether the same context fits with the
    reference cache, which takes less; None when that is in use already.
    """

    cost: Cost
    contexts: tuple[Cost, ...]
    weight_bytes: int
    widened_bytes: int
    draft_bytes: int
    program_bytes: int
    read_bytes: int
    expert_bytes: int
    expert_budget: int | None
    memory: hardware.MachineMemory
    fits: bool | None
    fits_now: bool | None
    most_tokens: int | None
    reference_fits: bool | None

    @property
    def n_contexts(self) -> int | None:
        """How many contexts like this one fit at once, with all weights; None where the system does not tell."""
        usable, cost = self.memory.usable, self.cost
        if usable is None:
            return None
        each = cost.cache_bytes + cost.buffer_bytes + cost.checkpoint_bytes
        return max(0, (usable - cost.needed_bytes + each) // max(1, each))

    @property
    def runs(self) -> bool | None:
        """Whether it can run at all: what is no file's must be in memory."""
        usable = self.memory.usable
        return None if usable is None else self.cost.needed_bytes - self.weight_bytes <= usable


def _expert_budget(needed_bytes: int, expert_bytes: int, usable: int | None) -> int | None:
    """See Plan."""
    if usable is None or needed_bytes <= usable:
        return None
    return max(1, expert_bytes - needed_bytes + int(usable * (1 - _SPARE)))


def expert_budget(model: Model, n_ctx: int | None, cache: str, n_sessions: int = 1) -> int | None:
    """What Model.open() should be told for this machine: see Plan. For the process that will run the model, with so many
    sessions."""
    with model.session(context=n_ctx, cache=cache) as session:
        needed = _own_bytes(session, n_sessions) + _host_weights(model) + model.draft_head_bytes
    return _expert_budget(needed, model.expert_reads.expert_bytes, hardware.memory().usable)


def _host_weights(model: Model) -> int:
    """Bytes of the weights that this machine's memory should hold: those that no device does, with a draft file's."""
    return max(0, model.info.weight_bytes + model.info.draft_file_bytes - model.placement.weight_bytes)


def _own_bytes(session: Session, n_sessions: int = 1) -> int:
    """What this process needs beside the weights, with so many sessions like this one."""
    process = hardware.process_memory()
    return n_sessions * _session_bytes(session) + (process.private if process else 0)


def _session_bytes(session: Session) -> int:
    memory = session.memory
    return memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes


@dataclass(frozen=True)
class _Base:
    """What every context costs the same."""

    model: Model
    fixed_bytes: int
    usable: int | None

    def cost(self, n_ctx: int | None, cache: str) -> Cost:
        """Opens a session, whose memory is not taken before it is used. MemoryLimitError: the system refuses it."""
        with self.model.session(context=n_ctx, cache=cache) as session:
            memory = session.memory
            needed = self.fixed_bytes + memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes
            return Cost(
                session.capacity, memory.cache_bytes, memory.buffer_bytes, memory.checkpoint_bytes, needed,
                None if self.usable is None else needed <= self.usable, memory.draft_cache_bytes,
            )

    def fits(self, n_ctx: int, cache: str) -> bool:
        try:
            return bool(self.cost(n_ctx, cache).fits)
        except MemoryLimitError:
            return False


def open_measured(file: StrPath, precision: str, device: Mapping[str, Any]) -> tuple[Model, int]:
    """The model, opened with Model.open()'s arguments for a device or a stage but nothing sent there, and Plan.program_bytes.

    For a fresh process, because all that it takes already counts.
    """
    before = hardware.process_memory()
    model = Model.open(file, precision=precision, upload=False, **device)
    after = hardware.process_memory()
    program = model.info.directory_bytes
    if before is not None and after is not None:
        program += before.resident + max(0, after.private - before.private - model.info.widened_bytes)
    return model, program


def make_plan(model: Model, program_bytes: int, n_ctx: int | None, cache: str, read_bytes: int) -> Plan:
    """Plans a context of n_ctx tokens; None: the default. The others: see Plan."""
    memory = hardware.memory()
    weight_bytes = _host_weights(model)
    own_bytes = model.info.widened_bytes + model.draft_head_bytes
    base = _Base(model, program_bytes + own_bytes + weight_bytes, memory.usable)
    cost = base.cost(n_ctx, cache)
    more = cost.needed_bytes - program_bytes - model.info.widened_bytes  # these have their share already
    with_reference = cache in ("f16", "f32")
    return Plan(
        cost=cost, contexts=tuple(_shown_costs(base, cost, cache)), weight_bytes=weight_bytes,
        widened_bytes=model.info.widened_bytes, draft_bytes=model.draft_head_bytes, program_bytes=program_bytes,
        read_bytes=read_bytes,
        expert_bytes=model.expert_reads.expert_bytes,
        expert_budget=_expert_budget(cost.needed_bytes, model.expert_reads.expert_bytes, memory.usable),
        memory=memory, fits=cost.fits,
        fits_now=None if memory.available is None else more <= memory.available,
        most_tokens=_most_tokens(lambda tokens: base.fits(tokens, cache), model.info.n_ctx_train),
        reference_fits=base.fits(cost.n_ctx, "reference") if with_reference else None,
    )


def _shown_costs(base: _Base, asked: Cost, cache: str) -> Iterator[Cost]:
    longest = base.model.info.n_ctx_train
    for n_ctx in sorted({*(each for each in SHOWN_CONTEXTS if each <= longest), asked.n_ctx}):
        try:
            yield asked if n_ctx == asked.n_ctx else base.cost(n_ctx, cache)
        except MemoryLimitError:  # as would longer ones be
            return


def _most_tokens(fits: Callable[[int], bool], longest: int) -> int | None:
    """The longest context that fits: `longest` itself, or a multiple of _STEP, found by bisection."""
    if fits(longest):
        return longest
    low, high = 0, -(-longest // _STEP)  # in steps: low fits (or is 0), high does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * _STEP) else (low, middle)
    return low * _STEP or None


def _reference_bytes(model: Model, session: Session) -> int:
    """What this process would need beside the weights for the same context with the reference cache."""
    try:
        with model.session(context=session.capacity, cache="reference") as other:
            return _own_bytes(other)
    except MemoryLimitError:
        return sys.maxsize


def sessions_that_fit(model: Model, session: Session, other_bytes: int = 0) -> int | None:
    """How many sessions like this one, which counts, have room in memory with all weights and other_bytes of the program's;
    None where the system does not tell. At least 1."""
    usable = hardware.memory().usable
    if usable is None:
        return None
    left = usable - _host_weights(model) - _own_bytes(session, 0) - other_bytes
    return max(1, left // max(1, _session_bytes(session)))


def check_room(model: Model, session: Session, n_sessions: int = 1) -> tuple[int, int] | None:
    """What a run of so many sessions like this one takes and there is, in bytes, where that does not fit this machine; else
    None.

    MemoryLimitError where the context cannot be filled at all: the system would end the program, without a word.
    """
    usable = hardware.memory().usable
    if usable is None:
        return None
    own = _own_bytes(session, n_sessions)
    if own > usable:
        is_smaller = n_sessions == 1 and _reference_bytes(model, session) < min(own, usable)
        other = ", or with the reference cache" if is_smaller else ""
        raise MemoryLimitError(
            f"{f'{n_sessions} contexts' if n_sessions > 1 else 'a context'} of {session.capacity} tokens "
            f"take{'s' * (n_sessions == 1)} {format_bytes(own)} of memory beside the weights, and there are "
            f"{format_bytes(usable)}", f"open a session with a smaller context{other}"
        )
    needed = own + _host_weights(model)
    return (needed, usable) if needed > usable else None
