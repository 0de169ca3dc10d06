"""Replicas on Ray Serve: conversations stay where they are, answers are those of one server, and no stream is dropped."""

from __future__ import annotations

import asyncio
import json
import runpy
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pyflash

pytestmark = pytest.mark.cluster

httpx = pytest.importorskip("httpx")
OPTIONS: dict[str, Any] = {"context": 2048, "think": "off", "draft": "off", "cpus": 0, "name": "test"}
SYSTEM = {"role": "system", "content": "Answer in few words."}
LONG = {"messages": [{"role": "user", "content": "Count as far as you can."}], "max_tokens": 160}
WAIT = 120.0


def slow_model(path: str) -> Callable[[], pyflash.Model]:
    """Opens it in a replica's process, where a token then takes 40 ms: long enough to do something meanwhile."""

    def opened() -> pyflash.Model:
        from pyflash.serve import engine

        evaluate = engine.evaluate

        def paced(work: Any, *arguments: Any, **options: Any) -> Any:
            time.sleep(0.04)
            return evaluate(work, *arguments, **options)

        engine.evaluate = paced
        return pyflash.Model.open(path, threads=1)

    return opened


@pytest.fixture(scope="module")
def deploy(ray_here: Any, tiny_model: Path) -> Iterator[Callable[[int], str]]:
    """Makes it so many replicas of a model that never ends by itself; returns the address."""
    from ray import cloudpickle, serve

    from pyflash.cluster.replicas import application

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"port": port})
    opener = slow_model(str(tiny_model))

    def run(n: int) -> str:
        serve.run(application(opener, replicas=n, parallel=2, **OPTIONS), name="pyflash")
        return f"http://127.0.0.1:{port}"

    yield run
    serve.shutdown()


@pytest.fixture(scope="module")
def alone(tiny_model: Path) -> Iterator[Callable[[list[dict[str, Any]], int], str]]:
    """What one server answers."""
    from pyflash.serve import app

    options = {name: value for name, value in OPTIONS.items() if name != "cpus"}
    application = app(lambda: pyflash.Model.open(tiny_model, threads=1), parallel=1, **options)
    application.start()
    assert application.engine.wait_ready(60)

    def answer(messages: list[dict[str, Any]], max_tokens: int) -> str:
        async def ask() -> str:
            transport = httpx.ASGITransport(application)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=WAIT) as client:
                return text_of(await client.post("/v1/chat/completions", json=body(messages, max_tokens)))

        return asyncio.run(ask())

    yield answer
    application.engine.close(20)


