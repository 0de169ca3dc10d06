"""pyflash.Worker: a model on a thread of its own."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash.engine.worker import Event, Failed, Finished, Opened, Progress, Text

DEADLINE = 60.0


class Owner:
    """Stands for the window."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.worker = pyflash.Worker(self.events.put, context=16384)

    def until(self, *kinds: type[Event]) -> list[Any]:
        """The events up to one of these kinds."""
        found: list[Event] = []
        while not found or not isinstance(found[-1], kinds):
            found.append(self.events.get(timeout=DEADLINE))
        return found

    def end(self) -> Any:
        """The event that the next order ends with."""
        return self.until(Opened, Finished, Failed)[-1]

    def ask(self, question: str, **how: Any) -> Any:
        self.worker.ask(question, **how)
        return self.end()


@pytest.fixture
def owner(tiny_model: Path) -> Iterator[Owner]:
    found = Owner()
    found.worker.open(tiny_model)
    opened = found.end()
    assert isinstance(opened, Opened) and opened.path == tiny_model and opened.model.info.n_vocab > 0
    yield found
    found.worker.close()
    assert found.worker.join(DEADLINE)


def test_answer(owner: Owner) -> None:
    owner.worker.ask("Hello", think="high")
    *events, finished = owner.until(Finished, Failed)
    reply = finished.reply
    assert not finished.stopped and reply.n_generated > 0
    progress = [event for event in events if isinstance(event, Progress)]
    assert progress[-1].what == "reading" and progress[-1].done == progress[-1].total > 0
    pieces = [event.piece for event in events if isinstance(event, Text)]
    shown = {kind: "".join(piece.text for piece in pieces if piece.kind == kind) for kind in ("reasoning", "content")}
    assert shown == {"reasoning": reply.message["reasoning_content"], "content": reply.message["content"]}


def test_a_file_that_is_made_first(owner: Owner, demo_model: Path) -> None:
    def make(report: Any) -> Path:
        report(1, 2)
        return demo_model

    owner.worker.open(make, threads=1, precision="exact")
    first, *_, last = owner.until(Opened, Failed)
    assert first == Progress("opening", 1, 2) and last.path == demo_model and last.model.info.precision == "exact"
    reply = owner.ask("Hello", temperature=0).reply
    assert reply.finish == "stop" and reply.message["content"]


def test_conversation_is_kept_until_a_new_one(owner: Owner) -> None:
    first = owner.ask("Hello").reply.n_prompt
    assert owner.ask("Hello").reply.n_prompt > first + 5
    owner.worker.new_chat()
    assert owner.ask("Hello").reply.n_prompt == first
    owner.worker.new_chat("Be brief.")
    assert owner.ask("Hello").reply.n_prompt > first


def test_stop_while_reading(owner: Owner) -> None:
    """What was not read is not part of the conversation."""
    alone = owner.ask("Hello").reply.n_prompt
    owner.worker.new_chat()
    owner.worker.ask("word " * 8000)
    owner.until(Progress)
    owner.worker.stop()
    finished = owner.end()
    assert finished.stopped and finished.reply.n_generated == 0
    assert owner.ask("Hello").reply.n_prompt == alone


def test_stop_is_for_what_was_asked_before(owner: Owner) -> None:
    owner.worker.ask("word " * 8000)
    owner.worker.ask("Hello")
    owner.until(Progress)
    owner.worker.stop()
    owner.worker.ask("Hello")
    first, second, third = owner.end(), owner.end(), owner.end()
    assert first.stopped and second == Finished(None, True)
    assert not third.stopped and third.reply.n_generated > 0


def test_late_stop_is_not_for_the_next_answer(owner: Owner) -> None:
    owner.ask("Hello")
    owner.worker.stop()  # as when the answer ended between the look and the click
    finished = owner.ask("Hello")
    assert not finished.stopped and finished.reply.n_generated > 0


def test_failures_leave_it_usable(owner: Owner, tmp_path: Path) -> None:
    owner.worker.open(tmp_path / "none.gguf")
    assert isinstance(owner.end().error, pyflash.FileError)
    assert isinstance(owner.ask("word " * 20000).error, pyflash.ContextFullError)
    assert isinstance(owner.ask("Hello", think="nonsense").error, pyflash.ArgumentError)
    assert isinstance(owner.ask("Hello"), Finished)


def test_close_while_reading(owner: Owner) -> None:
    owner.worker.ask("word " * 8000)
    owner.until(Progress)
    owner.worker.close()
    assert owner.worker.join(DEADLINE)
    while not owner.events.empty():
        assert not isinstance(owner.events.get_nowait(), Text)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_forked_child_says_so(owner: Owner) -> None:
    child = os.fork()
    if child == 0:
        try:
            owner.worker.ask("Hello")
        except pyflash.Error as error:
            os._exit(0 if "after forking" in str(error) else 1)
        os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert isinstance(owner.ask("Hello"), Finished)


def test_no_more_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(pyflash.MemoryLimitError, match="no more threads"):
        Owner()


def test_nothing_is_open() -> None:
    owner = Owner()
    assert "no model" in str(owner.ask("Hello").error)
    owner.worker.close()
    assert owner.worker.join(DEADLINE)
