"""Generated text back to a message: the strict parser, which accepts exactly the published format."""

from __future__ import annotations

import re
from typing import Any

from pyflash.chat.format import (
    BOS,
    CALLS_BEGIN,
    CALLS_END,
    DSML,
    EOS,
    INVOKE_BEGIN,
    INVOKE_END,
    NAME,
    PARAMETER_BEGIN,
    PARAMETER_END,
    THINK_BEGIN,
    THINK_END,
    to_json,
)
from pyflash.native.errors import ArgumentError, FormatError

_PARAMETER = re.compile(r'^ name="(.*?)" string="(true|false)">(.*?)<$', re.DOTALL)
_CALLS = "\n\n" + CALLS_BEGIN


class _Reader:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def until(self, *stops: str) -> tuple[str, str]:
        """The text before the first of the stops, and that stop, which is passed over. FormatError without one."""
        found = [(at, stop) for stop in stops if (at := self._text.find(stop, self._at)) >= 0]
        if not found:
            raise FormatError(f"the text ends without {' or '.join(map(repr, stops))}")
        at, stop = min(found)
        before = self._text[self._at : at]
        self._at = at + len(stop)
        return before, stop

    def at_end(self) -> bool:
        return self._at == len(self._text)


def _expect(got: str, wanted: str, where: str) -> None:
    if got != wanted:
        raise FormatError(f"{where} should be {wanted!r} and is {got[:80]!r}")


def _read_call(reader: _Reader) -> dict[str, Any]:
    header, stop = reader.until(PARAMETER_BEGIN, INVOKE_END)
    if not (name := NAME.match(header)):
        raise FormatError(f"a tool call begins with {header[:80]!r} instead of its name")
    arguments: dict[str, str] = {}
    while stop == PARAMETER_BEGIN:
        body, _ = reader.until(PARAMETER_END)
        if not (parameter := _PARAMETER.match(body)):
            raise FormatError(f"a parameter of the tool call {name[1]!r} is malformed: {body[:80]!r}")
        key, is_string, value = parameter.groups()
        if key in arguments:
            raise FormatError(f"the tool call {name[1]!r} has the parameter {key!r} twice")
        arguments[key] = to_json(value) if is_string == "true" else value
        gap, stop = reader.until(PARAMETER_BEGIN, INVOKE_END)
        _expect(gap, ">\n", "the end of a parameter")
    joined = ", ".join(f"{to_json(key)}: {value}" for key, value in arguments.items())
    return {"type": "function", "function": {"name": name[1], "arguments": "{" + joined + "}"}}


def _read_calls(reader: _Reader) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []
    while True:
        gap, stop = reader.until(INVOKE_BEGIN, CALLS_END)
        _expect(gap, ">\n", "the text between tool calls")
        if stop == CALLS_END:
            return calls
        calls.append(_read_call(reader))


def parse(text: str, thinking: bool = False) -> dict[str, Any]:
    """The assistant's message that a generated text spells: what follows the prompt, up to and with EOS.

    thinking: whether the prompt ended with "<think>". The message has "role", "content", "reasoning_content" and
    "tool_calls", these without ids and with "arguments" as text: values that are no strings are taken over unchecked.
    FormatError for anything outside the format; StreamParser copes with that.
    """
    if not isinstance(text, str):
        raise ArgumentError(f"the generated text must be a string, not {type(text).__name__}")
    reader = _Reader(text)
    reasoning = ""
    if thinking:
        reasoning, stop = reader.until(THINK_END, _CALLS)
        if stop == _CALLS:
            raise FormatError("a tool call begins within the reasoning")
    content, stop = reader.until(EOS, _CALLS)
    calls: list[dict[str, Any]] = []
    if stop == _CALLS:
        calls = _read_calls(reader)
        _expect(reader.until(EOS)[0], "", "the text after the tool calls")
    if not reader.at_end():
        raise FormatError("there is text after the end")
    for token in (BOS, EOS, THINK_BEGIN, THINK_END, DSML):
        if token in content or token in reasoning:
            raise FormatError(f"{token!r} is in the content or the reasoning")
    return {"role": "assistant", "content": content, "reasoning_content": reasoning, "tool_calls": calls}
