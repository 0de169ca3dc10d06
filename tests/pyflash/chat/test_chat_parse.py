"""The strict and the streaming parser of generated text."""

from __future__ import annotations

import json
import random
from typing import Any

import pyflash
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyflash import chat

D, E = chat.DSML, chat.EOS


def calls_text(*invokes: str) -> str:
    return f"\n\n<{D}tool_calls>\n" + "".join(invokes) + f"</{D}tool_calls>"


def invoke(name: str, *parameters: str) -> str:
    inner = "".join(parameters) or "\n"
    return f'<{D}invoke name="{name}">\n{inner}</{D}invoke>\n'


def parameter(key: str, value: str, is_string: str = "true") -> str:
    return f'<{D}parameter name="{key}" string="{is_string}">{value}</{D}parameter>\n'


def message(content: str = "", reasoning: str = "", *calls: tuple[str, str]) -> dict[str, Any]:
    functions = [{"type": "function", "function": {"name": name, "arguments": text}} for name, text in calls]
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": functions}


def stream(pieces: list[str], thinking: bool) -> tuple[dict[str, Any], list[chat.Event], bool]:
    """The message joined from the events, the events, and whether the end was read before there was no more."""
    parser = chat.StreamParser(thinking)
    events = [event for piece in pieces for event in parser.feed(piece)]
    ended = parser.ended
    events += parser.finish()
    assert parser.ended and parser.finish() == []
    joined = message()
    arguments: dict[int | None, str] = {}
    for event in events:
        if event.kind == "tool_call":
            arguments[event.index] = arguments.get(event.index, "") + event.text
            if event.call:
                assert event.call["function"] == {"name": event.name, "arguments": arguments[event.index]}
                joined["tool_calls"].append(event.call)
        else:
            joined["content" if event.kind == "content" else "reasoning_content"] += event.text
        assert event.text or event.call or event.problem
    assert parser.message == joined
    return joined, events, ended


def problems(events: list[chat.Event]) -> list[str]:
    return [event.problem for event in events if event.problem]


TWO = calls_text(invoke("f", parameter("a", 'x "\n</>'), parameter("b", "[1, 2]", "false")), invoke("g"))
VALID = [
    (f"hello{E}", False, message("hello")),
    (E, False, message()),
    (f"why</think>hello{E}", True, message("hello", "why")),
    (f"</think>{E}", True, message()),
    (f"a\n\n<b>\n{E}", False, message("a\n\n<b>\n")),
    (f"so\n{TWO}{E}", False, message("so\n", "", ("f", '{"a": "x \\"\\n</>", "b": [1, 2]}'), ("g", "{}"))),
    (f"r\n\n</think>{TWO}{E}", True,
     message("", "r\n\n", ("f", '{"a": "x \\"\\n</>", "b": [1, 2]}'), ("g", "{}"))),
    (calls_text() + E, False, message()),
    # Markers of the format are text within names and values, but for those that end them.
    (calls_text(invoke(f'n"{E}', parameter("k</think>", f"<<{D}x{E}<\n"))) + E, False,
     message("", "", (f'n"{E}', f'{{"k</think>": "<<{D}x{E}<\\n"}}'))),
]  # fmt: skip


@pytest.mark.parametrize(("text", "thinking", "expected"), VALID)
def test_valid(text: str, thinking: bool, expected: dict[str, Any]) -> None:
    assert chat.parse(text, thinking=thinking) == expected
    for pieces in ([text], list(text), *([text[:cut], text[cut:]] for cut in range(len(text) + 1))):
        got, events, ended = stream(pieces, thinking)
        assert got == expected and ended and not problems(events)


def test_every_split_into_three() -> None:
    text = "r</think>c" + calls_text(invoke("f", parameter("k", "é<"))) + E
    expected = chat.parse(text, thinking=True)
    for i in range(len(text) + 1):
        for j in range(i, len(text) + 1):
            got, events, _ = stream([text[:i], text[i:j], text[j:]], True)
            assert got == expected and not problems(events)


