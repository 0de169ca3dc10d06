"""Streams of OpenAI's protocols, read by OpenAI's own package."""

from __future__ import annotations

import json
from typing import Any

import pytest
from scripts import BROKEN, CHANCES, CUT, CUT_CALL, PLAIN, TEXT, WITH_CALLS, answer, call

from pyflash.serve import chat_completions, completions, responses
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Event

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
openai = pytest.importorskip("openai", reason="openai is not installed")

TOOLS = [{"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}}}
         for name in "fg"]  # fmt: skip


def client(module: Any, events: list[Event] | RequestError, seen: dict[str, Any] | None = None) -> Any:
    """OpenAI's client of a server that answers with these events, and remembers the request."""

    def handle(request: Any) -> Any:
        body = json.loads(request.content)
        asked = module.read(body)
        if seen is not None:
            seen["request"] = asked
        if isinstance(events, RequestError):
            return httpx.Response(events.status, json=module.error_body(events))
        if not asked.stream:
            return httpx.Response(200, json=module.full(asked, events, "resp_1", 1700000000))
        stream = module.Stream(asked, "resp_1", 1700000000)
        data = b"".join(map(stream.feed, events))
        if seen is not None:
            seen["data"] = data
        return httpx.Response(200, headers={"content-type": stream.content_type}, content=data)

    return openai.OpenAI(api_key="k", base_url="http://server/v1", max_retries=0,
                         http_client=httpx.Client(transport=httpx.MockTransport(handle)))  # fmt: skip


CHAT = {"model": "any", "messages": [{"role": "user", "content": "hi"}], "tools": TOOLS}


def test_chat_stream() -> None:
    api = client(chat_completions, WITH_CALLS)
    chunks = list(api.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
    assert {chunk.id for chunk in chunks} == {"resp_1"} and {chunk.model for chunk in chunks} == {"any"}
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.prompt_progress["processed"] for chunk in chunks[1:4]] == [60, 80, 100]
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas) == "let me think 😀"
    assert "".join(delta.content or "" for delta in deltas) == "Hello wörld\n"
    pieces = [piece for delta in deltas for piece in delta.tool_calls or []]
    assert [(piece.index, piece.id, piece.function.name) for piece in pieces if piece.id] == [
        (0, "call_f", "f"), (1, "call_g", "g")]  # fmt: skip
    assert [piece.function.arguments for piece in pieces if piece.index == 0] == ["", "{", '"a": "', 'x \\"y', '"', "}"]
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "tool_calls"
    last = chunks[-1]
    assert not last.choices and (last.usage.prompt_tokens, last.usage.completion_tokens) == (100, 20)
    assert last.usage.prompt_tokens_details.cached_tokens == 60
    assert last.usage.completion_tokens_details.reasoning_tokens == 5
    assert last.usage.prompt_cache_miss_tokens == 40


def test_chat_helper_accumulates_what_the_answer_in_one_piece_has() -> None:
    api = client(chat_completions, WITH_CALLS)
    with api.chat.completions.stream(**CHAT) as stream:
        for _ in stream:
            pass
        streamed = stream.get_final_completion().choices[0]
    whole = api.chat.completions.create(**CHAT).choices[0]
    assert whole.message.content == streamed.message.content == "Hello wörld\n"
    assert whole.message.reasoning_content == "let me think 😀"
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"
    for choice in (whole, streamed):
        assert [(each.id, each.function.name, json.loads(each.function.arguments)) for each in choice.message.tool_calls
                ] == [("call_f", "f", {"a": 'x "y'}), ("call_g", "g", {})]  # fmt: skip


def test_chat_without_usage_ends_with_done() -> None:
    seen: dict[str, Any] = {}
    list(client(chat_completions, PLAIN, seen).chat.completions.create(**CHAT, stream=True))
    assert seen["data"].endswith(b"data: [DONE]\n\n") and b'"usage"' not in seen["data"]
    assert all(block.startswith(b"data: ") for block in seen["data"].strip().split(b"\n\n"))  # no bare comments


