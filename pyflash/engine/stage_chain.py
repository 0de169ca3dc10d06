"""The stages of one session, one after the other: what a session asks of them, and how those in this process do it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import numpy.typing as npt

from pyflash.engine.session import Session
from pyflash.engine.steps import eval_stage
from pyflash.native.errors import CancelledError, Error, FormatError
from pyflash.native.values import FloatArray, StrPath

if TYPE_CHECKING:
    from pyflash.engine.model import Model

Ids = npt.NDArray[np.int32]
Wish = Literal["all", "last", "none"]
Done = Callable[[int, "FloatArray | None"], None]  # tokens that all stages have kept so far, and the logits of the latest piece
Length = Callable[[], int]  # most tokens of the next piece
Check = Callable[[], None]  # raises CancelledError where the running call is to end


class StageChain(Protocol):
    """One session's sessions, a stage each. For one thread at a time, but for interrupt().

    capacity, chunk, most_ahead: as of Session, of all stages.
    """

    capacity: int
    chunk: int
    most_ahead: int

    @property
    def position(self) -> int:
        """Tokens that all stages have kept. ClosedError."""

    @property
    def tokens(self) -> Ids:
        """Those tokens, as a copy."""

    @property
    def waiting(self) -> int:
        """Tokens that wait in every stage to be kept."""

    @property
    def ahead(self) -> int:
        """Tokens that advance() can go on with."""

    def evaluate(self, ids: Ids, logits: Wish, check: Check, done: Done, most: Length | None = None) -> None:
        """Evaluates tokens a piece at a time, and keeps them. What ends it, an error, check() or done(), leaves all stages
        at one position, behind a piece. most: is asked for each piece; None: as suits the stages."""

    def step(self, ids: Ids, check: Check) -> FloatArray:
        """Logits [n, vocab] of at most a chunk of tokens, which then wait in every stage; in none where it fails."""

    def step_with(self, others: Sequence[StageChain], ids: Sequence[Ids],
                  checks: Sequence[Check]) -> list[FloatArray | Exception]:
        """What step() gives, of this session and others over the same stages, or the error of one alone."""

    def keep(self, n: int) -> None:
        """As Session.keep(), in every stage."""

    def advance(self) -> bool:
        """As Session.advance(), in every stage."""

    def rollback(self, n: int) -> None:
        """As Session.rollback(), in every stage, or in none where one cannot."""

    @property
    def note(self) -> bytes:
        """As Session.note."""

    @note.setter
    def note(self, data: bytes) -> None: ...

    def ask(self, stage: int, method: str, *arguments: Any) -> Any:
        """What a method or property of a stage's session gives; -1 is the last stage."""

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        """The same of every stage."""

    def ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same of every stage, each with arguments of its own."""

    def take_tails(self, ids: Ids, tails: Sequence[bytes]) -> None:
        """As Session.import_tail(), in every stage; or in none where one refuses it."""

    def save(self, path: StrPath) -> None:
        """Writes the stages' files, see stage_files()."""

    def load(self, path: StrPath) -> None:
        """Replaces all stages' caches by those of their files, or changes nothing."""

    def hold(self, path: StrPath | None) -> None:
        """As Session.hold()."""

    def interrupt(self) -> None:
        """From any thread: has the running call ask check() soon."""

    def close(self) -> None:
        """Frees the caches."""


def stage_files(path: StrPath, layers: Sequence[tuple[int, int]]) -> list[str]:
    """The files of a saved session: the first stage's has the name, those of the others their layers too."""
    name = str(Path(path))
    return [name, *(f"{name}.layers-{first}-{end}" for first, end in layers[1:])]


def check_saved_together(tokens: Sequence[Ids], path: StrPath) -> None:
    """FormatError where stages' files are of different conversations."""
    if any(not np.array_equal(each, tokens[0]) for each in tokens):
        raise FormatError(f"{path}: its stages' files are of different conversations: evaluate it again")


def check_rollback(session: Session, n: int) -> None:
    """Raises what Session.rollback() would, and changes nothing."""
    target = session.position - n
    if n and target > 0 and session.reusable([*session.tokens[:target].tolist(), 0]) != target:
        session.rollback(n)


