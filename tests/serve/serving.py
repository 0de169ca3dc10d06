"""A server within the test's process: its engine with a pace that tests set, and a client that speaks ASGI to it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from pyflash import CancelledError, Model, Session
from pyflash.engine.stream import Cancellation
from pyflash.serve import app, engine
from pyflash.serve.application import Application
from pyflash.serve.events import Content, Event, Failed, Finished, Reasoning
from pyflash.serve.job import Job

T = TypeVar("T")


@dataclass
class Step:
    """A session's part of an evaluation: how many tokens, when it ended, of how many sessions it was."""

    session: Session
    n: int
    ended: float
    n_together: int


@dataclass
class Pace:
    """What evaluations take, and which there were. seconds: a token's; sessions together take what the longest part does."""

    seconds: float = 0.0
    steps: list[Step] = field(default_factory=list)
    evaluate: Callable[..., Any] = engine.evaluate

    def __call__(self, work: engine.Work, logits: str, cancellation: Cancellation | None = None) -> Any:
        end = time.monotonic() + self.seconds * max(len(tokens) for _, tokens in work)
        while (left := end - time.monotonic()) > 0:
            if cancellation is not None and cancellation.requested:
                raise CancelledError("cancelled")
            time.sleep(min(left, 0.005))
        results = self.evaluate(work, logits, cancellation)
        self.steps += [Step(session, len(tokens), time.monotonic(), len(work)) for session, tokens in work]
        return results

    @property
    def n_tokens(self) -> int:
        return sum(step.n for step in self.steps)


@contextmanager
def serving(model: Path, opening: Mapping[str, Any] | None = None, **options: Any) -> Iterator[Application]:
    """A server that is ready. opening: more for Model.open()."""
    options = {"context": 2048, "parallel": 2, "think": "off", "draft": "off", **options}
    made = app(lambda: Model.open(model, **{"threads": 1, **(opening or {})}), name="test", **options)
    made.start()
    assert made.engine.wait_ready(60), made.engine.failure
    try:
        yield made
    finally:
        assert made.engine.close(20)


@dataclass
class Answer:
    """What the engine told of a job, with the times."""

    job: Job
    events: list[Event] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.times.append(time.monotonic())
        if isinstance(event, (Finished, Failed)):
            self.over.set()

    def wait(self, seconds: float = 60) -> Answer:
        assert self.over.wait(seconds), self.events[-3:]
        return self

    @property
    def end(self) -> Finished:
        assert isinstance(self.events[-1], Finished), self.events[-1]
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, (Content, Reasoning)))

    @property
    def text_times(self) -> list[float]:
        return [at for event, at in zip(self.events, self.times, strict=True) if isinstance(event, (Content, Reasoning))]


def submit(server: Application, request: Any, salt: bytes = b"") -> Answer:
    """Gives a request to the engine, without HTTP."""
    answer = Answer(server.engine.prepare(request, salt))
    server.engine.submit(answer.job, answer.tell)
    return answer


def becomes_idle(server: Application) -> bool:
    """Whether nothing is waiting or running soon."""
    for _ in range(100):
        if server.engine.waiting_and_running() == (0, 0):
            return True
        time.sleep(0.02)
    return False


# -- ASGI --


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    chunks: list[tuple[float, bytes]]  # with the times at which they came

    def json(self) -> Any:
        return json.loads(self.body)

    def events(self) -> list[Any]:
        """The data of server-sent events."""
        lines = [line[6:] for line in self.body.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line) for line in lines if line != "[DONE]"]


Asgi = Callable[[Any, Any, Any], Awaitable[None]]


async def ask(server: Asgi, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None,
              leave: asyncio.Event | None = None, on_chunk: Callable[[bytes], None] | None = None) -> Response:
    """A request and its response. body: bytes as they are, else as JSON. leave: when it is set, the client goes."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    given = {"host": "localhost:8080", **({"content-type": "application/json"} if method == "POST" else {}), **(headers or {})}
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "scheme": "http",
             "server": ("127.0.0.1", 8080), "client": ("127.0.0.1", 50000),
             "headers": [(name.encode(), value.encode()) for name, value in given.items() if value]}
    gone = leave or asyncio.Event()
    sent = False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if not sent:
            sent = True
            return {"type": "http.request", "body": data, "more_body": False}
        await gone.wait()
        return {"type": "http.disconnect"}

    started: dict[str, Any] = {}
    chunks: list[tuple[float, bytes]] = []

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            started.update(message)
        else:
            chunks.append((time.monotonic(), message.get("body", b"")))
            if on_chunk is not None:
                on_chunk(chunks[-1][1])

    await server(scope, receive, send)
    return Response(started.get("status", 0), {key.decode(): value.decode() for key, value in started.get("headers", ())},
                    b"".join(data for _, data in chunks), chunks)


def run(work: Awaitable[T]) -> T:
    async def main() -> T:
        return await work

    return asyncio.run(main())


@pytest.fixture
def pace(monkeypatch: pytest.MonkeyPatch) -> Pace:
    made = Pace()
    monkeypatch.setattr(engine, "evaluate", made)
    return made


@pytest.fixture(scope="module")
def server(demo_model: Path) -> Iterator[Application]:
    with serving(demo_model) as made:
        yield made


def post(server: Application, path: str, body: Any, **more: Any) -> Response:
    return run(ask(server, "POST", path, body, **more))
