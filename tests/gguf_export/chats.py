"""Generated conversations for the tests of chat templates."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

TEXTS = [
    "", "hi", "Hello there.", "two\n\nparagraphs\n", "  blanks  ", "\n", "{{ x }} {% if y %} {# z #}",
    '"quoted" \'single\' \\', "\\n \\u00e9 %s $1", "<think>", "a</think>b", "<｜User｜>", "<｜end▁of▁sentence｜>", "<tool_result>", "</tool_result>",
    "<｜DSML｜invoke>", "日本語", "😀\u200d\ufe0f", "naïve <b>&amp;</b>", "{\"a\": [1, {}]}", "x" * 300,
]  # fmt: skip
VALUES: list[Any] = [
    "", "text", "日本 <&'\">", "line\nline", 0, -7, 2.5, True, False, None, [], {}, [1, "a", None], {"k": {"ü": [True]}},
]  # fmt: skip
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Wetter <heute> & 'morgen'", "parameters": {
        "type": "object", "required": ["city"],
        "properties": {"city": {"type": "string", "enum": ["Köln", "東京"]}, "days": {"type": "integer"}}}}},
    {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}},
]  # fmt: skip
EFFORTS = {"preview": [None, "high", "max"], "0731": [None, "low", "high", "max"]}


def text(rng: random.Random) -> str:
    return "".join(rng.choice(TEXTS) for _ in range(rng.choice([1, 1, 1, 2])))


def content(rng: random.Random) -> Any:
    if rng.random() < 0.85:
        return text(rng)
    parts: list[Any] = [{"type": "text", "text": text(rng)} for _ in range(rng.randint(0, 3))]
    if rng.random() < 0.3:
        parts.append({"type": "image_url", "image_url": {"url": "x"}})
    return rng.choice([parts, None])


def calls(rng: random.Random, turn: int) -> list[Any]:
    return [
        {"id": f"call_{turn}_{n}", "type": "function", "function": {
            "name": rng.choice(["weather", "now", 'odd"name']),
            "arguments": {key: rng.choice(VALUES) for key in rng.sample(["city", "days", "odd k"], rng.randint(0, 3))},
        }}
        for n in range(rng.randint(1, 3))
    ]  # fmt: skip


def assistant(rng: random.Random, message_content: Any) -> Message:
    more = {"reasoning_content": rng.choice([text(rng), None])} if rng.random() < 0.6 else {}
    return {"role": "assistant", "content": message_content, **more}


def tool_turn(rng: random.Random, turn: int) -> list[Message]:
    """An assistant's calls and their results, some of them in another order, missing or unknown."""
    made = calls(rng, turn)
    ids = [call["id"] for call in made]
    rng.shuffle(ids)
    results = [{"role": "tool", "tool_call_id": call_id, "content": content(rng)} for call_id in ids]
    if rng.random() < 0.2:
        results.insert(rng.randint(0, len(results)), {"role": "tool", "tool_call_id": "unknown", "content": "?"})
    if rng.random() < 0.2:
        results.insert(rng.randint(0, len(results)), {"role": "user", "content": text(rng)})
    return [{**assistant(rng, content(rng)), "tool_calls": made}, *results]


def conversation(
    rng: random.Random, *, with_tools: bool, roles: Sequence[str] = ("system", "user", "assistant")
) -> list[Message]:
    """Half of them as people chat, half with turns in any order."""
    messages: list[Message] = []
    if rng.random() < 0.5:
        messages += [{"role": "system", "content": content(rng)}] if rng.random() < 0.6 else []
        for turn in range(rng.randint(1, 4)):
            messages.append({"role": "user", "content": content(rng)})
            if with_tools and rng.random() < 0.6:
                messages += tool_turn(rng, turn)
            messages.append(assistant(rng, content(rng)))
        return messages[:-1] if rng.random() < 0.8 else messages
    for turn in range(rng.randint(1, 7)):
        role = rng.choice(roles)
        if role == "assistant" and with_tools and rng.random() < 0.5:
            messages += tool_turn(rng, turn)
        elif role == "assistant":
            messages.append(assistant(rng, content(rng)))
        else:
            messages.append({"role": role, "content": content(rng)})
    return messages
