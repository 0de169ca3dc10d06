"""Requests in the shape of agents' that cannot be run here, or are not run each time: Claude Code's with all of its parts, and
Codex's with its kinds of tools; the answers played above real sessions."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playing import Call, Played, Says, playing, steps


@pytest.fixture
def served(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    with playing(demo_model, steps(Says("Hello.")), monkeypatch, context=65536, parallel=1) as played:
        yield played


def post(served: Played, path: str, body: Any, **headers: str) -> list[dict[str, Any]]:
    """The events of a streamed answer, or its JSON alone."""
    request = urllib.request.Request(served.address + path, json.dumps(body).encode(),
                                     {"content-type": "application/json", **headers})  # fmt: skip
    try:
        with urllib.request.urlopen(request, timeout=300) as response:
            text = response.read().decode()
    except urllib.error.HTTPError as error:
        raise AssertionError(error.read()) from None
    if not response.headers["content-type"].startswith("text/event-stream"):
        return [json.loads(text)]
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ") and line != "data: [DONE]"]


# -- Claude Code --

HEADERS = {"anthropic-version": "2023-06-01", "x-api-key": "none", "user-agent": "claude-cli/2.1.200 (external, cli)",
           "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27"}  # fmt: skip


def tools(n: int = 138) -> list[dict[str, Any]]:
    """So many tools as with several MCP servers: about 1,240 bytes each, with all that schemas bring along."""
    out: list[dict[str, Any]] = [{"name": "Bash", "description": "Runs a command.", "input_schema": {
        "type": "object", "properties": {"command": {"type": "string"}, "timeout": {"type": "number"}}, "required": ["command"],
        "additionalProperties": False, "$schema": "https://json-schema.org/draft/2020-12/schema"}}]
    for i in range(1, n):
        properties: dict[str, Any] = {
            f"field_{k}": {"type": ["string", "number", "boolean"][k], "description": "What the tool is to do with it. "}
            for k in range(3)}
        properties["items"] = {"type": "array", "items": {"$ref": "#/$defs/item"}, "maxItems": 20}
        properties["kind"] = {"enum": ["one", "two", None]}
        story = "Tell me a story about the old man and the small dog. " * 11
        out.append({"name": f"mcp__server_{i % 7}__tool_{i}", "description": f"Tool {i}. {story}",
                    "input_schema": {"$schema": "http://json-schema.org/draft-07/schema#", "type": "object",
                                     "properties": properties, "required": ["field_0"], "additionalProperties": False,
                                     "$defs": {"item": {"type": "object", "properties": {"id": {"type": "string"}}}}}})
    out[-1]["cache_control"] = {"type": "ephemeral", "ttl": "1h"}
    out.append({"type": "web_search_20250305", "name": "web_search", "max_uses": 8})
    return out


def claude_body(messages: list[dict[str, Any]], nonce: str) -> dict[str, Any]:
    user = {"device_id": "0" * 64, "account_uuid": "", "session_id": "5b0e7a1c-0000-4000-8000-000000000000"}
    return {
        "model": "claude-opus-4-9[1m]", "max_tokens": 32000, "stream": True, "temperature": 1,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1.200; cc_entrypoint=cli; cch={nonce};"},
            {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
            {"type": "text", "text": "Be concise.\n" * 40, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        "tools": tools(), "thinking": {"type": "adaptive", "display": "summarized"}, "output_config": {"effort": "high"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "metadata": {"user_id": json.dumps(user)}, "messages": messages,
    }  # fmt: skip


def blocks_of(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The message that a client makes of a stream's events."""
    blocks: list[dict[str, Any]] = []
    for event in events:
        if event["type"] == "content_block_start":
            blocks.append(dict(event["content_block"]))
        elif event["type"] == "content_block_delta":
            delta, block = event["delta"], blocks[-1]
            kind = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}.get(delta["type"])
            if kind is None:
                block["input"] = (block["input"] or "") + delta["partial_json"]
            else:
                block[kind] = block.get(kind, "") + delta[kind]
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"] or "{}")
    return blocks


