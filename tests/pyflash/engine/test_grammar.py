"""Grammars: whatever random weights would like to say, the text matches."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyflash
from pyflash import Grammar, chat
from pyflash.chat.format import calls_block
from pyflash.engine.grammar import json_or_calls

pytest.importorskip("llguidance")

Say = Callable[..., list[int]]  # the fixture's

QUESTION = [{"role": "user", "content": "Tell me about a person."}]
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "languages": {"type": "array", "items": {"enum": ["de", "fr", "日本語"]}, "minItems": 1, "maxItems": 3},
        "code": {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{2}$"},
        "married": {"type": ["boolean", "null"]},
    },
    "required": ["name", "age", "languages", "code", "married"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny_model, threads=1) as opened:
        yield opened


@pytest.fixture
def session(model: pyflash.Model) -> Iterator[pyflash.Session]:
    with model.session(context=3000) as opened:
        yield opened


def check_person(text: str) -> None:
    person = json.loads(text)
    assert list(person) == PERSON["required"]
    assert isinstance(person["name"], str) and len(person["name"]) <= 12
    assert type(person["age"]) is int and 0 <= person["age"] <= 150
    assert 1 <= len(person["languages"]) <= 3 and set(person["languages"]) <= {"de", "fr", "日本語"}
    assert re.fullmatch("[A-Z]{3}-[0-9]{2}", person["code"])
    assert person["married"] in (True, False, None)


def complete(session: pyflash.Session, grammar: Grammar, seed: int) -> str | None:
    """A text of the grammar; None when it had no time to end."""
    pieces = list(session.generate([5, 6], grammar=grammar, max_tokens=600, seed=seed))
    session.rollback(session.position)
    return "".join(piece.text for piece in pieces) if pieces[-1].finish == "stop" else None


def test_json_schema(session: pyflash.Session) -> None:
    grammar = Grammar.json_schema(PERSON)
    texts = [complete(session, grammar, seed) for seed in range(10)]
    for text in texts:
        assert text is not None
        check_person(text)
    assert len(set(texts)) == 10
    from_text = complete(session, Grammar.json_schema(json.dumps(PERSON)), 0)
    assert from_text == texts[0]


def test_any_json_object(session: pyflash.Session) -> None:
    done = [text for seed in range(8) if (text := complete(session, Grammar.json(), seed)) is not None]
    assert done and all(isinstance(json.loads(text), dict) for text in done)


def test_regex(session: pyflash.Session) -> None:
    for seed in range(8):
        text = complete(session, Grammar.regex(r"(yes|no|vielleicht, ü)(!|\?){0,3}"), seed)
        assert text is not None and re.fullmatch(r"(yes|no|vielleicht, ü)[!?]{0,3}", text)


def test_lark(session: pyflash.Session) -> None:
    grammar = Grammar.lark('start: sum\nsum: NUMBER (" + " NUMBER){1,4}\nNUMBER: /[1-9][0-9]{0,2}/\n')
    for seed in range(8):
        text = complete(session, grammar, seed)
        assert text is not None and re.fullmatch(r"[1-9]\d{0,2}( \+ [1-9]\d{0,2}){1,4}", text)


def test_text_of_a_special_token_is_never_that_token(model: pyflash.Model, session: pyflash.Session) -> None:
    end = model.tokenizer.token_id("</think>")
    for seed in range(5):
        pieces = list(session.generate([5], grammar=Grammar.lark('start: "</think>"'), seed=seed))
        assert "".join(piece.text for piece in pieces) == "</think>"
        assert end not in [piece.token for piece in pieces]


def test_greedy_and_penalties_obey_too(session: pyflash.Session) -> None:
    grammar = Grammar.json_schema(PERSON)
    for options in ({"temperature": 0}, {"repetition_penalty": 5.0}, {"top_k": 1}, {"top_p": 0.01}, {"min_p": 1.0}):
        pieces = list(session.generate([5], grammar=grammar, max_tokens=400, **options))  # type: ignore[arg-type]
        text = "".join(piece.text for piece in pieces)
        if pieces[-1].finish == "stop":
            check_person(text)
        else:
            assert text.startswith("{")
        session.rollback(session.position)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (Grammar.json_schema, {"type": "objekt"}),
        (Grammar.json_schema, {"$ref": "#/nowhere"}),
        (Grammar.json_schema, {"type": "string", "pattern": "("}),
        (Grammar.json_schema, {"enum": []}),
        (Grammar.json_schema, {"enum": [object]}),
        (Grammar.json_schema, "{"),
        (Grammar.json_schema, "[]"),
        (Grammar.json_schema, 5),
        (Grammar.regex, "("),
        (Grammar.regex, "a(?=b)"),
        (Grammar.regex, 5),
        (Grammar.regex, "\ud800"),
        (Grammar.lark, 'start: "\ud800"'),
        (Grammar.lark, "begin: x"),
        (Grammar.lark, "start: x"),
        (Grammar.lark, ""),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_bad_grammars(make: Callable[[Any], Grammar], text: Any) -> None:
    with pytest.raises(pyflash.ArgumentError) as caught:
        make(text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) > 20


def test_without_the_extra(tiny_model: Path) -> None:
    program = """
import sys, pyflash
sys.modules["llguidance"] = None
with pyflash.Model.open(sys.argv[1]) as model, model.session(context=200) as session:
    calls = [pyflash.Grammar.json, lambda: pyflash.Grammar.regex("x"), lambda: pyflash.Grammar.lark("start: /x/"),
             lambda: session.chat([{"role": "user", "content": "x"}], response_format={"type": "json_object"})]
    for call in calls:
        try:
            call()
        except pyflash.UnsupportedError as error:
            print(error)
    list(session.chat([{"role": "user", "content": "x"}], max_tokens=2))
