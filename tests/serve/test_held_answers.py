"""What answers are held to, whatever the model wants: tools, a choice of them, a schema, an end of the thinking."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import ask, run, serving
from test_replay import TOOLS as WEATHER
from test_replay import call
from tool_lists import LISTS, tool

from pyflash import ArgumentError, UnsupportedError
from pyflash.serve.answer import repeats
from pyflash.serve.application import Application

pytest.importorskip("llguidance")
jsonschema = pytest.importorskip("jsonschema")

USER = [{"role": "user", "content": "Do something."}]
CLOSING = set('"}]></\n,')


class Wild:
    """A model that writes anything it may, and what closes a text or a list rather often, since it would not end else.

    say: what it writes first, token by token, as far as it may."""

    def __init__(self, server: Application, monkeypatch: pytest.MonkeyPatch, seed: int = 0) -> None:
        from pyflash.engine import sampling

        model = server.engine.use().model
        self.tokenizer, self.info = model.tokenizer, model.info
        self.random = random.Random(seed)
        self.say: list[int] = []
        special = {self.token(text) for text in ("</think>", "｜DSML｜")} | {model.info.eos_token}
        texts = {n: model.tokenizer.decode([n]) for n in range(model.info.n_vocab)}
        all_special = {*special, *model.tokenizer.vocabulary()[1]}
        self.plain = [n for n, text in texts.items() if text and n not in all_special and "x" not in text]
        # What ends a text within a call; small vocabularies write "</" in two tokens.
        self.ends = [[self.token("｜DSML｜")], *(model.tokenizer.encode(text) for text in ("</", '"'))]
        self.ending: list[int] = []  # the rest of it
        self.closing = special | {n for n, text in texts.items() if text and set(text) <= CLOSING}
        monkeypatch.setattr(sampling.Sampler, "pick", lambda sampler, logits, allowed=None: (self.pick(allowed), -1.0))

    def token(self, text: str) -> int:
        found = self.tokenizer.token_id(text)
        assert found is not None
        return found

    def script(self, *texts: str) -> None:
        for text in texts:
            self.say += self.tokenizer.encode(text.lstrip("!"), special=text.startswith("!"))

    def pick(self, allowed: Any) -> int:
        may = range(self.info.n_vocab) if allowed is None else [
            32 * n + bit for n in allowed.nonzero()[0].tolist() for bit in range(32) if int(allowed[n]) >> bit & 1]
        if self.say and self.say[0] in may:
            return self.say.pop(0)
        if len(may) >= self.info.n_vocab - 1:  # free
            return self.random.choice(self.plain)
        if self.ending and (token := self.ending.pop(0)) in may:
            return token
        for first, *self.ending in self.ends:
            if first in may and self.random.random() < 0.5:
                return first
        self.ending = []
        closing = self.closing & set(may)
        return self.random.choice(sorted(closing) if closing and self.random.random() < 0.4 else may)


@pytest.fixture(scope="module")
def server(tiny_model: Path) -> Iterator[Application]:
    with serving(tiny_model, context=12288) as made:
        yield made


@pytest.fixture
def wild(server: Application, monkeypatch: pytest.MonkeyPatch) -> Wild:
    return Wild(server, monkeypatch)


# -- a request in each of the three protocols that agents speak, and what its answer says --

JSON_SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}, "ok": {"type": "boolean"}},
               "required": ["n", "ok"], "additionalProperties": False}  # fmt: skip


def chat_body(tools: Any, choice: str | None, schema: Any, thinks: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": USER, "max_tokens": 600, "reasoning_effort": "high" if thinks else "none"}
    if tools:
        body["tools"] = [{"type": "function", "function": each} for each in tools]
    if choice:
        body["tool_choice"] = choice if choice in ("none", "required") else {"type": "function", "function": {"name": choice}}
    if schema:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    return body


def responses_body(tools: Any, choice: str | None, schema: Any, thinks: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"input": USER, "max_output_tokens": 600, "reasoning": {"effort": "high" if thinks else "none"}}
    if tools:
        body["tools"] = [{"type": "function", "strict": True, **each} for each in tools]
    if choice:
        body["tool_choice"] = choice if choice in ("none", "required") else {"type": "function", "name": choice}
    if schema:
        body["text"] = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    return body


def messages_body(tools: Any, choice: str | None, schema: Any, thinks: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"messages": USER, "max_tokens": 600, "thinking": {"type": "adaptive" if thinks else "disabled"}}
    if tools:
        body["tools"] = [{"name": each["name"], "input_schema": each["parameters"]} for each in tools]
    if choice:
        body["tool_choice"] = {"type": {"none": "none", "required": "any"}.get(choice, "tool"), "name": choice}
    if schema:
        body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    return body


BODIES = {"/v1/chat/completions": chat_body, "/v1/responses": responses_body, "/v1/messages": messages_body}


def said(body: Any) -> tuple[str, list[tuple[str, Any]], bool]:
    """The content, the calls, and whether the answer ended by itself."""
    if "choices" in body:
        message = body["choices"][0]["message"]
        calls = [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in message.get("tool_calls", ())]
        return message["content"], calls, body["choices"][0]["finish_reason"] != "length"
    if "output" in body:
        ended = body["status"] == "completed"
        calls = [(each["name"], json.loads(each["arguments"])) for each in body["output"]
                 if each["type"] == "function_call" and each["status"] == "completed"]  # fmt: skip
        content = "".join(each["content"][0]["text"] for each in body["output"] if each["type"] == "message")
        return content, calls, ended
    calls = [(each["name"], each["input"]) for each in body["content"] if each["type"] == "tool_use"]
    return "".join(each.get("text", "") for each in body["content"]), calls, body["stop_reason"] != "max_tokens"


def answer(server: Application, path: str, body: Any) -> tuple[str, list[tuple[str, Any]], bool]:
    response = run(ask(server, "POST", path, body))
    assert response.status == 200, response.body
    return said(response.json())


def check(calls: list[tuple[str, Any]], tools: list[dict[str, Any]]) -> None:
    """That calls are of the tools, with parameters that there are and values of their types."""
    schemas = {each["name"]: each["parameters"] for each in tools}
    for name, arguments in calls:
        schema = {key: value for key, value in schemas[name].items() if key != "required"}  # more than three are the client's
        jsonschema.validate(arguments, {**schema, "additionalProperties": False})
        required = schemas[name].get("required", ())
        assert len(required) > 3 or set(required) <= set(arguments), (name, arguments)


# -- tools --


def forced_calls(server: Application, wild: Wild, tools: list[dict[str, Any]], n: int) -> None:
    """So many calls: half where one must come, half from the token with which the model opens them by itself."""
    names, found, cut = set(), 0, 0
    while found < n:
        opens = (found + cut) % 2
        if opens:
            wild.script("Well.\n\n<", "!｜DSML｜")
        body = chat_body(tools, None if opens else "required", None, False) | {"max_tokens": 400}
        content, calls, ended = answer(server, "/v1/chat/completions", body)
        wild.say.clear()
        check(calls, tools)
        assert "DSML" not in content
        assert calls or not ended, content
        names |= {name for name, _ in calls}
        found += len(calls)
        cut += not ended
        assert cut <= 60 + 10 * found
    assert len(names) > min(len(tools), n) // 3


@pytest.mark.parametrize("name", LISTS)
def test_forced_calls(server: Application, wild: Wild, name: str) -> None:
    forced_calls(server, wild, LISTS[name], 4)


@pytest.mark.long
@pytest.mark.parametrize("name", LISTS)
def test_many_forced_calls(server: Application, wild: Wild, name: str) -> None:
    forced_calls(server, wild, LISTS[name], int(os.environ.get("PYFLASH_TEST_CALLS", "15")))


SMALL = [
    tool("mode", "level loud", level={"type": "integer", "minimum": 0, "maximum": 9}, loud={"type": "boolean"}),
    tool("nothing"), tool("say", "text", text={"type": "string"}),
]  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("thinks", [pytest.param(False, marks=pytest.mark.long), True])
@pytest.mark.parametrize(("choice", "schema"), [
    ("none", None), ("required", None), ("mode", None), ("none", JSON_SCHEMA), (None, JSON_SCHEMA), ("required", JSON_SCHEMA),
    ("mode", JSON_SCHEMA),
])  # fmt: skip
def test_choices(server: Application, wild: Wild, path: str, thinks: bool, choice: str | None, schema: Any) -> None:
    n_ended = n_json = n_calls = 0
    for _ in range(2):
        if thinks:
            wild.script("hm", "!</think>")
        content, calls, ended = answer(server, path, BODIES[path](SMALL, choice, schema, thinks))
        check(calls, SMALL)
        n_ended += ended
        n_calls += len(calls)
        assert "DSML" not in content
        if choice == "none":
            assert not calls
        elif choice == "mode":
            assert {name for name, _ in calls} <= {"mode"} and (calls or not ended)
        elif choice == "required":
            assert calls or not ended, content
        if schema and ended and not calls:
            jsonschema.validate(json.loads(content), schema)
            n_json += 1
    assert n_ended or (choice == "none" and not schema)
    assert not (schema and choice in ("required", "mode") and n_json)
    if choice is None:
        assert n_json + n_calls > 0


@pytest.mark.parametrize("path", BODIES)
def test_a_schema_and_tools_leave_both_ways(server: Application, wild: Wild, path: str) -> None:
    body = BODIES[path](SMALL, None, JSON_SCHEMA, False)
    wild.script('{"n": 5, "ok": true}')
    assert json.loads(answer(server, path, body)[0]) == {"n": 5, "ok": True}
    wild.say.clear()
    mark = "!｜DSML｜"
    wild.script("\n\n<", mark, "tool_calls>\n<", mark, 'invoke name="nothing">\n', "\n</", mark, "invoke>\n</", mark, "tool_calls>")
    assert answer(server, path, body)[1] == [("nothing", {})]


def test_calls_end_the_answer(server: Application, wild: Wild) -> None:
    """A model that would go on closing, or begin once more, is not asked."""
    mark = "!｜DSML｜"
    wild.script("\n\n<", mark, "tool_calls>\n<", mark, 'invoke name="nothing">\n', "\n</", mark, "invoke>\n</", mark, "tool_calls>",
                "</invoke></", mark, "tool_calls>")
    content, calls, ended = answer(server, "/v1/chat/completions", chat_body(SMALL, None, None, False))
    assert (content.strip(), calls, ended) == ("", [("nothing", {})], True)


@pytest.fixture
def refuse_grammars(server: Application, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Exception], None]]:
    """Has grammars of tools raise an error, until the test is over."""
    from pyflash.engine.grammar import Grammar

    kept = server.engine.use().tools._kept

    def refuse(error: Exception) -> None:
        def raising(*_: Any) -> Any:
            raise error

        monkeypatch.setattr(Grammar, "lark", raising)
        kept.clear()

    yield refuse
    kept.clear()


def test_what_cannot_be_promised_is_refused(server: Application, refuse_grammars: Any) -> None:
    refuse_grammars(ArgumentError("the grammar cannot be used: too big"))
    path = "/v1/chat/completions"
    refused = run(ask(server, "POST", path, chat_body(SMALL, "required", None, False)))
    assert refused.status == 400 and "tool_choice" in refused.json()["error"]["message"]
    assert run(ask(server, "POST", path, {**chat_body(SMALL, None, None, False), "max_tokens": 3})).status == 200


MISSING = UnsupportedError("grammars need one more package: pip install llguidance")


@pytest.mark.parametrize(("choice", "schema"), [("required", None), (None, JSON_SCHEMA)])
def test_without_llguidance_nothing_is_promised(server: Application, refuse_grammars: Any, choice: Any, schema: Any) -> None:
    refuse_grammars(MISSING)
    refused = run(ask(server, "POST", "/v1/chat/completions", chat_body(SMALL, choice, schema, False)))
    assert refused.status == 400 and "pip install llguidance" in refused.json()["error"]["message"]


def test_without_llguidance_markup_is_the_likeliest(server: Application, refuse_grammars: Any,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """From the token that opens calls to the end of them, but for the values of parameters."""
    from pyflash.engine import sampling

    refuse_grammars(MISSING)
    model = server.engine.use().model
    mark, name = "｜DSML｜", SMALL[0]["name"]
    said = [("So.\n\n<", False), (mark, False), ("tool_calls>\n<", True), (mark, True), (f'invoke name="{name}">\n<', True),
            (mark, True), ('parameter name="a" string="true">', True), ("5 < 6</", False), (mark, False),
            ("parameter>\n</", True), (mark, True), ("invoke>\n</", True), (mark, True), ("tool_calls>", True), ("\nThat is all.", False)]  # fmt: skip
    expected = [(token, is_markup) for text, is_markup in said for token in model.tokenizer.encode(text, special=text == mark)]
    expected.append((model.info.eos_token, False))
    seen: list[bool] = []

    def pick(_sampler: Any, logits: Any, allowed: Any = None) -> tuple[int, float]:
        seen.append(allowed is not None)
        if allowed is not None:
            likeliest = int(logits.argmax())
            assert [n for n in range(model.info.n_vocab) if int(allowed[n // 32]) >> n % 32 & 1] == [likeliest]
        return expected[len(seen) - 1][0], -1.0

    monkeypatch.setattr(sampling.Sampler, "pick", pick)
    body = {**chat_body(SMALL, None, None, False), "max_tokens": len(expected)}
    answered = run(ask(server, "POST", "/v1/chat/completions", body)).json()["choices"][0]
    assert seen == [is_markup for _, is_markup in expected]
    assert answered["message"]["tool_calls"][0]["function"]["name"] == name


# -- thinking --


def usage(response: Any) -> tuple[int, Any]:
    body = response.json()
    return body["usage"]["completion_tokens_details"]["reasoning_tokens"], body["choices"][0]["message"]


@pytest.mark.parametrize("field", ["reasoning_budget", "thinking_token_budget", "budget_tokens"])
def test_a_budget(server: Application, wild: Wild, field: str) -> None:
    body = chat_body(None, None, None, True) | {"max_tokens": 90, field: 64}
    if field == "budget_tokens":
        body = {**body, "thinking": {"type": "enabled", field: body.pop(field)}}
    n, message = usage(run(ask(server, "POST", "/v1/chat/completions", body)))
    assert n == 65 and message["content"]  # with the token that ends it


def test_room_for_an_answer_is_kept(server: Application, wild: Wild) -> None:
    n, message = usage(run(ask(server, "POST", "/v1/chat/completions", chat_body(None, None, None, True) | {"max_tokens": 1100})))
    assert n == 1100 - 512 + 1 and message["content"]


@pytest.mark.parametrize("period", [1, 7, 200, 512])
def test_a_loop_is_ended(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, period: int) -> None:
    with serving(tiny_model, context=4096) as server:
        wild = Wild(server, monkeypatch)
        wild.say = [wild.plain[n % period] for n in range(3000)]
        body = chat_body(None, None, None, True) | {"max_tokens": 3500, "reasoning_budget": 2900}
        n, message = usage(run(ask(server, "POST", "/v1/chat/completions", body)))
        assert 1536 <= n <= 2048 and message["content"]


def test_what_repeats() -> None:
    assert repeats([1] * 9, 1) and repeats([1, 2, 3] * 4 + [1], 3) and repeats([1, 2], 2)
    assert not repeats([1, 2, 3] * 4 + [2], 3) and not repeats([], 3) and not repeats([1, 2, 3, 4], 3)
    assert not repeats([9, *[1, 2] * 20], 2)


def test_no_loop_is_left_alone(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tiny_model, context=4096) as server:
        wild = Wild(server, monkeypatch)
        wild.say = [wild.plain[n % 600] for n in range(2300)]
        body = chat_body(None, None, None, True) | {"max_tokens": 3300, "reasoning_budget": 2200}
        n, _ = usage(run(ask(server, "POST", "/v1/chat/completions", body)))
        assert n == 2201


@pytest.mark.parametrize("budget", [1, 2, 3, 4, 5, 6, 7, 8, 10, 20])
def test_a_budget_that_ends_within_a_call(server: Application, wild: Wild, budget: int) -> None:
    """In the reasoning, too, a call that has begun is a call."""
    wild.script("hm", *call("Bern", "1"))
    body = {"messages": USER, "tools": WEATHER, "max_tokens": 1400, "reasoning_effort": "high", "reasoning_budget": budget}
    content, calls, ended = answer(server, "/v1/chat/completions", body)
    assert "DSML" not in content
    check(calls, [WEATHER[0]["function"]])
    assert budget < 8 or not ended or calls == [("get_weather", {"city": "Bern", "days": 1})]
