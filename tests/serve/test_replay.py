"""Turns that were sampled here come back as the tokens that they were, whatever a client makes of their text."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Pace, ask, run, serving

from pyflash.serve.application import Application, signing_key
from pyflash.serve.turns import Turn, TurnStore, chains, visible

CHAT = "/v1/chat/completions"
TOOLS = [{"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a city", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "number"}}, "required": ["city"]}}}]


class Scripted:
    """Has the model say a text, token by token, whatever its logits are."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from pyflash.engine import sampling

        self.tokens: list[int] = []
        pick = sampling.Sampler.pick

        def picked(sampler: Any, logits: Any, allowed: Any = None) -> tuple[int, float]:
            return (self.tokens.pop(0), -1.0) if self.tokens else pick(sampler, logits, allowed)

        monkeypatch.setattr(sampling.Sampler, "pick", picked)

    def say(self, server: Application, *tokens_or_texts: str | int) -> None:
        model = server.engine.use().model
        for each in tokens_or_texts:
            special = isinstance(each, str) and each.startswith("!")
            self.tokens += [each] if isinstance(each, int) else model.tokenizer.encode(each.lstrip("!"), special=special)
        self.tokens.append(model.info.eos_token)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    return Scripted(monkeypatch)


def post(server: Application, body: Any, path: str = CHAT) -> Any:
    response = run(ask(server, "POST", path, body))
    assert response.status == 200, response.body
    return response.json()


def call(city: str, days: str) -> list[str]:
    """A call as a model writes it, with a separator and a number that rendering would write otherwise."""
    mark = "!｜DSML｜"
    return ["Let me see.\n\n<", mark, "tool_calls>\n<", mark, 'invoke name="get_weather">\n<', mark,
            f'parameter name="city" string="true">{city}</', mark, "parameter>\n<", mark,
            f'parameter name="days" string="false">{days}</', mark, "parameter>\n</", mark, "invoke>\n</", mark, "tool_calls>"]


def asked(server: Application, script: Scripted) -> tuple[dict[str, Any], dict[str, Any]]:
    """A conversation with tools after a turn that thinks and calls, and the answer's body."""
    body = {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Rain in Bern?"}],
            "tools": TOOLS, "temperature": 0, "reasoning_effort": "high", "max_tokens": 400}
    script.say(server, "They ask  for rain.", "!</think>", *call("Bern", "1.0"))
    answer = post(server, body)
    message = answer["choices"][0]["message"]
    assert message["reasoning_content"] == "They ask  for rain." and len(message["tool_calls"]) == 1, message
    return body, answer


def test_what_clients_make_of_a_turn(demo_model: Path, script: Scripted, pace: Pace) -> None:
    def same(message: dict[str, Any]) -> None:
        pass

    def compact(message: dict[str, Any]) -> None:
        function = message["tool_calls"][0]["function"]
        function["arguments"] = json.dumps(json.loads(function["arguments"]), separators=(",", ":"))

    def reordered_and_whole(message: dict[str, Any]) -> None:
        function = message["tool_calls"][0]["function"]
        given = json.loads(function["arguments"])
        function["arguments"] = json.dumps({"days": int(given["days"]), "city": given["city"]}, indent=2)

    def without_reasoning(message: dict[str, Any]) -> None:
        del message["reasoning_content"]

    def trimmed(message: dict[str, Any]) -> None:
        message["content"] = message["content"].strip() + "\n"

    clients: list[Callable[[dict[str, Any]], None]] = [same, compact, reordered_and_whole, without_reasoning, trimmed]
    for change in clients:
        with serving(demo_model) as server:
            body, answer = asked(server, script)
            message = copy.deepcopy(answer["choices"][0]["message"])
            change(message)
            result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Rain."}
            pace.steps.clear()
            script.say(server, "!</think>", "It rains.")
            usage = post(server, {**body, "messages": [*body["messages"], message, result]})["usage"]
            before = answer["usage"]["total_tokens"]
            assert usage["prompt_tokens_details"]["cached_tokens"] >= before - 1, change.__name__
            assert pace.n_tokens <= usage["total_tokens"] - before + 1


def test_an_answer_that_was_cut(tiny_model: Path) -> None:
    """It comes back as its tokens, too, when another conversation has had its place since."""
    first = {"messages": [{"role": "user", "content": "One."}], "max_tokens": 12, "temperature": 0}
    other = {**first, "messages": [{"role": "user", "content": "Another one, with more to say."}]}
    found = []
    for between in (False, True):
        with serving(tiny_model, parallel=1) as server:
            answer = post(server, first)
            choice = answer["choices"][0]
            assert choice["finish_reason"] == "length"
            model = server.engine.use().model
            assert len(model.tokenizer.encode(choice["message"]["content"])) != 12  # it is no text that tokenises to them
            if between:
                post(server, other)
            goes_on = {"role": "user", "content": "Go on."}
            again = post(server, {**first, "messages": [*first["messages"], choice["message"], goes_on]})
            found.append((again["usage"]["prompt_tokens"], again["choices"][0]["message"]["content"]))
            edited = {"role": "assistant", "content": choice["message"]["content"] + " mine"}
            usage = post(server, {**first, "messages": [*first["messages"], edited, goes_on]})["usage"]
            assert usage["prompt_tokens"] != found[0][0]
    assert found[0] == found[1]


