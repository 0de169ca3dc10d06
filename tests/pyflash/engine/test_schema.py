"""Schemas with words that no grammar can hold: generated without them, and the finished answer validated."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash import Grammar

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")

Say = Callable[..., list[int]]  # the fixture's

QUESTION = [{"role": "user", "content": "Tell me."}]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny_model, threads=1) as opened:
        yield opened


@pytest.fixture
def session(model: pyflash.Model) -> Iterator[pyflash.Session]:
    with model.session(context=3000) as opened:
        yield opened


def of(**schema: Any) -> dict[str, Any]:
    """An object with one member, x."""
    return {"type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False}


INTEGERS = {"type": "array", "items": {"type": "integer"}}
# name: schema, an answer that it allows, one that it does not and the grammar cannot help, where, which rule
CASES: dict[str, tuple[dict[str, Any], Any, Any, str, str]] = {
    "not": (of(type="integer", **{"not": {"const": 3}}), {"x": 4}, {"x": 3}, "$.x", "not"),
    "if": (of(type="integer", **{"if": {"minimum": 5}, "then": {"multipleOf": 2}}), {"x": 6}, {"x": 7}, "$.x", "multipleOf"),
    "else": (of(type="integer", **{"if": {"minimum": 5}, "else": {"const": 1}}), {"x": 1}, {"x": 2}, "$.x", "const"),
    "uniqueItems": (of(**INTEGERS, uniqueItems=True), {"x": [1, 2]}, {"x": [1, 1]}, "$.x", "uniqueItems"),
    "contains": (of(**INTEGERS, contains={"const": 7}), {"x": [7]}, {"x": [8]}, "$.x", "contains"),
    "oneOf": (of(oneOf=[{"type": "integer"}, {"type": "number", "minimum": 9}]), {"x": 5}, {"x": 10}, "$.x", "oneOf"),
    "format": (of(type="string", format="regex"), {"x": "a+"}, {"x": "("}, "$.x", "format"),
    "look-ahead": (of(type="string", pattern="^(?!no)"), {"x": "yes"}, {"x": "no"}, "$.x", "pattern"),
    "dependentRequired": (
        {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
         "dependentRequired": {"a": ["b"]}},
        {"a": 1, "b": 2}, {"a": 1}, "$", "dependentRequired"),
    "propertyNames": ({"type": "object", "propertyNames": {"maxLength": 2}}, {"ab": 1}, {"abc": 1}, "$", "maxLength"),
    "names": ({"type": "object", "patternProperties": {"^(?!n)": {"type": "integer"}, "^n": {"type": "string"}},
               "additionalProperties": False}, {"a": 1, "n": "x"}, {"a": "x"}, "$.a", "type"),
    "unevaluated": ({"type": "object", "properties": {"a": {}}, "unevaluatedProperties": False}, {"a": 1}, {"b": 1}, "$",
                    "unevaluatedProperties"),
    "deep": (of(**{"type": "array", "items": {"type": "object", "properties": {"not": {"not": {"const": 1}}}}}),
             {"x": [{"not": 2}]}, {"x": [{}, {"not": 1}]}, "$.x[1].not", "not"),
    "named as keywords": (
        {"type": "object", "properties": {"enum": {"not": {"const": 1}}, "pattern": {"type": "integer"}}},
        {"enum": 2, "pattern": 1}, {"enum": 1}, "$.enum", "not"),
    "reference": ({"$defs": {"odd": {"not": {"multipleOf": 2}, "type": "integer"}}, **of(**{"$ref": "#/$defs/odd"})},
                  {"x": 3}, {"x": 4}, "$.x", "not"),
    "$id": ({"$id": "https://example.com/a", "$defs": {"b": {"$id": "b", "type": "integer", "not": {"const": 1}}},
             **of(**{"$ref": "b"})}, {"x": 3}, {"x": 1}, "$.x", "not"),
    "draft 7": ({"$schema": "http://json-schema.org/draft-07/schema#", "type": "object", "dependencies": {"a": ["b"]}},
                {"b": 1}, {"a": 1}, "$", "dependencies"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_finished_answers_are_validated(session: pyflash.Session, say: Say, case: str) -> None:
    schema, good, bad, where, rule = CASES[case]
    say(session, json.dumps(good))
    reply = session.chat(QUESTION, response_format=schema)
    assert not any(piece.problem for piece in reply) and reply.finish == "stop"
    assert json.loads(reply.message["content"]) == good
    say(session, json.dumps(bad))
    reply = session.chat(QUESTION, response_format=schema)
    pieces: list[pyflash.ChatPiece] = []
    with pytest.raises(pyflash.AnswerError) as caught:
        for piece in reply:
            pieces.append(piece)
    message = str(caught.value)
    assert f"breaks the schema at {where}: " in message and f"{rule})" in message and "\n" not in message
    assert json.loads(reply.message["content"]) == bad and reply.finish == pieces[-1].finish == "stop"
    assert pieces[-1].problem == message and list(reply) == []


@pytest.mark.parametrize("case", CASES)
def test_what_a_grammar_can_hold_still_binds(session: pyflash.Session, case: str) -> None:
    """Random weights: every finished answer is JSON of the kind, or else an error."""
    schema = CASES[case][0]
    for seed in range(3):
        reply = session.chat(QUESTION, response_format=schema, max_tokens=200, seed=seed)
        try:
            list(reply)
        except pyflash.AnswerError:
            pass
        if reply.finish == "stop":
            value = json.loads(reply.message["content"])
            assert isinstance(value, dict) and set(schema.get("required", ())) <= set(value)


def test_generate_validates_too(session: pyflash.Session, say: Say) -> None:
    grammar = Grammar.json_schema(CASES["not"][0])
    say(session, '{"x": 4}')
    assert "".join(piece.text for piece in session.generate([5], grammar=grammar)) == '{"x": 4}'
    say(session, '{"x": 3}')
    with pytest.raises(pyflash.AnswerError, match=r"at \$\.x"):
        list(session.generate([5], grammar=grammar))


def test_cut_answers_are_not_validated(session: pyflash.Session, say: Say) -> None:
    schema = CASES["not"][0]
    say(session, '{"x": 3}')
    assert list(session.chat(QUESTION, response_format=schema, max_tokens=2))
    say(session, '{"x": 3}')
    assert list(session.chat(QUESTION, response_format=schema, stop=["3"]))
    say(session, '{"x": 3}')
    assert list(session.generate([5], 2, grammar=Grammar.json_schema(schema)))


def test_prefix_and_schema(session: pyflash.Session, say: Say) -> None:
    """The grammar goes on where the given text ends, and the whole is validated."""
    schema = CASES["not"][0]
    begun = [*QUESTION, {"role": "assistant", "content": '{"x": ', "prefix": True}]
    say(session, "4}")
    reply = session.chat(begun, response_format=schema)
    list(reply)
    assert reply.message["content"] == "4}"
    say(session, "3}")
    with pytest.raises(pyflash.AnswerError):
        list(session.chat(begun, response_format=schema))
    begun[1]["content"] = '{"y": '
    with pytest.raises(pyflash.ArgumentError, match="does not begin"):
        session.chat(begun, response_format=schema)


def test_tools_beside_such_a_schema(session: pyflash.Session, say: Say) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    calls = ('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="find">\n<｜DSML｜parameter name="x" string="false">3'
             "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>")  # fmt: skip
    schema = CASES["not"][0]
    say(session, calls)
    reply = session.chat(QUESTION, tools=tools, response_format=schema)
    list(reply)
    assert len(reply.message["tool_calls"]) == 1
    say(session, '{"x": 3}')
    with pytest.raises(pyflash.AnswerError):
        list(session.chat(QUESTION, tools=tools, response_format=schema))


def test_after_thinking(session: pyflash.Session, say: Say) -> None:
    say(session, 'hm</think>{"x": 3}')
    reply = session.chat(QUESTION, "high", response_format=CASES["not"][0])
    with pytest.raises(pyflash.AnswerError):
        list(reply)
    assert reply.message["reasoning_content"] == "hm"


def test_async(session: pyflash.Session, say: Say) -> None:
    """The grammar is used on another thread then."""
    import asyncio

    async def work() -> list[Any]:
        return [piece async for piece in session.chat(QUESTION, response_format=CASES["not"][0])]

    say(session, '{"x": 4}')
    assert "".join(piece.text for piece in asyncio.run(work())) == '{"x": 4}'
    say(session, '{"x": 3}')
    with pytest.raises(pyflash.AnswerError):
        asyncio.run(work())


# -- schemas that cannot be used --


def nested(depth: int, last: Any = True) -> dict[str, Any]:
    schema: dict[str, Any] = {"not": last}
    for _ in range(depth):
        schema = {"properties": {"a": schema}}
    return schema


BAD: dict[str, tuple[Any, str]] = {
    "NaN": ({"const": float("nan")}, "not JSON"),
    "infinity": ({"maximum": float("inf")}, "not JSON"),
    "NaN as text": ('{"const": NaN}', "not JSON"),
    "1e400": ('{"maximum": 1e400}', "not JSON"),
    "lone surrogate": ({"const": "\ud800"}, "not JSON"),
    "lone surrogate as text": ('{"const": "\\ud800"}', "not JSON"),
    "lone surrogate in the text": ('{"const": "\ud800"}', "not JSON"),
    "deep": (nested(60), "nested"),
    "very deep": (nested(20_000), "nested"),
    "deep text": ("[" * 100_000, "nested|not JSON"),
    "large number": ('{"maximum": 1' + "0" * 5000 + "}", "not JSON"),
    "set": ({"enum": {1, 2}}, "not JSON"),
    "bytes": (b"{}", "not JSON"),
    "none": (None, "not JSON|object"),
    "true": (True, "object"),
    "type of not": ({"not": 5}, "wrong at|cannot be used"),
    "required": ({"not": {}, "required": "a"}, "cannot be used|wrong at"),
    "inner type": ({"not": {"type": "objekt"}}, "wrong at"),
    "remote": ({"$ref": "http://127.0.0.1:9/schema.json"}, "."),
    "remote within not": ({"not": {"$ref": "http://127.0.0.1:9/schema.json"}}, "fetch"),
    "file within not": ({"not": {"$ref": "file:///etc/passwd"}}, "fetch"),
    "missing within not": ({"not": {"$ref": "#/$defs/a"}}, "nothing is fetched"),
    "odd reference": ({"not": {"$ref": "http://["}}, "."),
    "$schema": ({"$schema": [], "not": {}}, "."),
    "pattern": ({"not": {"pattern": "("}}, "."),
    "pattern that is not Python's": ({"type": "string", "pattern": "\\p{L}", "not": {"const": "a"}}, "Python"),
    "options": ({"x-guidance": 5}, "x-guidance"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_schemas(session: pyflash.Session, case: str) -> None:
    schema, reason = BAD[case]
    with pytest.raises(pyflash.ArgumentError, match=reason) as caught:
        Grammar.json_schema(schema)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    if isinstance(schema, dict):
        for tools in (None, [{"function": {"name": "f"}}]):
            with pytest.raises(pyflash.ArgumentError) as caught:
                session.chat(QUESTION, tools=tools, response_format=schema)
            assert "\n" not in str(caught.value)


def test_answers_that_cannot_be_checked(session: pyflash.Session, say: Say) -> None:
    schema = {"$ref": "#/$defs/a", "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}, "uniqueItems": True}}}
    deep = "[" * 1200 + "]" * 1200
    with pytest.raises(pyflash.AnswerError) as caught:
        Grammar.json_schema(schema).check(deep)  # type: ignore[misc]
    assert "\n" not in str(caught.value)


def test_schemas_that_a_grammar_holds_need_no_validation() -> None:
    assert Grammar.json_schema(of(type="integer", minimum=3)).check is None
    assert Grammar.json().check is None


def test_meta_schema_can_be_named(session: pyflash.Session) -> None:
    check = Grammar.json_schema({"$schema": "https://json-schema.org/draft/2020-12/schema", "not": {
        "$ref": "https://json-schema.org/draft/2020-12/schema"}}).check  # fmt: skip
    assert check is not None
    with pytest.raises(pyflash.AnswerError):
        check("{}")


def test_without_jsonschema(tiny_model: Path) -> None:
    program = """
import sys, pyflash
sys.modules["jsonschema"] = None
with pyflash.Model.open(sys.argv[1]) as model, model.session(context=200) as session:
    question = [{"role": "user", "content": "x"}]
    for call in (lambda: pyflash.Grammar.json_schema({"not": {}}),
                 lambda: session.chat(question, response_format={"not": {}})):
        try:
            call()
        except pyflash.UnsupportedError as error:
            print(error)
    assert session.position == 0
    list(session.chat(question, response_format={"type": "integer"}, max_tokens=2))
"""
    done = subprocess.run([sys.executable, "-c", program, str(tiny_model)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2 and all("pip install jsonschema" in line for line in lines)