def body(messages: list[dict[str, Any]], max_tokens: int, **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": messages, "max_tokens": max_tokens, "temperature": 0, **more}


def text_of(response: Any) -> str:
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def until(what: Callable[[], Any]) -> Any:
    end = time.monotonic() + WAIT
    while not (found := what()):
        assert time.monotonic() < end, "this took too long"
        time.sleep(0.2)
    return found


def slots(address: str) -> list[dict[str, Any]]:
    return list(httpx.get(f"{address}/slots", timeout=WAIT).json())


def busy_replicas(address: str) -> set[str]:
    return {slot["replica"] for slot in slots(address) if slot["is_processing"]}


class Stream:
    """A streamed answer, read on a thread of its own."""

    def __init__(self, address: str, messages: list[dict[str, Any]], max_tokens: int) -> None:
        self.pieces: list[str] = []
        self.end: str | None = None
        self.error: Exception | None = None
        self._leave = threading.Event()
        self._request = body(messages, max_tokens, stream=True)
        self._thread = threading.Thread(target=self._read, args=(address,), daemon=True)
        self._thread.start()

    def _read(self, address: str) -> None:
        try:
            with httpx.stream("POST", f"{address}/v1/chat/completions", json=self._request, timeout=WAIT) as response:
                for line in response.iter_lines():
                    if self._leave.is_set():
                        return
                    if line.startswith("data: {"):
                        choice = json.loads(line[6:])["choices"]
                        self.pieces += [choice[0]["delta"].get("content") or ""] if choice else []
                        self.end = (choice[0]["finish_reason"] if choice else None) or self.end
        except httpx.HTTPError as error:
            self.error = error

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    def leave(self) -> None:
        self._leave.set()

    def wait(self) -> None:
        self._thread.join(WAIT)
        assert not self._thread.is_alive()


def different(n: int) -> list[list[dict[str, Any]]]:
    return [[SYSTEM, {"role": "user", "content": f"This is conversation {i}."}] for i in range(n)]


class Named:
    """What the router knows of a replica."""

    def __init__(self, name: str, **stats: Any) -> None:
        self.replica_id, self.routing_stats = SimpleNamespace(unique_id=name), stats


def asked(name: str, *keys: str) -> Any:
    return SimpleNamespace(kwargs={"keys": list(keys)}, routing_context=SimpleNamespace(should_backoff=False),
                           metadata=SimpleNamespace(internal_request_id=name))  # fmt: skip


def test_the_router() -> None:
    """As Ray calls it."""
    from pyflash.cluster.prefix_router import PrefixRouter

    router = PrefixRouter.__new__(PrefixRouter)  # what Ray makes itself needs a cluster
    router.initialize_state(memory=60, n_places=2)
    a, b = Named("a", held=["old"], n_places=2), Named("b")

    def first(request: Any) -> str:
        (best, *_), *_rest = asyncio.run(router.choose_replicas([a, b], request))
        assert request.routing_context.should_backoff
        return str(best.replica_id.unique_id)

    assert first(asked("1", "old-1", "old")) == "a"  # what it tells that it holds
    assert first(asked("2", "new")) == "b"  # the least loaded
    assert first(asked("3", "new-1", "new")) == "b"  # though nobody has told of it yet
    router.on_request_routed(asked("3", "new-1", "new"), b.replica_id, None)
    assert first(asked("4")) == "a"  # 1 there, 2 and 3 at the other
    for name in ("1", "4"):
        router.on_request_completed(a.replica_id, name)
    assert first(asked("5")) == first(asked("6")) == "a"
    router.on_request_completed(b.replica_id, "2")
    assert first(asked("7", "new-2", "new-1", "new")) == "b"


def test_conversations_stay_where_they_are(
    deploy: Callable[[int], str], alone: Callable[[list[dict[str, Any]], int], str]
) -> None:
    address = deploy(2)
    conversations = different(4)
    for turn in range(3):
        with ThreadPoolExecutor(4) as together:  # all four places of both replicas
            answers = list(together.map(
                lambda messages: httpx.post(f"{address}/v1/chat/completions", json=body(messages, 12), timeout=WAIT),
                conversations))  # fmt: skip
        for i, response in enumerate(answers):
            usage, text = response.json()["usage"], text_of(response)
            if turn:  # what was read is not read again, and the answer's tokens come back as they were
                assert usage["prompt_tokens_details"]["cached_tokens"] >= usage["prompt_tokens"] // 2, turn
            conversations[i] += [{"role": "assistant", "content": text}, {"role": "user", "content": f"Go on, {turn}."}]
    metrics = httpx.get(f"{address}/metrics", timeout=WAIT).text
    name = 'pyflash_requests_total{api="chat_completions",code="200"'
    counts = [line for line in metrics.splitlines() if line.startswith(name)]
    assert len(counts) == 2 and all(float(line.split()[-1]) == 6 for line in counts), counts
    assert len({slot["replica"] for slot in slots(address)}) == 2
    for messages in conversations:  # one after the other, so that each keeps its place there, too
        for n in range(2, len(messages), 2):
            assert alone(messages[:n], 12) == messages[n]["content"], n


def test_fewer_replicas_drop_no_stream(
    deploy: Callable[[int], str], alone: Callable[[list[dict[str, Any]], int], str]
) -> None:
    """Whichever replica goes, it had a stream."""
    address = deploy(2)
    conversations = different(2)
    streams = [Stream(address, messages, 350) for messages in conversations]
    until(lambda: len(busy_replicas(address)) == 2 and all(stream.pieces for stream in streams))
    with ThreadPoolExecutor(1) as beside:
        fewer = beside.submit(deploy, 1)  # returns when the other replica is gone
        until(lambda: len({slot["replica"] for slot in slots(address)}) == 1)
        assert not any(stream.end for stream in streams), "they ended too soon for this test to show anything"
        for stream, messages in zip(streams, conversations, strict=True):
            stream.wait()
            assert (stream.error, stream.end) == (None, "length") and stream.text == alone(messages, 350)
        fewer.result(WAIT)
    assert text_of(httpx.post(f"{address}/v1/chat/completions", json=body(conversations[0], 5), timeout=WAIT))


def test_who_goes_ends_the_answer(deploy: Callable[[int], str]) -> None:
    address = deploy(1)
    stream = Stream(address, LONG["messages"], 1500)
    until(lambda: stream.pieces)
    stream.leave()
    stream.wait()
    until(lambda: not busy_replicas(address))
    assert 'pyflash_cancelled_total{why="gone"' in httpx.get(f"{address}/metrics", timeout=WAIT).text


def test_requests_are_refused_at_the_front(deploy: Callable[[int], str]) -> None:
    address = deploy(1)
    post = f"{address}/v1/chat/completions"
    assert httpx.post(post, json=body([SYSTEM], 5), headers={"host": "evil.example"}, timeout=WAIT).status_code == 421
    assert httpx.post(post, content=b"{", headers={"content-type": "application/json"}, timeout=WAIT).status_code == 400
    assert httpx.get(f"{address}/nothing", timeout=WAIT).status_code == 404
    assert httpx.get(f"{address}/health", timeout=WAIT).json() == {"status": "ok"}


def test_a_replica_in_stages(deploy: Callable[[int], str], demo_model: Path) -> None:
    """A conversation goes on in the stages' own caches."""
    from ray import serve

    from pyflash.cluster.replicas import application

    address = deploy(1)
    serve.run(application(str(demo_model), stages=2, replicas=1, parallel=1, **OPTIONS), name="pyflash")
    messages = [{"role": "user", "content": "What is 12 + 30?"}]
    first = httpx.post(f"{address}/v1/chat/completions", json=body(messages, 40), timeout=WAIT)
    assert text_of(first) == "12 + 30 = 42."
    messages += [{"role": "assistant", "content": text_of(first)}, {"role": "user", "content": "What is 1 + 1?"}]
    second = httpx.post(f"{address}/v1/chat/completions", json=body(messages, 40), timeout=WAIT)
    assert text_of(second) == "1 + 1 = 2."
    assert second.json()["usage"]["prompt_tokens_details"]["cached_tokens"] >= first.json()["usage"]["total_tokens"] - 1


class Handle:
    """As of replicas of which the first so many calls meet one that dies, after so many messages."""

    def __init__(self, n_deaths: int, n_sent: int) -> None:
        self.n_deaths, self._n_sent, self.n_calls = n_deaths, n_sent, 0

    def options(self, **_options: Any) -> Handle:
        return self

    async def remote(self, call: Any, keys: list[str]) -> Any:
        from ray.exceptions import ActorDiedError

        self.n_calls += 1
        messages = [{"type": "http.response.start", "status": 200, "headers": []},
                    {"type": "http.response.body", "body": call.body}]  # fmt: skip
        dies = self.n_calls <= self.n_deaths
        for message in messages[: self._n_sent] if dies else messages:
            yield [message]
        if dies:
            raise ActorDiedError


def ask(handle: Handle) -> list[dict[str, Any]]:
    from pyflash.cluster.replicas import Front
    from pyflash.serve.guard import Policy

    sent: list[dict[str, Any]] = []
    unread = [{"type": "http.request", "body": b"{}"}]

    async def receive() -> Any:
        return unread.pop() if unread else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions",
             "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")]}  # fmt: skip
    asyncio.run(Front(handle, Policy()).__serve_build_asgi_app__()(scope, receive, send))
    return sent


