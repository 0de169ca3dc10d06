"""What a model writes, through parser and events to the answers of every protocol."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflash import chat
from pyflash.serve import chat_completions, messages, ollama, responses
from pyflash.serve.events import Content, Event, Reasoning, Started, ToolCallArguments, ToolCallBegin, ToolCallEnd, Usage
from pyflash.serve.request import Request
from pyflash.serve.writing import EventWriter

D, E = chat.DSML, chat.EOS
SCHEMA = {"type": "object", "properties": {"command": {"type": "string"}}, "required": ["command"]}
USER = [{"role": "user", "content": "hi"}]
FUNCTION = {"name": "bash", "parameters": SCHEMA}
REQUESTS: dict[str, tuple[Any, Request]] = {
    "chat": (chat_completions, chat_completions.read(
        {"messages": USER, "tools": [{"type": "function", "function": FUNCTION}]})),
    "responses": (responses, responses.read({"input": "hi", "tools": [{"type": "function", **FUNCTION}]})),
    "messages": (messages, messages.read({"messages": USER, "tools": [{"name": "bash", "input_schema": SCHEMA}]})),
    "ollama": (ollama, ollama.read_chat({"messages": USER, "tools": [{"type": "function", "function": FUNCTION}]})),
}  # fmt: skip
CALL = f'<{D}invoke name="bash">\n<{D}parameter name="command" string="true">ls "x"</{D}parameter>\n</{D}invoke>\n'
CALLS = f"\n\n<{D}tool_calls>\n{CALL}{CALL}</{D}tool_calls>"


def events_of(pieces: list[str], thinking: bool = True, reason: Any = "stop", cut: bool = False) -> list[Event]:
    parser = chat.StreamParser(thinking, {"bash": SCHEMA})
    writer = EventWriter(lambda index: f"call_{index}")
    out: list[Event] = [Started()]
    for piece in pieces:
        out += writer.feed(parser.feed(piece))
    out += writer.feed(parser.finish(cut))
    return out + writer.finish(reason, Usage())


def told(name: str, events: list[Event]) -> dict[str, Any]:
    """Reasoning, content and calls of a whole answer."""
    module, request = REQUESTS[name]
    body = module.full(request, events, "resp_1", 1)
    if name == "chat":
        message = body["choices"][0]["message"]
        calls = [(each["id"], json.loads(each["function"]["arguments"])) for each in message.get("tool_calls", ())]
        return {"reasoning": message.get("reasoning_content", ""), "content": message["content"], "calls": calls}
    if name == "ollama":
        message = body["message"]
        calls = [(each["id"], each["function"]["arguments"]) for each in message.get("tool_calls", ())]
        return {"reasoning": message.get("thinking", ""), "content": message["content"], "calls": calls}
    items = body["content"] if name == "messages" else body["output"]
    found: dict[str, Any] = {"reasoning": "", "content": "", "calls": []}
    for item in items:
        if item["type"] in ("thinking", "reasoning"):
            found["reasoning"] += item["thinking"] if name == "messages" else item["content"][0]["text"]
        elif item["type"] in ("text", "message"):
            found["content"] += item["text"] if name == "messages" else item["content"][0]["text"]
        elif item.get("status") != "incomplete":
            arguments = item["input"] if name == "messages" else json.loads(item["arguments"])
            found["calls"].append((item["id"] if name == "messages" else item["call_id"], arguments))
    return found


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_with_calls(name: str) -> None:
    text = f"hm</think>so{CALLS}{E}"
    expected = {"reasoning": "hm", "content": "so", "calls": [(f"call_{n}", {"command": 'ls "x"'}) for n in (0, 1)]}
    for cut in range(len(text)):
        events = events_of([text[:cut], text[cut:]])
        assert told(name, events) == expected
    assert events[-1].reason == "tool_calls"  # type: ignore[union-attr]


@pytest.mark.parametrize("text", [
    CALLS.replace("bash", "rm"), CALLS.replace(' name="command" string="true"', ""), CALLS.replace(CALL, "", 1),
    f"{CALL}{CALL}"[:-9], CALLS[:-60], f"hm</think>{CALLS[:40]}", f"never ends{CALLS.replace('bash', 'rm')}",
], ids=range(7))  # fmt: skip
@pytest.mark.parametrize("name", REQUESTS)
def test_malformed_calls_reach_no_client_as_markup(name: str, text: str) -> None:
    """The markup's marker is nowhere, no answer is empty, and no call is told that the model did not finish."""
    module, request = REQUESTS[name]
    for thinking in (False, True):
        events = events_of(list(text), thinking)
        stream = module.Stream(request, "resp_1", 1)
        data = b"".join(map(stream.feed, events)).decode()
        whole = told(name, events)
        assert D not in data and D not in str(whole)
        assert whole["content"] or whole["calls"] or whole["reasoning"]
        assert len(whole["calls"]) == sum(isinstance(event, ToolCallEnd) for event in events)