def test_an_edit_wins(demo_model: Path, script: Scripted) -> None:
    def city(message: dict[str, Any]) -> None:
        message["tool_calls"][0]["function"]["arguments"] = '{"city": "Basel", "days": 1}'

    def truth(message: dict[str, Any]) -> None:
        message["tool_calls"][0]["function"]["arguments"] = '{"city": "Bern", "days": true}'

    def content(message: dict[str, Any]) -> None:
        message["content"] = "Something else."

    def reasoning(message: dict[str, Any]) -> None:
        message["reasoning_content"] = "They ask for snow."

    edits: list[Callable[[dict[str, Any]], None]] = [city, truth, content, reasoning]
    with serving(demo_model) as server:
        body, answer = asked(server, script)
        for edit in edits:
            message = copy.deepcopy(answer["choices"][0]["message"])
            edit(message)
            prompts = [rendered(server, {**body, "messages": [*body["messages"], each, result_of(each)]}) for each in (
                message, without_ids(message))]
            assert prompts[0] == prompts[1], edit.__name__


def result_of(message: dict[str, Any]) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "Rain."}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    message = copy.deepcopy(message)
    message["tool_calls"][0]["id"] = "call_of_nobody"
    return message


def rendered(server: Application, body: Any) -> list[int]:
    """The prompt's tokens."""
    from pyflash.serve import chat_completions

    return server.engine.prepare(chat_completions.read(body)).prompt.tokens


