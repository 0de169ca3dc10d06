"""Where in a conversation stands what the assistant copies: digits, arguments, tools' names, results.

Training shows these places to the attention. Without, a small model needs many times the examples to find out by
itself that it can look things up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from tasks.common import Example, trained_spans

Copy = tuple[int, int, int]  # characters: where the copy begins, where the original does, how many

_USER = "<｜User｜>"
_SUM = re.compile(r"(\d+) [-+*] (\d+)\.")
_STEP = re.compile(r"(Ones|Tens|Hundreds|Thousands): (\d) [-+] (\d)[^.]*?, write (\d), (?:carry|borrow) (\d)\.")
_SO = re.compile(r"So (\d+)\.")
_ANSWER = re.compile(r"(\d+) [-+*] (\d+) = (\d+)\.")
_PLACES = ("Ones", "Tens", "Hundreds", "Thousands")


def _question_begin(text: str, before: int) -> int:
    """Where the last message of the user begins; results of tools stand in such messages too and are left out."""
    at = text.rfind(_USER, 0, before)
    while at > 0 and text.startswith("<tool_result>", at + len(_USER)):
        at = text.rfind(_USER, 0, at)
    return at


def _same_number(copy: re.Match[str], group: int, original: tuple[int, int], text: str) -> Iterator[Copy]:
    """The digits of a group and those of the number at original, aligned at the ones, without leading zeros."""
    n = len(str(int(copy[group])))
    if int(text[slice(*original)]) == int(copy[group]):
        yield copy.end(group) - n, original[1] - n, n


def _written_sum(text: str, begin: int, end: int, operands: list[tuple[int, int]]) -> Iterator[Copy]:
    """A calculation digit by digit: its operands, each step's digits, and the digits of what comes out."""
    head = _SUM.match(text, begin)
    if not head or head.end() > end:
        return
    for group in (1, 2):
        for original in operands:
            yield from _same_number(head, group, original, text)
    steps = list(_STEP.finditer(text, begin, end))
    for step in steps:
        place = _PLACES.index(step[1])
        for group in (1, 2):
            if place < len(head[group]):
                yield step.start(group + 1), head.end(group) - 1 - place, 1
    so = _SO.search(text, begin, end)
    if so and steps:
        for place in range(len(so[1])):
            source = steps[place].start(4) if place < len(steps) else steps[-1].start(5)
            yield so.end(1) - 1 - place, source, 1


def arithmetic(text: str) -> Iterator[Copy]:
    for begin, end in trained_spans(text):
        question = _question_begin(text, begin)
        asked = [match.span() for match in re.finditer(r"\d+", text[:begin]) if match.start() > question]
        thought = text.find("</think>", begin, end)
        check = text.find("Check: ", begin, end)
        so = _SO.search(text, begin, max(begin, thought))
        if thought > 0:
            yield from _written_sum(text, begin, check if check > 0 else thought, asked)
        if check > 0 and so:
            head = _SUM.match(text, begin)
            known = [so.span(1)] + ([head.span(1), head.span(2)] if head else [])
            yield from _written_sum(text, check + len("Check: "), thought, known)
        answer = _ANSWER.search(text, max(begin, thought), end)
        if answer:
            for group in (1, 2):
                for original in asked:
                    yield from _same_number(answer, group, original, text)
            if so:
                yield from _same_number(answer, 3, so.span(1), text)


def _values(message: dict[str, Any]) -> list[str]:
    if message["role"] == "tool":
        return [str(value) for value in json.loads(message["content"]).values()]
    return [str(value) for call in message.get("tool_calls", ())
            for value in json.loads(call["function"]["arguments"]).values()]  # fmt: skip


def tools(text: str, example: Example) -> Iterator[Copy]:
    spans = iter(trained_spans(text))
    values: list[str] = []
    for message in example.messages:
        if message["role"] == "user":
            values = []
        values += _values(message)
        if message["role"] != "assistant":
            continue
        begin, end = next(spans)
        question = _question_begin(text, begin)
        for value in values:
            original = re.compile(rf"(?<!\w){re.escape(value)}(?!\w)").search(text, question)
            for copy in re.finditer(rf"(?<!\w){re.escape(value)}(?!\w)", text[:end]):
                if original and copy.start() >= begin and copy.start() > original.start():
                    yield copy.start(), original.start(), len(value)
        for call in message.get("tool_calls", ()):
            name = call["function"]["name"]
            described = text.find(f'"name": "{name}"')
            if described < 0:
                continue
            source = described + len('"name": "')
            yield begin, source, 1  # whether to call at all
            for copy in re.finditer(rf"(?<!\w){name}(?!\w)", text[:end]):
                if copy.start() >= begin:
                    yield copy.start(), source, len(name)


def copies(text: str, example: Example) -> list[Copy]:
    """Of a rendered example. Facts of recall are left out: they are found by their sentences."""
    found = list(arithmetic(text)) if example.kind in ("arithmetic", "tools") else []
    return found + (list(tools(text, example)) if example.kind == "tools" else [])
