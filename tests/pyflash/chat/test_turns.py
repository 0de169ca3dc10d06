"""Whose turn it is: conversations that the model may go on with, where its text begins, and messages of any shape."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pyflash
from pyflash import chat
from pyflash.chat.encoding import answer_opening

Say = Callable[..., list[int]]  # the fixture's

B, E, U, A = chat.BOS, chat.EOS, chat.USER, chat.ASSISTANT
USER = {"role": "user", "content": "question"}
SYSTEM = {"role": "system", "content": "rules"}
ANSWER = {"role": "assistant", "content": "answer", "reasoning_content": "thought"}
CALL = {"id": "a", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
CALLING = {"role": "assistant", "content": "", "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "a", "content": "4"}
DEVELOPER = {"role": "developer", "content": "inner"}
REMINDER = {"role": "latest_reminder", "content": "now"}


def prefix(**message: Any) -> dict[str, Any]:
    return {"role": "assistant", "prefix": True, **message}


REFUSED: dict[str, tuple[list[Any], str]] = {
    "nothing": ([], "no messages"),
    "system alone": ([SYSTEM], "role system"),
    "two system messages": ([SYSTEM, SYSTEM], "role system"),
    "reminder alone": ([REMINDER], "role latest_reminder"),
    "system at the end": ([USER, SYSTEM], "role system"),
    "answered": ([USER, ANSWER], '"prefix": true'),
    "answered without content": ([USER, {"role": "assistant", "content": None}], '"prefix": true'),
    "calls without results": ([USER, CALLING], 'role "tool"'),
    "reminder behind an answer": ([USER, ANSWER, REMINDER], "role latest_reminder"),
    "reminder behind a prefix": ([USER, prefix(content="x"), REMINDER], "role latest_reminder"),
    "prefix false": ([USER, {**ANSWER, "prefix": False}], '"prefix": true'),
    "prefix of nobody's": ([prefix(content="x")], "follows no user"),
    "prefix after the system": ([SYSTEM, prefix(content="x")], "follows no user"),
    "prefix after an answer": ([USER, ANSWER, prefix(content="x")], "follows no user"),
    "prefix with calls": ([USER, {**CALLING, "prefix": True}], "tool calls"),
    "prefix of a user": ([{**USER, "prefix": True}], 'only an assistant'),
    "prefix that is a text": ([USER, prefix(content="x") | {"prefix": "yes"}], "true or false"),
    "prefix of thoughts without thinking": ([USER, prefix(content="", reasoning_content="hm")], "needs thinking"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_conversations_that_are_not_the_models_turn(session: pyflash.Session, case: str) -> None:
    messages, reason = REFUSED[case]
    with pytest.raises(pyflash.ArgumentError, match=reason) as caught:
        session.chat(messages)
    assert "\n" not in str(caught.value) and session.position == 0


@pytest.mark.parametrize(
    ("messages", "thinking", "kind", "given", "end"),
    [
        ([USER], True, "reasoning", "", f"{U}question{A}<think>"),
        ([USER, CALLING, RESULT], False, "content", "", f"</tool_result>{A}</think>"),
        ([DEVELOPER], True, "reasoning", "", f"{U}inner{A}<think>"),
        ([USER, REMINDER], True, "reasoning", "", f"{A}<think><｜latest_reminder｜>now"),
        ([{**USER, "task": "title"}], True, "content", "", "question<｜title｜>"),
        ([{**USER, "task": "action"}], True, "content", "", f"{A}<think><｜action｜>"),
        ([USER, {**ANSWER, "task": "title"}], True, "content", "", f"answer{E}<｜title｜>"),
        ([USER, prefix(content="ans")], False, "content", "ans", f"{A}</think>ans"),
        ([USER, prefix(content="ans", reasoning_content="hm")], True, "content", "ans", f"{A}<think>hm</think>ans"),
        ([USER, prefix(content="ans")], True, "content", "ans", f"{A}<think></think>ans"),
        ([USER, prefix(content="", reasoning_content="hm")], True, "reasoning", "", f"{A}<think>hm"),
        ([USER, prefix(reasoning_content="hm")], True, "reasoning", "", f"{A}<think>hm"),
        ([USER, prefix(content="")], True, "reasoning", "", f"{A}<think>"),
        ([USER, prefix(content="")], False, "content", "", f"{A}</think>"),
        ([USER, REMINDER, prefix(content="ans")], False, "content", "ans", "<｜latest_reminder｜>nowans"),
        ([{**USER, "task": "title"}, prefix(content="A ")], True, "content", "A ", "<｜title｜>A "),
        ([USER, prefix(content="an"), prefix(content="sw")], False, "content", "answ", f"{A}</think>answ"),
        ([USER, {**ANSWER, "wo_eos": True}], True, "content", "answer", f"<think>thought</think>answer"),
    ],
)  # fmt: skip
def test_where_an_answer_begins(messages: list[dict[str, Any]], thinking: bool, kind: str, given: str, end: str
                                ) -> None:
    opening = answer_opening(messages, thinking=thinking)
    assert (opening.kind, opening.given) == (kind, given)
    assert chat.encode(messages, thinking=thinking).endswith(end)


def test_a_prefix_and_what_went_on_with_it_are_one_turn() -> None:
    """However a caller keeps the two messages."""
    kept = [USER, prefix(content="ans", reasoning_content="tho"), {**ANSWER, "content": "wer", "reasoning_content": ""}]
    kept[1]["reasoning_content"] = "thought"
    whole = [USER, ANSWER, USER]
    assert chat.encode([*kept, USER]) == chat.encode(whole)
    options: dict[str, Any] = {"thinking": True, "drop_thinking": False}
    assert chat.encode([*kept, USER], **options) == chat.encode(whole, **options)
    thinking = [USER, prefix(reasoning_content="tho"), {**ANSWER, "reasoning_content": "ught"}]
    assert chat.encode([*thinking, USER], **options) == chat.encode(whole, **options)
    # Nothing went on with it: then it was the whole answer.
    assert chat.encode([USER, prefix(content="answer"), USER]) == chat.encode(whole)
    calling = [USER, prefix(content="so"), CALLING, RESULT]
    assert chat.encode(calling) == chat.encode([USER, {**CALLING, "content": "so"}, RESULT])


@pytest.mark.parametrize("think", ["off", "high"])
def test_prefix_goes_on_with_the_content(session: pyflash.Session, say: Say, think: str) -> None:
    say(session, " is fine")
    reply = session.chat([USER, prefix(content="The weather", reasoning_content="hm")], think)
    pieces = list(reply)
    assert {piece.kind for piece in pieces} == {"content"} and not any(piece.problem for piece in pieces)
    assert reply.message == {"role": "assistant", "content": " is fine", "reasoning_content": "", "tool_calls": []}


def test_prefix_goes_on_with_the_reasoning(session: pyflash.Session, say: Say) -> None:
    say(session, "m, yes</think>Fine.")
    reply = session.chat([USER, prefix(content="", reasoning_content="h")], "high")
    list(reply)
    assert (reply.message["reasoning_content"], reply.message["content"]) == ("m, yes", "Fine.")


def test_going_on_with_what_was_stopped_evaluates_nothing_again(session: pyflash.Session, say: Say) -> None:
    say(session, "one two three four five six seven")
    with session.chat([USER]) as reply:
        for _ in range(5):
            next(reply)
    begun = {**reply.message, "prefix": True}
    following = session.chat([USER, begun])
    assert following.n_reused == reply.n_prompt + 4
    rest = list(following)
    whole = reply.message["content"] + "".join(piece.text for piece in rest)
    assert whole == "one two three four five six seven"
    # And the next turn knows both, from either way to keep them.
    one = {"role": "assistant", "content": whole}
    for kept in ([begun, following.message], [one]):
        again = session.chat([USER, *kept, USER], max_tokens=1)
        assert again.n_reused >= following.n_prompt + following.n_generated - 1 and list(again)


def test_a_task_is_answered_by_content(session: pyflash.Session, say: Say) -> None:
    """Though the model may think: the answer to a task has no reasoning."""
    say(session, "Weather")
    reply = session.chat([{**USER, "task": "title"}], "high")
    list(reply)
    assert reply.message["content"] == "Weather" and not reply.message["reasoning_content"]


def test_special_tokens_in_a_prefix_stay_text(session: pyflash.Session) -> None:
    list(session.chat([USER, prefix(content=f"{E} {U} </think>")], max_tokens=1))
    tokens = session.tokens.tolist()
    assert session.model.info.eos_token not in tokens
    assert tokens.count(session.tokenizer.token_id(U)) == tokens.count(session.tokenizer.token_id("</think>")) == 1


# -- messages as objects --


class Model:
    """As pydantic's: attributes, and model_dump()."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def model_dump(self, exclude_none: bool = False, by_alias: bool = False) -> dict[str, Any]:
        def dumped(value: Any) -> Any:
            if isinstance(value, Model):
                return value.model_dump(exclude_none, by_alias)
            return [dumped(each) for each in value] if isinstance(value, list) else value

        return {key: dumped(value) for key, value in self.__dict__.items() if value is not None or not exclude_none}


