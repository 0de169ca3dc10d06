"""The server's engine over stages: it takes a cluster's model as it takes another one, and tells whoever waits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyflash
import pytest
from pyflash.serve import app, chat_completions
from pyflash.serve.application import Application
from pyflash.serve.events import Content, Event, Failed, Finished, Progress

pytestmark = pytest.mark.cluster

QUESTIONS = ["Hello", "What is 12 + 30?", "The cat sat on the mat. Say it again, please."]


class Asked:
    """A request, and what the engine tells of it."""

    def __init__(self, server: Application, text: str) -> None:
        self.events: list[Event] = []
        self.over, self.begun = threading.Event(), threading.Event()
        body = {"model": "test", "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 60,
                "stream": True}
        server.engine.submit(server.engine.prepare(chat_completions.read(body)), self.tell)

    def tell(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Content):
            self.begun.set()
        if isinstance(event, (Finished, Failed)):
            self.over.set()

    @property
    def text(self) -> str:
        assert self.over.wait(120) and isinstance(self.events[-1], Finished), self.events[-3:]
        return "".join(event.text for event in self.events if isinstance(event, Content))


def serving(opener: Callable[[], Any]) -> Application:
    made = app(opener, name="test", context=1024, think="off")
    made.start()
    assert made.engine.wait_ready(120), made.engine.failure
    return made


@pytest.fixture(scope="module")
def wanted(demo_model: Path) -> list[str]:
    server = serving(lambda: pyflash.Model.open(demo_model, device="cpu", threads=1))
    texts = [Asked(server, question).text for question in QUESTIONS]
    assert server.engine.close(20) and all(texts)
    return texts


def test_requests_side_by_side_and_a_killed_stage(ray_here: Any, demo_model: Path, wanted: list[str],
                                                  monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYFLASH_STATE", str(tmp_path))
    models: list[Any] = []

    def opened() -> Any:
        models.append(pyflash.cluster.Model.open(demo_model, 2, threads=1, tell=lambda line: None))
        return models[-1]

    server = serving(opened)
    assert len(server.engine.loaded.slots) == 2  # type: ignore[union-attr]
    assert [asked.text for asked in [Asked(server, question) for question in QUESTIONS]] == wanted
    asked = [Asked(server, question) for question in QUESTIONS]
    assert asked[0].begun.wait(60)
    os.kill(models[0].pipeline.stages[0].facts.process, signal.SIGKILL)
    assert [each.text for each in asked] == wanted
    assert [Asked(server, question).text for question in QUESTIONS] == wanted
    notices = [event.notice for each in asked for event in each.events if isinstance(event, Progress) and event.notice]
    assert any("stage 1 of 2" in notice for notice in notices) and any("are there again" in notice for notice in notices)
    assert server.engine.close(20)
