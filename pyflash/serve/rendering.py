"""A request as the model's prompt: the bytes that DeepSeek's own converters of requests give.

Where they put system messages from the middle of a conversation to its front, these stay in their place: moved, each
would change the beginning of the prompt, and with it everything that has been evaluated. Beyond what they do, a last
message of the assistant with "prefix" is left open in all protocols, free texts are described as the client describes
them, and Messages may ask for a schema. Numbers are written as Python writes them, which differs for some exponents.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pyflash.chat.format import (
    ASSISTANT,
    BOS,
    CALLS_BEGIN,
    EFFORTS,
    EOS,
    LATEST_REMINDER,
    THINK_BEGIN,
    THINK_END,
    USER,
    Segment,
    calls_block,
    response_format_block,
    tools_block,
)
from pyflash.serve.errors import RequestError
from pyflash.serve.request import Request

Kind = Literal["begin", "system", "user", "latest_reminder", "opening", "assistant"]

_FIM_BEGIN, _FIM_HOLE, _FIM_END = "<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"
_CALLS_OPENING = f"\n\n{CALLS_BEGIN}>\n"


@dataclass(frozen=True)
class Turn:
    """A part of the prompt. kind "opening" is the token of the assistant that comes before an answer and before each
    of the assistant's turns; "assistant" what the model wrote then, its end token included. first, last: the messages
    that it is of, half-open."""

    kind: Kind
    segments: list[Segment]
    first: int = 0
    last: int = 0

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


@dataclass(frozen=True)
class Prompt:
    """What the model is given.

    think: the thinking mode. opens: the kind of text that the answer begins with. given: the content that stands in
    the prompt already and the answer goes on with. begun: text at the prompt's end that belongs to the answer's
    markup, to be fed to a StreamParser before the answer; "" nearly always."""

    turns: list[Turn]
    think: str
    opens: Literal["reasoning", "content"]
    given: str = ""
    begun: str = ""

    @property
    def segments(self) -> list[Segment]:
        """The pieces of the prompt as pyflash.chat.segments() gives them, neighbouring ordinary texts joined."""
        out: list[Segment] = []
        for text, special in (segment for turn in self.turns for segment in turn.segments):
            if out and not special and not out[-1][1]:
                out[-1] = (out[-1][0] + text, False)
            elif text:
                out.append((text, special))
        return out

    @property
    def text(self) -> str:
        return "".join(text for text, _ in self.segments)


@dataclass
class _UserTurn:
    first: int
    parts: list[tuple[str, str | None]] = field(default_factory=list)  # a text, and the call that it is the result of


def thinking_mode(request: Request, release: str, default: str = "high") -> str:
    """The `think` of Session.chat() for a request, among those that the release knows. default: where it says
    nothing."""
    think = request.think or default
    if think != "off" and think not in EFFORTS[release]:
        return "high"  # the release without "low": its "high" adds nothing to the prompt, as "low" does in the other
    return think


def render(request: Request, release: str, default_think: str = "high") -> Prompt:
    """The prompt of a conversation. release: "preview" or "0731". RequestError where it is not the model's turn."""
    think = thinking_mode(request, release, default_think)
    thinking = think != "off"
    messages = request.messages
    forced = request.tool_choice == "required" and not thinking
    schemas = request.tool_schemas
    if forced and len(request.tool_names) == 1:
        schemas = [each for each in schemas if each["function"]["name"] == request.tool_names[0]]
    drop = not schemas
    last_user = max((n for n, each in enumerate(messages) if each["role"] in ("user", "tool")), default=-1)
    turns = [Turn("begin", [(BOS, True), (EFFORTS[release][think] if thinking else "", False)])]
    n_leading, opening = _leading(messages, schemas, request.response_format)
    turns.append(Turn("system", opening, 0, n_leading))
    n = n_leading
    order: dict[str, int] = {}
    while n < len(messages):
        keeps = thinking and (not drop or n > last_user)
        role = messages[n]["role"]
        if role in ("user", "tool"):
            turn, n = _user_turn(messages, n, order)
        elif role == "assistant":
            turns.append(Turn("opening", _opening(keeps), n, n))
            order = {call["id"]: i for i, call in enumerate(messages[n].get("tool_calls", ())) if call["id"]}
            turn, n = _assistant_turn(messages, n, keeps)
        else:
            special: list[Segment] = [(LATEST_REMINDER, True)] if role == "latest_reminder" else []
            turn, n = Turn("system" if role == "system" else "latest_reminder",
                           [*special, (messages[n]["content"], False)], n, n + 1), n + 1  # fmt: skip
        turns.append(turn)
    return _answered(request, turns, think, forced)


