"""A session's parts in stages on several machines, from the driver's side, which alone knows the session's tokens.

What a stage is to do before its next message travels with that: a token that is generated costs one message a stage. When a
stage is lost, the tokens are sent through all stages again, and what was asked is done then; the bits are the same.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar, cast

import numpy as np

from pyflash.cluster import session_files
from pyflash.cluster.messages import Order, Outcome, SessionFacts, Share, Step, Ticket
from pyflash.cluster.pipeline import MOST_TRIES, Mail, Pipeline, StageLost
from pyflash.engine.session import Session
from pyflash.engine.stage_chain import Check, Done, Ids, Length, StageChain, Wish, check_saved_together, stage_files
from pyflash.engine.steps import MOST_WAITING
from pyflash.native.errors import ArgumentError, CancelledError, ClosedError, DeviceError, Error
from pyflash.native.values import FloatArray, StrPath

T = TypeVar("T")

_LEAST_PIECE: Final = 128  # tokens: smaller ones read the weights too often
_PIECES_A_STAGE: Final = 2  # that a prompt is cut into at least, so that all stages work at once most of the time
_CHECKPOINTS: Final = 8  # of a session that asks for no number


def piece_length(n: int, n_stages: int, chunk: int) -> int:
    """Tokens of the pieces that n tokens go through the stages in."""
    if n_stages == 1:
        return chunk
    return min(chunk, max(_LEAST_PIECE, math.ceil(n / (_PIECES_A_STAGE * n_stages))))


def _goes_on() -> None:
    """The check of what cannot be cancelled."""


@dataclass(frozen=True)
class Sent:
    """A step that is under way. result: Ray's reference. last: its ticket at each stage."""

    tokens: list[int]
    result: Any
    last: list[int]