def texts_of(events: list[Event]) -> tuple[str, str, list[str]]:
    """Reasoning, content and each call's arguments."""
    arguments: dict[int, str] = {event.index: "" for event in events if isinstance(event, ToolCallBegin)}
    for event in events:
        if isinstance(event, ToolCallArguments):
            arguments[event.index] += event.text
    reasoning, content = ("".join(event.text for event in events if isinstance(event, kind)) for kind in (Reasoning, Content))
    return reasoning, content, list(arguments.values())


VALUES = ("ls 'x'", "2 < 3\nor", "")
LONG = f"\n\n<{D}tool_calls>" + "".join(
    f'\n<{D}invoke name="bash">\n<{D}parameter name="command" string="true">{value}</{D}parameter>'
    f'\n<{D}parameter name="n" string="false">[1, 2]</{D}parameter>\n</{D}invoke>' for value in VALUES) + f"\n</{D}tool_calls>"
ARGUMENTS = [json.dumps({"command": value, "n": [1, 2]}, ensure_ascii=False) for value in VALUES]
TOKENS = re.findall(f"</think>|{D}|.", f"hm</think>so{LONG}", re.DOTALL)


def certain(text: str) -> tuple[str, int]:
    """Of a text that is cut: the value that it ends within, as far as none of it may be markup, and the number of its call."""
    n = text.count("<" + D + "invoke")
    at = text.rfind('string="true">')
    value = text[at + len('string="true">') :] if at >= 0 and f"</{D}" not in text[at:] else ""
    return value.rstrip("</\n"), n


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_that_is_cut_shows_no_markup(name: str) -> None:
    """At every token, token by token and in one piece, in streams and whole: what is certain is there, and nothing else."""
    module, request = REQUESTS[name]
    for n in range(len(TOKENS)):
        text = "".join(TOKENS[:n])
        both = [events_of(pieces, reason="length", cut=True) for pieces in (TOKENS[:n], [text])]
        assert texts_of(both[0]) == texts_of(both[1]), text
        reasoning, content, arguments = texts_of(both[0])
        content = content.rstrip("\n")  # a blank line is before calls
        assert "hm".startswith(reasoning) and "so".startswith(content), (text, reasoning, content)
        assert (reasoning, content) == ("hm", "so") or "so" not in text, (text, reasoning, content)
        assert all(whole.startswith(begun) for begun, whole in zip(arguments, ARGUMENTS, strict=False)), (text, arguments)
        value, call = certain(text)
        assert not value or json.dumps(value)[1:-1] in arguments[call - 1], (text, arguments)
        assert len(told(name, both[0])["calls"]) == sum(isinstance(each, ToolCallEnd) for each in both[0])
        for events in both:
            stream = module.Stream(request, "resp_1", 1)
            shown = b"".join(map(stream.feed, events)).decode() + str(module.full(request, events, "resp_1", 1))
            assert not re.search("｜|</?(tool_calls|invoke|parameter)", shown), (text, shown)


def test_calls_are_numbered_without_gaps() -> None:
    text = CALLS.replace("bash", "rm", 1) + E
    events = events_of([text], thinking=False)
    assert [event.index for event in events if isinstance(event, ToolCallBegin)] == [0]


def test_nothing_but_a_problem_is_said_in_words() -> None:
    events = events_of([f"\n\n<{D}tool_calls>\n</{D}invoke{E}"], thinking=False)
    assert any(isinstance(event, Content) and event.text for event in events)


PIECES = ["a", "\n", "\n\n", "<", f"<{D}tool_calls>", f"</{D}tool_calls>", f'<{D}invoke name="bash">\n',
          f"</{D}invoke>\n", '<invoke name="bash">\n', "</invoke>",
          f'<{D}parameter name="command" string="true">', f"</{D}parameter>\n",
          f'<{D}parameter name="n" string="false">', "5", "</think>", E, CALL, CALLS, '"',
          f"<{D}toolcalls>\n"]  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12), st.booleans(), st.sampled_from(["stop", "length"]))
def test_any_answer_is_well_formed(pieces: list[str], thinking: bool, reason: str) -> None:
    """Of whatever the model writes: calls one after the other, complete ones JSON, streams and whole answers alike."""
    events = events_of(pieces, thinking, reason)
    ends = [event for event in events if isinstance(event, ToolCallEnd)]
    assert all(isinstance(json.loads(end.arguments), dict) for end in ends)
    reasoning = "".join(event.text for event in events if isinstance(event, Reasoning))
    content = "".join(event.text for event in events if isinstance(event, Content))
    assert D not in reasoning + content
    arguments = "".join(event.text for event in events if isinstance(event, ToolCallArguments))
    for name, (module, request) in REQUESTS.items():
        stream = module.Stream(request, "resp_1", 1)
        assert D in arguments or D not in b"".join(map(stream.feed, events)).decode()  # a value may hold any text
        whole = told(name, events)
        assert len(whole["calls"]) == len(ends)
        assert whole["reasoning"] == reasoning and whole["content"].startswith(content)