def _leading(messages: Sequence[dict[str, Any]], schemas: list[dict[str, Any]],
             response_format: dict[str, Any] | None) -> tuple[int, list[Segment]]:  # fmt: skip
    """How many system messages the conversation begins with, and what they say, with the tools and the format."""
    n = next((n for n, each in enumerate(messages) if each["role"] != "system"), len(messages))
    texts = [each["content"] for each in messages[:n] if each["content"]] if n > 1 else [
        each["content"] for each in messages[:n]]  # fmt: skip
    out: list[Segment] = [("\n\n".join(texts), False)]
    if schemas:
        out += tools_block(schemas)
    if response_format is not None:
        out.append(response_format_block(response_format))
    return n, out


def _opening(reasons: bool) -> list[Segment]:
    return [(ASSISTANT, True), (THINK_BEGIN if reasons else THINK_END, True)]


def _user_turn(messages: Sequence[dict[str, Any]], n: int, order: dict[str, int]) -> tuple[Turn, int]:
    """Neighbouring messages of the user and results of tools as one turn, the results in the order of their calls."""
    parts: list[tuple[str, str | None]] = []
    first = n
    while n < len(messages) and messages[n]["role"] in ("user", "tool"):
        message = messages[n]
        if message["role"] == "tool":
            parts.append((f"<tool_result>{message['content']}</tool_result>", message["tool_call_id"]))
        else:
            parts.append((message["content"], None))
        n += 1
    if order:
        results = [part for part in parts if part[1] is not None]
        ordered = iter(sorted(results, key=lambda part: order.get(part[1] or "", len(order))))
        parts = [part if part[1] is None else next(ordered) for part in parts]
    return Turn("user", [(USER, True), ("\n\n".join(text for text, _ in parts), False)], first, n), n


def _assistant_turn(messages: Sequence[dict[str, Any]], n: int, keeps: bool) -> tuple[Turn, int]:
    """What the model said; keeps: with its reasoning. The turn is open where the last message has "prefix"."""
    message = messages[n]
    is_open = n + 1 == len(messages) and bool(message.get("prefix"))
    out: list[Segment] = []
    if keeps:
        out.append((message["reasoning_content"], False))
        if not is_open or message["content"] or not message["reasoning_content"]:
            out.append((THINK_END, True))
    out.append((message["content"], False))
    if calls := message.get("tool_calls"):
        out += calls_block(calls, blank_without=False)
    if not is_open:
        out.append((EOS, True))
    return Turn("assistant", out, n, n + 1), n + 1


def _answered(request: Request, turns: list[Turn], think: str, forced: bool) -> Prompt:
    """The prompt, with what lets the model answer."""
    last = request.messages[-1]
    n = len(request.messages)
    thinking = think != "off"
    if last["role"] == "assistant" and last.get("tool_calls"):
        raise RequestError("the conversation ends with tool calls: send the result of each", param="messages")
    if last["role"] == "assistant" and last.get("prefix"):
        within = thinking and bool(last["reasoning_content"]) and not last["content"]
        return Prompt(turns, think, "reasoning" if within else "content", last["content"])
    segments = _opening(thinking)
    begun = ""
    if forced:
        begun = _CALLS_OPENING
        mark = calls_block([])
        segments += mark[:3]
    turns.append(Turn("opening", segments, n, n))
    return Prompt(turns, think, "reasoning" if thinking else "content", begun=begun)


def render_completion(request: Request) -> list[Segment] | list[int]:
    """The prompt of a completion, as pieces or, where the client sent those, as token ids. A text stands behind BOS;
    with a suffix, it is what stands before the middle that the model fills."""
    prompt = request.prompt
    if not isinstance(prompt, str):
        return list(prompt or [])
    if request.suffix is None:
        return [(BOS, True), (prompt, False)]
    before: list[Segment] = [(BOS, True), (_FIM_BEGIN, True), (prompt, False)]
    return [*before, (_FIM_HOLE, True), (request.suffix, False), (_FIM_END, True)]