@pytest.mark.clients
def test_claude_code(served: Played) -> None:
    """Its header of each request's own, its marks that move, and a system message in the middle cost nothing."""
    size = len(json.dumps(tools(), separators=(",", ":")))
    assert 160_000 < size < 185_000, size
    served.script = steps(Says("I look.", [Call("Bash", {"timeout": 5000, "command": "ls  -la"})]),
                          Says(calls=[Call("mcp__server_3__tool_3", {"items": [{"id": "a"}], "field_0": "x"})]),
                          Says("Done."), Says("Bye."))  # fmt: skip
    messages: list[dict[str, Any]] = [{"role": "user", "content": [
        {"type": "text", "text": "<system-reminder>\nToday.\n</system-reminder>"},
        {"type": "text", "text": "What is here?", "cache_control": {"type": "ephemeral"}}]}]
    reused = []
    for n in range(4):
        events = post(served, "/v1/messages?beta=true", claude_body(messages, f"{n:05x}"), **HEADERS)
        start, end = events[0]["message"], events[-2]
        assert start["model"] == "claude-opus-4-9[1m]" and events[-1]["type"] == "message_stop"
        usage = end["usage"]
        reused.append(usage["cache_read_input_tokens"])
        assert usage["input_tokens"] + usage["cache_read_input_tokens"] + usage["cache_creation_input_tokens"] == len(
            served.jobs[-1].tokens)
        blocks = blocks_of(events)
        assert blocks[0]["type"] == "thinking" and blocks[0]["signature"]
        messages.append({"role": "assistant", "content": blocks})
        for part in messages[0]["content"]:
            part.pop("cache_control", None)
        results = [{"type": "tool_result", "tool_use_id": block["id"], "content": [{"type": "text", "text": "notes.txt"}],
                    "cache_control": {"type": "ephemeral"}} for block in blocks if block["type"] == "tool_use"]
        messages.append({"role": "user", "content": results or [{"type": "text", "text": "And now?"}]})
        if n == 2:
            messages.append({"role": "system", "content": "The user has opened another file."})
    served.check(4)
    assert reused[0] == 0 and reused[1] > 30_000
    assert [job.request.notes for job in served.jobs][0] == ("a tool of the type 'web_search_20250305' is left out",)
    body = {key: value for key, value in claude_body(messages[:1], "fffff").items() if key not in ("max_tokens", "stream")}
    (counted,) = post(served, "/v1/messages/count_tokens?beta=true", body, **HEADERS)
    assert counted == {"input_tokens": len(served.jobs[0].tokens)}


# -- Codex --

GRAMMAR = """start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?
hunk: "*** Add File: " /(.+)/ LF add_line+
add_line: "+" /(.*)/ LF
%import common.LF
"""
PATCH = '*** Begin Patch\n*** Add File: a "b".txt\n+\t\\n é 😀\n+</tag>\n*** End Patch'


def codex_body(items: list[dict[str, Any]]) -> dict[str, Any]:
    def function(name: str) -> dict[str, Any]:
        return {"type": "function", "name": name, "description": "", "strict": False,
                "parameters": {"type": "object", "properties": {"target": {"type": "string"}}, "required": ["target"]}}

    return {
        "model": "pyflash", "stream": True, "store": False, "include": ["reasoning.encrypted_content"],
        "parallel_tool_calls": True, "reasoning": {"effort": "high", "summary": "auto"}, "tool_choice": "auto",
        "prompt_cache_key": "01a22da2-0000-7000-8000-000000000000", "input": items, "tools": [
            function("exec_command"),
            {"type": "namespace", "name": "multi_agent_v1", "description": "Agents", "tools": [function("spawn_agent")]},
            {"type": "custom", "name": "apply_patch", "description": "Edits files.",
             "format": {"type": "grammar", "syntax": "lark", "definition": GRAMMAR}},
            {"type": "web_search", "external_web_access": False}, {"type": "image_generation", "output_format": "png"},
            {"type": "local_shell"}, {"type": "mcp", "server_label": "x", "server_url": "http://x"}],
    }  # fmt: skip


@pytest.mark.parametrize("is_behind", [False, True], ids=["results last", "each result behind its call"])
def test_codex_tools(served: Played, is_behind: bool) -> None:
    """A free text goes out and comes back as it was sampled; tools in a namespace keep their names; the rest is left out."""
    both = [Call("apply_patch", {"input": PATCH}), Call("multi_agent_v1__spawn_agent", {"target": "x"})]
    served.script = steps(Says("First.", both), Says(calls=[Call("exec_command", {"target": "ls"})]), Says("Done."))
    items: list[dict[str, Any]] = [
        {"type": "message", "role": role, "content": [{"type": "input_text", "text": text}]}
        for role, text in (("developer", "Rules."), ("user", "Go."))]  # fmt: skip
    streams = []
    for _ in range(3):
        events = post(served, "/v1/responses", codex_body(items))
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert events[-1]["type"] == "response.completed"
        streams.append(events)
        said = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        results: list[dict[str, Any]] = []
        for item in said:
            items.append({key: value for key, value in item.items() if key != "status"})
            if item["type"].endswith("_call"):
                result = {"type": f"{item['type']}_output", "call_id": item["call_id"], "output": f"ran {item['name']}"}
                (items if is_behind else results).append(result)
        items += results
    served.check(3)
    first = streams[0]
    deltas = [event["delta"] for event in first if event["type"] == "response.custom_tool_call_input.delta"]
    (done,) = [event["input"] for event in first if event["type"] == "response.custom_tool_call_input.done"]
    assert "".join(deltas) == done == PATCH and len(deltas) > 3
    calls = [item for item in items if item["type"].endswith("_call")]
    assert [each["role"] for each in served.jobs[1].request.messages] == ["user", "user", "assistant", "tool", "tool"]
    assert [(call["type"], call["name"], call.get("namespace")) for call in calls] == [
        ("custom_tool_call", "apply_patch", None), ("function_call", "spawn_agent", "multi_agent_v1"),
        ("function_call", "exec_command", None)]  # fmt: skip
    reasoning = next(item for item in items if item["type"] == "reasoning")
    assert reasoning["encrypted_content"] and reasoning["summary"]
    assert len(served.jobs[0].request.notes) == 4 and set(served.jobs[0].request.tools) == {
        "exec_command", "multi_agent_v1__spawn_agent", "apply_patch"}  # fmt: skip
