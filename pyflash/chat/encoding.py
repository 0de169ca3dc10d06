"""Conversations to prompts, as the published encoder writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pyflash.chat.format import (
    ASSISTANT,
    BOS,
    EFFORTS,
    EOS,
    LATEST_REMINDER,
    TASKS,
    THINK_BEGIN,
    THINK_END,
    USER,
    Segment,
    calls_block,
    entries,
    function,
    response_format_block,
    tools_block,
)
from pyflash.native.errors import ArgumentError

Message = Mapping[str, Any]

_USER_ROLES = ("user", "developer")
_ROLES = ("system", "user", "tool", "assistant", "developer", "latest_reminder")


@dataclass
class _Part:
    """A text or a tool result within a user turn."""

    text: str
    is_result: bool = False
    call_id: str = ""


@dataclass
class _Turn:
    role: str
    message: Message
    task: str | None = None
    parts: list[_Part] = field(default_factory=list)

    def pieces(self) -> list[Segment]:
        """The turn's own text, without what opens or closes it."""
        out: list[Segment] = [("\n\n".join(part.text for part in self.parts), False)]
        if self.role in ("system", "developer"):
            if tools := self.message.get("tools"):
                out += tools_block(tools)
            if schema := self.message.get("response_format"):
                out.append(response_format_block(schema))
        elif self.role == "assistant" and (calls := self.message.get("tool_calls")):
            out += calls_block(calls)
        return out


def _effort_prefix(thinking: bool, effort: str | None, release: str) -> str:
    if release not in EFFORTS:
        raise ArgumentError(f"unknown release {release!r}; known are {', '.join(EFFORTS)}")
    known = EFFORTS[release]
    if effort not in known:
        names = ", ".join(name for name in known if name)
        raise ArgumentError(f"release {release} has no reasoning effort {effort!r}; it knows {names}")
    return known[effort] if thinking else ""


