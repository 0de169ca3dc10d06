"""The server over ASGI: answers, streams, refusals, clients that go."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import pytest
from serving import Pace, Response, ask, becomes_idle, post, run, serving

from pyflash.serve.application import Application
from pyflash.serve.guard import host_of, is_loopback

HELLO = [{"role": "user", "content": "Hello!"}]
CHAT = "/v1/chat/completions"


def get(server: Application, path: str, **more: Any) -> Response:
    return run(ask(server, "GET", path, **more))


# -- answers --

BODIES: dict[str, dict[str, Any]] = {
    CHAT: {"messages": HELLO, "temperature": 0},
    "/chat/completions": {"messages": HELLO, "temperature": 0},
    "/v1/responses": {"input": "Hello!", "temperature": 0},
    "/v1/messages": {"messages": HELLO, "max_tokens": 100, "temperature": 0},
    "/v1/completions": {"prompt": "Hello", "max_tokens": 5, "temperature": 0},
    "/api/chat": {"messages": HELLO, "stream": False, "options": {"temperature": 0}},
    "/api/generate": {"prompt": "Hello!", "stream": False, "options": {"temperature": 0}},
}


def text_of(path: str, body: Any) -> str:
    if "choices" in body:
        choice = body["choices"][0]
        return choice["text"] if "text" in choice else choice["message"]["content"]
    if "output" in body:
        return "".join(part["text"] for item in body["output"] if item["type"] == "message" for part in item["content"])
    if "message" in body:
        return body["message"]["content"]
    return body["response"] if "response" in body else "".join(block.get("text", "") for block in body["content"])


@pytest.mark.parametrize("path", BODIES)
def test_every_protocol_answers(server: Application, path: str) -> None:
    response = post(server, path, BODIES[path])
    assert response.status == 200, response.body
    text = text_of(path, response.json())
    assert text == ("Hello! How can I help you?" if "completions" not in path or "chat" in path else text) and text


def test_streams_say_what_whole_answers_say(server: Application) -> None:
    whole = post(server, CHAT, BODIES[CHAT]).json()["choices"][0]["message"]["content"]
    streamed = post(server, CHAT, {**BODIES[CHAT], "stream": True, "stream_options": {"include_usage": True}})
    assert streamed.headers["content-type"] == "text/event-stream"
    assert streamed.body.endswith(b"data: [DONE]\n\n")
    events = streamed.events()
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events if event["choices"]) == whole
    assert events[-1]["usage"]["completion_tokens"] > 3
    lines = post(server, "/api/chat", {**BODIES["/api/chat"], "stream": True}).body.splitlines()
    assert "".join(json.loads(line)["message"]["content"] for line in lines) == whole
    named = post(server, "/v1/messages", {**BODIES["/v1/messages"], "stream": True})
    assert b"event: message_stop" in named.body
    assert b"event: response.completed" in post(server, "/v1/responses", {**BODIES["/v1/responses"], "stream": True}).body


def test_names_and_models(server: Application) -> None:
    assert post(server, CHAT, {**BODIES[CHAT], "model": "any"}).json()["model"] == "any"
    assert post(server, CHAT, BODIES[CHAT]).json()["model"] == "test"
    listed = get(server, "/v1/models").json()
    assert listed["data"][0]["id"] == "test" and listed["data"][0]["context_length"] == 2048
    anthropic = get(server, "/v1/models", headers={"anthropic-version": "2023-06-01"}).json()
    assert anthropic["first_id"] == "test" and anthropic["data"][0]["type"] == "model"
    assert get(server, "/v1/models/claude-x").json()["id"] == "claude-x"
    assert get(server, "/api/tags").json()["models"][0]["name"] == "test:latest"
    assert post(server, "/api/show", {"model": "test"}).json()["capabilities"]
    assert get(server, "/api/version").json()["version"]


def test_what_needs_no_generation(server: Application) -> None:
    assert get(server, "/health").json() == {"status": "ok"}
    counted = post(server, "/v1/messages/count_tokens", {"messages": HELLO}).json()["input_tokens"]
    used = post(server, "/v1/messages", BODIES["/v1/messages"]).json()["usage"]
    assert counted == used["input_tokens"] + used["cache_read_input_tokens"] + used["cache_creation_input_tokens"]
    tokens = post(server, "/tokenize", {"content": "Hello there"}).json()["tokens"]
    assert post(server, "/detokenize", {"tokens": tokens}).json()["content"] == "Hello there"
    assert "<｜User｜>Hello!" in post(server, "/apply-template", {"messages": HELLO}).json()["prompt"]
    assert [slot["id"] for slot in get(server, "/slots").json()] == [0, 1]
    assert get(server, "/props").json()["default_generation_settings"]["n_ctx"] == 2048
    page = get(server, "/", headers={"accept": "text/html"})
    assert b"<title>pyflash</title>" in page.body and "default-src 'none'" in page.headers["content-security-policy"]
    assert get(server, "/").body == b"Ollama is running"
    head = run(ask(server, "HEAD", "/"))
    assert head.status == 200 and head.body == b""


def test_metrics_add_up(demo_model: Path) -> None:
    with serving(demo_model) as server:
        usages = [post(server, CHAT, BODIES[CHAT]).json()["usage"] for _ in range(3)]
        post(server, CHAT, {"messages": "wrong"})
        lines = get(server, "/metrics").body.decode().splitlines()
    values = {name: float(value) for name, value in (line.split(" ") for line in lines if not line.startswith("#"))}
    assert values["pyflash_generated_tokens_total"] == sum(usage["completion_tokens"] for usage in usages)
    read = values["pyflash_prompt_tokens_total"] + values["pyflash_prompt_tokens_cached_total"]
    assert read == sum(usage["prompt_tokens"] for usage in usages)
    assert values['pyflash_requests_total{api="chat_completions",code="200"}'] == 3
    assert values['pyflash_requests_total{api="chat_completions",code="400"}'] == 1
    assert values["pyflash_time_to_first_token_seconds_count"] == 3


def test_sessions_of_a_client(server: Application) -> None:
    assert post(server, CHAT, BODIES[CHAT], headers={"x-session-id": "s" * 2000}).status == 200


# -- silence, and clients that go --


@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages", "/api/chat"])
def test_a_silent_prompt_is_no_silent_stream(demo_model: Path, pace: Pace, path: str) -> None:
    """First bytes at once, and events with data while the prompt is read."""
    pace.seconds = 0.4
    with serving(demo_model, keepalive=0.1) as server:
        began = time.monotonic()
        response = post(server, path, {**BODIES[path], "stream": True, "max_output_tokens": 1, "max_tokens": 1})
        times = [at for at, data in response.chunks if data]
        assert pace.steps[0].ended - began > 1.5 and times[0] - began < 1
        assert sum(at < pace.steps[0].ended for at in times) > 3
        assert not any(line.startswith(b":") for line in response.body.split(b"\n"))


def test_a_whole_answer_that_takes_long(demo_model: Path, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyflash.serve import exchange

    monkeypatch.setattr(exchange, "_WHOLE_SECONDS", 0.1)
    pace.seconds = 0.05
    with serving(demo_model, keepalive=0.1) as server:
        response = post(server, CHAT, {**BODIES[CHAT], "max_tokens": 4})
        assert response.body.startswith(b"\n\n") and response.json()["usage"]["completion_tokens"] == 4


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_ends_its_answer(demo_model: Path, pace: Pace, stream: bool) -> None:
    pace.seconds = 0.01
    long = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": stream, "reasoning_effort": "high"}

    async def leave(server: Application) -> None:
        leaving = asyncio.Event()
        asking = asyncio.ensure_future(ask(server, "POST", CHAT, long, leave=leaving))
        while len(pace.steps) < 4:
            await asyncio.sleep(0.01)
        leaving.set()
        await asyncio.wait_for(asking, 1)

    with serving(demo_model) as server:
        run(leave(server))
        time.sleep(0.1)
        n = len(pace.steps)
        time.sleep(0.2)
        assert len(pace.steps) == n and becomes_idle(server)
        assert 'code="499"} 1' in server.engine.metrics.text()


def test_a_client_that_goes_while_it_waits(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.02

    async def leave(server: Application) -> None:
        leaving = asyncio.Event()
        first = asyncio.ensure_future(ask(server, "POST", CHAT, {**BODIES[CHAT], "max_tokens": 10}))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(ask(server, "POST", CHAT, BODIES[CHAT], leave=leaving))
        await asyncio.sleep(0.05)
        leaving.set()
        await asyncio.wait_for(second, 1)
        assert (await first).status == 200

    with serving(demo_model, parallel=1) as server:
        run(leave(server))
        assert becomes_idle(server)


def test_a_client_that_does_not_read(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyflash.serve import exchange

    monkeypatch.setattr(exchange, "_SEND_SECONDS", 0.1)

    async def read_nothing(server: Application) -> None:
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not asked:
                asked.append(True)
                return {"type": "http.request", "body": json.dumps({**BODIES[CHAT], "stream": True}).encode()}
            await never.wait()
            raise AssertionError

        async def send(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.body":
                await never.wait()

        asked: list[bool] = []
        scope = {"type": "http", "method": "POST", "path": CHAT, "headers": [(b"host", b"localhost"), (
            b"content-type", b"application/json")]}
        await asyncio.wait_for(server(scope, receive, send), 5)

    with serving(demo_model) as server:
        run(read_nothing(server))


# -- refusals --


def error_of(response: Response) -> str:
    body = response.json()
    error = body["error"]
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize(("host", "status"), [
    ("localhost", 200), ("localhost:8080", 200), ("LOCALHOST.:1", 200), ("127.0.0.1", 200), ("127.9.9.9:80", 200),
    ("[::1]:8080", 200), ("[::ffff:127.0.0.1]", 200), ("[0:0:0:0:0:0:0:1]", 200),
    ("evil.com", 421), ("localhost.evil.com", 421), ("127.0.0.1.evil.com", 421), ("evil.com:8080", 421), ("", 421),
    ("localhost:x", 421), ("localhost:99999", 421), ("user@localhost", 421), ("[::1]evil", 421), ("[::2]", 421),
    ("8.8.8.8", 421), ("localhost/x", 421), ("localhost#", 421), ("[localhost]", 421), ("0x7f.1", 421),
])  # fmt: skip
def test_hosts(server: Application, host: str, status: int) -> None:
    for path in ("/health", "/"):
        assert get(server, path, headers={"host": host}).status == status
    response = post(server, CHAT, BODIES[CHAT] | {"max_tokens": 1}, headers={"host": host})
    assert response.status == status and (status == 200 or error_of(response))


def test_two_hosts(server: Application) -> None:
    async def twice() -> int:
        status = []

        async def send(message: dict[str, Any]) -> None:
            status.append(message.get("status"))

        scope = {"type": "http", "method": "GET", "path": "/health", "headers": [(b"host", b"localhost")] * 2}
        await server(scope, None, send)  # type: ignore[arg-type]
        return status[0]

    assert run(twice()) == 400


def test_hosts_are_read_strictly() -> None:
    assert host_of("[::1]") == "::1" and host_of("A.b.:1") == "a.b" and host_of("[::1") is None and host_of("a b") is None
    assert is_loopback("127.255.0.1") and not is_loopback("127.1.evil") and not is_loopback("::")


def test_pages_of_others(server: Application) -> None:
    def status(**headers: str) -> int:
        return post(server, CHAT, BODIES[CHAT] | {"max_tokens": 1}, headers={
            name.replace("_", "-"): value for name, value in headers.items()}).status

    assert status(origin="http://evil.com") == status(origin="null") == status(origin="http://localhost:3000") == 403
    assert status(sec_fetch_site="cross-site") == 403
    assert status(origin="http://localhost:8080") == status(sec_fetch_site="same-origin") == status() == 200
    assert get(server, "/", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate",
                                     "accept": "text/html"}).status == 200
    assert get(server, "/v1/models", headers={"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}).status == 403
    assert run(ask(server, "OPTIONS", CHAT, headers={"origin": "http://evil.com"})).status == 403


def test_a_page_that_may_use_the_server(demo_model: Path) -> None:
    with serving(demo_model, origins=["http://localhost:3000"], hosts=["model.lan"]) as server:
        before = run(ask(server, "OPTIONS", CHAT, headers={"origin": "http://localhost:3000"}))
        assert before.status == 204 and before.headers["access-control-allow-origin"] == "http://localhost:3000"
        after = post(server, CHAT, BODIES[CHAT], headers={"origin": "http://localhost:3000"})
        assert after.status == 200 and after.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert post(server, CHAT, BODIES[CHAT], headers={"origin": "http://localhost:3001"}).status == 403
        assert get(server, "/health", headers={"host": "model.lan:8080"}).status == 200


def test_keys(demo_model: Path) -> None:
    with serving(demo_model, keys=["first", "second"]) as server:
        refused = post(server, CHAT, BODIES[CHAT])
        assert refused.status == 401 and refused.headers["www-authenticate"] == "Bearer" and error_of(refused)
        assert refused.headers["x-should-retry"] == "false"
        anthropic = post(server, "/v1/messages", BODIES["/v1/messages"], headers={"x-api-key": "third"})
        assert anthropic.status == 401 and anthropic.json()["error"]["type"] == "authentication_error"
        assert get(server, "/metrics").status == get(server, "/v1/models").status == 401
        assert get(server, "/health").status == get(server, "/", headers={"accept": "text/html"}).status == 200
        long = {"messages": [{"role": "user", "content": "Hello there, " * 50}], "max_tokens": 1}
        cached = []
        for key in ({"authorization": "Bearer first"}, {"x-api-key": "second"}, {"authorization": "bearer first"}):
            answer = post(server, CHAT, long, headers=key)
            cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
        assert cached[0] == cached[1] == 0 < cached[2]


@pytest.mark.parametrize(("body", "headers", "status"), [
    (b"{", {}, 400), (b"[]", {}, 400), (b"\xff", {}, 400), (b'{"messages": NaN}', {}, 400), (b"", {}, 400),
    (b'{"a":' * 200 + b"1" + b"}" * 200, {}, 400), (b"[" * 1_000_000, {}, 400), (b'{"seed": ' + b"1" * 5000 + b"}", {}, 400),
    (b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}', {}, 200),
    (b'{"messages": [{"role": "user", "content": "Hi"}], "n": 2}', {}, 400),
    (b"{}", {"content-type": "text/plain"}, 415), (b"{}", {"content-type": ""}, 415),
    (b"{}", {"content-encoding": "gzip"}, 415), (b"{}", {"content-length": str(1 << 40)}, 413),
])  # fmt: skip
def test_bodies(server: Application, body: bytes, headers: dict[str, str], status: int) -> None:
    response = post(server, CHAT, body, headers=headers)
    assert response.status == status, response.body
    assert status == 200 or "\n" not in error_of(response)


def test_a_body_without_a_length_is_counted(demo_model: Path) -> None:
    with serving(demo_model, max_body=1000) as server:
        assert post(server, CHAT, BODIES[CHAT]).status == 200
        response = post(server, CHAT, {"messages": [{"role": "user", "content": "x" * 1000}]})
        assert response.status == 413


def test_paths_and_methods(server: Application) -> None:
    assert get(server, CHAT).status == 405 and post(server, "/health", {}).status == 405
    assert get(server, "/nowhere").status == post(server, "/v1/nowhere", {}).status == 404
    assert post(server, "/api/nowhere", {}).json() == {"error": post(server, "/api/nowhere", {}).json()["error"]}
    assert get(server, "/health/").status == 200
    ids = [get(server, "/nowhere").headers["x-request-id"] for _ in range(2)]
    assert ids[0] != ids[1]


def test_a_context_that_is_full_is_told_as_each_client_reads_it(demo_model: Path) -> None:
    with serving(demo_model, context=256) as server:
        long = [{"role": "user", "content": "Hello there, " * 200}]
        chat = post(server, CHAT, {"messages": long})
        assert chat.status == 400 and chat.json()["error"]["code"] == "context_length_exceeded"
        anthropic = post(server, "/v1/messages", {"messages": long, "max_tokens": 5})
        assert anthropic.status == 400 and "prompt is too long" in anthropic.json()["error"]["message"]


def test_busy_and_closing(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.03

    async def crowd(server: Application) -> list[Response]:
        asking = [asyncio.ensure_future(ask(server, "POST", CHAT, {**BODIES[CHAT], "max_tokens": 4})) for _ in range(5)]
        return [await each for each in asking]

    with serving(demo_model, parallel=1, queue_limit=2) as server:
        responses = run(crowd(server))
        assert sorted(response.status for response in responses) == [200, 200, 200, 429, 429]
        refused = next(response for response in responses if response.status == 429)
        assert int(refused.headers["retry-after"]) >= 1 and refused.headers["x-should-retry"] == "true"
        server.engine.drain()
        closing = post(server, CHAT, BODIES[CHAT])
        assert closing.status == 503 and closing.headers["retry-after"] and get(server, "/health").status == 503


def test_answers_of_a_schema(server: Application) -> None:
    pytest.importorskip("llguidance")
    asked = {**BODIES[CHAT], "response_format": {"type": "json_schema", "json_schema": {
        "name": "n", "schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"],
                                "additionalProperties": False}}}, "max_tokens": 30}
    content = post(server, CHAT, asked).json()["choices"][0]["message"]["content"]
    assert isinstance(json.loads(content)["n"], int)
    wrong = {**asked, "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "nothing"}}}}
    assert post(server, CHAT, wrong).status == 400


def test_mounted_in_another_application(server: Application) -> None:
    async def mounted(scope: Any, receive: Any, send: Any) -> None:
        await server({**scope, "root_path": "/llm", "path": scope["path"]}, receive, send)

    assert run(ask(mounted, "GET", "/llm/health")).json() == {"status": "ok"}


def test_lifespan(demo_model: Path) -> None:
    from pyflash import Model
    from pyflash.serve import app

    made = app(lambda: Model.open(demo_model, threads=1), context=256)

    async def live() -> list[str]:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])
        sent: list[str] = []

        async def receive() -> dict[str, str]:
            if sent:
                await asyncio.to_thread(made.engine.wait_ready, 60)
            return next(messages)

        async def send(message: dict[str, str]) -> None:
            sent.append(message["type"])

        await made({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
        return sent

    assert run(live()) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert made.engine.state == "closed"