def test_chat_logprobs() -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    seen: dict[str, Any] = {}
    whole = client(chat_completions, answer(*CHANCES), seen).chat.completions.create(**body).choices[0]
    assert seen["request"].logprobs == 2
    (entry,) = whole.logprobs.content
    assert (entry.token, entry.logprob, entry.bytes) == ("Hi", -0.5, [72, 105])
    assert [top.token for top in entry.top_logprobs] == ["Hi", "Ho"]


@pytest.mark.parametrize("module", [chat_completions, responses])
def test_an_error_within_a_stream_is_raised(module: Any) -> None:
    api = client(module, BROKEN)
    if module is responses:
        *_, last = api.responses.create(model="m", input="hi", stream=True)
        assert last.type == "response.failed" and last.response.error.message.startswith("the grammar cannot")
        return
    with pytest.raises(openai.APIError, match="the grammar cannot go on"):
        list(api.chat.completions.create(**CHAT, stream=True))


def test_errors() -> None:
    api = client(chat_completions, RequestError("messages is missing", param="messages"))
    with pytest.raises(openai.BadRequestError, match="messages is missing") as caught:
        api.chat.completions.create(**CHAT)
    assert caught.value.param == "messages"
    api = client(chat_completions, RequestError.context_length(9000, 4096))
    with pytest.raises(openai.BadRequestError, match="9000 tokens > 4096") as caught:
        api.chat.completions.create(**CHAT)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.RateLimitError):
        busy = RequestError("later", code="queue_full", retry_after=3)
        client(chat_completions, busy).chat.completions.create(**CHAT)


@pytest.mark.parametrize(("events", "reason"), [(PLAIN, "stop"), (CUT, "length"), (CUT_CALL, "length")])
def test_finish_reasons(events: list[Event], reason: str) -> None:
    api = client(chat_completions, events)
    *_, last = api.chat.completions.create(**CHAT, stream=True)
    choice = api.chat.completions.create(**CHAT).choices[0]
    assert last.choices[0].finish_reason == choice.finish_reason == reason
    assert choice.message.content and not choice.message.tool_calls  # a call that was cut is none


