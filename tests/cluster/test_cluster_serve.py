"""The server's engine over stages: it takes a cluster's model as it takes another one, and tells whoever waits."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyflash
import pytest
from pyflash.cluster.chain import RemoteChain
from pyflash.serve import app, chat_completions, disk_folder
from pyflash.serve.application import Application
from pyflash.serve.events import Content, Event, Failed, Finished, Progress, Usage

pytestmark = pytest.mark.cluster

QUESTIONS = ["Hello", "What is 12 + 30?", "The cat sat on the mat. Say it again, please."]
LONG = "The library counts its tokens and keeps what it has counted. " * 160
PATIENCE = 120.0


class Asked:
    """A request, and what the engine tells of it."""

    def __init__(self, server: Application, *contents: str, **more: Any) -> None:
        """contents: a user's and the assistant's in turn."""
        self.events: list[Event] = []
        self.times: list[float] = []
        self.over, self.begun, self.reading = threading.Event(), threading.Event(), threading.Event()
        messages = [{"role": "assistant" if i % 2 else "user", "content": text} for i, text in enumerate(contents)]
        body = {"model": "test", "messages": messages, "temperature": 0, "max_tokens": 60, "stream": True, **more}
        self.job = server.engine.prepare(chat_completions.read(body))
        server.engine.submit(self.job, self.tell)

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.times.append(time.monotonic())
        if isinstance(event, Content):
            self.begun.set()
        if isinstance(event, Progress) and event.n_done:
            self.reading.set()
        if isinstance(event, (Finished, Failed)):
            self.over.set()

    @property
    def text(self) -> str:
        assert self.over.wait(PATIENCE) and isinstance(self.events[-1], Finished), self.events[-3:]
        return "".join(event.text for event in self.events if isinstance(event, Content))

    @property
    def usage(self) -> Usage:
        assert self.text is not None and isinstance(self.events[-1], Finished)
        return self.events[-1].usage

    @property
    def chances(self) -> list[Any]:
        assert self.text is not None
        return [event.tokens for event in self.events if isinstance(event, Content) and event.tokens]

    def times_of(self, kind: type) -> list[float]:
        return [at for event, at in zip(self.events, self.times, strict=True) if isinstance(event, kind)]


def serving(opener: Callable[[], Any], context: int = 1024, **options: Any) -> Application:
    made = app(opener, name="test", context=context, think="off", **options)
    made.start()
    assert made.engine.wait_ready(PATIENCE), made.engine.failure
    return made


@pytest.fixture(autouse=True)
def own_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PYFLASH_STATE", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def alone(demo_model: Path) -> Iterator[Application]:
    """A server of one process, which keeps nothing on disk."""
    server = serving(lambda: pyflash.Model.open(demo_model, device="cpu", threads=1), 8192, parallel=1)
    yield server
    assert server.engine.close(20)


def in_stages(ray: Any, file: Path, models: list[Any] | None = None) -> Callable[[], Any]:
    def opened() -> Any:
        model = pyflash.cluster.Model.open(file, 2, threads=1, tell=lambda line: None)
        if models is not None:
            models.append(model)
        return model

    assert ray.is_initialized()
    return opened


@pytest.fixture(scope="module")
def wanted(alone: Application) -> list[str]:
    texts = [Asked(alone, question).text for question in QUESTIONS]
    assert all(texts)
    return texts


def test_requests_side_by_side_and_a_killed_stage(ray_here: Any, demo_model: Path, wanted: list[str]) -> None:
    models: list[Any] = []
    server = serving(in_stages(ray_here, demo_model, models))
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


class InFlight:
    """How many pieces of prompts were on their way at once, at most: those sent and not kept yet."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.most = self._now = 0
        send, received = RemoteChain._send, RemoteChain._received

        def counted_send(chain: Any, ids: Any, position: int, logits: Any, is_kept: bool) -> Any:
            self._now += is_kept
            self.most = max(self.most, self._now)
            return send(chain, ids, position, logits, is_kept)

        def counted_received(chain: Any, sent: Any, *more: Any) -> Any:
            found = received(chain, sent, *more)
            self._now -= len(sent.tokens) > 1
            return found

        monkeypatch.setattr(RemoteChain, "_send", counted_send)
        monkeypatch.setattr(RemoteChain, "_received", counted_received)


def test_prompts_go_through_in_pieces_while_others_decode(ray_here: Any, demo_model: Path, alone: Application,
                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """All stages work at once; an answer goes on meanwhile; a cancelled prompt ends where all stages are."""
    short, long = ("Count as far as you can.",), (LONG,)
    told = {"logprobs": True, "top_logprobs": 3}
    expected = [Asked(alone, *long, max_tokens=8, **told).chances, Asked(alone, *short, max_tokens=40).text]
    server = serving(in_stages(ray_here, demo_model), 8192)
    in_flight = InFlight(monkeypatch)
    first = Asked(server, *long, max_tokens=8, **told)
    assert first.chances == expected[0]
    assert in_flight.most > 1 and len(first.times_of(Progress)) > 3

    stream = Asked(server, *short, max_tokens=400, ignore_eos=True)
    assert stream.begun.wait(PATIENCE)
    other = Asked(server, "Another one. " + LONG, max_tokens=1)
    assert other.reading.wait(PATIENCE)
    server.engine.cancel(other.job)
    n_read = other.events[-1].n_done  # type: ignore[union-attr]
    again = Asked(server, "Another one. " + LONG, max_tokens=8, **told)
    assert 0 < n_read <= again.usage.n_cached < again.usage.n_prompt
    assert again.chances == Asked(alone, "Another one. " + LONG, max_tokens=8, **told).chances
    began, ended = other.times[0], again.times[-1]
    assert sum(began < at < ended for at in stream.times_of(Content)) > 3
    assert stream.text.startswith(expected[1][:20])
    assert server.engine.close(20)


def test_conversations_on_disk_outlast_a_restart(ray_here: Any, demo_model: Path, alone: Application, tmp_path: Path) -> None:
    """Every file holds the parts of all stages; what comes back is bit for bit what a cold run has."""
    folder = tmp_path / "kept"
    told = {"logprobs": True, "top_logprobs": 3}
    opener = in_stages(ray_here, demo_model)
    server = serving(opener, 8192, disk_cache=folder)
    first = Asked(server, LONG)
    n_held = first.usage.n_prompt + first.usage.n_generated - 1
    assert server.engine.close(20)
    kept = list(disk_folder.stored(folder))
    assert max(each.end for each in kept) == n_held and sum(each.tail is None for each in kept) == n_held // 256
    asked = (LONG, first.text, "Go on.")
    cold = Asked(alone, *asked, max_tokens=8, **told)
    server = serving(opener, 8192, disk_cache=folder, disk_cache_size=sum(each.n_bytes for each in kept))
    again = Asked(server, *asked, max_tokens=8, **told)
    assert again.usage.n_cached >= n_held and again.chances == cold.chances
    for n in range(3):
        assert Asked(server, f"{n}: {LONG}", max_tokens=1).text is not None
    assert server.engine.close(20)
    assert sum(each.n_bytes for each in disk_folder.stored(folder)) <= sum(each.n_bytes for each in kept)
