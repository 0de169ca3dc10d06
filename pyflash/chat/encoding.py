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
    response_format_block,
    tools_block,
)
from pyflash.chat.messages import Message, plain_data, plain_messages, plain_tools
from pyflash.chat.streaming import TextKind
from pyflash.native.errors import ArgumentError

_USER_ROLES = ("user", "developer")


@dataclass
class _Part:
    """A text or a tool result within a user turn."""

    text: str
    is_result: bool = False
    call_id: str = ""


@dataclass
class _Turn:
    """A message, or some that are one turn. is_open: it is the last, and the model goes on with it."""

    role: str
    message: dict[str, Any]
    task: str | None = None
    parts: list[_Part] = field(default_factory=list)
    is_open: bool = False

    @property
    def within_reasoning(self) -> bool:
        """Whether it is open before anything but reasoning has been said."""
        return self.is_open and not self.message["content"] and not self.message.get("tool_calls")

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
    if release not in tuple(EFFORTS):
        raise ArgumentError(f"unknown release {release!r}; known are {', '.join(EFFORTS)}")
    known = EFFORTS[release]
    if effort not in tuple(known):
        names = ", ".join(name for name in known if name)
        raise ArgumentError(f"release {release} has no reasoning effort {effort!r}; it knows {names}")
    return known[effort] if thinking else ""


def _turns(messages: Sequence[Message]) -> list[_Turn]:
    """Checked turns: neighbouring user and tool messages merged into one, and so a prefix with what continues it."""
    turns: list[_Turn] = []
    for message in plain_messages(messages):
        role, task = message["role"], message.get("task")
        part = _Part(message["content"])
        if role == "tool":
            part = _Part(f"<tool_result>{message['content']}</tool_result>", True, message["tool_call_id"])
        before = turns[-1] if turns else None
        last = before if before is not None and before.role == "user" else None
        if last and (role == "tool" or (role == "user" and last.task is None)):
            last.parts.append(part)  # without its task, as published
        elif role == "tool":
            turns.append(_Turn("user", {}, parts=[part]))
        elif before is not None and role == "assistant" and before.message.get("prefix"):
            turns[-1] = _continued(before, message)
        else:
            turns.append(_Turn(role, message, task, [part]))
    if turns and turns[-1].message.get("prefix"):
        turns[-1].is_open = True
    return turns


def _continued(turn: _Turn, message: dict[str, Any]) -> _Turn:
    """An assistant's turn that was left open, with the message that went on with it."""
    whole = {**turn.message, **message}
    for key in ("content", "reasoning_content"):
        whole[key] = turn.message[key] + message[key]
    if not message.get("prefix"):
        del whole["prefix"]
    return _Turn("assistant", whole, message.get("task"), [_Part(whole["content"])])


def _sort_results(turns: list[_Turn]) -> None:
    """Puts the tool results of each user turn into the order of the latest calls; texts between them stay in place."""
    order: dict[str, int] = {}
    for turn in turns:
        if turn.role == "assistant" and (calls := turn.message.get("tool_calls")):
            order = {call["id"]: n for n, call in enumerate(calls) if call["id"]}
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
            out.append((turn.message["reasoning_content"], False))
            if not turn.within_reasoning:
                out.append((THINK_END, True))
    out += turn.pieces()
    if turn.role == "assistant" and not turn.is_open and not turn.message.get("wo_eos"):
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


@dataclass(frozen=True)
class Opening:
    """How an answer begins: with which kind of text, behind the content that was given."""

    kind: TextKind
    given: str = ""


def answer_opening(messages: Sequence[Message], *, thinking: bool) -> Opening:
    """How the text begins that the model adds to encode()'s prompt. ArgumentError where it is not the model's turn."""
    turns = _turns(messages)
    if not turns:
        raise ArgumentError("there are no messages to answer")
    last = turns[-1]
    if last.task is not None:  # asks for its answer wherever it stands
        return Opening("content")
    if last.role == "assistant":
        _check_continued(last, _before_reminders(turns[:-1]), thinking)
        thinks = thinking and last.within_reasoning and turns[-2].task is None
        return Opening("reasoning" if thinks else "content", last.message["content"])
    asked = _before_reminders(turns)
    if asked is None or asked.role not in _USER_ROLES:
        raise ArgumentError(f"the conversation ends with a message of the role {last.role}: a user's must follow")
    return Opening("reasoning" if thinking and asked.task is None else "content")


def _before_reminders(turns: Sequence[_Turn]) -> _Turn | None:
    return next((turn for turn in reversed(turns) if turn.role != "latest_reminder"), None)


def _check_continued(turn: _Turn, before: _Turn | None, thinking: bool) -> None:
    """Whether the model can go on with an assistant's turn."""
    calls = turn.message.get("tool_calls")
    if not turn.is_open and not turn.message.get("wo_eos"):
        raise ArgumentError(
            'the conversation ends with tool calls: a message of the role "tool" must follow for each' if calls else
            'the conversation ends with an answer: a user\'s message must follow; "prefix": true lets it go on'
        )
    if calls:
        raise ArgumentError("an answer cannot go on after its tool calls; their results must follow")
    if before is None or before.role not in _USER_ROLES:
        raise ArgumentError("the answer to go on with follows no user's message")
    if turn.within_reasoning and turn.message["reasoning_content"] and not thinking:
        raise ArgumentError("going on with reasoning_content alone needs thinking")


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

    Added to the published rules: a last message with "prefix" is left open, behind its reasoning_content where it has
    no content, and the assistant's message that follows such a one is the same turn.
    """
    pieces = segments(
        messages, thinking=thinking, effort=effort, release=release, drop_thinking=drop_thinking, context=context
    )
    return "".join(text for text, _ in pieces)


def with_tools(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The messages with tools offered: by the system message that opens them, or by an empty one put before them."""
    return _with(messages, "tools", plain_tools(tools))


def with_response_format(messages: Sequence[Message], schema: Mapping[str, Any]) -> list[Message]:
    """The messages with replies of a JSON schema demanded, as with_tools() offers tools."""
    return _with(messages, "response_format", plain_data(schema, "the response format"))


def _with(messages: Sequence[Message], key: str, value: object) -> list[Message]:
    rest: list[Message] = [*plain_messages(messages)]
    has_opening = bool(rest) and rest[0]["role"] == "system"
    opening = rest.pop(0) if has_opening else {"role": "system", "content": ""}
    return [{**opening, key: value}, *rest]