class LocalChain:
    """Stages in this process: what is asked of them, each does in its turn."""

    def __init__(self, stages: Sequence[Model], options: Mapping[str, Any]) -> None:
        self._models = tuple(stages)
        self._options = dict(options)
        self.sessions = self._opened()
        self._lock = threading.RLock()  # held briefly
        self._running: Session | None = None  # the one that computes just now
        self._held: StrPath | None = None
        self.capacity = self._first.capacity
        self.chunk = self._first.chunk
        self.most_ahead = min(each.most_ahead for each in self.sessions)

    def _opened(self) -> list[Session]:
        opened: list[Session] = []
        try:
            for model in self._models:
                opened.append(model.session(**self._options))
        except BaseException:
            for each in opened:
                each.close()
            raise
        return opened

    @property
    def _first(self) -> Session:
        return self.sessions[0]

    @property
    def position(self) -> int:
        return self._first.position

    @property
    def tokens(self) -> Ids:
        return self._first.tokens

    @property
    def waiting(self) -> int:
        return self._first.waiting

    @property
    def ahead(self) -> int:
        return min(each.ahead for each in self.sessions)  # a draft makes the last stage forget its own

    def evaluate(self, ids: Ids, logits: Wish, check: Check, done: Done, most: Length | None = None) -> None:
        end = 0
        while end < len(ids):
            begin, length = end, self.chunk if most is None else max(1, min(self.chunk, most()))
            end = min(begin + length, len(ids))
            found = self._through(ids[begin:end], "none" if logits == "last" and end < len(ids) else logits, check)
            self.keep(end - begin)
            done(end, found)

    def step(self, ids: Ids, check: Check) -> FloatArray:
        return cast("FloatArray", self._through(ids, "all", check))

    def step_with(self, others: Sequence[StageChain], ids: Sequence[Ids],
                  checks: Sequence[Check]) -> list[FloatArray | Exception]:
        found: list[FloatArray | Exception] = []
        for chain, tokens, check in zip((self, *others), ids, checks, strict=True):
            try:
                found.append(chain.step(tokens, check))
            except Error as error:
                found.append(error)
        return found

    def _through(self, ids: Ids, logits: Wish, check: Check) -> FloatArray | None:
        """One step through all stages, whose tokens wait in each of them; its logits."""
        streams: FloatArray | None = None
        try:
            for session in self.sessions:
                streams = self._stage(session, ids, streams, logits if session is self.sessions[-1] else "none", check)
        except BaseException:
            for session in self.sessions:
                if session.waiting:
                    session.keep(0)
            raise
        return streams

    def _stage(self, session: Session, ids: Ids, streams: FloatArray | None, logits: Wish, check: Check) -> FloatArray | None:
        while True:
            with self._lock:
                self._running = session
            try:
                check()
                try:
                    return cast("FloatArray | None", eval_stage([(session, ids, streams)], logits)[0])
                except CancelledError:
                    check()  # else the request was for a step that was over before it came
            finally:
                with self._lock:
                    self._running = None

    def keep(self, n: int) -> None:
        for session in self.sessions:
            session.keep(n)

    def advance(self) -> bool:
        if self.ahead == 0:
            return False
        for session in self.sessions:
            session.advance()
        return True

    def rollback(self, n: int) -> None:
        for session in self.sessions:  # one that cannot go there says so before another one has
            check_rollback(session, n)
        for session in self.sessions:
            session.rollback(n)

    @property
    def note(self) -> bytes:
        return self._first.note

    @note.setter
    def note(self, data: bytes) -> None:
        self._first.note = data

    def ask(self, stage: int, method: str, *arguments: Any) -> Any:
        found = getattr(self.sessions[stage], method)
        return found(*arguments) if callable(found) else found

    def ask_all(self, method: str, *arguments: Any) -> list[Any]:
        return self.ask_each(method, [arguments] * len(self.sessions))

    def ask_each(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        return [self.ask(i, method, *each) for i, each in enumerate(arguments)]

    def take_tails(self, ids: Ids, tails: Sequence[bytes]) -> None:
        before = self.tokens
        for session, tail in zip(self.sessions, tails, strict=True):
            try:
                session.import_tail(ids, tail)
            except Error:
                if session is not self._first:  # those before it have moved, and what they had is written over
                    self._evaluate_again(before)
                raise

    def _evaluate_again(self, ids: Ids) -> None:
        for session in self.sessions:
            session.rollback(session.position)
        if len(ids):
            self.evaluate(ids, "none", lambda: None, lambda _end, _found: None)

    def _files(self, path: StrPath) -> list[str]:
        return stage_files(path, [(model.info.first_layer, model.info.end_layer) for model in self._models])

    def save(self, path: StrPath) -> None:
        for session, file in zip(self.sessions, self._files(path), strict=True):
            session.save(file)

    def load(self, path: StrPath) -> None:
        loaded = self._opened()
        try:
            for session, file in zip(loaded, self._files(path), strict=True):
                session.load(file)
            check_saved_together([session.tokens for session in loaded], path)
        except BaseException:
            for session in loaded:
                session.close()
            raise
        old, self.sessions = self.sessions, loaded
        for session in old:
            session.close()
        if self._held is not None:
            self._first.hold(self._held)

    def hold(self, path: StrPath | None) -> None:
        self._first.hold(path)
        self._held = path

    def interrupt(self) -> None:
        with self._lock:
            if self._running is not None:
                self._running.cancel()

    def close(self) -> None:
        for session in self.sessions:
            session.close()