"""
    done = subprocess.run([sys.executable, "-c", program, tiny_model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all("pip install llguidance" in line for line in lines)


# -- chat --


@pytest.mark.parametrize(
    "response_format",
    [PERSON, {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}],
    ids=["schema", "OpenAI's"],
)
def test_response_format(session: pyflash.Session, response_format: dict[str, Any]) -> None:
    for seed in range(4):
        reply = session.chat(QUESTION, response_format=response_format, seed=seed, max_tokens=600)
        pieces = list(reply)
        assert reply.finish == "stop" and not any(piece.problem for piece in pieces)
        check_person(reply.message["content"])
    prompt = session.model.tokenizer.decode(session.tokens[: reply.n_prompt])
    assert prompt.startswith(f"\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"
                             f"{json.dumps(PERSON, ensure_ascii=False)}")  # fmt: skip


def test_response_format_leaves_the_reasoning_free(session: pyflash.Session, say: Say) -> None:
    say(session, "a person, { say", end=False)
    reply = session.chat(QUESTION, "high", response_format=PERSON, max_tokens=300, seed=3)
    list(reply)
    assert reply.message["reasoning_content"].startswith("a person, { say")


def test_response_format_binds_what_follows_the_reasoning(session: pyflash.Session, say: Say) -> None:
    for seed in range(3):
        say(session, "a person, { say</think>", end=False)
        reply = session.chat(QUESTION, "high", response_format=PERSON, max_tokens=600, seed=seed)
        list(reply)
        assert reply.message["reasoning_content"] == "a person, { say" and reply.finish == "stop"
        check_person(reply.message["content"])


def test_answer_cannot_end_within_the_reasoning(session: pyflash.Session, say: Say) -> None:
    say(session, "well")  # and then the end token, were it allowed
    reply = session.chat(QUESTION, "high", response_format=PERSON, max_tokens=20, seed=1)
    list(reply)
    assert reply.finish == "length" and reply.n_generated == 20


def test_json_object_and_text(session: pyflash.Session, say: Say) -> None:
    say(session, '{"a": [1, 2]}')
    reply = session.chat(QUESTION, response_format={"type": "json_object"})
    list(reply)
    assert json.loads(reply.message["content"]) == {"a": [1, 2]}
    say(session, "plain")
    reply = session.chat(QUESTION, response_format={"type": "text"})
    list(reply)
    assert reply.message["content"] == "plain"


def test_tools_stay_possible_beside_a_schema(session: pyflash.Session, say: Say) -> None:
    tools = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object"}}}]
    calls = ('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="find">\n<｜DSML｜parameter name="name" string="true">Ada'
             "</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>")  # fmt: skip
    say(session, calls)
    reply = session.chat(QUESTION, tools=tools, response_format=PERSON)
    list(reply)
    assert [call["function"]["name"] for call in reply.message["tool_calls"]] == ["find"]
    n_json = 0
    for seed in range(12):
        reply = session.chat(QUESTION, tools=tools, response_format=PERSON, max_tokens=600, seed=seed)
        problems = [piece.problem for piece in reply if piece.problem]
        if reply.finish == "stop" and not reply.message["tool_calls"]:
            check_person(reply.message["content"])
            n_json += 1
        assert not problems or reply.finish == "length"
    assert n_json >= 3


@pytest.mark.parametrize("arguments", [
    {}, {"city": 'Paris "P" </ <', "x": ""}, {"days": 3, "list": [1, {"a": None}], "text": "a\n\nb <"},
], ids=str)  # fmt: skip
def test_published_calls_stay_possible_beside_a_schema(model: pyflash.Model, arguments: dict[str, Any]) -> None:
    tokenizer = model.tokenizer
    marker = tokenizer.token_id(chat.DSML)
    assert marker is not None
    calls = calls_block([{"function": {"name": "find", "arguments": json.dumps(arguments)}}] * 2)
    matcher = json_or_calls({"title": "MARK"}, marker).matcher(tokenizer, model.info)
    for token in [*tokenizer.encode_segments(calls), model.info.eos_token]:
        assert int(matcher.allowed()[token // 32]) >> token % 32 & 1
        if token != model.info.eos_token:
            matcher.consume(token)


@pytest.mark.parametrize(
    "response_format",
    [{"type": "json_schema"}, {"type": "json_schema", "json_schema": {"schema": 5}}, "json", {"type": "objekt"}],
    ids=str,
)
def test_bad_response_formats(session: pyflash.Session, response_format: Any) -> None:
    tools = [{"type": "function", "function": {"name": "find"}}]
    with pytest.raises(pyflash.ArgumentError) as caught:
        session.chat(QUESTION, tools=tools, response_format=response_format)
    assert "DSML" not in str(caught.value) and "start:" not in str(caught.value)
    with pytest.raises(pyflash.ArgumentError):
        session.chat(QUESTION, response_format=response_format)


def test_masks_reach_the_last_token(model: pyflash.Model) -> None:
    allowed = Grammar.regex("(?s:.*)").matcher(model.tokenizer, model.info).allowed()
    bits = np.unpackbits(allowed.view(np.uint8), bitorder="little")
    tokens, special = model.tokenizer.vocabulary()
    ordinary = [token for token in range(len(tokens)) if token not in special]
    assert bits[model.info.eos_token] and not any(bits[token] for token in special if token != model.info.eos_token)
    whole = [token for token in ordinary if tokens[token].decode("utf-8", "ignore").encode() == tokens[token]]
    assert all(bits[token] for token in whole) and max(whole) > 600
