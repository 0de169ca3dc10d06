"""Custom tools of Chat Completions: a free text to the client, a function of one string to the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import ask, run, serving
from test_replay import Scripted

from pyflash.serve import chat_completions
from pyflash.serve.errors import RequestError

CHAT = "/v1/chat/completions"
PATCH = '*** Begin Patch\n+"x"\\n ü\t\n'
TOOLS: list[dict[str, Any]] = [
    {"type": "custom", "custom": {"name": "apply_patch", "description": "Patches.", "format": {
        "type": "grammar", "grammar": {"syntax": "lark", "definition": "start: /x/"}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
    {"type": "web_search"},
]  # fmt: skip
USER = {"role": "user", "content": "Patch it."}


def test_they_are_read() -> None:
    named = {"type": "custom", "custom": {"name": "apply_patch"}}
    request = chat_completions.read({"messages": [USER], "tools": TOOLS, "tool_choice": named})
    assert request.tools["apply_patch"].syntax == ("lark", "start: /x/") and request.tool_names == ("apply_patch",)
    assert request.tool_schemas[0]["function"]["parameters"]["required"] == ["input"]
    assert "start: /x/" in request.tool_schemas[0]["function"]["description"] and len(request.notes) == 1
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [named]}}
    assert chat_completions.read({"messages": [USER], "tools": TOOLS, "tool_choice": allowed}).tool_names == ("apply_patch",)


@pytest.mark.parametrize(("change", "param"), [
    ({"tools": [{"type": "custom"}]}, "tools[0].custom"), ({"tools": [{"type": "custom", "custom": {}}]}, "tools[0].custom.name"),
    ({"tools": TOOLS, "tool_choice": {"type": "custom"}}, "tool_choice.custom"),
    ({"tools": [{"type": "custom", "custom": {"name": "a", "format": {"type": "bnf"}}}]}, "tools[0].custom.format.type"),
    ({"messages": [USER, {"role": "assistant", "tool_calls": [{"type": "custom"}]}]}, "messages[1].tool_calls[0].custom"),
])  # fmt: skip
def test_what_is_wrong_is_named(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        chat_completions.read({"messages": [USER], **change})
    assert caught.value.param == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_call_and_its_replay(demo_model: Path, monkeypatch: pytest.MonkeyPatch, stream: bool) -> None:
    openai_chat = pytest.importorskip("openai.types.chat", reason="openai is not installed")
    script = Scripted(monkeypatch)
    mark = "!｜DSML｜"
    body = {"messages": [USER], "tools": TOOLS, "reasoning_effort": "none", "stream": stream,
            "stream_options": {"include_usage": True}, "max_tokens": 300}
    with serving(demo_model) as server:
        script.say(server, "\n\n<", mark, "tool_calls>\n<", mark, 'invoke name="apply_patch">\n<', mark,
                   f'parameter name="input" string="true">{PATCH}</', mark, "parameter>\n</", mark, "invoke>\n</", mark, "tool_calls>")
        response = run(ask(server, "POST", CHAT, body))
        if stream:
            pieces = [piece for event in response.events() for choice in event["choices"]
                      for piece in choice["delta"].get("tool_calls", ())]  # fmt: skip
            assert pieces[0]["type"] == "custom" and pieces[0]["custom"] == {"name": "apply_patch", "input": ""}
            text = "".join(piece["custom"]["input"] for piece in pieces)
            call = {"id": pieces[0]["id"], "type": "custom", "custom": {"name": "apply_patch", "input": text}}
            usage = response.events()[-1]["usage"]
        else:
            whole = openai_chat.ChatCompletion.model_validate_json(response.body)
            assert whole.choices[0].message.tool_calls[0].custom.input == PATCH
            call = response.json()["choices"][0]["message"]["tool_calls"][0]
            usage = response.json()["usage"]
        assert call["custom"]["input"] == PATCH
        result = {"role": "tool", "tool_call_id": call["id"], "content": "Done."}
        again = {**body, "stream": False, "messages": [USER, {"role": "assistant", "content": "", "tool_calls": [call]}, result]}
        script.say(server, "Good.")
        after = run(ask(server, "POST", CHAT, again)).json()["usage"]
        assert after["prompt_tokens_details"]["cached_tokens"] >= usage["total_tokens"] - 1
    assert json.dumps(call)
