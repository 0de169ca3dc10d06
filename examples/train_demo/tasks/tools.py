"""Tools offered, and questions that one of them fits or none."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from tasks import arithmetic, talk
from tasks.common import Example, Message, assistant, check_options, held_back, system, user
from tasks.tool_families import FAMILIES, Family

NO_TOOL = "I have no tool for that."


def _request(rng: random.Random, family: Family, split: str) -> tuple[str, dict[str, Any]]:
    """A question and the arguments that it asks for. The arguments, together with this tool, belong to the split."""
    while True:
        arguments = family.draw(rng)
        question = rng.choice(family.questions).format(**arguments)
        # Where there are too few values to hold some back, their wordings are.
        what = [question] if family.few_values else arguments.values()
        if held_back("tools", family.name, *what) == (split == "test"):
            # Lower case would lose what has to be copied, so only the mark at the end varies.
            return question.rstrip(".?!") if rng.random() < 0.2 else question, arguments


def call(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call as OpenAI's chat API writes it."""
    text = json.dumps(arguments, ensure_ascii=False)
    return {"id": "call_0", "type": "function", "function": {"name": name, "arguments": text}}


def _needs(family: Family, arguments: Mapping[str, Any]) -> str:
    values = ", ".join(f"{key} {value}" for key, value in arguments.items())
    return f"This needs {family.name} with {values}."


def _without_call(rng: random.Random, split: str, think: str, given: list[Family]) -> tuple[str, str, str]:
    """A question that none of the given tools fits, its answer and the reasoning."""
    names = [family.name for family in given]
    drawn = rng.random()
    if drawn < 0.4:
        # Without a calculator, sums are answered.
        absent = rng.choice([family for family in FAMILIES if family.name not in (*names, "calculate")])
        return _request(rng, absent, split)[0], NO_TOOL, "No tool fits this."
    if drawn < 0.6 and "calculate" not in names:
        a, op, b = arithmetic.draw_sum(rng, split, "off")
        # With tools around, thinking only says that none is needed: sums here are small.
        return arithmetic.question(rng, a, op, b, 0), arithmetic.short_answer(a, op, b), "No tool is needed."
    while True:
        turn = talk.small_talk(rng, split)
        fits = ("calculate" in names and any(map(str.isdigit, turn.question))) or (
            "translate" in names and "translate" in turn.question.lower()
        )
        if not fits:
            return turn.question, rng.choice(turn.answers), "No tool is needed."


def _call_turn(
    rng: random.Random, split: str, think: str, given: list[Family], with_result: bool
) -> tuple[list[Message], dict[str, Any]]:
    """A question that needs one of the tools, the call, and where with_result the tool's answer and the model's."""
    family = rng.choice(given)
    question, arguments = _request(rng, family, split)
    why = _needs(family, arguments) if think != "off" else ""
    asked = assistant("", why) | {"tool_calls": [call(family.name, arguments)]}
    if not with_result:
        return [user(question), asked], {"call": {"name": family.name, "arguments": arguments}}
    result = family.result(rng, arguments)
    text = json.dumps(result, ensure_ascii=False)
    final = family.answer.format(**{**arguments, **result})
    why = "The tool has answered." if think != "off" else ""
    answer = [{"role": "tool", "tool_call_id": "call_0", "content": text}, assistant(final, why)]
    return [user(question), asked, *answer], {"content": final}


def generate(
    rng: random.Random, split: str, think: str = "off", n_tools: int | None = None, n_turns: int = 1
) -> Example:
    """n_turns questions with 1 to 4 tools at hand: mostly a call of one, at times its result and the final answer.

    The last turn's answer is the one that is judged.
    """
    check_options(split, think)
    given = rng.sample(FAMILIES, n_tools or rng.randint(1, 4))
    messages: list[Message] = system(rng, 0.4)
    expected: dict[str, Any] = {}
    for i in range(n_turns):
        if rng.random() < 0.35:
            question, content, why = _without_call(rng, split, think, given)
            turn, expected = [user(question), assistant(content, why if think != "off" else "")], {"call": None}
        else:
            # A conversation goes on only when the tool has answered.
            turn, expected = _call_turn(rng, split, think, given, i + 1 < n_turns or rng.random() < 0.3)
        messages += turn
    return Example("tools", messages, [family.description() for family in given], think, expected)


def is_right(example: Example, reply: Mapping[str, Any]) -> bool:
    """Exactly the call that is expected; no call and some text where none fits; the final answer word for word."""
    calls = reply.get("tool_calls") or []
    content = reply.get("content") or ""
    if "content" in example.answer:
        return not calls and content == example.answer["content"]
    wanted = example.answer["call"]
    if wanted is None:
        return not calls and bool(content.strip())
    if len(calls) != 1:
        return False
    called = calls[0]["function"]
    try:
        arguments = json.loads(called["arguments"])
    except ValueError:
        return False
    # As JSON, because 1, 1.0 and true are equal in Python.
    same = json.dumps(arguments, sort_keys=True) == json.dumps(wanted["arguments"], sort_keys=True)
    return called["name"] == wanted["name"] and same