def test_published_answers(shared: Any) -> None:
    folder = shared / "vectors" / "encoding"
    text = (folder / "output_1.txt").read_bytes().decode()
    turns = json.loads((folder / "input_1.json").read_text(encoding="utf-8"))["messages"]
    answers = [answer.split(E)[0] + E for answer in text.split(f"{chat.ASSISTANT}<think>")[1:]]
    for answer, turn in zip(answers, (turns[2], turns[4]), strict=True):
        parsed = chat.parse(answer, thinking=True)
        assert parsed["reasoning_content"] == turn["reasoning_content"]
        assert parsed["content"] == turn.get("content", "")
        calls = [{k: v for k, v in call.items() if k != "id"} for call in turn.get("tool_calls", [])]
        assert parsed["tool_calls"] == calls
        assert stream(list(answer), True)[0] == parsed


# -- what comes when --


def test_text_comes_at_once_and_markers_never() -> None:
    parser = chat.StreamParser(thinking=True)

    def texts(piece: str) -> list[tuple[str, str]]:
        return [(event.kind, event.text) for event in parser.feed(piece)]

    assert texts("hm") == [("reasoning", "hm")]
    assert texts(" <") == [("reasoning", " ")]
    assert texts("/thin") == []
    assert texts("g</") == [("reasoning", "</thing")]
    assert texts("think>a\n") == [("content", "a")]
    assert texts("\n<｜") == []
    assert texts("User") == [("content", "\n\n<｜User")]
    assert texts("\n\n") == []
    assert texts(f"<{D}tool") == []
    assert texts("_calls>\n") == []
    assert parser.message == message("a\n\n<｜User", "hm </thing")
    assert not parser.ended


def test_arguments_come_as_they_are_written() -> None:
    parser = chat.StreamParser()
    parser.feed(f'\n\n<{D}tool_calls>\n<{D}invoke name="write">\n')
    assert [e.name for e in parser.feed(f"<{D}parameter")] == ["write"]
    assert [e.text for e in parser.feed(' name="text" string="true">one "')] == ['"text": "', 'one \\"']
    assert [e.text for e in parser.feed("\n<")] == ["\\n"]
    assert [e.text for e in parser.feed("two")] == ["<two"]
    assert [e.text for e in parser.feed(f"</{D}parameter>")] == ['"']
    (last,) = parser.feed(f"\n</{D}invoke")
    assert (last.index, last.name, last.problem) == (0, "write", None)
    assert last.call == {"type": "function",
                         "function": {"name": "write", "arguments": '{"text": "one \\"\\n<two"}'}}  # fmt: skip
    assert parser.message["tool_calls"] == [last.call]


def test_finish_gives_what_is_held_back() -> None:
    parser = chat.StreamParser()
    assert [e.text for e in parser.feed("a <")] == ["a "]
    assert parser.finish() == [chat.Event("content", "<")]
    assert parser.feed("") == []
    (late,) = parser.feed("more")
    assert late.text == "more" and late.problem


# -- malformed text --

