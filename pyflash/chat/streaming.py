"""Generated text to events while it is generated: the parser that survives whatever a model writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

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

_CALLS = "\n\n" + CALLS_BEGIN
_TEXT_MARKERS = (_CALLS, CALLS_BEGIN, EOS, THINK_END, BOS, THINK_BEGIN, DSML)
_PARAMETER_OPENING = ' name="'
_PARAMETER_HEADER = re.compile(r' name="(.*?)" string="(true|false)">', re.DOTALL)
_VALUE_ENDS = ("<" + PARAMETER_END, "<\n" + PARAMETER_END)  # the second as the published parser's regex has it

TextKind = Literal["reasoning", "content"]


@dataclass(frozen=True)
class Event:
    """A piece of the answer.

    kind "reasoning" or "content": text is the next piece of it. kind "tool_call": index counts the answer's calls from
    0, name is the call's, and text is the next piece of its arguments, in JSON; the last event of the call has call,
    the whole of it as in a message. A call none of whose events has that was malformed and is lost. problem says what
    was wrong with the format, None nearly always.
    """

    kind: Literal["reasoning", "content", "tool_call"]
    text: str = ""
    index: int | None = None
    name: str | None = None
    call: dict[str, Any] | None = None
    problem: str | None = None


def _scan(text: str, markers: tuple[str, ...], final: bool) -> tuple[int, str | None]:
    """Where the first marker begins, and which; or, with None, where one may have begun at the end of text."""
    found = [(at, -len(marker), marker) for marker in markers if (at := text.find(marker)) >= 0]
    first, _, marker = min(found, default=(len(text), 0, None))
    if not final:
        for at in range(max(0, len(text) - max(map(len, markers)) + 1), first):
            tail = text[at:]
            if any(marker.startswith(tail) for marker in markers):
                return at, None
    return first, marker


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


class StreamParser:
    """Takes an answer in pieces of any size and gives its events as early as they are certain.

    Text that may be the beginning of a marker is held back until more of it is known. Nothing that a model writes
    raises: what parse() would refuse comes out as well as possible, with Event.problem set somewhere.

    thinking: whether the prompt ended with "<think>".
    """

    def __init__(self, thinking: bool = False) -> None:
        self._kind: TextKind = "reasoning" if thinking else "content"
        self._state: Callable[[bool], bool] = self._read_text
        self._buffer = ""
        self._events: list[Event] = []
        self._texts: dict[TextKind, list[str]] = {"reasoning": [], "content": []}
        self._calls: list[dict[str, Any]] = []
        self._n_calls = 0  # with the lost ones
        self._had_calls = False
        self._had_text_after = False
        self._name: str | None = None
        self._keys: set[str] = set()
        self._arguments: list[str] = []
        self._is_string = False

    @property
    def ended(self) -> bool:
        """Whether the end of the answer, the EOS text or finish(), has been read."""
        return self._state == self._read_after_end

    @property
    def kind(self) -> Literal["reasoning", "content", "tool_call"]:
        """What the text is being read as."""
        return self._kind if self._state in (self._read_text, self._read_after_end) else "tool_call"

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message as far as its events have come, with the calls that are complete."""
        content, reasoning = "".join(self._texts["content"]), "".join(self._texts["reasoning"])
        return {"role": "assistant", "content": content, "reasoning_content": reasoning,
                "tool_calls": list(self._calls)}  # fmt: skip

    def feed(self, text: str) -> list[Event]:
        """The events that text completes, in order."""
        self._buffer += text
        return self._run(False)

    def finish(self) -> list[Event]:
        """The events held back, when no more text comes, with or without the EOS text. May be called again."""
        return self._run(True)

    def _run(self, final: bool) -> list[Event]:
        self._events = []
        while self._state(final):
            pass
        return self._events

    # Each state reads what it can from the buffer; True when it has moved on and the next one should look.

    def _take(self, markers: tuple[str, ...], final: bool) -> tuple[str, str | None]:
        """The text before the next of markers, and that one, both taken from the buffer; None when none is complete."""
        at, marker = _scan(self._buffer, markers, final)
        text = self._buffer[:at]
        if marker is not None:
            self._buffer = self._buffer[at + len(marker) :]
        return text, marker

    def _emit_text(self, text: str, problem: str | None = None) -> None:
        if text and self._had_calls and not self._had_text_after and problem is None:
            problem = "there is text after the tool calls"
            self._had_text_after = True
        if text or problem:
            self._texts[self._kind].append(text)
            self._events.append(Event(self._kind, text, problem=problem))

    def _read_text(self, final: bool) -> bool:
        text, marker = self._take(_TEXT_MARKERS, final)
        self._emit_text(text)
        if marker is None:
            self._buffer = self._buffer[len(text) :]
            if final:
                self._end("the text ended")
            return False
        if marker == EOS:
            self._end("the answer ended")
        elif marker == THINK_END and self._kind == "reasoning":
            self._kind = "content"
        elif marker in (_CALLS, CALLS_BEGIN):
            if self._kind == "reasoning":
                self._report("a tool call begins within the reasoning")
            elif marker == CALLS_BEGIN:
                self._report("a blank line is missing before the tool calls")
            elif self._had_calls:
                self._report("the tool calls begin a second time")
            self._had_calls = True
            self._state = self._read_between_calls
        else:
            self._emit_text(marker, f"{marker!r} does not belong here")
        return True

    def _end(self, how: str) -> None:
        # A call within the reasoning has been reported, and nothing closes such reasoning.
        if self._kind == "reasoning" and not self._had_calls:
            self._emit_text("", f"{how} within the reasoning")
        self._state = self._read_after_end

    def _read_after_end(self, final: bool) -> bool:
        if self._buffer:
            self._kind = "content"
            self._emit_text(self._buffer, "there is text after the end")
            self._buffer = ""
        return False

    def _report(self, problem: str) -> None:
        self._events.append(Event("tool_call", index=self._n_calls, name=self._name, problem=problem))

    def _break_off(self) -> None:
        """The text is over within the tool calls."""
        self._buffer = ""
        self._report("the text ended within the tool calls")
        self._state = self._read_after_end

    def _read_between_calls(self, final: bool) -> bool:
        text, marker = self._take((INVOKE_BEGIN, CALLS_END, EOS), final)
        if marker is None:
            if final:
                self._break_off()
            return False
        if marker == EOS:
            self._report("the tool calls are not closed")
            self._state = self._read_after_end
            return True
        if text != ">\n":
            self._report(f"the text between tool calls should be '>\\n' and is {text[:80]!r}")
        self._state = self._read_name if marker == INVOKE_BEGIN else self._read_text
        return True

    def _read_name(self, final: bool) -> bool:
        text, marker = self._take((PARAMETER_BEGIN, INVOKE_END), final)
        if marker is None:
            if final:
                self._break_off()
            return False
        name = NAME.match(text)
        if name is None:
            return self._lose(f"a tool call begins with {text[:80]!r} instead of its name", marker)
        self._name, self._keys, self._arguments = name[1], set(), []
        self._emit_arguments("{")
        return self._after_parameter(marker)

    def _emit_arguments(self, text: str) -> None:
        self._arguments.append(text)
        self._events.append(Event("tool_call", text, self._n_calls, self._name))

    def _after_parameter(self, marker: str) -> bool:
        if marker == PARAMETER_BEGIN:
            self._state = self._read_header
            return True
        self._arguments.append("}")
        arguments = "".join(self._arguments)
        call = {"type": "function", "function": {"name": self._name, "arguments": arguments}}
        problem = None if _is_json(arguments) else f"the arguments of {self._name!r} are not valid JSON"
        self._events.append(Event("tool_call", "}", self._n_calls, self._name, call, problem))
        self._calls.append(call)
        return self._next_call()

    def _next_call(self) -> bool:
        self._n_calls += 1
        self._name = None
        self._state = self._read_between_calls
        return True

    def _lose(self, problem: str, marker: str = "") -> bool:
        """Gives up the current call; marker is the one just read."""
        self._report(problem)
        if marker == INVOKE_END:
            return self._next_call()
        self._state = self._skip_call
        return True

    def _skip_call(self, final: bool) -> bool:
        text, marker = self._take((INVOKE_END, INVOKE_BEGIN, CALLS_END, EOS), final)
        if marker is None:
            if final:
                self._break_off()
            else:
                self._buffer = self._buffer[len(text) :]
            return False
        self._next_call()
        if marker == INVOKE_BEGIN:
            self._state = self._read_name
        elif marker == CALLS_END:
            self._state = self._read_text
        elif marker == EOS:
            self._state = self._read_after_end
        return True

    def _read_header(self, final: bool) -> bool:
        begun = self._buffer.startswith(_PARAMETER_OPENING)
        header = _PARAMETER_HEADER.match(self._buffer) if begun else None
        end = self._buffer.find(PARAMETER_END)
        if header is None or 0 <= end < header.end():
            if 0 <= end or not (begun or _PARAMETER_OPENING.startswith(self._buffer)):
                return self._lose(f"a parameter of {self._name!r} is malformed")
            if final:
                self._break_off()
            return False
        key, is_string = header.groups()
        if key in self._keys:
            return self._lose(f"the tool call {self._name!r} has the parameter {key!r} twice")
        self._buffer = self._buffer[header.end() :]
        self._is_string = is_string == "true"
        quote = '"' if self._is_string else ""
        self._emit_arguments((", " if self._keys else "") + f"{to_json(key)}: {quote}")
        self._keys.add(key)
        self._state = self._read_value
        return True

    def _read_value(self, final: bool) -> bool:
        text, marker = self._take((*_VALUE_ENDS, PARAMETER_END), final)
        if text:
            # JSON's escapes stand for single characters, so that the pieces join.
            self._emit_arguments(to_json(text)[1:-1] if self._is_string else text)
        if marker is None:
            self._buffer = self._buffer[len(text) :]
            if final:
                self._break_off()
            return False
        if marker == PARAMETER_END:
            return self._lose(f"a parameter of {self._name!r} is not closed by '<{PARAMETER_END}'")
        if self._is_string:
            self._emit_arguments('"')
        self._state = self._read_gap
        return True

    def _read_gap(self, final: bool) -> bool:
        text, marker = self._take((PARAMETER_BEGIN, INVOKE_END), final)
        if marker is None:
            if final:
                self._break_off()
            return False
        if text != ">\n":
            return self._lose(f"a parameter of {self._name!r} ends with {text[:80]!r} instead of '>\\n'", marker)
        return self._after_parameter(marker)
