"""The model on a thread of its own. It knows no window: methods take orders, and the queue `events` answers with

("opened", name, efforts)                   a model; efforts: what ask() takes as think
("progress", what, done, total)             of work before the first text: converting the demo model, reading the prompt
("text", kind, text, tokens_per_second)     kind: "reasoning", "content" or "tool_call"
("finished", reply, stopped)                the answer is complete: a pyflash.Reply, and whether stop() ended it
("failed", message)                         the order could not be carried out
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyflash
from pyflash import demo

CONTEXT = 16384  # tokens


class Worker:
    def __init__(self) -> None:
        self.events: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self._orders: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._stop = threading.Event()
        self._model: pyflash.Model | None = None
        self._session: pyflash.Session | None = None
        self._messages: list[pyflash.chat.Message] = []
        self._thread = threading.Thread(target=self._run, name="model")
        self._thread.start()

    # -- for the window: none of these waits --

    def open(self, path: Path | None) -> None:
        """Changes to the model in a GGUF file; None: to the bundled demo model."""
        self._orders.put(lambda: self._open(path))

    def ask(self, question: str, think: str) -> None:
        self._stop.clear()
        self._orders.put(lambda: self._answer(question, think))

    def stop(self) -> None:
        """Ends the answer. What there is of it stays in the conversation."""
        self._stop.set()
        if (session := self._session) is not None:
            with contextlib.suppress(pyflash.ClosedError):
                session.cancel()

    def forget(self) -> None:
        """Begins a new conversation."""
        self._orders.put(self._messages.clear)

    def close(self) -> None:
        """Ends the thread soon: `alive` tells when."""
        self._orders.put(None)
        self.stop()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    # -- on the thread --

    def _run(self) -> None:
        while (order := self._orders.get()) is not None:
            try:
                order()
            except Exception as error:  # not only pyflash.Error: a bug must not leave the window waiting
                self.events.put(("failed", str(error) or type(error).__name__))
        self._close_model()

    def _progress(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.events.put(("progress", what, done, total))

    def _open(self, path: Path | None) -> None:
        model = pyflash.Model.open(path or demo.path(self._progress("Converting the demo model")))
        try:
            session = model.session(context=min(CONTEXT, model.info.n_ctx_train))
        except pyflash.Error:
            model.close()
            raise
        self._close_model()  # only now: where the new one does not open, the old one goes on
        self._model, self._session = model, session
        self._messages.clear()
        efforts = ("off", "low", "high", "max") if model.release == "0731" else ("off", "high", "max")
        self.events.put(("opened", path.name if path else "Demo model", efforts))

    def _close_model(self) -> None:
        if self._model is not None and self._session is not None:
            self._session.close()
            self._model.close()
        self._model = self._session = None

    def _answer(self, question: str, think: str) -> None:
        if self._session is None:
            raise pyflash.Error("no model is open")
        self._messages.append({"role": "user", "content": question})
        try:
            reply = self._stream(self._session, think)
        except pyflash.Error as error:
            self._messages.pop()
            if isinstance(error, pyflash.ContextFullError):
                raise pyflash.Error("This does not fit the conversation any more: begin a new chat.") from error
            raise
        if reply.n_generated:
            self._messages.append(reply.message)
        else:  # stopped while it was read: not asked
            self._messages.pop()
        self.events.put(("finished", reply, self._stop.is_set()))

    def _stream(self, session: pyflash.Session, think: str) -> pyflash.Reply:
        while True:
            reply = session.chat(self._messages, think, progress=self._progress("Reading"))
            try:
                for piece in reply:
                    speed = reply.n_generated / max(reply.generate_seconds, 1e-9)
                    self.events.put(("text", piece.kind, piece.text, speed))
                return reply
            except pyflash.CancelledError:
                if self._stop.is_set():
                    return reply
                # Else the Stop came just as the last answer ended, and was not meant for this one: once more.