ONE = invoke("f", parameter("a", "1"))
GOOD = ("g", '{"b": "2"}')
NEXT = invoke("g", parameter("b", "2"))
MALFORMED = [
    # text, thinking, words of a problem, what is saved
    ("", False, "", message()),
    ("cut off", False, "", message("cut off")),
    (f"never closed{E}", True, "within the reasoning", message("", "never closed")),
    ("never closed", True, "within the reasoning", message("", "never closed")),
    (f"a<think>b{E}", False, "does not belong", message("a<think>b")),
    (f"a</think>b{E}", False, "does not belong", message("a</think>b")),
    (f"a<think>b</think>c{E}", True, "does not belong", message("c", "a<think>b")),
    (f"a{chat.BOS}{E}", False, "does not belong", message(f"a{chat.BOS}")),
    (f"a<{D}invoke{E}", False, "does not belong", message(f"a<{D}invoke")),
    (f"a{E}b", False, "after the end", message("ab")),
    (f"hm{calls_text(NEXT)}{E}", True, "begins within the reasoning", message("", "hm", GOOD)),
    (f"hm{calls_text(NEXT)}</think>ok{E}", True, "begins within the reasoning", message("ok", "hm", GOOD)),
    (f"so{calls_text(NEXT).lstrip()}{E}", False, "blank line is missing", message("so", "", GOOD)),
    (f"{calls_text(NEXT)}\n{E}", False, "after the tool calls", message("\n", "", GOOD)),
    (f"{calls_text(NEXT)}{calls_text(NEXT)}{E}", False, "second time", message("", "", GOOD, GOOD)),
    (f"{calls_text(NEXT)}x", False, "after the tool calls", message("x", "", GOOD)),
    (f"\n\n<{D}tool_calls>{NEXT}</{D}tool_calls>{E}", False, "between tool calls", message("", "", GOOD)),
    (f"\n\n<{D}tool_calls>\n{NEXT}{E}", False, "not closed", message("", "", GOOD)),
    (f"\n\n<{D}tool_calls", False, "ended within the tool calls", message()),
    (calls_text(NEXT)[:-1], False, "ended within the tool calls", message("", "", GOOD)),
    (f'\n\n<{D}tool_calls>\n<{D}invoke name="f">\n', False, "ended within the tool calls",
     message(f'<{D}invoke name="f">\n')),
    (calls_text(NEXT + ONE[:-4]), False, "ended within the tool calls", message("", "", GOOD)),
    (calls_text(f"<{D}invoke f>\n\n</{D}invoke>\n", NEXT) + E, False, "instead of its name",
     message(f"<{D}invoke f>\n\n</{D}invoke>", "", GOOD)),
    (calls_text(f"<{D}invoke f>\n{parameter('a', '1')}</{D}invoke>\n", NEXT) + E, False, "instead of its name",
     message(f"<{D}invoke f>\n{parameter('a', '1')}</{D}invoke>", "", GOOD)),
    (calls_text(invoke("f", parameter("a", "1", "maybe")), NEXT) + E, False, "malformed",
     message("", "", ("f", '{"a": "1"}'), GOOD)),
    (calls_text(invoke("f", f"<{D}parameter>1</{D}parameter>\n"), NEXT) + E, False, "malformed",
     message(invoke("f", f"<{D}parameter>1</{D}parameter>\n")[:-1], "", GOOD)),
    (calls_text(invoke("f", parameter("a", "1"), parameter("a", "2")), NEXT) + E, False, "twice",
     message(invoke("f", parameter("a", "1"), parameter("a", "2"))[:-1], "", GOOD)),
    (calls_text(invoke("f", f'<{D}parameter name="a" string="true">1/{D}parameter>\n'), NEXT) + E, False,
     "not closed by", message("", "", ("f", '{"a": "1"}'), GOOD)),
    (calls_text(invoke("f", parameter("a", "1") + "x"), NEXT) + E, False, "ends with",
     message(invoke("f", parameter("a", "1") + "x")[:-1], "", GOOD)),
    (calls_text(invoke("f", parameter("a", "1"), "x" + parameter("b", "2")), NEXT) + E, False, "ends with",
     message(invoke("f", parameter("a", "1"), "x" + parameter("b", "2"))[:-1], "", GOOD)),
    # A lost call gives way to the next marker that it can be.
    (calls_text(f"<{D}invoke>\n<{D}parameter", NEXT) + E, False, "instead of its name", message("", "", GOOD)),
    (calls_text(f"<{D}invoke>\n<{D}parameter") + f"x{E}", False, "instead of its name", message("x")),
    (f"\n\n<{D}tool_calls>\n<{D}invoke>\n<{D}parameter{E}", False, "instead of its name", message()),
]  # fmt: skip


@pytest.mark.parametrize(("text", "thinking", "problem", "saved"), MALFORMED)
def test_malformed(text: str, thinking: bool, problem: str, saved: dict[str, Any]) -> None:
    with pytest.raises(pyflash.FormatError) as caught:
        chat.parse(text, thinking=thinking)
    assert "\n" not in str(caught.value)
    for pieces in ([text], list(text), *([text[:cut], text[cut:]] for cut in range(1, len(text)))):
        got, events, ended = stream(pieces, thinking)
        assert got == saved
        reported = problems(events)
        assert any(problem in each for each in reported) if problem else not reported and not ended
        assert all("\n" not in each for each in reported)


