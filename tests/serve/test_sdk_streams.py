"""Answers of a model as the clients' packages define them: every event strictly, and streams that add up to whole answers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from serving import Response, ask, run, serving
from test_replay import TOOLS, Scripted, call

from pyflash.serve.application import Application

pydantic = pytest.importorskip("pydantic", reason="pydantic is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")
anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
ollama_client = pytest.importorskip("ollama", reason="ollama is not installed")

USER = [{"role": "user", "content": "Rain in Bern, and in Basel?"}]
FUNCTION = TOOLS[0]["function"]


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Application]:
    with serving(tiny_model, think="high", keepalive=0.05) as made:
        yield made


@dataclass
class Told:
    """What an answer says, whatever the protocol."""

    reasoning: str = ""
    content: str = ""
    calls: list[list[str]] = field(default_factory=list)  # name, arguments
    reason: str | None = None
    n_generated: int = 0

    def normal(self) -> tuple[Any, ...]:
        return self.reasoning, self.content, [(name, json.loads(text)) for name, text in self.calls], self.reason, self.n_generated


@cache
def adapter(kind: Any) -> Any:
    return pydantic.TypeAdapter(kind)


def strictly(kind: Any, data: Any) -> Any:
    return adapter(kind).validate_json(json.dumps(data), strict=True)


# -- each protocol: its types, its stream and its whole answer as Told --


def chat_stream(response: Response) -> Told:
    from openai.types.chat import ChatCompletionChunk

    told = Told()
    assert response.body.endswith(b"data: [DONE]\n\n")
    for event in response.events():
        strictly(ChatCompletionChunk, event)
        for choice in event["choices"]:
            delta = choice["delta"]
            told.reasoning += delta.get("reasoning_content") or ""
            told.content += delta.get("content") or ""
            told.reason = choice["finish_reason"] or told.reason
            for piece in delta.get("tool_calls", ()):
                if piece["index"] == len(told.calls):
                    told.calls.append([piece["function"]["name"], ""])
                told.calls[piece["index"]][1] += piece["function"]["arguments"]
        told.n_generated = (event.get("usage") or {}).get("completion_tokens", 0)
    return told


def chat_whole(body: Any) -> Told:
    from openai.types.chat import ChatCompletion

    strictly(ChatCompletion, body)
    (choice,) = body["choices"]
    message = choice["message"]
    calls = [[each["function"]["name"], each["function"]["arguments"]] for each in message.get("tool_calls", ())]
    return Told(message.get("reasoning_content", ""), message["content"], calls, choice["finish_reason"],
                body["usage"]["completion_tokens"])


def completions_stream(response: Response) -> Told:
    from openai.types import Completion

    told = Told()
    for event in response.events():
        strictly(Completion, {**event, "choices": [{**each, "finish_reason": each["finish_reason"] or "stop"}
                                                   for each in event["choices"]]})  # the type is of whole answers
        for choice in event["choices"]:
            told.content += choice["text"]
            told.reason = choice["finish_reason"] or told.reason
        told.n_generated = (event.get("usage") or {}).get("completion_tokens", 0)
    return told


def completions_whole(body: Any) -> Told:
    from openai.types import Completion

    strictly(Completion, body)
    return Told("", body["choices"][0]["text"], [], body["choices"][0]["finish_reason"], body["usage"]["completion_tokens"])


def responses_stream(response: Response) -> Told:
    from openai.types.responses import ResponseStreamEvent

    told = Told()
    last: dict[str, Any] = {}
    for n, event in enumerate(response.events()):
        strictly(ResponseStreamEvent, event)
        assert event["sequence_number"] == n
        kind = event["type"].removeprefix("response.")
        if kind == "reasoning_text.delta":
            told.reasoning += event["delta"]
        elif kind == "output_text.delta":
            told.content += event["delta"]
        elif kind == "output_item.added" and event["item"]["type"] == "function_call":
            told.calls.append([event["item"]["name"], ""])
        elif kind == "function_call_arguments.delta":
            told.calls[-1][1] += event["delta"]
        last = event
    assert last["type"] in ("response.completed", "response.incomplete")
    told.reason, told.n_generated = last["response"]["status"], last["response"]["usage"]["output_tokens"]
    assert responses_whole(last["response"]) == told
    return told


def responses_whole(body: Any) -> Told:
    from openai.types.responses import Response as Whole

    strictly(Whole, body)
    told = Told(reason=body["status"], n_generated=body["usage"]["output_tokens"])
    for item in body["output"]:
        if item["type"] == "function_call":
            told.calls.append([item["name"], item["arguments"]])
        elif item["type"] == "reasoning":
            told.reasoning += item["content"][0]["text"]
        else:
            told.content += item["content"][0]["text"]
    return told


def messages_stream(response: Response) -> Told:
    from anthropic.types import RawMessageStreamEvent

    told = Told()
    events = [event for event in response.events() if event["type"] != "ping"]
    assert events[0]["type"] == "message_start" and events[-1]["type"] == "message_stop"
    for event in events:
        strictly(RawMessageStreamEvent, event)
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            told.calls.append([event["content_block"]["name"], ""])
        delta = event.get("delta", {})
        told.reasoning += delta.get("thinking", "")
        told.content += delta.get("text", "")
        if "partial_json" in delta:
            told.calls[-1][1] += delta["partial_json"]
        if event["type"] == "message_delta":
            told.reason, told.n_generated = delta["stop_reason"], event["usage"]["output_tokens"]
    return told


def messages_whole(body: Any) -> Told:
    from anthropic.types import Message

    strictly(Message, body)
    told = Told(reason=body["stop_reason"], n_generated=body["usage"]["output_tokens"])
    for block in body["content"]:
        if block["type"] == "tool_use":
            told.calls.append([block["name"], json.dumps(block["input"])])
        told.reasoning += block.get("thinking", "")
        told.content += block.get("text", "")
    return told


def ollama_stream(response: Response) -> Told:
    told = Told()
    lines = [json.loads(line) for line in response.body.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    for line in lines:
        part = ollama_whole(line)
        told.reasoning += part.reasoning
        told.content += part.content
        told.calls += part.calls
        told.reason, told.n_generated = part.reason, part.n_generated
    return told


def ollama_whole(body: Any) -> Told:
    kind = ollama_client.ChatResponse if "message" in body else ollama_client.GenerateResponse
    strictly(kind, body)
    said = body.get("message", body)
    calls = [[each["function"]["name"], json.dumps(each["function"]["arguments"])] for each in said.get("tool_calls", ())]
    return Told(said.get("thinking", ""), said.get("content", said.get("response", "")), calls, body.get("done_reason"),
                body.get("eval_count", 0))


@dataclass(frozen=True)
class Protocol:
    path: str
    body: Callable[..., dict[str, Any]]
    stream: Callable[[Response], Told]
    whole: Callable[[Any], Told]
    tools: Any = None
    is_quiet: bool = False  # an answer has no reasoning


def ollama_body(**more: Any) -> dict[str, Any]:
    options = {"seed": more.pop("seed"), "num_predict": more.pop("most")}
    thinks = more.pop("thinks")
    return {"messages": USER, "think": thinks, "options": options, "stream": False, **more}


PROTOCOLS = {
    "chat": Protocol(
        "/v1/chat/completions", lambda seed, most, thinks, **more: {
            "messages": USER, "seed": seed, "max_tokens": most, "reasoning_effort": "high" if thinks else "none",
            "reasoning_budget": 20, "stream_options": {"include_usage": True}, **more},
        chat_stream, chat_whole, TOOLS),
    "completions": Protocol(
        "/v1/completions", lambda seed, most, thinks, **more: {
            "prompt": "def f(", "seed": seed, "max_tokens": most, "stream_options": {"include_usage": True}, **more},
        completions_stream, completions_whole, is_quiet=True),
    "responses": Protocol(
        "/v1/responses", lambda seed, most, thinks, **more: {
            "input": USER, "seed": seed, "max_output_tokens": most, "reasoning": {"effort": "high" if thinks else "none"}, **more},
        responses_stream, responses_whole, [{"type": "function", **FUNCTION}]),
    "messages": Protocol(
        "/v1/messages", lambda seed, most, thinks, **more: {
            "messages": USER, "seed": seed, "max_tokens": most, **more,
            "thinking": {"type": "enabled", "budget_tokens": 20} if thinks else {"type": "disabled"}},
        messages_stream, messages_whole,
        [{"name": FUNCTION["name"], "input_schema": FUNCTION["parameters"]}]),
    "ollama chat": Protocol("/api/chat", ollama_body, ollama_stream, ollama_whole, TOOLS),
    "ollama generate": Protocol(
        "/api/generate", lambda seed, most, thinks, **more: {
            "prompt": "hi", "think": thinks, "options": {"seed": seed, "num_predict": most}, "stream": False, **more},
        ollama_stream, ollama_whole),
}  # fmt: skip


def answered(server: Application, protocol: Protocol, **asked: Any) -> tuple[Told, Told]:
    """The same request in pieces and whole."""
    body = protocol.body(**asked)
    whole = run(ask(server, "POST", protocol.path, body))
    streamed = run(ask(server, "POST", protocol.path, {**body, "stream": True}))
    assert whole.status == streamed.status == 200, (whole.body, streamed.body)
    return protocol.stream(streamed), protocol.whole(whole.json())


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("thinks", [False, True])
def test_pieces_are_the_whole(server: Application, name: str, thinks: bool) -> None:
    """Of a model that writes any bytes at all, and with the same seed."""
    protocol = PROTOCOLS[name]
    if thinks and protocol.is_quiet:
        pytest.skip("there is no reasoning")
    said = set()
    for seed in range(3):
        streamed, whole = answered(server, protocol, seed=seed, most=60, thinks=thinks)
        assert streamed == whole and whole.n_generated == 60
        assert bool(whole.reasoning) is thinks and (whole.content or thinks)
        said.add(whole.reasoning + whole.content)
    assert len(said) == 3


@pytest.mark.parametrize("name", [name for name, each in PROTOCOLS.items() if each.tools])
def test_two_calls_and_reasoning(demo_model: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    protocol = PROTOCOLS[name]
    script = Scripted(monkeypatch)
    one, two = call("Bern", "1"), call("Basel", "2.5")
    with serving(demo_model, think="high") as server:
        told = []
        for stream in (True, False):
            script.say(server, 'Both "cities".', "!</think>", *one[:14], "invoke>\n<", "!｜DSML｜", *two[4:])
            body = {**protocol.body(seed=1, most=400, thinks=True, tools=protocol.tools), "stream": stream}
            body.pop("reasoning_budget", None)
            if "budget_tokens" in body.get("thinking", ()):
                body["thinking"] = {"type": "adaptive"}
            response = run(ask(server, "POST", protocol.path, body))
            assert response.status == 200, response.body
            told.append(protocol.stream(response) if stream else protocol.whole(response.json()))
        assert told[0].normal() == told[1].normal()
        assert told[0].reasoning == 'Both "cities".' and told[0].content.strip() == "Let me see."
        assert [(name, json.loads(text)) for name, text in told[0].calls] == [
            ("get_weather", {"city": "Bern", "days": 1}), ("get_weather", {"city": "Basel", "days": 2.5})]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_stop_string(server: Application, name: str) -> None:
    protocol = PROTOCOLS[name]
    _, whole = answered(server, protocol, seed=1, most=60, thinks=False)
    found = next((word for word in whole.content[5:].split() if len(word.encode()) < 200), None)
    assert found is not None
    key = "stop_sequences" if name == "messages" else "stop"
    stop: dict[str, Any] = {key: [found]}
    if name.startswith("ollama"):
        body = protocol.body(seed=1, most=60, thinks=False)
        stop = {"options": {**body["options"], "stop": [found]}}
    body = {**protocol.body(seed=1, most=60, thinks=False), **stop}
    told = [protocol.whole(run(ask(server, "POST", protocol.path, body)).json()),
            protocol.stream(run(ask(server, "POST", protocol.path, {**body, "stream": True})))]
    assert told[0] == told[1] and found not in told[0].content and whole.content.startswith(told[0].content)
