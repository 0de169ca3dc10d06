"""Generated text to events while it is generated: the parser that survives whatever a model writes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
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
from pyflash.chat.repair import (
    APOLOGY,
    LOOSE_HEADER,
    LOOSE_NAME,
    PLAIN_BEGINNINGS,
    PLAIN_END,
    PLAIN_WRAPPER_ENDS,
    Tools,
    has_parameter,
    is_json,
    json_value,
    read_closed,
    says_nothing,
    takes_text,
    without_markers,
)

_CALLS = "\n\n" + CALLS_BEGIN
_MISSPELT, _MISSPELT_END = f"<{DSML}toolcalls", f"</{DSML}toolcalls>"
_OPENINGS = (_CALLS, CALLS_BEGIN, "\n\n" + _MISSPELT, _MISSPELT)
_CLOSINGS = (CALLS_END, _MISSPELT_END, INVOKE_END + ">")  # which models repeat after calls
_TEXT_MARKERS = (*_OPENINGS, INVOKE_BEGIN, EOS, THINK_END, BOS, THINK_BEGIN, DSML)
_BLOCK_ENDS = (CALLS_END, _MISSPELT_END)
_ENDS_OF_TEXT = (EOS, BOS, THINK_BEGIN, THINK_END)
_UNCLOSED = ("\n" + PARAMETER_BEGIN, PARAMETER_BEGIN, "\n" + INVOKE_END, INVOKE_END)
_GAP = re.compile(r">?\s*")
_NAME_OPENING = 'name="'
_NAME_BEGUN = re.compile(r'\s*(?:n|na|nam|name|name=|name=".*)?', re.DOTALL)
_PARAMETER_OPENING = ' name="'
_PARAMETER_HEADER = re.compile(r' name="(.*?)" string="(true|false)">', re.DOTALL)
_VALUE_ENDS = ("<" + PARAMETER_END, "<\n" + PARAMETER_END)  # the second as the published parser's regex has it

TextKind = Literal["reasoning", "content"]


@dataclass(frozen=True)
class Event:
    """A piece of the answer.

    kind "reasoning" or "content": text is the next piece of it. kind "tool_call": index counts the answer's calls from
    0, name is the call's, and text is the next piece of its arguments, in JSON; the last event of the call has call,
    the whole of it as in a message. A call none of whose events has that was cut, or is none, and then comes again as
    content. problem says what was wrong with the format, None nearly always.
    """

    kind: Literal["reasoning", "content", "tool_call"]
    text: str = ""
    index: int | None = None
    name: str | None = None
    call: dict[str, Any] | None = None
    problem: str | None = None


@lru_cache(maxsize=64)
def _pattern(markers: tuple[str, ...]) -> tuple[re.Pattern[str], int]:
    """What finds the first of markers, the longest of those that begin there, and the longest one's length."""
    longest_first = sorted(markers, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))), len(longest_first[0])


def _scan(text: str, markers: tuple[str, ...], final: bool) -> tuple[int, str | None]:
    """Where the first marker begins, and which; or, with None, where one may have begun at the end of text."""
    pattern, longest = _pattern(markers)
    found = pattern.search(text)
    first, marker = (found.start(), found[0]) if found else (len(text), None)
    if not final:
        begins = tuple({each[0] for each in markers})
        for at in range(max(0, len(text) - longest + 1), first):
            if text.startswith(begins, at) and any(each.startswith(text[at:]) for each in markers):
                return at, None
    return first, marker