@pytest.mark.parametrize("value", ["", "oops", "1,", '{"x"', "[" * 100_000], ids=["", "word", "comma", "cut", "deep"])
def test_value_that_is_not_json(value: str) -> None:
    """The strict parser takes it over as it is; the streaming one makes a string of it, and says so."""
    text = calls_text(invoke("f", parameter("a", value, "false"))) + E
    assert chat.parse(text) == message("", "", ("f", f'{{"a": {value}}}'))
    got, events, _ = stream([text], False)
    assert got == message("", "", ("f", json.dumps({"a": value})))
    assert problems(events) == ["the parameter 'a' of 'f' is not valid JSON"]


# -- generated --

PIECES = ["", "a", "é𝄞", "\n", "\n\n", "<", "</", "｜", '"', "\\", "\x00", "\u2028", "<tool_result>", "\ud800", ">",
          "\n<"]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=5).map("".join)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | FLOATS | TEXTS,
                      lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2),
                      max_leaves=4)  # fmt: skip
# A quote in a name or key may end it.
NAMES = TEXTS.map(lambda text: text.replace('"', ""))
ANSWERS = st.tuples(TEXTS, TEXTS, st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=3)), max_size=2))


def encoded(answer: tuple[str, str, list[tuple[str, dict[str, Any]]]], thinking: bool) -> tuple[str, dict[str, Any]]:
    reasoning, content, calls = answer
    turn = message(content, reasoning if thinking else "",
                   *((name, json.dumps(arguments, ensure_ascii=False)) for name, arguments in calls))  # fmt: skip
    prompt = chat.encode([{"role": "user", "content": "x"}], thinking=thinking)
    whole = chat.encode([{"role": "user", "content": "x"}, turn], thinking=thinking)
    assert whole.startswith(prompt)
    return whole[len(prompt) :], turn


def split(text: str, seed: int) -> list[str]:
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(text) + 1) for _ in range(rng.randrange(20)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@settings(deadline=None, max_examples=300, derandomize=True)
@given(answer=ANSWERS, thinking=st.booleans(), seed=st.integers(0, 2**32))
def test_encoded_answers_parse_back(answer: Any, thinking: bool, seed: int) -> None:
    text, turn = encoded(answer, thinking)
    assert chat.parse(text, thinking=thinking) == turn
    for pieces in ([text], list(text), split(text, seed)):
        got, events, ended = stream(pieces, thinking)
        assert got == turn and ended and not problems(events)


FRAGMENTS = [E, chat.BOS, "<think>", "</think>", "\n\n", f"<{D}tool_calls", ">\n", f"<{D}invoke", ' name="f"',
             f"</{D}invoke", f"</{D}tool_calls>", f"<{D}parameter", ' name="k" string="true">', f"</{D}parameter",
             f"/{D}parameter", D, "<", '"', " ", "\n", "x", ">"]  # fmt: skip


def damaged(text: str, rng: random.Random) -> str:
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(FRAGMENTS) + text[at + rng.choice([0, 0, 1, 9, 40]) :]
    return text


@settings(deadline=None, max_examples=600, derandomize=True)
@given(answer=ANSWERS, thinking=st.booleans(), seed=st.integers(0, 2**32))
def test_damaged_answers(answer: Any, thinking: bool, seed: int) -> None:
    """Both parsers agree on what is malformed, and the streaming one's result does not depend on the split."""
    rng = random.Random(seed)
    text = damaged(encoded(answer, thinking)[0], rng)
    got, events, ended = stream([text], thinking)
    wrong = [problem for problem in problems(events) if "not valid JSON" not in problem]
    try:
        parsed = chat.parse(text, thinking=thinking)
    except pyflash.FormatError:
        assert wrong or not ended
    else:
        assert not wrong and ended and (problems(events) or got == parsed)
    for pieces in (list(text), split(text, seed)):
        again, others, ended_again = stream(pieces, thinking)
        assert again == got and ended_again == ended
        assert set(problems(others)) == set(problems(events))


@settings(deadline=None, max_examples=500, derandomize=True)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=30), st.booleans())
def test_random_markers(fragments: list[str], thinking: bool) -> None:
    text = "".join(fragments)
    got, events, ended = stream(fragments, thinking)
    wrong = problems(events)
    try:
        assert chat.parse(text, thinking=thinking) == got and not wrong and ended
    except pyflash.FormatError:
        assert wrong or not ended
    assert stream(list(text), thinking)[0] == got
