"""DeepSeek-V4's chat encoding, for plain turns: system, user and assistant, with or without thinking.

Tools, tasks, reminders, developer messages and response formats are refused with UnsupportedError.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pyflash.errors import ArgumentError, UnsupportedError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
THINK_BEGIN = "<think>"
THINK_END = "</think>"

_EFFORT_MAXIMUM = """\
Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, \
and rejected hypothesis to ensure absolutely no assumption is left unchecked.

"""
_EFFORT_BEYOND = """\
Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the \
problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause \
rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no \
assumption remains unchecked and no error remains undiscovered.

"""
_EFFORTS: dict[str, dict[str | None, str]] = {
    "preview": {None: "", "high": "", "max": _EFFORT_MAXIMUM},
    "0731": {None: "", "low": "", "high": _EFFORT_MAXIMUM, "max": _EFFORT_BEYOND},
}

Message = Mapping[str, Any]
Segment = tuple[str, bool]


def _effort_prefix(thinking: bool, effort: str | None, release: str) -> str:
    if release not in _EFFORTS:
        raise ArgumentError(f"unknown release {release!r}; known are {', '.join(_EFFORTS)}")
    known = _EFFORTS[release]
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
            parts.append(part.get("text") or "" if kind == "text" else f"[Unsupported {kind}]")
        return "\n\n".join(parts)
    raise ArgumentError(f"message content must be a string or a list of parts, not {type(content).__name__}")


def _turns(messages: Sequence[Message]) -> list[Message]:
    """Checked messages with string contents, neighbouring user messages merged into one."""
    turns: list[Message] = []
    for message in messages:
        role = message.get("role")
        if role not in ("system", "user", "assistant"):
            raise UnsupportedError(f"messages with the role {role!r} are not supported yet")
        for key in ("tools", "tool_calls", "task", "response_format", "wo_eos"):
            if message.get(key):
                raise UnsupportedError(f"messages with {key!r} are not supported yet")
        text = _text(message.get("content"))
        if role == "user" and turns and turns[-1]["role"] == "user":
            turns[-1] = {"role": "user", "content": turns[-1]["content"] + "\n\n" + text}
        else:
            turns.append({"role": role, "content": text, "reasoning": message.get("reasoning_content") or ""})
    return turns


def segments(
    messages: Sequence[Message], *, thinking: bool = False, effort: str | None = None, release: str = "preview",
    drop_thinking: bool = True,
) -> list[Segment]:
    """What encode() gives, as (text, is_special) pieces in order.

    Tokenizing the pieces one by one, only the special ones with special=True, keeps a user who types "<think>" from
    writing the special token.
    """
    prefix = _effort_prefix(thinking, effort, release)
    turns = _turns(messages)
    last_user = max((i for i, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    out: list[Segment] = [(BOS, True)]
    if turns and prefix:
        out.append((prefix, False))
    for i, turn in enumerate(turns):
        if turn["role"] == "system":
            out.append((turn["content"], False))
        elif turn["role"] == "user":
            out += [(USER, True), (turn["content"], False)]
            if i + 1 == len(turns) or turns[i + 1]["role"] == "assistant":
                opens = thinking and (not drop_thinking or i >= last_user)
                out += [(ASSISTANT, True), (THINK_BEGIN if opens else THINK_END, True)]
        else:
            if thinking and (not drop_thinking or i > last_user):
                out += [(turn["reasoning"], False), (THINK_END, True)]
            out += [(turn["content"], False), (EOS, True)]
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
    drop_thinking: bool = True,
) -> str:
    """The prompt for a conversation as the published encoder writes it, beginning with BOS.

    messages: {"role": "system" | "user" | "assistant", "content": str, "reasoning_content": str} mappings.
    thinking: whether the model thinks before it answers. effort: None, "low" (0731 only), "high" or "max".
    release: "preview" or "0731". drop_thinking: leave out the reasoning of turns before the last user message.
    """
    pieces = segments(messages, thinking=thinking, effort=effort, release=release, drop_thinking=drop_thinking)
    return "".join(text for text, _ in pieces)
