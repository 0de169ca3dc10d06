"""Calls that a random model cannot get wrong, and a model that is left alone where it calls nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from serving import ask, run, serving
from test_replay import Scripted

pytest.importorskip("llguidance")

TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "set_mode", "parameters": {"type": "object", "properties": {
        "mode": {"enum": ["on", "off"], "type": "string"}, "level": {"type": "integer", "minimum": 0, "maximum": 9},
        "loud": {"type": "boolean"}, "note": {"type": "string"}}, "required": ["loud", "level"]}}},
    {"type": "function", "function": {"name": "odd.name-[x]", "description": "odd", "parameters": {
        "type": "object", "$defs": {"side": {"enum": ["left", "right"]}}, "properties": {
            'a "quoted" one': {"type": "string"}, "side": {"$ref": "#/$defs/side"}, "flags (2)": {"type": "boolean"}}}}},
    {"type": "function", "function": {"name": "nothing", "parameters": {"type": "object", "properties": {}}}},
]
NO_TEXT = [{"type": "function", "function": {**tool["function"], "parameters": {**tool["function"]["parameters"], "properties": {
    name: schema for name, schema in tool["function"]["parameters"]["properties"].items() if schema.get("type") != "string"
}}}} for tool in TOOLS]  # a random model hardly ever ends a text


def chat(server: Any, **more: Any) -> Any:
    body = {"messages": [{"role": "user", "content": "Do something."}], "max_tokens": 300, **more}
    response = run(ask(server, "POST", "/v1/chat/completions", body))
    assert response.status == 200, response.body
    return response.json()["choices"][0]


def check(choice: Any, tools: list[dict[str, Any]]) -> int:
    """That the calls are of the tools; returns how many there are."""
    import jsonschema

    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in tools}
    calls = choice["message"].get("tool_calls") or []
    for call in calls:
        schema = schemas[call["function"]["name"]]
        jsonschema.validate(json.loads(call["function"]["arguments"]), {**schema, "additionalProperties": False})
    assert "DSML" not in (choice["message"]["content"] or "")
    return len(calls)


def test_calls_of_a_random_model(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch)
    with serving(tiny_model) as server:
        eos = server.engine.use().model.info.eos_token
        n = 0
        for seed in range(10):
            script.say(server, "Well.\n\n<", "!｜DSML｜")
            script.tokens.remove(eos)
            choice = chat(server, tools=NO_TEXT, seed=seed)
            found = check(choice, NO_TEXT)
            assert found or choice["finish_reason"] == "length"
            n += found
        assert n > 8


@pytest.mark.parametrize("think", ["none", "high"])
def test_a_tool_must_be_called(tiny_model: Path, think: str) -> None:
    with serving(tiny_model) as server:
        for seed in range(2):
            choice = chat(server, tools=NO_TEXT, seed=seed, tool_choice="required", reasoning_effort=think, max_tokens=600)
            assert check(choice, NO_TEXT) or choice["finish_reason"] == "length"
            named = {"type": "function", "function": {"name": "nothing"}}
            choice = chat(server, tools=NO_TEXT, seed=seed, tool_choice=named, reasoning_effort=think, max_tokens=600,
                          parallel_tool_calls=False)
            if choice["finish_reason"] != "length":
                assert [call["function"]["name"] for call in choice["message"]["tool_calls"]] == ["nothing"]


def test_texts_of_a_call(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The grammar lets through what a model writes well, to the letter."""
    script = Scripted(monkeypatch)
    mark = "!｜DSML｜"
    text = 'a "text"\n</b> < ｜ <invoke> über 東京'
    with serving(demo_model) as server:
        script.say(server, "\n\n<", mark, "tool_calls>\n<", mark, 'invoke name="set_mode">\n<', mark,
                   f'parameter name="note" string="true">{text}</', mark, "parameter>\n<", mark,
                   'parameter name="level" string="false">7</', mark, "parameter>\n<", mark,
                   'parameter name="loud" string="false">true</', mark, "parameter>\n</", mark, "invoke>\n<", mark,
                   'invoke name="nothing">\n', "\n</", mark, "invoke>\n</", mark, "tool_calls>")
        choice = chat(server, tools=TOOLS)
        calls = choice["message"]["tool_calls"]
        assert choice["finish_reason"] == "tool_calls"
        assert json.loads(calls[0]["function"]["arguments"]) == {"note": text, "level": 7, "loud": True}
        assert calls[1]["function"] == {"name": "nothing", "arguments": "{}"}


def test_prose_is_free(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token within a line opens no calls."""
    script = Scripted(monkeypatch)
    with serving(demo_model) as server:
        script.say(server, "It writes <", "!｜DSML｜", "tool_calls> there.")
        choice = chat(server, tools=TOOLS)
        assert choice["message"]["content"] and not choice["message"].get("tool_calls")


def test_without_tools_nothing_is_held(demo_model: Path) -> None:
    with serving(demo_model) as server:
        assert chat(server, temperature=0)["finish_reason"] == "stop"


@pytest.mark.parametrize(("schema", "kinds", "listed"), [
    ({}, (True, True), None), (True, (True, True), None), ({"type": "string"}, (True, False), None),
    ({"type": ["string", "null"]}, (True, True), None), ({"type": "integer"}, (False, True), None),
    ({"enum": ["a", "b"]}, (True, False), ["a", "b"]), ({"enum": ["a", 1]}, (True, True), ["a"]),
    ({"const": 5}, (False, True), None), ({"type": "string", "const": "x"}, (True, False), ["x"]),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, (False, True), None),
    ({"oneOf": [{"const": "now"}, {"const": "later"}]}, (True, False), ["now", "later"]),
    ({"anyOf": [{"const": "now"}, {"type": "string"}]}, (True, False), None),
    ({"anyOf": [{"enum": ["a"]}, {"type": "integer"}]}, (True, True), ["a"]),
    ({"$ref": "#/$defs/side"}, (True, False), ["left", "right"]), ({"$ref": "#/$defs/loop"}, (True, True), None),
    ({"$ref": "http://elsewhere/x"}, (True, True), None), ({"type": "string", "enum": [1]}, (True, True), None),
    ({"type": [], "enum": []}, (True, True), None),
])  # fmt: skip
def test_what_a_parameter_may_be(schema: Any, kinds: tuple[bool, bool], listed: list[str] | None) -> None:
    from pyflash.serve import tool_grammar

    root = {"$defs": {"side": {"enum": ["left", "right"]}, "loop": {"$ref": "#/$defs/loop"}}}
    assert tool_grammar._kinds(schema, root) == kinds
    assert tool_grammar._listed(schema, root) == listed