@pytest.mark.parametrize("n_deaths", [0, 1, 2])
def test_an_answer_that_has_not_begun_is_begun_elsewhere(n_deaths: int) -> None:
    handle = Handle(n_deaths, 0)
    sent = ask(handle)
    assert handle.n_calls == n_deaths + 1
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 200 and sent[1]["body"] == b"{}"


def test_an_answer_that_begins_nowhere_is_an_error() -> None:
    sent = ask(Handle(9, 0))
    assert sent[0]["status"] == 503 and (b"x-should-retry", b"true") in sent[0]["headers"]


def test_an_answer_that_has_begun_is_not_begun_again() -> None:
    from ray.exceptions import ActorDiedError

    handle = Handle(1, 1)
    with pytest.raises(ActorDiedError):
        ask(handle)
    assert handle.n_calls == 1


def test_the_example(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.serve import Application

    for name, value in {"REPLICAS": "1-3", "PARALLEL": "4", "CONTEXT": "4096", "HOSTS": "a.example, b", "API_KEY": "k"}.items():
        monkeypatch.setenv(f"PYFLASH_{name}", value)
    namespace = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "replicas.py"))
    assert isinstance(namespace["application"], Application)
    monkeypatch.setenv("PYFLASH_STAGES", "auto")
    assert isinstance(runpy.run_path(namespace["__file__"])["application"], Application)


def test_a_replica_that_dies(deploy: Callable[[int], str], ray_here: Any) -> None:
    """What it was answering breaks off; everything after that is answered by the other, and it comes back."""
    address = deploy(2)
    stream = Stream(address, LONG["messages"], 1500)
    (name,) = until(lambda: busy_replicas(address) if stream.pieces else None)
    others = {slot["replica"] for slot in slots(address)} - {name}
    actors = [actor for actor in ray_here.util.list_named_actors(all_namespaces=True) if actor["name"].endswith(name)]
    ray_here.kill(ray_here.get_actor(actors[0]["name"], namespace=actors[0]["namespace"]))
    stream.wait()
    assert stream.end is None
    for messages in different(3):
        assert text_of(httpx.post(f"{address}/v1/chat/completions", json=body(messages, 5), timeout=WAIT))
    until(lambda: len({slot["replica"] for slot in slots(address)} - {name}) == 2)
    assert others < {slot["replica"] for slot in slots(address)}