def test_foreign_ids_change_nothing(demo_model: Path, script: Scripted) -> None:
    """An id of another conversation, or of none, on a turn that says something else."""
    with serving(demo_model) as server:
        body, answer = asked(server, script)
        own = answer["choices"][0]["message"]["tool_calls"][0]["id"]
        other = [{"role": "user", "content": "Snow?"}, {"role": "assistant", "content": "", "tool_calls": [{
            "id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Rome"}'}}]},
            {"role": "tool", "tool_call_id": "call_1", "content": "No."}]
        plain = rendered(server, {**body, "messages": other})
        other[1]["tool_calls"][0]["id"] = other[2]["tool_call_id"] = own  # type: ignore[index]
        assert rendered(server, {**body, "messages": other}) == plain


def test_signatures(demo_model: Path, script: Scripted) -> None:
    """Anthropic's clients send the signature back; a forged one is no more than a text."""
    with serving(demo_model) as server:
        body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 400, "temperature": 0,
                "thinking": {"type": "enabled", "budget_tokens": 300}, "tools": [{
                    "name": "get_weather", "input_schema": TOOLS[0]["function"]["parameters"]}]}  # type: ignore[index]
        script.say(server, "A  greeting.", "!</think>", "Hello  there.")
        answer = post(server, body, "/v1/messages")
        thinking = answer["content"][0]
        assert thinking["type"] == "thinking" and len(thinking["signature"]) > 40
        cached = []
        for signature in (thinking["signature"], thinking["signature"][:-4] + "AAAA"):
            turn = [{**thinking, "thinking": "", "signature": signature}, *answer["content"][1:]]
            # Another beginning, so that only the signature can tell which turn it is.
            begun = [{"role": "user", "content": "Hello! "}, {"role": "assistant", "content": turn},
                     {"role": "user", "content": "Bye."}]
            counted = post(server, {**body, "messages": begun}, "/v1/messages/count_tokens")["input_tokens"]
            cached.append(counted)
        assert cached[0] > cached[1]  # the reasoning came back
        script.say(server, "!</think>", "Bye.")
        turns = [*body["messages"], {"role": "assistant", "content": answer["content"]}, {"role": "user", "content": "Bye."}]
        usage = post(server, {**body, "messages": turns}, "/v1/messages")["usage"]
        assert usage["cache_read_input_tokens"] >= answer["usage"]["output_tokens"]


def test_many_turns(demo_model: Path, script: Scripted, pace: Pace) -> None:
    """With a client that writes arguments anew and drops the reasoning."""
    with serving(demo_model, context=8192) as server:
        body, answer = asked(server, script)
        messages = body["messages"]
        for n in range(25):
            message = answer["choices"][0]["message"]
            del message["reasoning_content"]
            function = message["tool_calls"][0]["function"]
            function["arguments"] = json.dumps(json.loads(function["arguments"]), separators=(",", ":"))
            messages += [message, result_of(message)]
            script.say(server, f"Once  more, {n}.", "!</think>", *call("Bern", f"{n}.0"))
            before, answer = answer, post(server, body)
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            assert cached >= before["usage"]["total_tokens"] - 1, n


# -- the store by itself --


TURN = Turn("Because.", " Hello ", (("f", '{"a": 1.0, "b": [true, null]}'),), (1, 2), (3, 4))


def message(arguments: Any, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "Hello", "reasoning_content": "", "tool_calls": [
        {"id": "call_1", "function": {"name": "f", "arguments": arguments}}], **more}


@pytest.mark.parametrize(("arguments", "is_same"), [
    ('{"b":[true,null],"a":1}', True), ({"a": 1, "b": [True, None]}, True), ('{"a": 1e0, "b": [true, null]}', True),
    ('{"a": true, "b": [true, null]}', False), ('{"a": "1", "b": [true, null]}', False), ('{"a": 1}', False),
    ('{"a": 1, "b": [null, true]}', False), ('{"a": 1', False), ('{"a": 1, "b": [1, null]}', False),
])  # fmt: skip
def test_equal_arguments(arguments: Any, is_same: bool) -> None:
    assert TURN.says(message(arguments)) == is_same


def test_equal_turns() -> None:
    same = message('{"a": 1, "b": [true, null]}')
    assert TURN.says({**same, "reasoning_content": " Because.\n"})
    assert not TURN.says({**same, "reasoning_content": "Because"})
    assert not TURN.says({**same, "tool_calls": []})
    assert not TURN.says({**same, "content": "Hello!"})


def test_the_store_is_bounded() -> None:
    store = TurnStore(b"k" * 32, most_turns=3)
    said = message('{"a": 1, "b": [true, null]}')
    for n in range(5):
        store.add(b"", store.new_id(), TURN, [f"call_{n}"], b"%d" % n)
    assert len(store) == 3 and len(store._names) == 6
    found = [store.find(b"", {**said, "tool_calls": [{**said["tool_calls"][0], "id": f"call_{n}"}]}, b"") for n in range(5)]
    assert found == [None, None, *[TURN.packed()] * 3]
    assert len(TurnStore(b"k" * 32, most_bytes=0)) == 0


def test_a_turn_takes_no_more_than_is_counted() -> None:
    """What the bound means: memory that is really taken."""
    store = TurnStore(b"k" * 32)
    store.add(b"", store.new_id(), TURN, ["call"], b"chain")
    tracemalloc.start()
    try:
        for n in range(1000):
            tokens = tuple(range(1000 + n, 1060 + n))
            store.add(b"", store.new_id(), Turn("word " * 30, f"{n} " * 60, (), tokens[:40], tokens[40:]), [f"call_{n}"], b"%d" % n)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert 0.5 < taken / store.n_bytes < 1.1


def test_turns_are_found_by_whose_they_are() -> None:
    store, said = TurnStore(b"k" * 32), message('{"a": 1, "b": [true, null]}')
    turn_id = store.new_id()
    store.add(b"salt", turn_id, TURN, ["call_1"], b"chain")
    signature = store.signature(b"salt", turn_id)
    nameless = {**said, "tool_calls": [{**said["tool_calls"][0], "id": ""}]}
    assert store.find(b"salt", said, b"") == store.find(b"salt", nameless, b"chain") == TURN.packed()
    assert store.find(b"salt", {**nameless, "opaque": ["", "é", "x" * 1000, signature]}, b"") == TURN.packed()
    assert store.find(b"other", said, b"") is None
    assert store.find(b"other", {**nameless, "opaque": [signature]}, b"") is None
    forged = TurnStore(b"l" * 32).signature(b"salt", turn_id)
    assert store.find(b"salt", {**nameless, "opaque": [forged, signature[:-2], signature + "AA"]}, b"") is None


def test_chains_tell_what_is_said_and_no_more() -> None:
    said = [{"role": "user", "content": "Hi"}, message('{"a": 1}'), {"role": "tool", "tool_call_id": "x", "content": "1"}]
    other = [said[0], message('{"a":1.0}', reasoning_content="Hm."), {**said[2], "tool_call_id": "y"}]
    assert chains(b"", said, []) == chains(b"", other, []) and len(chains(b"", said, [])) == 4
    assert visible(said[1]) == visible(other[1])
    assert chains(b"s", said, [])[0] != chains(b"", said, [])[0] != chains(b"", said, TOOLS)[0]


def test_the_key_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYFLASH_STATE", str(tmp_path / "state"))
    key = signing_key()
    assert signing_key() == key and len(key) == 32
    file = tmp_path / "state" / "serve.key"
    assert file.stat().st_mode & 0o077 == 0 or __import__("sys").platform == "win32"