def test_completions() -> None:
    seen: dict[str, Any] = {}
    api = client(completions, answer(*TEXT), seen)
    body = {"model": "m", "prompt": "def f(", "suffix": "return x"}
    chunks = list(api.completions.create(**body, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == "Hello wörld\n"
    assert chunks[-1].usage.total_tokens == 120 and chunks[-2].choices[0].finish_reason == "stop"
    whole = api.completions.create(**body)
    assert whole.choices[0].text == "Hello wörld\n" and seen["request"].suffix == "return x"
    told = client(completions, answer(*CHANCES)).completions.create(**body, logprobs=2).choices[0].logprobs
    assert told.tokens == ["Hi"] and told.top_logprobs == [{"Hi": -0.5, "Ho": -1.5}] and told.text_offset == [0]


# -- Responses --

RESPONSE_TOOLS: list[Any] = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in "fg"]
ITEM_EVENTS = {
    "reasoning": ["reasoning_text.delta", "reasoning_text.done"],
    "message": ["content_part.added", "output_text.delta", "output_text.done", "content_part.done"],
    "function_call": ["function_call_arguments.delta", "function_call_arguments.done"],
}  # fmt: skip


def test_responses_events_in_order() -> None:
    api = client(responses, WITH_CALLS)
    body = {"model": "m", "input": "hi", "tools": RESPONSE_TOOLS, "include": ["reasoning.encrypted_content"]}
    events = list(api.responses.create(**body, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    for event in events:
        assert type(event).__name__ != "BaseModel"
        type(event).model_validate(event.model_dump(), strict=True)
    names = [event.type.removeprefix("response.") for event in events]
    assert names[:2] == ["created", "in_progress"] and names[2:5] == ["in_progress"] * 3
    assert names[-1] == "completed"
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.type for item in done] == ["reasoning", "message", "function_call", "function_call"]
    for n, item in enumerate(done):
        of_it = [name for name, event in zip(names, events, strict=True)
                 if getattr(event, "output_index", None) == n]  # fmt: skip
        assert of_it[0] == "output_item.added" and of_it[-1] == "output_item.done"
        assert list(dict.fromkeys(of_it[1:-1])) == ITEM_EVENTS[item.type]
    assert done[0].encrypted_content == "sig-1" and done[0].content[0].text == "let me think 😀"
    assert (done[2].call_id, done[2].name, json.loads(done[2].arguments)) == ("call_f", "f", {"a": 'x "y'})
    response = events[-1].response
    assert [item.id for item in response.output] == [item.id for item in done]
    assert response.usage.input_tokens == 100 and response.usage.input_tokens_details.cached_tokens == 60
    assert response.usage.output_tokens_details.reasoning_tokens == 5


def test_responses_helper_and_the_answer_in_one_piece_agree() -> None:
    api = client(responses, WITH_CALLS)
    body = {"model": "m", "input": "hi", "tools": RESPONSE_TOOLS}
    with api.responses.stream(**body) as stream:
        kinds = {event.type for event in stream}
        streamed = stream.get_final_response()
    whole = api.responses.create(**body)
    assert "response.output_text.delta" in kinds
    assert whole.output_text == streamed.output_text == "Hello wörld\n"
    assert [item.type for item in whole.output] == [item.type for item in streamed.output]
    assert whole.output[0].encrypted_content is None  # nobody asked for it


def test_responses_summaries_where_they_are_asked_for() -> None:
    events = list(client(responses, PLAIN).responses.create(model="m", input="hi", reasoning={"summary": "auto"},
                                                            stream=True))  # fmt: skip
    assert "".join(event.delta for event in events if event.type == "response.reasoning_summary_text.delta"
                   ) == "let me think 😀"  # fmt: skip
    (item, _) = events[-1].response.output
    assert item.summary[0].text == item.content[0].text == "let me think 😀"


def test_responses_custom_tools_and_namespaces() -> None:
    patch = "*** Begin Patch\n+\u2028\"x\"\\n 😀\t\x01\n"
    text = json.dumps({"input": patch})
    tools = [{"type": "custom", "name": "apply_patch", "format": {"type": "grammar", "syntax": "lark",
                                                                  "definition": "start: /x/"}},
             {"type": "namespace", "name": "mcp__box__", "tools": [{"type": "function", "name": "open"}]},
             {"type": "web_search"}]  # fmt: skip
    for cut in range(len(text)):
        events = answer(*call(0, "apply_patch", text[:cut], text[cut:]), *call(1, "mcp__box__open", "{}"),
                        reason="tool_calls")  # fmt: skip
        seen: dict[str, Any] = {}
        api = client(responses, events, seen)
        got = list(api.responses.create(model="m", input="hi", tools=tools, stream=True))
        assert "".join(each.delta for each in got if each.type == "response.custom_tool_call_input.delta") == patch
        custom, function = got[-1].response.output
        assert (custom.type, custom.name, custom.input) == ("custom_tool_call", "apply_patch", patch)
        assert (function.type, function.name, function.namespace) == ("function_call", "open", "mcp__box__")
    assert seen["request"].tools["apply_patch"].syntax == ("lark", "start: /x/")
    assert seen["request"].notes == ("a tool of the type 'web_search' is left out",)


@pytest.mark.parametrize("events", [CUT, CUT_CALL])
def test_responses_that_are_cut(events: list[Event]) -> None:
    *_, last = client(responses, events).responses.create(model="m", input="hi", stream=True)
    assert last.type == "response.incomplete" and last.response.incomplete_details.reason == "max_output_tokens"
    assert last.response.output[0].status == "incomplete"
