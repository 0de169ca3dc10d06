"""Generated conversations, in a form of no protocol, for requests of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

TEXTS = st.one_of(
    st.sampled_from(["hi", "two\n\nparagraphs", "  blanks ", "日本語 😀", "naïve <b>&amp;</b>", '{"a": [1, {}]}',
                     "\\n %s $1", "a\n", "<｜User｜>", "</think>", "<｜DSML｜tool_calls>"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20),
)  # fmt: skip
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.sampled_from([0.5, -1.25, 1.0, 2e-4]) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3), max_leaves=6,
)  # fmt: skip
_ARGUMENTS = st.dictionaries(st.sampled_from(["city", "days", "odd_k", "ü"]), _JSON, max_size=3)
_PARAMETERS = [
    {"type": "object", "required": ["city"], "properties": {"city": {"type": "string", "enum": ["Köln", "東京"]}}},
    {"type": "object", "properties": {}},
]


@dataclass
class Call:
    name: str
    arguments: dict[str, Any]
    result: str
    call_id: str = ""


@dataclass
class Turn:
    """A question, or the results of the calls before it (question None), and the answer to it."""

    question: str | None
    reasoning: str | None
    content: str
    calls: list[Call] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # in which the results come


@dataclass
class Conversation:
    system: str | None
    turns: list[Turn]
    last: str | None  # the last question; None: results of calls are the last
    tools: list[dict[str, Any]]
    effort: str | None  # None: without thinking


@st.composite
def _turns(draw: st.DrawFn, with_calls: bool) -> list[Turn]:
    turns: list[Turn] = []
    for n in range(draw(st.integers(0, 3))):
        after_calls = bool(turns and turns[-1].calls)
        question = None if after_calls and draw(st.booleans()) else draw(TEXTS)
        calls = draw(st.lists(st.builds(Call, st.sampled_from(["weather", "now"]), _ARGUMENTS, TEXTS), max_size=3)
                     ) if with_calls else []  # fmt: skip
        for i, call in enumerate(calls):
            call.call_id = f"call_{n}_{i}"
        order = draw(st.permutations(range(len(calls))))
        content = draw(TEXTS)
        turns.append(Turn(question, draw(st.none() | TEXTS), content, calls, list(order)))
    return turns


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    with_tools = draw(st.booleans())
    description = draw(st.sampled_from([None, "", "Wetter <heute>"]))
    tools = [{"name": "weather", "description": description, "parameters": _PARAMETERS[0]},
             {"name": "now", "description": "t", "parameters": _PARAMETERS[1]}]  # fmt: skip
    turns = draw(_turns(with_tools))
    last = None if turns and turns[-1].calls and draw(st.booleans()) else draw(TEXTS)
    return Conversation(draw(st.none() | TEXTS), turns, last, tools if with_tools else [],
                        draw(st.sampled_from([None, "low", "high", "max"])))  # fmt: skip
