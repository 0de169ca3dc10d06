"""Tools through llama.cpp's own chat code, as llama-server and Ollama use it: the prompt, and the calls read back."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pyflash.chat
import pytest
from gguf_export.chat_template import chat_template

from import_llama.runner import compiled

pytestmark = pytest.mark.llama

TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "The weather <now> & then", "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "units": {"type": "array"}},
        "required": ["city"]}}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {
        "type": "object", "properties": {}}}},
]  # fmt: skip


def tool_call(call_id: str, name: str, **arguments: Any) -> dict[str, Any]:
    text = json.dumps(arguments, ensure_ascii=False)
    return {"type": "function", "id": call_id, "function": {"name": name, "arguments": text}}


CALLS = [
    tool_call("a", "weather", city='Köln "x" <y>\n{z}', days=3, units=["°C", {"k": None}]),
    tool_call("b", "now"),
]
ANSWERED: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "content": "I look.", "reasoning_content": "Look first.", "tool_calls": CALLS},
    {"role": "tool", "tool_call_id": "b", "content": "12:00"},
    {"role": "tool", "tool_call_id": "a", "content": "Sun"},
]
CHATS = {"first turn": ANSWERED[:2], "no system message": ANSWERED[1:2], "after the calls": ANSWERED}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("chat.cpp", tmp_path_factory.mktemp("llama-chat"))[0]


def ask(program: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    done = subprocess.run([program], input=json.dumps(requests), capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    replies: list[dict[str, Any]] = json.loads(done.stdout)
    return replies


def test_tools(program: Path) -> None:
    requests, expected = [], []
    for release in ("preview", "0731"):
        for messages in CHATS.values():
            for effort in (None, "high", "max"):
                for thinking in (False, True):
                    mode: dict[str, Any] = {"thinking": thinking, "effort": effort, "release": release}
                    prompt = pyflash.chat.encode(pyflash.chat.with_tools(messages, TOOLS), **mode)
                    reply = {"role": "assistant", "content": "So:", "tool_calls": CALLS}
                    if thinking:
                        reply["reasoning_content"] = "Both at once."
                    whole = pyflash.chat.encode(pyflash.chat.with_tools([*messages, reply], TOOLS), **mode)
                    requests.append({
                        "template": chat_template(release), "messages": messages, "tools": TOOLS,
                        "enable_thinking": thinking, "kwargs": {"reasoning_effort": effort} if effort else {},
                        "answer": whole[len(prompt) :].removesuffix(pyflash.chat.EOS),
                    })
                    expected.append((prompt, reply))
    for reply, (prompt, message) in zip(ask(program, requests), expected, strict=True):
        assert reply["prompt"] == prompt
        read = reply["message"]
        assert read["content"] == message["content"]
        assert read.get("reasoning_content") == message.get("reasoning_content")
        calls = [call["function"] for call in read["tool_calls"]]
        assert [(call["name"], json.loads(call["arguments"])) for call in calls] == [
            (call["function"]["name"], json.loads(call["function"]["arguments"])) for call in CALLS
        ]


def test_capabilities(program: Path) -> None:
    """What llama.cpp finds out by trying the template, and tells programs that offer switches for it."""
    request = {"messages": CHATS["first turn"], "tools": TOOLS, "enable_thinking": True, "kwargs": {}, "answer": "x"}
    for reply in ask(program, [request | {"template": chat_template(release)} for release in ("preview", "0731")]):
        wanted = ("tools", "tool_calls", "parallel_tool_calls", "object_arguments", "system_role", "preserve_reasoning",
                  "reasoning_effort", "string_content")  # fmt: skip
        assert {name: reply["capabilities"][f"supports_{name}"] for name in wanted} == dict.fromkeys(wanted, True)