class StreamParser:
    """Takes an answer in pieces of any size and gives its events as early as they are certain.

    Text that may be the beginning of a marker is held back until more of it is known. Nothing that a model writes
    raises: what parse() would refuse comes out as well as possible, with Event.problem set somewhere. Calls that are
    written badly but closed are found; what can be none, or names none of the tools, comes out as text.

    thinking: whether the prompt ended with "<think>". tools: those that a call may name, each with the JSON schema of
    its parameters; {} for none at all, so that all markup is text; None where they are not known. Where tools are known
    no marker of the calls' markup comes out within a text.
    """

    def __init__(self, thinking: bool = False, tools: Tools | None = None) -> None:
        self._kind: TextKind = "reasoning" if thinking else "content"
        self._tools = tools
        self._state: Callable[[bool], bool] = self._read_text
        self._buffer = ""
        self._events: list[Event] = []
        self._texts: dict[TextKind, list[str]] = {"reasoning": [], "content": []}
        self._calls: list[dict[str, Any]] = []
        self._n_calls = 0  # with the lost ones
        self._had_calls = False
        self._had_text_after = False
        self._has_apologised = False
        self._opening = ""  # of the calls, while nothing has followed it
        self._is_cut = False
        self._markers = (*_TEXT_MARKERS, *(PLAIN_BEGINNINGS if tools else ()))
        # Of the call that is being read:
        self._raw: list[str] = []  # its text as far as no event has it
        self._name: str | None = None
        self._keys: set[str] = set()
        self._arguments: list[str] = []
        self._is_string = False
        self._key = ""  # of its last parameter
        self._value: list[str] = []  # of that, where it is no string
        self._lost = ""  # why it is lost

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

    def finish(self, cut: bool = False) -> list[Event]:
        """The events held back, when no more text comes, with or without the EOS text. May be called again.

        cut: whether the text would have gone on, as after so many tokens: then what may be the beginning of calls' markup
        is left out."""
        self._is_cut = cut
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
        if self._tools:
            text = without_markers(text)
        if text or problem:
            self._texts[self._kind].append(text)
            self._events.append(Event(self._kind, text, problem=problem))

    def _give_back(self, text: str, problem: str) -> None:
        """Text that was to be a call and cannot be one."""
        self._report(problem)
        if says_nothing(text):
            return
        apology = APOLOGY if self._tools and not self._has_apologised else ""
        self._has_apologised = True
        self._emit_text(apology + text, problem)

    # -- outside calls --

    def _read_text(self, final: bool) -> bool:
        closings = (*_CLOSINGS, PLAIN_END) if self._tools else _CLOSINGS
        markers = (*self._markers, *closings) if self._had_calls else self._markers
        if final and self._is_cut and self._tools != {}:
            self._leave_out_begun_markup(markers)
        text, marker = self._take(markers, final)
        self._emit_text(text)
        if marker is None:
            self._buffer = "" if final else self._buffer[len(text) :]
            if final:
                self._end("the text ended")
            return False
        if marker == EOS:
            self._end("the answer ended")
        elif marker == THINK_END and self._kind == "reasoning":
            self._kind = "content"
        elif marker in PLAIN_BEGINNINGS and self._is_at_line_begin():
            self._opening, self._state = marker, self._read_plain
        elif marker in _OPENINGS and self._tools != {}:
            self._opening, self._state = marker, self._read_opening
        elif marker == INVOKE_BEGIN and self._tools != {}:
            self._opening, self._state = marker, self._read_orphan
        elif marker in closings and self._had_calls:
            self._report("the tool calls are closed a second time")
        else:
            self._emit_text(marker, None if marker in PLAIN_BEGINNINGS else f"{marker!r} does not belong here")
        return True

    def _leave_out_begun_markup(self, markers: tuple[str, ...]) -> None:
        """What may be the beginning of calls' markup, at the end of a text that is cut. A single "<" is one at the beginning
        of a line only."""
        at, marker = _scan(self._buffer, markers, False)
        begun = self._buffer[at:]
        if marker is not None or not begun:
            return
        before = "".join(self._texts[self._kind]) + self._buffer[:at]
        is_at_line_begin = begun[0] == "\n" or before[-1:] in ("", "\n")
        if begun.lstrip("\n").startswith(("<｜", "</｜")) or ("<" in begun and is_at_line_begin):
            self._buffer = self._buffer[:at]

    def _is_at_line_begin(self) -> bool:
        """Whether a line begins here, outside blocks of code."""
        so_far = "".join(self._texts[self._kind])
        return (not so_far or so_far.endswith("\n")) and so_far.count("```") % 2 == 0

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

    def _read_orphan(self, final: bool) -> bool:
        """A call outside of any calls' opening: one that is read only when it is closed."""
        at, end = _scan(self._buffer, (INVOKE_END, *_OPENINGS, INVOKE_BEGIN, *_ENDS_OF_TEXT), True)
        if end == INVOKE_END:
            rest = self._buffer[at + len(INVOKE_END) :]
            inner = self._buffer[:at]
            if found := read_closed(inner, self._tools, DSML):
                self._buffer = rest
                self._emit_call(*found, "the tool calls are not opened")
                self._state = self._read_between_calls
                return True
            if LOOSE_NAME.match(inner):
                if not rest and not final:
                    return False  # ">" belongs to it
                self._buffer = rest.removeprefix(">")
                self._give_back(f"{INVOKE_BEGIN}{inner}{INVOKE_END}>", "a tool call is no call of any tool")
                self._state = self._read_text
                return True
        elif end is None and not final:
            return False
        elif end is None and self._is_cut and _NAME_BEGUN.fullmatch(self._buffer):
            self._break_off()
            return False
        self._emit_text(self._opening, f"{self._opening!r} does not belong here")
        self._state = self._read_text
        return True

    def _read_plain(self, final: bool) -> bool:
        """A call in tags without the markup's marker: one that is read only when it is closed."""
        at, end = _scan(self._buffer, (PLAIN_END, *_OPENINGS, INVOKE_BEGIN, *_ENDS_OF_TEXT), True)
        if end is None and not final:
            return False
        found = read_closed('name="' + self._buffer[:at], self._tools, "") if end == PLAIN_END else None
        if found is None:
            self._emit_text(self._opening)
            self._state = self._read_text
        else:
            self._buffer = self._buffer[at + len(PLAIN_END) :]
            self._emit_call(*found, "a tool call is written without the markers")
            self._state = self._read_after_plain
        return True

    def _read_after_plain(self, final: bool) -> bool:
        rest = self._buffer.lstrip()
        for follower in (PLAIN_BEGINNINGS[0], *PLAIN_WRAPPER_ENDS):
            if rest.startswith(follower):
                self._buffer = rest[len(follower) :]
                self._opening = follower
                self._state = self._read_plain if follower == PLAIN_BEGINNINGS[0] else self._read_text
                return True
            if follower.startswith(rest) and not final:
                return False
        self._state = self._read_text
        return True

    def _emit_call(self, name: str, arguments: str, problem: str) -> None:
        """A call that is found whole."""
        self._had_calls = True
        self._name = name
        self._report(problem)
        self._finish_call(arguments, arguments)

    # -- calls --

    def _report(self, problem: str) -> None:
        self._events.append(Event("tool_call", index=self._n_calls, name=self._name, problem=problem))

    def _break_off(self) -> None:
        """The text is over within the tool calls."""
        self._buffer = ""
        self._report("the text ended within the tool calls")
        if self._raw and not (self._arguments or self._is_cut or says_nothing("".join(self._raw))):
            self._emit_text("".join(self._raw), "a tool call is not complete")
        self._state = self._read_after_end

    def _read_opening(self, final: bool) -> bool:
        """Behind what opens calls: a call follows, or it was only mentioned."""
        gap = _GAP.match(self._buffer)
        assert gap is not None
        rest = self._buffer[gap.end() :]
        follows = (INVOKE_BEGIN, *_BLOCK_ENDS, EOS, PARAMETER_BEGIN, _NAME_OPENING)
        if not any(map(rest.startswith, follows)):
            if any(each.startswith(rest) for each in follows):
                if final:
                    self._break_off()
                return False
            self._emit_text(self._opening, "the text between tool calls should be '>\\n'")
            self._state = self._read_text
            return True
        if self._kind == "reasoning":
            self._report("a tool call begins within the reasoning")
        elif not self._opening.startswith("\n\n"):
            self._report("a blank line is missing before the tool calls")
        elif self._had_calls:
            self._report("the tool calls begin a second time")
        if "toolcalls" in self._opening:
            self._report("the tool calls begin with 'toolcalls'")
        self._had_calls = True
        self._state = self._read_between_calls
        return True

    def _read_between_calls(self, final: bool) -> bool:
        gap = _GAP.match(self._buffer)
        assert gap is not None
        rest = self._buffer[gap.end() :]
        follows = (INVOKE_BEGIN, *_BLOCK_ENDS, EOS, PARAMETER_BEGIN, _NAME_OPENING)
        marker = next((each for each in follows if rest.startswith(each)), None)
        if marker is None and any(each.startswith(rest) for each in follows):
            if final:
                self._break_off()
            return False
        if marker == EOS or marker is None:
            self._report("the tool calls are not closed")
            self._buffer = rest[len(EOS) :] if marker else self._buffer.removeprefix(">")
            self._state = self._read_after_end if marker else self._read_text
            return True
        if gap[0] != ">\n":
            self._report(f"the text between tool calls should be '>\\n' and is {gap[0][:80]!r}")
        self._buffer = rest if marker == _NAME_OPENING else rest[len(marker) :]
        self._raw, self._arguments, self._keys = [marker], [], set()
        if marker in _BLOCK_ENDS:
            self._raw, self._state = [], self._read_text
        elif marker == PARAMETER_BEGIN:
            self._lose("a parameter of a tool call has no call before it")
        else:
            if marker == _NAME_OPENING:
                self._raw = [INVOKE_BEGIN, " "]
                self._report(f"a tool call begins without {INVOKE_BEGIN!r}")
            self._state = self._read_name
        return True

    def _read_name(self, final: bool) -> bool:
        text, marker = self._take((PARAMETER_BEGIN, INVOKE_END), final)
        if marker is None:
            if final:
                self._raw.append(self._buffer)
                self._break_off()
            return False
        self._raw += (text, marker)
        name = NAME.match(text)
        if name is None:
            name = LOOSE_NAME.fullmatch(text)
            told = f"a tool call begins with {text[:80]!r} instead of its name"
            if name is None:
                return self._lose(told, marker)
            self._report(told)
        if self._tools is not None and name[1] not in self._tools:
            return self._lose(f"there is no tool {name[1][:80]!r}", marker)
        self._name = name[1]
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
        self._finish_call("}", "".join(self._arguments))
        return True

    def _finish_call(self, text: str, arguments: str) -> None:
        """The last event of a call. text: the last piece of its arguments."""
        call = {"type": "function", "function": {"name": self._name, "arguments": arguments}}
        self._events.append(Event("tool_call", text, self._n_calls, self._name, call))
        self._calls.append(call)
        self._next_call()

    def _next_call(self) -> bool:
        self._n_calls += 1
        self._name = None
        self._raw, self._arguments, self._keys = [], [], set()
        self._state = self._read_between_calls
        return True

    def _lose(self, problem: str, marker: str = "") -> bool:
        """Gives up the current call; marker is the one just read."""
        self._lost = problem
        if marker == INVOKE_END:
            self._raw.append(">")
            return self._skipped()
        self._state = self._skip_call
        return True

    def _skipped(self) -> bool:
        """A lost call is over."""
        self._give_back("".join(self._raw), self._lost)
        return self._next_call()

    def _skip_call(self, final: bool) -> bool:
        text, marker = self._take((INVOKE_END, INVOKE_BEGIN, *_BLOCK_ENDS, EOS), final)
        self._raw.append(text)
        if marker is None:
            self._buffer = self._buffer[len(text) :]
            if final:
                self._skipped()
                self._break_off()
            return False
        if marker == INVOKE_END:
            self._raw.append(INVOKE_END + ">")
        self._skipped()
        if marker == INVOKE_BEGIN:
            self._raw = [marker]
            self._state = self._read_name
        elif marker in _BLOCK_ENDS:
            self._state = self._read_text
        elif marker == EOS:
            self._state = self._read_after_end
        return True

    def _schema(self) -> Mapping[str, Any] | None:
        """Of the current call's parameters, if it is known."""
        return self._tools[self._name] if self._tools and self._name is not None else None

    def _read_header(self, final: bool) -> bool:
        begun = self._buffer.startswith(_PARAMETER_OPENING)
        header = _PARAMETER_HEADER.match(self._buffer) if begun else None
        end = self._buffer.find(PARAMETER_END)
        if header is None or 0 <= end < header.end():
            if 0 <= end:
                return self._read_loose_parameter(end)
            if not (begun or _PARAMETER_OPENING.startswith(self._buffer)) and (
                any(each in self._buffer for each in (INVOKE_END, *_BLOCK_ENDS, EOS))
            ):
                return self._lose(f"a parameter of {self._name!r} is malformed")
            if final:
                self._raw.append(self._buffer)
                self._break_off()
            return False
        key, is_string = header.groups()
        if key in self._keys:
            return self._lose(f"the tool call {self._name!r} has the parameter {key!r} twice")
        self._advance(header.end())
        self._begin_value(key, is_string == "true")
        self._state = self._read_value
        return True

    def _read_loose_parameter(self, end: int) -> bool:
        """A parameter with another header than it should have. end: where its closing begins in the buffer."""
        body = self._buffer[:end]
        header = LOOSE_HEADER.match(body)
        if header is None or header[1] in self._keys or not body.endswith(("<", "<\n")):
            return self._lose(f"a parameter of {self._name!r} is malformed")
        key, kind = header.groups()
        value = body[header.end() :].removesuffix("\n").removesuffix("<")
        self._report(f"a parameter of {self._name!r} is malformed")
        is_string = kind == "true" if kind in ("true", "false") else takes_text(self._schema(), key, value)
        self._begin_value(key, is_string)
        self._add_value(value)
        self._end_value()
        self._advance(end + len(PARAMETER_END))
        self._state = self._read_gap
        return True

    def _advance(self, n: int) -> None:
        """Takes so many characters of the current call from the buffer."""
        self._raw.append(self._buffer[:n])
        self._buffer = self._buffer[n:]

    def _begin_value(self, key: str, is_string: bool) -> None:
        self._is_string, self._key, self._value = is_string, key, []
        self._emit_arguments((", " if self._keys else "") + to_json(key) + (': "' if is_string else ": "))
        self._keys.add(key)

    def _add_value(self, text: str) -> None:
        if not self._is_string:
            self._value.append(text)
        elif text:
            self._emit_arguments(to_json(text)[1:-1])  # JSON's escapes stand for single characters: the pieces join

    def _end_value(self) -> None:
        if self._is_string:
            self._emit_arguments('"')
            return
        value = "".join(self._value)
        self._emit_arguments(json_value(value, False))
        if not is_json(value):
            self._report(f"the parameter {self._key[:80]!r} of {self._name!r} is not valid JSON")

    def _read_value(self, final: bool) -> bool:
        ends = (*_VALUE_ENDS, PARAMETER_END)
        at, marker = _scan(self._buffer, (*ends, EOS, *_UNCLOSED) if self._tools else (*ends, EOS), False)
        if marker in _UNCLOSED:
            return self._read_unclosed(at, marker, final)
        if marker == EOS:
            return self._read_eos_in_value(at, final)
        self._add_value(self._buffer[:at])  # at the end without what may be the beginning of its closing
        self._advance(at)
        if marker is None:
            if final:
                self._break_off()
            return False
        self._advance(len(marker))
        if marker == PARAMETER_END:
            self._report(f"a parameter of {self._name!r} is not closed by '<{PARAMETER_END}'")
        self._end_value()
        self._state = self._read_gap
        return True

    def _read_eos_in_value(self, at: int, final: bool) -> bool:
        """The EOS text within a value: a part of it, where more comes."""
        is_last = len(self._buffer) == at + len(EOS)
        if is_last and not final:
            return False
        self._add_value(self._buffer[: at if is_last else at + len(EOS)])
        self._advance(at + len(EOS))
        if is_last:
            self._break_off()
        return not is_last

    def _read_unclosed(self, at: int, marker: str, final: bool) -> bool:
        """A marker within a value, which may be part of it, or show that its closing was forgotten."""
        rest = self._buffer[at + len(marker) :]
        if marker.endswith(PARAMETER_BEGIN):
            header = _PARAMETER_HEADER.match(rest)
            if header is None and ">" not in rest:
                if final:
                    self._add_value(self._buffer[:at])
                    self._break_off()
                return False
            forgotten = (header is not None and header[1] not in self._keys
                         and has_parameter(self._schema(), header[1]))  # fmt: skip
        else:
            next_end, next_begin, eos = (rest.find(each) for each in (PARAMETER_END, INVOKE_BEGIN, EOS))
            if max(next_end, next_begin, eos) < 0 and not final:
                return False
            forgotten = next_end < 0 or 0 <= next_begin < next_end or 0 <= eos < next_end
        if not forgotten:
            self._add_value(self._buffer[: at + len(marker)])
            self._advance(at + len(marker))
            return True
        self._report(f"a parameter of {self._name!r} is not closed by '<{PARAMETER_END}'")
        self._add_value(self._buffer[:at])
        self._advance(at + len(marker))
        self._end_value()
        return self._after_parameter(marker.removeprefix("\n"))

    def _read_gap(self, final: bool) -> bool:
        text, marker = self._take((PARAMETER_BEGIN, INVOKE_END), final)
        if marker is None:
            if final:
                self._raw.append(self._buffer)
                self._break_off()
            return False
        self._raw += (text, marker)
        if text != ">\n":
            problem = f"a parameter of {self._name!r} ends with {text[:80]!r} instead of '>\\n'"
            if text.strip() not in ("", ">"):
                return self._lose(problem, marker)
            self._report(problem)
        return self._after_parameter(marker)