class RemoteChain:
    """The StageChain of a session over a pipeline."""

    def __init__(self, pipeline: Pipeline, options: Mapping[str, Any], holder: Callable[[], Session]) -> None:
        """options: of Model.session(). holder: gives a session that can hold files on this machine."""
        self.pipeline = pipeline
        self._options = dict(options)
        wanted = self._options.get("checkpoints")
        if wanted != 0:  # those on the way through a prompt come beside the caller's
            self._options["checkpoints"] = (_CHECKPOINTS if wanted is None else wanted) + len(pipeline.stages) + 1
        self._make_holder = holder
        self._holder: Session | None = None
        self.mail: Mail = Mail()
        self._tokens: list[int] = []  # kept by all stages
        self._waiting: list[int] = []  # wait in all stages
        self._ahead: list[int] = []  # can be advanced to
        self.number = self.epoch = -1  # of the session, in which epoch of the pipeline
        self._next: list[int] = []  # ticket of each stage
        self._before: list[list[Order]] = []  # orders that each stage has not been sent
        self._facts = SessionFacts(0, 0, 0)
        self._is_closed = False
        self.note = b""
        self._surviving(_goes_on, lambda: None)
        self.capacity = self._facts.capacity
        self.chunk = self._facts.chunk
        self.most_ahead = self._facts.most_ahead

    # -- what the driver knows --

    @property
    def position(self) -> int:
        if self._is_closed:
            raise ClosedError("the session is closed")
        return len(self._tokens)

    @property
    def tokens(self) -> Ids:
        return np.asarray(self._tokens[: self.position], dtype=np.int32)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def ahead(self) -> int:
        return len(self._ahead)

    def order(self, what: str, n: int = 0) -> None:
        """Has every stage do something before its next message."""
        for orders in self._before:
            orders.append((what, n))

    # -- messages --

    def tickets(self, stages: Sequence[int]) -> list[Ticket]:
        tickets = []
        for at in stages:
            tickets.append(Ticket(self._next[at], tuple(self._before[at])))
            self._next[at] += 1
            self._before[at] = []
        return tickets

    def _ask(self, stages: Sequence[int], method: str, arguments: tuple[Any, ...]) -> list[Any]:
        return [outcome.unwrap() for outcome in self._outcomes(stages, method, [arguments] * len(stages))]

    def _outcomes(self, stages: Sequence[int], method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Outcome]:
        """arguments: of each stage."""
        refs = [self.pipeline.stages[at].actor.ask.remote(self.epoch, self.number, ticket, method, own)
                for at, ticket, own in zip(stages, self.tickets(stages), arguments, strict=True)]  # fmt: skip
        return self.pipeline.wait(refs, self.epoch, self.mail, _goes_on)

    @property
    def all_stages(self) -> range:
        return range(len(self.pipeline.stages))

    def _send(self, ids: Sequence[int], position: int, logits: Wish, is_kept: bool) -> Sent:
        tickets = self.tickets(self.all_stages)
        share = Share(self.number, np.asarray(ids, dtype=np.int32), position, tuple(tickets))
        key, stages = self.pipeline.new_key(), self.pipeline.stages
        result = stages[-1].actor.result.remote(self.epoch, key)
        stages[0].actor.step.remote(Step(self.epoch, key, (share,), logits, is_kept))
        return Sent(list(ids), result, [ticket.number for ticket in tickets])

    def cancel(self, sent: Sequence[Sent]) -> None:
        for at, stage in enumerate(self.pipeline.stages):
            stage.actor.cancel.remote(self.epoch, self.number, sent[-1].last[at])

    def _received(self, sent: Sent, check: Check, under_way: Sequence[Sent]) -> FloatArray | Exception | None:
        """What a step gave: logits or an error. check() ends all that is under way."""

        def asked() -> None:
            try:
                check()
            except CancelledError:
                self.cancel(under_way)
                raise

        (results,) = self.pipeline.wait([sent.result], self.epoch, self.mail, asked)
        if results is None:
            raise StageLost(self.epoch, "the stages have begun anew")
        found: FloatArray | Exception | None = results[0]
        return found

    # -- surviving the loss of a stage --

    def _surviving(self, check: Check, call: Callable[[], T]) -> T:
        """What call() gives, which begins again when a stage is lost under it."""
        for _ in range(MOST_TRIES):
            try:
                self.be_there(check)
                found = call()
            except StageLost as lost:
                self.pipeline.begin_anew(lost)
            else:
                self.pipeline.note_done()
                return found
        raise DeviceError(f"a stage was lost {MOST_TRIES} times while this was evaluated{self.pipeline.short}",
                          "see whether its machine has memory for it, and evaluate less at once")

    def be_there(self, check: Check) -> None:
        """Makes the session's parts, and evaluates its tokens again where they have been lost."""
        if self._is_closed:
            raise ClosedError("the session is closed")
        if self.epoch == self.pipeline.epoch:
            return
        self._open(self.pipeline.epoch)
        if not self._tokens and not self._waiting:
            return
        tokens, self._tokens = self._tokens, []
        try:
            with self.pipeline.evaluating_again(len(tokens), check):
                if tokens:
                    self._pieces(tokens, "none", check, lambda end, _: None)
                if self._waiting:
                    self._step(self._waiting, "none", check)
        except BaseException:
            self._give_up_parts()
            raise
        finally:
            self._tokens = tokens

    def _open(self, epoch: int) -> None:
        stages = self.pipeline.stages
        number = self.pipeline.new_number()
        refs = [stage.actor.open_session.remote(epoch, number, self._options) for stage in stages]
        outcomes: list[Outcome] = self.pipeline.wait(refs, epoch, self.mail, _goes_on)
        failed = next((outcome for outcome in outcomes if outcome.error is not None), None)
        if failed is not None:
            for stage in stages:
                stage.actor.close_session.remote(epoch, number)
            failed.unwrap()
        facts: list[SessionFacts] = [outcome.value for outcome in outcomes]
        self._facts = SessionFacts(facts[0].capacity, facts[0].chunk, min(each.most_ahead for each in facts))
        self.number, self.epoch = number, epoch
        self._next, self._before, self._ahead = [0] * len(stages), [[] for _ in stages], []

    # -- steps --

    def evaluate(self, ids: Ids, logits: Wish, check: Check, done: Done, most: Length | None = None) -> None:
        self._check_nothing_waits()
        check()
        at = 0

        def kept(end: int, found: FloatArray | None) -> None:
            nonlocal at
            at = end
            done(end, found)

        def rest() -> None:
            begin = at
            self._pieces(ids[begin:].tolist(), logits, check, lambda end, found: kept(begin + end, found), most)

        self._ahead = []
        self._surviving(check, rest)

    def _pieces(self, ids: list[int], logits: Wish, check: Check, done: Done, most: Length | None = None) -> None:
        usual = piece_length(len(ids), len(self.all_stages), self._facts.chunk)

        def length() -> int:
            return usual if most is None else max(1, min(usual, most()))

        if len(ids) <= length():
            found = self._step(ids, logits, check)
            self.order("keep", len(ids))
            self._tokens += ids
            done(len(ids), found)
        else:
            self._stream(ids, length, logits, check, done)

    def _stream(self, ids: list[int], length: Length, logits: Wish, check: Check, done: Done) -> None:
        """Sends pieces one behind the other, so that all stages work at once. Each keeps a piece as soon as it has computed
        it, and remembers where that begins: what ends this has all of them return to one position."""
        begin, n_sent, n_kept, began = len(self._tokens), 0, 0, time.monotonic()
        under_way: deque[Sent] = deque()
        try:
            while n_kept < len(ids):
                while n_sent < len(ids) and len(under_way) <= len(self.all_stages):
                    piece = ids[n_sent : n_sent + length()]
                    is_last = n_sent + len(piece) == len(ids)
                    if begin + n_sent:
                        self.order("checkpoint")
                    wish = "none" if logits == "last" and not is_last else logits
                    under_way.append(self._send(piece, begin + n_sent, wish, True))
                    n_sent += len(piece)
                found = self._received(under_way[0], check, under_way)
                if isinstance(found, Exception):
                    raise found
                piece = under_way.popleft().tokens
                self._tokens += piece
                n_kept += len(piece)
                done(n_kept, found)
        except (StageLost, ClosedError):
            raise
        except BaseException:
            self._return_to_one(under_way, self._tokens[:begin] + ids[:n_sent])
            raise
        self.pipeline.note_rate(len(ids), time.monotonic() - began)

    def _return_to_one(self, under_way: deque[Sent], sent: list[int]) -> None:
        """Brings all stages to the last position that all of them can return to, when what is under way is over."""
        try:
            if under_way:
                self.cancel(under_way)
            is_whole = True
            for each in under_way:
                is_whole = is_whole and not isinstance(self._received(each, _goes_on, ()), Exception)
                if is_whole:
                    self._tokens += each.tokens
            kept = len(self._tokens)
            while kept > 0:
                found = min(self._ask(self.all_stages, "reusable", ([*sent[:kept], 0],)))
                if found == kept:
                    break
                kept = found
            self._ask(self.all_stages, "return_to", (kept,))
            self._tokens = self._tokens[:kept]
        except StageLost:
            self._give_up_parts()
        except BaseException:  # an impatient second Ctrl-C
            self._give_up_parts()
            raise

    def begin_step(self) -> None:
        """Before tokens of this session go into a step that is to leave them waiting."""
        self._check_nothing_waits()
        self._ahead = []

    def left_waiting(self, tokens: Sequence[int]) -> None:
        """After it."""
        self._waiting = list(tokens)

    def step(self, ids: Ids, check: Check) -> FloatArray:
        self.begin_step()
        check()
        tokens = ids.tolist()
        found = self._surviving(check, lambda: self._step(tokens, "all", check))
        assert found is not None
        self.left_waiting(tokens)
        return found

    def step_with(self, others: Sequence[StageChain], ids: Sequence[Ids],
                  checks: Sequence[Check]) -> list[FloatArray | Exception]:
        from pyflash.cluster.together import step_together

        chains = [self, *(cast("RemoteChain", each) for each in others)]
        for chain in chains:
            chain.begin_step()
        found = step_together(chains, ids, checks)
        for chain, tokens, each in zip(chains, ids, found, strict=True):
            if not isinstance(each, Exception):
                chain.left_waiting(tokens.tolist())
        return found

    def _step(self, ids: list[int], logits: Wish, check: Check) -> FloatArray | None:
        """A step whose tokens wait in all stages, or in none."""
        sent = self._send(ids, len(self._tokens), logits, False)
        try:
            found = self._received(sent, check, [sent])
            if isinstance(found, Exception):
                raise found
        except StageLost:
            raise
        except BaseException:
            self.cancel([sent])
            self.order("drop")  # in its turn, where it has been computed
            raise
        return None if found is None else np.array(found)  # Ray's are read-only

    def _check_nothing_waits(self) -> None:
        if self._waiting:
            raise ArgumentError(f"{len(self._waiting)} tokens wait to be kept: call keep() first")

    def keep(self, n: int) -> None:
        if n > len(self._waiting) or (0 < n < len(self._waiting) and len(self._waiting) > MOST_WAITING):
            raise ArgumentError(f"{n} of {len(self._waiting)} tokens that wait cannot be kept")
        if self._waiting:
            self.order("keep", n)
            self._tokens += self._waiting[:n]
            self._ahead, self._waiting = self._waiting[n:], []

    def advance(self) -> bool:
        if not self._ahead or self.epoch != self.pipeline.epoch:
            self._ahead = []
            return False
        self.order("advance", 1)
        self._tokens.append(self._ahead.pop(0))
        return True

    def rollback(self, n: int) -> None:
        self._check_nothing_waits()
        if n > len(self._tokens):
            raise ArgumentError(f"cannot drop {n} tokens of {len(self._tokens)}")
        if n and self.epoch == self.pipeline.epoch:  # else there is nothing yet to be rolled back
            self._surviving(_goes_on, lambda: self._ask(self.all_stages, "check_rollback", (n,)))
            self.order("rollback", n)
        self._tokens = self._tokens[: len(self._tokens) - n]
        self._ahead = []

    # -- the rest --

    def ask(self, stage: int, method: str, *arguments: Any) -> Any:
        at = self.all_stages[stage]
        found = self._surviving(_goes_on, lambda: self._ask([at], method, arguments))[0]
        if method in ("draft", "draft_tokens"):
            self._ahead = []  # the last stage has forgotten its own
        return found

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        return self._surviving(_goes_on, lambda: self._ask(self.all_stages, method, arguments))

    def ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        outcomes = self._surviving(_goes_on, lambda: self._outcomes(self.all_stages, method, arguments))
        return [outcome.unwrap() for outcome in outcomes]

    def take_tails(self, ids: Ids, tails: Sequence[bytes]) -> None:
        outcomes = self._surviving(
            _goes_on, lambda: self._outcomes(self.all_stages, "import_tail", [(ids, tail) for tail in tails]))
        failed = [outcome for outcome in outcomes if outcome.error is not None]
        if failed:
            if len(failed) < len(outcomes):
                self._give_up_parts()  # some stages have moved
            failed[0].unwrap()
        self._tokens, self._ahead = ids.tolist(), []

    def _files(self, path: StrPath) -> list[str]:
        return stage_files(path, [stage.place.layers for stage in self.pipeline.stages])

    def save(self, path: StrPath) -> None:
        self._check_nothing_waits()
        self._surviving(_goes_on, lambda: self._save(path))

    def _save(self, path: StrPath) -> None:
        self._ask([0], "set_note", (self.note,))
        saved = self._ask(self.all_stages, "save", ())
        for stage, file, (there, size) in zip(self.pipeline.stages, self._files(path), saved, strict=True):
            try:
                session_files.write_whole(file, (self._call(stage, "read_file", there, at, session_files.PIECE)
                                                 for at in range(0, size, session_files.PIECE)))  # fmt: skip
            finally:
                self._remove(stage, there)

    def _remove(self, stage: Any, there: str) -> None:
        """Waits until a stage's temporary file is gone: a stage that is ended at once would leave it."""
        with contextlib.suppress(Error, StageLost):  # of a stage that is lost
            self._call(stage, "remove_file", there)

    def _call(self, stage: Any, method: str, *arguments: Any) -> Any:
        """What a stage gives that is asked for no session."""
        outcome: Outcome = self.pipeline.wait([getattr(stage.actor, method).remote(*arguments)], self.epoch, self.mail,
                                               _goes_on)[0]  # fmt: skip
        return outcome.unwrap()

    def load(self, path: StrPath) -> None:
        self._surviving(_goes_on, lambda: self._load(path))

    def _load(self, path: StrPath) -> None:
        loaded = RemoteChain(self.pipeline, self._options, self._make_holder)
        try:
            for at, file in enumerate(self._files(path)):
                loaded._load_stage(at, file)
            tokens = loaded._ask(self.all_stages, "tokens", ())
            check_saved_together(tokens, path)
            (note,) = loaded._ask([0], "note", ())
        except BaseException:
            loaded.close()
            raise
        self._close_parts()
        self.number, self.epoch, self._next, self._before = loaded.number, loaded.epoch, loaded._next, loaded._before
        self._tokens, self._waiting, self._ahead, self.note = tokens[0].tolist(), [], [], note

    def _load_stage(self, at: int, file: str) -> None:
        stage, there = self.pipeline.stages[at], None
        try:
            for data in session_files.pieces(file):
                there = self._call(stage, "write_file", there, data)
            self._ask([at], "load", (there,))
        finally:
            if there is not None:
                self._remove(stage, there)

    def hold(self, path: StrPath | None) -> None:
        if self._holder is None:
            self._holder = self._make_holder()
        self._holder.hold(path)

    def interrupt(self) -> None:
        self.mail.put("asked")

    def _close_parts(self) -> None:
        if self.epoch == self.pipeline.epoch:
            for stage in self.pipeline.stages:
                stage.actor.close_session.remote(self.epoch, self.number)

    def _give_up_parts(self) -> None:
        """The tokens are evaluated again when the session is used again."""
        self._close_parts()
        self.epoch = -1

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            if not self.pipeline.is_closed:
                self._close_parts()
            if self._holder is not None:
                self._holder.close()
