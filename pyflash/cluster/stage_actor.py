"""A stage: an actor that opens a range of a model's layers, holds its part of every session, and hands streams on.

Its messages arrive on an event loop, which never computes, so that it answers at any time; one thread evaluates, and
a few others do what takes little. Nothing here polls: a stage that waits uses no processor.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from pyflash.cluster import streams as wire
from pyflash.cluster.identity import ALL_LAYERS, FileDirectory
from pyflash.cluster.messages import Outcome, Pulse, SessionFacts, StageFacts, Step, Ticket
from pyflash.cluster.session_files import read_piece, remove, save_here, write_piece
from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.engine.stage_chain import check_rollback
from pyflash.engine.steps import eval_stage
from pyflash.machine.hardware import kernel_sets, memory_kills
from pyflash.native.errors import CancelledError, ClosedError, Error, InternalError, MemoryLimitError, UnsupportedError
from pyflash.native.library import __version__, lib
from pyflash.native.values import FloatArray

_HEAVY: Final = ("draft", "draft_tokens")  # what a session is asked for that computes
_LIGHT_THREADS: Final = 4
MOST_CALLS: Final = 10_000  # at once; nearly all of them wait


@dataclass
class _Place:
    """A session's part here. next: number of the message that is next in its order; turns: those that wait for theirs."""

    session: Session
    next: int = 0
    turns: dict[int, asyncio.Future[None]] = field(default_factory=dict)
    running: int = -1  # the number that computes just now
    cancelled: int = -1  # up to this number nothing is computed any more


def caught(call: Callable[[], Any]) -> Outcome:
    """What a call gives, an exception included: Ray would wrap it in one of its own."""
    try:
        return Outcome(call())
    except Error as error:
        return Outcome(error=error)
    except MemoryError as error:
        return Outcome(error=InternalError(f"a stage has no memory: {error}"))
    except Exception as error:
        return Outcome(error=InternalError(f"a stage failed: {type(error).__name__}: {error}"))


