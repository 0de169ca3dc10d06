"""Streams of Anthropic's and Ollama's protocols, read by their own packages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripts import BROKEN, CUT, CUT_CALL, PLAIN, REASONING, TEXT, WAITING, WITH_CALLS, answer

from pyflash.serve import messages, ollama
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Event, Progress, Reasoning

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
httpx2 = pytest.importorskip("httpx2", reason="httpx2 is not installed")  # what the package anthropic speaks through
anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
ollama_client = pytest.importorskip("ollama", reason="ollama is not installed")


# -- Messages --

BODY: dict[str, Any] = {"model": "any", "max_tokens": 99, "messages": [{"role": "user", "content": "hi"}],
                        "tools": [{"name": name, "input_schema": {"type": "object"}} for name in "fg"]}  # fmt: skip


def client(events: list[Event] | RequestError, seen: dict[str, Any] | None = None) -> Any:

    def handle(request: Any) -> Any:
        asked = messages.read(json.loads(request.content))
        if seen is not None:
            seen["request"] = asked
        if isinstance(events, RequestError):
            return httpx2.Response(events.status, json=messages.error_body(events))
        if request.url.path.endswith("/count_tokens"):
            return httpx2.Response(200, json=messages.count_body(7))
        if not asked.stream:
            return httpx2.Response(200, json=messages.full(asked, events, "msg_1", 1))
        stream = messages.Stream(asked, "msg_1", 1)
        return httpx2.Response(200, headers={"content-type": stream.content_type},
                              content=b"".join(map(stream.feed, events)))  # fmt: skip

    return anthropic.Anthropic(api_key="k", base_url="http://server", max_retries=0,
                               http_client=httpx2.Client(transport=httpx2.MockTransport(handle)))  # fmt: skip


def test_messages_events_in_order() -> None:
    events = list(client(WITH_CALLS).messages.create(**BODY, stream=True))
    for event in events:
        type(event).model_validate(event.model_dump(), strict=True)
    names = [event.type for event in events]
    assert names[0] == "message_start" and names[-2:] == ["message_delta", "message_stop"]
    inner = names[1:-2]
    assert inner[0] == "content_block_start" and inner[-1] == "content_block_stop"
    assert inner.count("content_block_start") == inner.count("content_block_stop") == 4
    usage = events[0].message.usage
    assert usage.input_tokens + usage.cache_creation_input_tokens + usage.cache_read_input_tokens == 100
    assert events[-2].delta.stop_reason == "tool_use" and events[-2].usage.output_tokens == 20


def test_messages_helper_and_the_answer_in_one_piece_agree() -> None:
    api = client(WITH_CALLS)
    with api.messages.stream(**BODY) as stream:
        streamed = stream.get_final_message()
    whole = api.messages.create(**BODY)
    for message in (streamed, whole):
        thinking, text, *calls = message.content
        assert (thinking.thinking, thinking.signature) == ("let me think 😀", "sig-1")
        assert text.text == "Hello wörld\n" and message.stop_reason == "tool_use" and message.model == "any"
        assert [(each.id, each.name, each.input) for each in calls] == [
            ("call_f", "f", {"a": 'x "y'}), ("call_g", "g", {})]  # fmt: skip
        assert message.usage.cache_read_input_tokens == 60


def test_a_long_wait_gives_more_than_pings() -> None:
    """After a minute something that a client's library does not swallow, in the block that the thinking goes on in."""
    asked = messages.read({**BODY, "stream": True})
    for waits, reasons in ((WAITING, True), ([Progress(9, 0, 1, 59.0)], False)):
        stream = messages.Stream(asked, "msg_1", 1)
        data = b"".join(map(stream.feed, answer(*waits, *REASONING)))
        assert data.count(b"event: ping") == len(waits)
        assert (b'"thinking_delta","thinking":""' in data) is reasons
        assert data.count(b'"type":"thinking","thinking":""') == 1


def test_reasoning_that_is_not_shown() -> None:
    body = {**BODY, "thinking": {"type": "adaptive", "display": "omitted"}}
    with client(PLAIN).messages.stream(**body) as stream:
        streamed = stream.get_final_message()
    whole = client(PLAIN).messages.create(**body)
    for message in (streamed, whole):
        assert message.content[0].thinking == "" and message.content[0].signature == "sig-1"
        assert message.content[1].text == "Hello wörld\n"


@pytest.mark.parametrize(("events", "reason", "stop"), [
    (PLAIN, "end_turn", None), (CUT, "max_tokens", None), (CUT_CALL, "max_tokens", None),
    (answer(*TEXT, stop="END"), "stop_sequence", "END"),
    (answer(*TEXT, reason="context_full"), "model_context_window_exceeded", None),
])  # fmt: skip
def test_stop_reasons(events: list[Event], reason: str, stop: str | None) -> None:
    *_, last, _ = client(events).messages.create(**BODY, stream=True)
    whole = client(events).messages.create(**BODY)
    assert last.delta.stop_reason == whole.stop_reason == reason
    assert last.delta.stop_sequence == whole.stop_sequence == stop
    assert whole.content[0].type in ("text", "thinking")


def test_count_tokens() -> None:
    body = {key: value for key, value in BODY.items() if key != "max_tokens"}
    assert client(PLAIN).messages.count_tokens(**body).input_tokens == 7


@pytest.mark.parametrize(("error", "kind"), [
    (RequestError("no"), anthropic.BadRequestError),
    (RequestError("no", code="unauthorized"), anthropic.AuthenticationError),
    (RequestError("no", code="queue_full"), anthropic.RateLimitError),
    (RequestError("no", code="loading"), anthropic.APIStatusError),
])  # fmt: skip
def test_messages_errors(error: RequestError, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="no"):
        client(error).messages.create(**BODY)