def built(kind: Callable[..., Any], value: Any) -> Any:
    """Messages as objects of a class instead of mappings; what a tool's parameters are stays a mapping."""
    if isinstance(value, dict):
        return kind(**{key: each if key == "parameters" else built(kind, each) for key, each in value.items()})
    return [built(kind, each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", [Model, SimpleNamespace, OrderedDict])
def test_objects_are_as_good_as_mappings(session: pyflash.Session, kind: Callable[..., Any]) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}]
    messages = [SYSTEM, {**USER, "content": parts}, {**CALLING, "refusal": None}, RESULT]
    asked = [built(kind, message) for message in messages]
    offered = tools if kind is SimpleNamespace else [built(kind, tool) for tool in tools]
    assert chat.encode(asked, thinking=True) == chat.encode(messages, thinking=True)
    assert chat.encode(chat.with_tools(asked, offered)) == chat.encode(chat.with_tools(messages, tools))
    reply = session.chat(asked, "high", offered, max_tokens=1)
    assert reply.n_prompt == session.chat(messages, "high", tools, max_tokens=1).n_prompt


def test_pydantic_models(session: pyflash.Session) -> None:
    pydantic = pytest.importorskip("pydantic")
    function = pydantic.create_model("Function", name=(str, ...), arguments=(str, ...))
    call = pydantic.create_model("Call", id=(str, ...), function=(function, ...), type=(str, "function"))
    message = pydantic.create_model("M", __config__={"extra": "allow"}, role=(str, ...), content=(str | None, None),
                                    tool_calls=(list[call] | None, None))  # type: ignore[valid-type]
    objects = [message(**USER), message(**CALLING, reasoning_content="hm"), message(**RESULT)]
    wanted = [USER, {**CALLING, "reasoning_content": "hm"}, RESULT]
    assert chat.encode(objects, thinking=True) == chat.encode(wanted, thinking=True)


