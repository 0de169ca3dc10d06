"""Events of an answer from what a StreamParser gives: the ids of calls, and what happens to calls that fail."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pyflash import chat
from pyflash.serve.events import (
    Content,
    Event,
    Finished,
    FinishReason,
    Reasoning,
    TokenChance,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Usage,
)

_EMPTY = "The model wrote a malformed tool call, and nothing else."
_ONLY_REASONING = "The model ended its answer within its reasoning."


@dataclass
class _Call:
    index: int
    name: str
    arguments: str = ""


class EventWriter:
    """Parsed pieces to the events of an answer. new_id: a call's id, unique and not to be guessed, from its index.

    Calls are numbered anew, so that those which the parser lost leave no gap. A call that has begun and turns out to
    be none stays without its ToolCallEnd: its arguments so far are no JSON, and no client runs it."""

    def __init__(self, new_id: Callable[[int], str]) -> None:
        self._new_id = new_id
        self._n_calls = 0
        self._n_complete = 0
        self._call: _Call | None = None
        self._parsed_index: int | None = None
        self._has_content = False
        self._has_lost_calls = False
        self.problems: list[str] = []  # all that was wrong with the form, for counts and logs

    def feed(self, pieces: Iterable[chat.Event], tokens: tuple[TokenChance, ...] = ()) -> list[Event]:
        """The events that pieces make. tokens: those that they are of, told with the first text among them."""
        out: list[Event] = []
        for piece in pieces:
            if piece.problem:
                self.problems.append(piece.problem)
                self._has_lost_calls |= piece.kind != "reasoning"
            if piece.kind == "tool_call":
                out += self._call_piece(piece)
            elif piece.text:
                out.append((Reasoning if piece.kind == "reasoning" else Content)(piece.text, tokens))
                self._has_content |= piece.kind == "content"
                tokens = ()
        return out

    def _call_piece(self, piece: chat.Event) -> list[Event]:
        out: list[Event] = []
        if not piece.text and piece.call is None:
            return out  # only a problem
        if self._call is None or self._parsed_index != piece.index:
            call = _Call(self._n_calls, piece.name or "")
            self._call, self._parsed_index = call, piece.index
            self._n_calls += 1
            out.append(ToolCallBegin(call.index, self._new_id(call.index), call.name))
        if piece.text:
            self._call.arguments += piece.text
            out.append(ToolCallArguments(self._call.index, piece.text))
        if piece.call is not None:
            out.append(ToolCallEnd(self._call.index, self._call.arguments))
            self._n_complete += 1
            self._call = None
        return out

    def finish(self, reason: FinishReason, usage: Usage, stop: str | None = None) -> list[Event]:
        """The last events. reason: why no more tokens came; complete calls make "tool_calls" of "stop"."""
        out: list[Event] = []
        is_empty = not self._has_content and not self._n_calls
        if is_empty and self.problems and reason == "stop" and stop is None:  # clients take an empty answer for a fault
            out.append(Content(_EMPTY if self._has_lost_calls else _ONLY_REASONING))
        if reason == "stop" and stop is None and self._n_complete:
            reason = "tool_calls"
        return [*out, Finished(reason, usage, stop)]
