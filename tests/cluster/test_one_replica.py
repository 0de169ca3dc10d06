"""A replica by itself, without Ray: it sends what the server sends, and ends an answer that nobody takes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash.cluster.replicas import Call, Replica, application
from pyflash.serve import engine

WAIT = 60.0


@pytest.fixture(scope="module")
def replica(tiny_model: Path) -> Iterator[Replica]:
    opened = Replica(lambda: pyflash.Model.open(tiny_model, threads=1), "test", 1,
                     {"context": 2048, "think": "off", "draft": "off"})  # fmt: skip
    yield opened
    opened.__del__()


def call(path: str = "/v1/chat/completions", method: str = "POST", **body: Any) -> Call:
    asked = {"model": "m", "messages": [{"role": "user", "content": "Hello"}], "temperature": 0, **body}
    scope = {"type": "http", "method": method, "path": path, "headers": [(b"content-type", b"application/json")],
             "state": {"salt": b"", "request_id": "req_1", "more": object()}, "app": object()}  # fmt: skip
    return Call.of(scope, json.dumps(asked).encode() if method == "POST" else b"")


async def all_of(replica: Replica, asked: Call) -> list[Any]:
    return [message async for messages in replica.answer(asked, []) for message in messages]


def test_it_sends_what_the_server_sends(replica: Replica) -> None:
    async def ask() -> tuple[list[Any], list[Any]]:
        return await all_of(replica, call(max_tokens=8)), await all_of(replica, call(max_tokens=8, stream=True))

    whole, streamed = asyncio.run(ask())
    assert [message["type"] for message in whole] == ["http.response.start", "http.response.body"]
    text = json.loads(whole[1]["body"])["choices"][0]["message"]["content"]
    events = b"".join(message.get("body", b"") for message in streamed).decode().split("\n\n")
    pieces = [json.loads(event[6:])["choices"] for event in events if event.startswith("data: {")]
    assert "".join(choice[0]["delta"].get("content") or "" for choice in pieces if choice) == text
    assert events[-2] == "data: [DONE]"


def test_errors_are_answers(replica: Replica) -> None:
    sent = asyncio.run(all_of(replica, call(n=2)))
    assert sent[0]["status"] == 400 and b"error" in sent[1]["body"]


def test_an_answer_that_nobody_takes_ends(replica: Replica, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the next one gets its place; there is only one."""
    evaluate, n_steps = engine.evaluate, 0

    def counted(*arguments: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        return evaluate(*arguments)

    monkeypatch.setattr(engine, "evaluate", counted)

    async def ask() -> list[Any]:
        answer = replica.answer(call(max_tokens=1900, stream=True), [])
        async for _messages in answer:
            if n_steps > 3:
                break
        await answer.aclose()
        return await asyncio.wait_for(all_of(replica, call(max_tokens=2)), WAIT)

    assert asyncio.run(ask())[0]["status"] == 200
    assert n_steps < 1900


def test_what_travels_can_be_pickled() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(call()))
    assert again == call() and again.scope["state"] == {"salt": b"", "request_id": "req_1"} and "app" not in again.scope


def test_a_model_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(pyflash.Error, match=r"none\.gguf"):
        Replica(str(tmp_path / "none.gguf"), None, 1, {})


@pytest.mark.parametrize("wrong", [{"replicas": 0}, {"replicas": (3, 2)}, {"parallel": 0}, {"fronts": 0}, {"queue_limit": -1}])
def test_numbers_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(pyflash.ArgumentError):
        application(None, **wrong)
