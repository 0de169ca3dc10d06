"""Worker: a model on a thread of its own, for programs whose other threads must not wait, such as one with a window."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.native.errors import CancelledError, Error, MemoryLimitError
from pyflash.native.interrupt import NO_MORE_THREADS
from pyflash.native.values import StrPath

if TYPE_CHECKING:
    from pyflash.chat import Message
    from pyflash.chat.reply import ChatPiece, Reply

Report = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Opened:
    """A model is open. path: of its file."""

    path: StrPath
    model: Model


@dataclass(frozen=True)
class Progress:
    """How far it is before the first text: bytes of a model that is opened, or tokens of a prompt that is read."""

    what: Literal["opening", "reading"]
    done: int
    total: int


@dataclass(frozen=True)
class Text:
    """The next piece of an answer."""

    piece: ChatPiece
    tokens_per_second: float


@dataclass(frozen=True)
class Finished:
    """An answer is complete. stopped: by stop(). reply: None where that came before the answer began."""

    reply: Reply | None
    stopped: bool


@dataclass(frozen=True)
class Failed:
    """An order could not be carried out, and all is as it was before."""

    error: Exception


Event = Opened | Progress | Text | Finished | Failed


class Worker:
    """Owns a model, its session and one conversation, and carries out orders one after the other.

    The methods give orders and do not wait. What comes of them is told by events: open() ends with Opened or Failed,
    ask() with Finished or Failed.
    """

    def __init__(self, tell: Callable[[Event], None], *, context: int | None = None) -> None:
        """tell: is called with each event, on the worker's thread; a queue's put() hands them to another one.
        context: the session's, in tokens, at most the model's; None: see Model.session()."""
        self._tell = tell
        self._context = context
        self._orders: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the next two
        self._asked: list[threading.Event] = []  # for each answer that is not complete: set when it is to stop
        self._running: Reply | None = None
        self._session: Session | None = None
        self._model: Model | None = None
        self._messages: list[Message] = []
        self._thread = threading.Thread(target=self._run, name="pyflash worker", daemon=True)
        self._process = os.getpid()
        try:
            self._thread.start()
        except RuntimeError as error:
            raise MemoryLimitError(NO_MORE_THREADS) from error

    # -- orders --

    def open(self, path: StrPath | Callable[[Report], StrPath], **options: Any) -> None:
        """Changes to another model and begins a new conversation; where it does not open, the old one goes on.

        path: of the file, or a function that makes it first, such as pyflash.demo.path: it is called on the thread with
        a function to report progress to. options: of Model.open().
        """
        self._order(lambda: self._open(path, options))

    def ask(self, question: str, **how: Any) -> None:
        """Asks the next question of the conversation. how: arguments of Session.chat()."""
        stop = threading.Event()
        self._order(lambda: self._answer(question, how, stop), stop)

    def stop(self) -> None:
        """Ends what has been asked and is not complete. What there is of an answer stays in the conversation."""
        with self._lock:
            for stop in self._asked:
                stop.set()
            if self._running is not None:
                self._running.cancel()

    def new_chat(self, system: str = "") -> None:
        """Begins a new conversation, with a system message or without."""
        self._order(lambda: self._begin(system))

    def close(self) -> None:
        """Ends the thread soon, and lets go of the model. Orders after this one are not carried out."""
        self._orders.put(None)
        self.stop()

    def join(self, timeout: float | None = None) -> bool:
        """Waits until the thread has ended, at most timeout seconds; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _order(self, order: Callable[[], None], stop: threading.Event | None = None) -> None:
        if os.getpid() != self._process:
            raise Error("a worker's thread stays behind when its process forks: make the worker after forking")
        if stop is not None:
            with self._lock:
                self._asked.append(stop)
        self._orders.put(order)

    # -- on the thread --

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
            except Exception as error:  # not only pyflash.Error: whoever waits for an end must hear of it
                self._tell(Failed(error))
        self._let_go()

    def _report(self, what: Literal["opening", "reading"]) -> Report:
        return lambda done, total: self._tell(Progress(what, done, total))

    def _begin(self, system: str) -> None:
        self._messages = [{"role": "system", "content": system}] if system else []

    def _open(self, path: StrPath | Callable[[Report], StrPath], options: dict[str, Any]) -> None:
        report = self._report("opening")
        file = path(report) if callable(path) else path
        model = Model.open(file, **{"progress": report, **options})
        try:
            context = None if self._context is None else min(self._context, model.info.n_ctx_train)
            session = model.session(context)
        except BaseException:
            model.close()
            raise
        self._let_go()
        self._model, self._session = model, session
        self._begin("")
        self._tell(Opened(file, model))

    def _let_go(self) -> None:
        for owned in (self._session, self._model):
            if owned is not None:
                owned.close()
        self._model = self._session = None

    def _answer(self, question: str, how: dict[str, Any], stop: threading.Event) -> None:
        messages: list[Message] = [*self._messages, {"role": "user", "content": question}]
        try:
            reply = None if stop.is_set() else self._reply(messages, how, stop)
        finally:
            with self._lock:
                self._asked.remove(stop)
                self._running = None
        if reply is not None and reply.n_generated:  # else it was stopped while it was read: not asked
            self._messages = [*messages, reply.message]
        self._tell(Finished(reply, stop.is_set()))

    def _reply(self, messages: list[Message], how: dict[str, Any], stop: threading.Event) -> Reply:
        if self._session is None:
            raise Error("no model is open")
        reply = self._session.chat(messages, progress=self._report("reading"), **how)
        with self._lock:
            self._running = reply
            if stop.is_set():
                reply.cancel()
        try:
            for piece in reply:
                self._tell(Text(piece, reply.n_generated / max(reply.generate_seconds, 1e-9)))
        except CancelledError:
            if not stop.is_set():
                raise
        return reply