def _text(content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        parts = []
        for part in content:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            parts.append(_text(part.get("text")) if kind == "text" else f"[Unsupported {kind}]")
        return "\n\n".join(parts)
    raise ArgumentError(f"message content must be a string or a list of parts, not {type(content).__name__}")


def _turns(messages: Sequence[Message]) -> list[_Turn]:
    """Checked turns, neighbouring user and tool messages merged into one."""
    turns: list[_Turn] = []
    for message in messages:
        role = message.get("role") if isinstance(message, Mapping) else None
        if role not in _ROLES:
            raise ArgumentError(f"a message has the role {role!r}; known are {', '.join(_ROLES)}")
        task = message.get("task")
        if task is not None and task not in tuple(TASKS):
            raise ArgumentError(f"unknown task {task!r}; known are {', '.join(TASKS)}")
        text = _text(message.get("content"))
        part = _Part(text)
        if role == "tool":
            part = _Part(f"<tool_result>{text}</tool_result>", True, str(message.get("tool_call_id") or ""))
        last = turns[-1] if turns and turns[-1].role == "user" else None
        if last and (role == "tool" or (role == "user" and last.task is None)):
            last.parts.append(part)  # without its task, as published
        elif role == "tool":
            turns.append(_Turn("user", {}, parts=[part]))
        else:
            turns.append(_Turn(role, message, task, [part]))
    return turns


def _sort_results(turns: list[_Turn]) -> None:
    """Puts the tool results of each user turn into the order of the latest calls; texts between them stay in place."""
    order: dict[str, int] = {}
    for turn in turns:
        if turn.role == "assistant" and (calls := turn.message.get("tool_calls")):
            ids = (call.get("id") or function(call, "tool_calls").get("id") for call in entries(calls, "tool_calls"))
            order = {str(call_id): n for n, call_id in enumerate(ids) if call_id}
        elif turn.role == "user" and order:
            results = [part for part in turn.parts if part.is_result]
            ordered = iter(sorted(results, key=lambda part: order.get(part.call_id, 0)))
            turn.parts = [next(ordered) if part.is_result else part for part in turn.parts]


def _last_user(turns: Sequence[_Turn]) -> int:
    return max((i for i, turn in enumerate(turns) if turn.role in _USER_ROLES), default=-1)


def _transition(turns: Sequence[_Turn], i: int, thinking: bool, opens: bool) -> list[Segment]:
    """What follows turn i to let the model go on."""
    turn = turns[i]
    if i + 1 < len(turns) and turns[i + 1].role not in ("assistant", "latest_reminder"):
        return []
    if turn.task == "action":
        return [(ASSISTANT, True), (THINK_BEGIN if thinking else THINK_END, True), (TASKS[turn.task], True)]
    if turn.task is not None:
        return [(TASKS[turn.task], True)]
    if turn.role in _USER_ROLES:
        return [(ASSISTANT, True), (THINK_BEGIN if opens else THINK_END, True)]
    return []


def _render(turns: Sequence[_Turn], i: int, thinking: bool, drop: bool, last_user: int) -> list[Segment]:
    turn = turns[i]
    out: list[Segment] = []
    if turn.role in _USER_ROLES:
        out.append((USER, True))
    elif turn.role == "latest_reminder":
        out.append((LATEST_REMINDER, True))
    elif turn.role == "assistant":
        answers_task = i > 0 and turns[i - 1].task is not None
        if thinking and not answers_task and (not drop or i > last_user):
            out += [(_text(turn.message.get("reasoning_content")), False), (THINK_END, True)]
    out += turn.pieces()
    if turn.role == "assistant" and not turn.message.get("wo_eos"):
        out.append((EOS, True))
    return out + _transition(turns, i, thinking, thinking and (not drop or i >= last_user))


def segments(
    messages: Sequence[Message], *, thinking: bool = False, effort: str | None = None, release: str = "preview",
    drop_thinking: bool = True, context: Sequence[Message] = (),
) -> list[Segment]:
    """What encode() gives, as (text, is_special) pieces in order.

    Tokenizing the pieces one by one, only the special ones with special=True, keeps a user who types "<think>" from
    writing the special token.
    """
    prefix = _effort_prefix(thinking, effort, release)
    earlier = _turns(context)
    turns = earlier + _turns(messages)
    start = len(earlier)
    _sort_results(turns)
    # Tools need the reasoning between their calls, so with any the whole of it stays.
    drop = drop_thinking and not any(turn.message.get("tools") for turn in turns if turn.role != "user")
    if thinking and drop:
        last_user = _last_user(turns)
        gone = {i for i, turn in enumerate(turns) if turn.role == "developer" and i < last_user}
        start -= sum(i < start for i in gone)
        turns = [turn for i, turn in enumerate(turns) if i not in gone]
    last_user = _last_user(turns)
    out: list[Segment] = [] if context else [(BOS, True)]
    for i in range(start, len(turns)):
        if i == 0:
            out.append((prefix, False))
        out += _render(turns, i, thinking, drop, last_user)
    return _joined(out)


def _joined(pieces: list[Segment]) -> list[Segment]:
    """Neighbouring ordinary texts as one, because the tokenizer may merge across their border."""
    out: list[Segment] = []
    for text, special in pieces:
        if out and not special and not out[-1][1]:
            out[-1] = (out[-1][0] + text, False)
        elif text:
            out.append((text, special))
    return out


def encode(
    messages: Sequence[Message], *, thinking: bool = False, effort: str | None = None, release: str = "preview",
    drop_thinking: bool = True, context: Sequence[Message] = (),
) -> str:
    """The prompt for a conversation as the published encoder writes it, beginning with BOS.

    thinking: whether the model thinks before it answers. effort: None, "low" (0731 only), "high" or "max".
    release: "preview" or "0731". drop_thinking: leave out the reasoning of turns before the last user message, and
    earlier developer messages; ignored when any message has tools. context: messages already encoded, which these
    continue; then there is no BOS. ArgumentError for messages outside the format.
    """
    pieces = segments(
        messages, thinking=thinking, effort=effort, release=release, drop_thinking=drop_thinking, context=context
    )
    return "".join(text for text, _ in pieces)


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with tools offered: by the system message that opens them, or by an empty one put before them."""
    return _with(messages, "tools", list(entries(tools, "tools")))


def with_response_format(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """The messages with replies of a JSON schema demanded, as with_tools() offers tools."""
    return _with(messages, "response_format", schema)


def _with(messages: Sequence[Message], key: str, value: object) -> list[Message]:
    rest = list(messages)
    has_opening = bool(rest) and isinstance(rest[0], Mapping) and rest[0].get("role") == "system"
    opening = rest.pop(0) if has_opening else {"role": "system", "content": ""}
    return [{**opening, key: value}, *rest]