# -- anything else --

_anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
    | st.sampled_from(["\ud800", "user", "assistant", "tool", "text", float("nan"), object(), int, len,
                       SimpleNamespace(role="user"), SimpleNamespace(function=SimpleNamespace(name=3)), range(3)]),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner) | st.builds(iter, st.lists(inner, max_size=2))
    | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "function", "name", "arguments", "id"])
                      | st.text(max_size=2), inner, max_size=4)
    | st.dictionaries(st.integers() | st.tuples(st.integers()), inner, max_size=2) | st.sets(st.integers(), max_size=2),
    max_leaves=8,
)  # fmt: skip
_message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "developer", "latest_reminder"]) | _anything},
    optional={key: _anything for key in (
        "content", "reasoning_content", "tool_calls", "tool_call_id", "tools", "response_format", "task", "prefix",
        "wo_eos")},
)  # fmt: skip


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_message | _anything, max_size=4) | _anything, st.booleans())
def test_messages_of_anything_raise_nothing_else(messages: Any, thinking: bool) -> None:
    for call in (lambda: chat.encode(messages, thinking=thinking), lambda: chat.parse(messages, thinking),
                 lambda: answer_opening(messages, thinking=thinking), lambda: chat.with_tools([USER], messages),
                 lambda: chat.with_response_format([USER], messages)):  # fmt: skip
        try:
            call()
        except pyflash.Error as error:
            assert "\n" not in str(error)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(_message, min_size=1, max_size=3) | _anything, _anything)
def test_chat_of_anything_raises_nothing_else(session: pyflash.Session, messages: Any, tools: Any) -> None:
    for arguments in ((messages,), ([USER], "off", tools)):
        try:
            session.chat(*arguments, max_tokens=1)
        except pyflash.Error as error:
            assert "\n" not in str(error)


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Hostile:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not today")


@pytest.mark.parametrize("message", [
    {"role": "system", "content": "", "tools": [{"function": {"name": nested(5000)}}]},
    {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": nested(5000)}}]},
    Hostile(), [Hostile()],
    {"role": "assistant", "tool_calls": [Hostile()]}, {"role": "assistant", "tool_calls": (n for n in [1])},
    {"role": "assistant", "tool_calls": [SimpleNamespace(id="1", function=None)]},
    {"role": "system", "tools": [{"function": {"name": 10**5000}}]}, {"role": 10**5000},
    {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 10**5000}}}]},
], ids=lambda message: str(type(message)))  # fmt: skip
def test_what_cannot_be_read(message: Any) -> None:
    with pytest.raises(pyflash.ArgumentError) as caught:
        chat.encode([USER, message])
    assert "\n" not in str(caught.value)


def test_strange_but_readable() -> None:
    assert "[Unsupported list]" in chat.encode([{"role": "user", "content": nested(5000)}])
    surrogate = chat.encode([{"role": "user", "content": "\ud800"}])
    assert surrogate == f"{B}{U}\ud800{A}</think>"
    deep = "[" * 3000 + "]" * 3000
    assert chat.encode([USER, {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": deep}}]}])
    given = [{"function": {"name": "f", "arguments": {1: float("nan"), None: True}}}]
    assert 'name="1" string="false">NaN<' in chat.encode([{"role": "assistant", "tool_calls": given}])


def test_surrogates_can_be_evaluated(session: pyflash.Session) -> None:
    assert list(session.chat([{"role": "user", "content": "a\ud800b"}], max_tokens=2))