class StageActor:
    """A stage of a pipeline. Methods are called by Ray; what can fail gives an Outcome."""

    def __init__(self) -> None:
        self._model: Model | None = None
        self._at = 0
        self._is_last = False
        self._epoch = -1
        self._precision: wire.Precision = "float32"
        self._next: Any = None
        self._places: dict[int, _Place] = {}
        self._results: dict[int, asyncio.Future[list[Any]]] = {}
        self._sent: set[asyncio.Task[None]] = set()
        self._trouble: asyncio.Event = asyncio.Event()
        self._why = ""
        self._n_done = 0
        self._n_computing = 0
        self._lock = threading.Lock()  # of what cancels and what computes
        self._compute = ThreadPoolExecutor(1, "pyflash compute")
        self._light = ThreadPoolExecutor(_LIGHT_THREADS, "pyflash light")

    # -- before sessions --

    async def open(self, at: int, path: str, layers: tuple[int, int], options: dict[str, Any]) -> Outcome:
        """Opens the layers, again with other options where they are open. options: of Model.open(), and "streams": the
        precision in which they are handed on. Gives StageFacts."""
        return await self._on(self._light, lambda: self._open(at, path, layers, options))

    def _open(self, at: int, path: str, layers: tuple[int, int], options: dict[str, Any]) -> StageFacts:
        options = dict(options)
        self._precision = options.pop("streams")
        model, self._model = self._model, None
        if model is not None:
            model.close()
        identity = FileDirectory(path).identity(layers)
        model = Model.open(path, layers=layers, **options)
        self._at, self._model, self._is_last = at, model, model.info.end_layer == model.info.n_layer
        mtp = options.get("mtp") if self._is_last else None
        draft = None if mtp is None else FileDirectory(mtp).identity(ALL_LAYERS)
        import ray

        usable = [each.name for each in kernel_sets() if each.problem is None]
        return StageFacts(model.info, __version__, lib.PF_ARITHMETIC_VERSION, usable, identity,
                          ray.get_runtime_context().get_node_id(), socket.gethostname(), os.getpid(), draft, memory_kills())

    async def connect(self, epoch: int, following: Any) -> Outcome:
        """Begins an epoch, without sessions; following: the actor of the next stage, None for the last one."""
        places, self._places = self._places, {}
        self._epoch, self._next = epoch, following
        for place in places.values():
            for turn in place.turns.values():
                turn.cancel()
        for result in self._results.values():
            result.cancel()
        self._results.clear()
        self._trouble.set()  # whoever watches the epoch before learns that it is over
        self._why, self._trouble = "", asyncio.Event()

        def close() -> None:
            for place in places.values():
                place.session.close()

        return await self._on(self._light, close)

    async def prepare_drafts(self) -> Outcome:
        return await self._on(self._light, lambda: self._opened().prepare_drafts())

    def _opened(self) -> Model:
        if self._model is None:
            raise ClosedError("the stage has no model")
        return self._model

    # -- sessions --

    async def open_session(self, epoch: int, number: int, options: dict[str, Any]) -> Outcome:
        """Gives SessionFacts."""
        outcome = await self._on(self._light, lambda: self._opened().session(**options))
        if outcome.error is not None:
            return outcome
        session: Session = outcome.value
        if epoch != self._epoch:
            session.close()
            return Outcome(error=ClosedError("the stages have begun anew"))
        self._places[number] = _Place(session)
        return Outcome(SessionFacts(session.capacity, session.chunk, session.most_ahead))

    async def close_session(self, epoch: int, number: int) -> None:
        place = self._places.pop(number, None) if epoch == self._epoch else None
        if place is not None:
            for turn in place.turns.values():
                turn.cancel()
            await self._on(self._light, place.session.close)

    async def cancel(self, epoch: int, number: int, ticket: int) -> None:
        """Ends what the session's messages up to a number compute."""
        place = self._places.get(number) if epoch == self._epoch else None
        if place is not None:
            with self._lock:
                place.cancelled = max(place.cancelled, ticket)
                if 0 <= place.running <= ticket:
                    place.session.cancel()

    async def ask(self, epoch: int, number: int, ticket: Ticket, method: str, arguments: tuple[Any, ...]) -> Outcome:
        """What a method or property of a session gives, in its turn."""
        place = self._places.get(number) if epoch == self._epoch else None
        if place is None:
            return Outcome(error=ClosedError("the stage does not have this session"))
        await self._turn(place, ticket.number)

        def answer() -> Any:
            follow_orders(place.session, ticket)
            if method in _OWN:
                return _OWN[method](place.session, *arguments)
            found = getattr(place.session, method)
            return found(*arguments) if callable(found) else found

        try:
            return await self._on(self._compute if method in _HEAVY else self._light, answer)
        finally:
            self._pass(place, ticket.number)

    # -- steps --

    async def step(self, step: Step, *arrays: FloatArray) -> None:
        """Computes a step, and hands it on. arrays: the streams, see streams.pack()."""
        if step.epoch != self._epoch:
            return
        places = [self._places.get(share.session) for share in step.shares]
        tickets = [share.tickets[self._at] for share in step.shares]
        for place, ticket in zip(places, tickets, strict=True):
            if place is not None:
                await self._turn(place, ticket.number)
        self._n_computing += 1
        loop = asyncio.get_running_loop()
        step, found = await loop.run_in_executor(self._compute, self._evaluated, step, places, tickets, arrays)
        self._n_computing -= 1
        for place, ticket in zip(places, tickets, strict=True):
            if place is not None:
                self._pass(place, ticket.number)
        if step.epoch != self._epoch:
            return
        if self._is_last:
            self._result(step.key).set_result([step.errors.get(i, each) for i, each in enumerate(found)])
        else:
            task = loop.create_task(self._hand_on(step, found))
            self._sent.add(task)
            task.add_done_callback(self._sent.discard)

    async def _hand_on(self, step: Step, found: list[FloatArray | None]) -> None:
        try:
            await self._next.step.remote(step, *wire.pack(found, self._precision))
        except Exception as error:  # Ray's, for a stage that is gone or cannot be reached
            if step.epoch == self._epoch:
                self._why = f"the next stage cannot be reached: {type(error).__name__}"
                self._trouble.set()

    def _evaluated(self, step: Step, places: list[_Place | None], tickets: list[Ticket],
                   arrays: tuple[FloatArray, ...]) -> tuple[Step, list[FloatArray | None]]:
        """A step as it goes on, and what there is of each share: streams, or logits. On the computing thread."""
        errors = dict(step.errors)
        counts = [0 if i in errors else len(share.tokens) for i, share in enumerate(step.shares)]
        given = wire.unpack(arrays, counts) if self._at else [None] * len(counts)
        found: list[FloatArray | None] = [None] * len(step.shares)
        for i, (place, ticket) in enumerate(zip(places, tickets, strict=True)):
            if place is None:
                errors.setdefault(i, ClosedError("the stage does not have this session"))
            elif (error := caught(partial(follow_orders, place.session, ticket)).error) is not None:
                errors.setdefault(i, error)
            elif place.session.position != step.shares[i].position:
                errors.setdefault(i, CancelledError("a step before this one failed"))
        live = [i for i in range(len(places)) if i not in errors]
        while live:
            again = []
            results = self._one_step(step, [(places[i], tickets[i], step.shares[i].tokens, given[i]) for i in live])
            for i, result in zip(live, results, strict=True):
                place = places[i]
                assert place is not None
                if isinstance(result, CancelledError) and tickets[i].number > place.cancelled:
                    again.append(i)  # the request was for a step that was over before it came
                elif isinstance(result, Exception):
                    errors[i] = result
                else:
                    found[i] = result
                    if step.is_kept:
                        place.session.keep(len(step.shares[i].tokens))
            live = again
        return replace(step, errors=errors), found

    def _one_step(self, step: Step, work: list[tuple[Any, Ticket, Any, FloatArray | None]]) -> list[Any]:
        """Streams, logits or an error, of each."""
        results: list[Any] = [None] * len(work)
        with self._lock:
            for i, (place, ticket, _, _) in enumerate(work):
                if ticket.number <= place.cancelled:
                    results[i] = CancelledError("cancelled")
                else:
                    place.running = ticket.number
        live = [i for i, result in enumerate(results) if result is None]
        shares = [(work[i][0].session, work[i][2], work[i][3]) for i in live]
        try:
            outcome = caught(lambda: eval_stage(shares, step.logits if self._is_last else "none", return_errors=True)) \
                if shares else Outcome([])
        finally:
            with self._lock:
                for place, *_ in work:
                    place.running = -1
        for i, result in zip(live, outcome.value or [outcome.error] * len(live), strict=True):
            results[i] = result
        return results

    async def result(self, epoch: int, key: int) -> list[Any] | None:
        """What a step gave, of each share: logits, None where none were wished for, or its error. Waits for it. None: the
        stages have begun anew meanwhile."""
        if epoch != self._epoch:
            return None
        try:
            return await self._result(key)
        except asyncio.CancelledError:
            return None
        finally:
            self._results.pop(key, None)

    def _result(self, key: int) -> asyncio.Future[list[Any]]:
        if key not in self._results:
            self._results[key] = asyncio.get_running_loop().create_future()
        return self._results[key]

    # -- supervision --

    async def watch(self, epoch: int) -> str:
        """Why the stage cannot go on in an epoch, as soon as it cannot."""
        if epoch == self._epoch:
            await self._trouble.wait()
        return self._why

    async def pulse(self) -> Pulse:
        return Pulse(self._n_done, self._n_computing > 0)

    # -- files --

    async def read_file(self, path: str, offset: int, size: int) -> Outcome:
        return await self._on(self._light, lambda: read_piece(path, offset, size))

    async def write_file(self, path: str | None, data: bytes) -> Outcome:
        """Appends to a new file (None) or to one that this gave. Gives its path."""
        return await self._on(self._light, lambda: write_piece(path, data))

    async def remove_file(self, path: str) -> Outcome:
        return await self._on(self._light, lambda: remove(path))

    # -- turns --

    async def _turn(self, place: _Place, number: int) -> None:
        """Waits until all messages before this one have been dealt with."""
        while place.next < number:
            turn = place.turns.setdefault(number, asyncio.get_running_loop().create_future())
            await turn

    def _pass(self, place: _Place, number: int) -> None:
        self._n_done += 1
        place.next = number + 1
        turn = place.turns.pop(place.next, None)
        if turn is not None and not turn.done():
            turn.set_result(None)

    async def _on(self, threads: ThreadPoolExecutor, call: Callable[[], Any]) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(threads, caught, call)


def follow_orders(session: Session, ticket: Ticket) -> None:
    """What a session is to do before a message."""
    for what, n in ticket.before:
        if what == "keep":
            session.keep(n)
        elif what == "drop":
            if session.waiting:
                session.keep(0)
        elif what == "advance":
            for _ in range(n):
                session.advance()
        elif what == "rollback":
            session.rollback(n)
        elif what == "checkpoint":
            with contextlib.suppress(UnsupportedError, MemoryLimitError):  # it only saves work later
                session.checkpoint()


def _return_to(session: Session, position: int) -> None:
    session.rollback(session.position - position)


def _set_note(session: Session, note: bytes) -> None:
    session.note = note


_OWN: Final[dict[str, Callable[..., Any]]] = {
    "save": save_here, "return_to": _return_to, "set_note": _set_note, "check_rollback": check_rollback,
}  # what a session is asked for that it has not, or otherwise