def test_an_error_within_a_stream_is_raised() -> None:
    with pytest.raises(anthropic.APIStatusError, match="the grammar cannot go on"):
        list(client(BROKEN).messages.create(**BODY, stream=True))


# -- Ollama --


def ollama_of(events: list[Event] | RequestError, seen: dict[str, Any] | None = None) -> Any:
    facts = ollama.ModelFacts("deepseek-v4-flash", "ab" * 32, 10**11, 4096, "284B", "MXFP4", 1700000000)

    def handle(request: Any) -> Any:
        path = request.url.path
        if path == "/api/tags":
            return httpx.Response(200, json=ollama.tags_body(facts))
        if path == "/api/ps":
            return httpx.Response(200, json=ollama.ps_body(facts, 1800000000))
        body = json.loads(request.content)
        if path == "/api/show":
            return httpx.Response(200, json=ollama.show_body(facts))
        if ollama.is_load(body):
            return httpx.Response(200, json=ollama.load_body(body, 1, chat=path == "/api/chat"))
        asked = ollama.read_chat(body) if path == "/api/chat" else ollama.read_generate(body)
        if seen is not None:
            seen["request"] = asked
        if isinstance(events, RequestError):
            return httpx.Response(events.status, json=ollama.error_body(events))
        if not asked.stream:
            return httpx.Response(200, json=ollama.full(asked, events, "x", 1700000000))
        stream = ollama.Stream(asked, "x", 1700000000)
        data = b"".join(map(stream.feed, events))
        return httpx.Response(200, headers={"content-type": stream.content_type}, content=data)

    return ollama_client.Client(host="http://server", transport=httpx.MockTransport(handle))


def weather(city: str) -> str:
    """The weather.

    Args:
      city: where
    """
    return city


ASKED = [{"role": "user", "content": "hi"}]


def test_ollama_chat() -> None:
    seen: dict[str, Any] = {}
    api = ollama_of(WITH_CALLS, seen)
    options = {"num_predict": 7, "temperature": 0.5, "repeat_penalty": 1.1, "stop": ["x"]}
    parts = list(api.chat("m", ASKED, tools=[weather], think="low", stream=True, options=options))
    request = seen["request"]
    assert (request.think, request.max_tokens, request.stop) == ("low", 7, ("x",))
    assert request.sampling == {"temperature": 0.5, "repetition_penalty": 1.1} and "weather" in request.tools
    assert "".join(part.message.thinking or "" for part in parts) == "let me think 😀"
    assert "".join(part.message.content or "" for part in parts) == "Hello wörld\n"
    found = [each.function for part in parts for each in part.message.tool_calls or []]
    assert [(each.name, each.arguments) for each in found] == [("f", {"a": 'x "y'}), ("g", {})]
    assert parts[-1].done and parts[-1].done_reason == "stop" and not any(part.done for part in parts[:-1])
    assert (parts[-1].prompt_eval_count, parts[-1].eval_count) == (100, 20)
    assert parts[-1].prompt_eval_duration == 2_000_000_000
    whole = api.chat("m", ASKED)
    assert (whole.message.content, whole.message.thinking) == ("Hello wörld\n", "let me think 😀")
    assert whole.message.tool_calls[0].function.arguments == {"a": 'x "y'}


def test_ollama_results_find_their_calls() -> None:
    calls = [{"function": {"name": name, "arguments": {"n": n}}} for n, name in enumerate("fgf")]
    results = [{"role": "tool", "tool_name": name, "content": name} for name in "gff"]
    request = ollama.read_chat({"model": "m", "messages": [
        *ASKED, {"role": "assistant", "content": "", "tool_calls": calls}, *results]})  # fmt: skip
    ids = [call["id"] for call in request.messages[1]["tool_calls"]]
    assert len(set(ids)) == 3 and [each["tool_call_id"] for each in request.messages[2:]] == [ids[1], ids[0], ids[2]]


def test_ollama_generate() -> None:
    seen: dict[str, Any] = {}
    api = ollama_of(CUT, seen)
    assert "".join(part.response for part in api.generate("m", "hi", system="S", stream=True)) == "Hello wörld\n"
    assert [each["role"] for each in seen["request"].messages] == ["system", "user"]
    whole = api.generate("m", "def f(", suffix="return")
    assert whole.response == "Hello wörld\n" and whole.done_reason == "length"
    assert (seen["request"].prompt, seen["request"].suffix, seen["request"].think) == ("def f(", "return", "off")
    assert api.generate("m").done_reason == "load"
    api.generate("m", "x", format={"type": "object"})
    assert seen["request"].response_schema == {"type": "object"}


def test_ollama_lists_and_shows() -> None:
    api = ollama_of(PLAIN)
    (model,) = api.list().models
    assert model.model == "deepseek-v4-flash" and model.details.quantization_level == "MXFP4"
    assert api.ps().models[0].context_length == 4096
    shown = api.show("deepseek-v4-flash")
    assert {"completion", "tools", "thinking"} <= set(shown.capabilities)
    assert shown.modelinfo["deepseek4.context_length"] == 4096


def test_ollama_errors() -> None:
    with pytest.raises(ollama_client.ResponseError, match="too long"):
        ollama_of(RequestError.context_length(9, 4)).chat("m", ASKED)
    with pytest.raises(ollama_client.ResponseError, match="the grammar cannot go on"):
        list(ollama_of(BROKEN).chat("m", ASKED, stream=True))


def test_a_reasoning_piece_keeps_a_silent_client_awake() -> None:
    asked = ollama.read_chat({"model": "m", "messages": ASKED})
    stream = ollama.Stream(asked, "x", 1)
    for event in (Progress(9, 0, 1, 1.0), Reasoning("x")):
        assert json.loads(stream.feed(event))["done"] is False
