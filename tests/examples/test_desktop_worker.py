"""examples/desktop/worker.py, which needs no window."""

from __future__ import annotations

import importlib.util
import queue
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FILE = Path(__file__).resolve().parents[2] / "examples" / "desktop" / "worker.py"
DEADLINE = 60.0


class Owner:
    """Stands for the window."""

    def __init__(self, worker: Any) -> None:
        self.worker = worker

    def until(self, *names: str) -> list[tuple[Any, ...]]:
        """The events up to one of these."""
        found: list[tuple[Any, ...]] = []
        while not found or found[-1][0] not in names:
            found.append(self.worker.events.get(timeout=DEADLINE))
        return found

    def ask(self, question: str, think: str = "off") -> list[tuple[Any, ...]]:
        self.worker.ask(question, think)
        return self.until("finished", "failed")

    def close(self) -> None:
        self.worker.close()
        end = time.monotonic() + DEADLINE
        while self.worker.alive:
            assert time.monotonic() < end
            time.sleep(0.01)


@pytest.fixture
def owner(tiny_model: Path) -> Iterator[Owner]:
    spec = importlib.util.spec_from_file_location("desktop_worker", FILE)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = Owner(module.Worker())
    found.worker.open(tiny_model)
    assert found.until("opened", "failed")[-1] == ("opened", tiny_model.name, ("off", "high", "max"))
    yield found
    found.close()


def test_answer(owner: Owner) -> None:
    events = owner.ask("Hello", "high")
    _, reply, stopped = events[-1]
    assert not stopped and reply.n_generated > 0
    progress = [event for event in events if event[0] == "progress"]
    assert progress[-1][1] == "Reading" and progress[-1][2] == progress[-1][3] > 0
    texts = [event for event in events if event[0] == "text"]
    assert texts[0][1] == "reasoning"
    shown = {kind: "".join(text for _, of, text, _ in texts if of == kind) for kind in ("reasoning", "content")}
    assert shown == {"reasoning": reply.message["reasoning_content"], "content": reply.message["content"]}


def test_demo_model(owner: Owner, demo_model: Path) -> None:
    owner.worker.open(None)
    assert owner.until("opened", "failed")[-1] == ("opened", "Demo model", ("off", "high", "max"))
    _, reply, _ = owner.ask("Hello")[-1]
    assert reply.finish == "stop" and reply.message["content"]


def test_conversation_is_kept_until_forgotten(owner: Owner) -> None:
    first = owner.ask("Hello")[-1][1].n_prompt
    assert owner.ask("Hello")[-1][1].n_prompt > first + 5
    owner.worker.forget()
    assert owner.ask("Hello")[-1][1].n_prompt == first


def test_stop_while_reading(owner: Owner) -> None:
    """What was not read is not part of the conversation."""
    alone = owner.ask("Hello")[-1][1].n_prompt
    owner.worker.forget()
    owner.worker.ask("word " * 8000, "off")
    owner.until("progress")
    owner.worker.stop()
    _, reply, stopped = owner.until("finished", "failed")[-1]
    assert stopped and reply.n_generated == 0
    assert owner.ask("Hello")[-1][1].n_prompt == alone


def test_late_stop_is_not_for_the_next_answer(owner: Owner) -> None:
    owner.ask("Hello")
    owner.worker.stop()  # as when the answer ended between the look and the click
    _, reply, stopped = owner.ask("Hello")[-1]
    assert not stopped and reply.n_generated > 0


def test_failures_leave_it_usable(owner: Owner, tmp_path: Path) -> None:
    owner.worker.open(tmp_path / "none.gguf")
    message = owner.until("opened", "failed")[-1][1]
    assert "none.gguf" in message and "\n" not in message
    name, message = owner.ask("word " * 20000)[-1]
    assert name == "failed" and "begin a new chat" in message
    assert owner.ask("Hello", "nonsense")[-1][0] == "failed"
    assert owner.ask("Hello")[-1][0] == "finished"


def test_close_while_reading(owner: Owner) -> None:
    owner.worker.ask("word " * 8000, "off")
    owner.until("progress")
    owner.close()
    with pytest.raises(queue.Empty):
        while owner.worker.events.get_nowait()[0] != "text":
            pass
