"""What all kinds of examples share: the record, the split, and the official text."""

from __future__ import annotations

import random
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from pyflash import chat

Message = dict[str, Any]
T = TypeVar("T")

SPLITS = ("train", "test")
THINK = ("off", "high", "max")
_ONE_IN = 10  # of what can be held back


@dataclass(frozen=True)
class Example:
    """A conversation whose last message is the assistant's right answer.

    answer: what is_right() looks for: the number (arithmetic), the word or None (recall), {"call": ...} or
    {"content": ...} (tools), the tuple of right texts (talk).
    """

    kind: str
    messages: list[Message]
    tools: list[dict[str, Any]] | None
    think: str
    answer: Any


def held_back(*content: object) -> bool:
    """Whether this content belongs to the test split; the same on every machine and run."""
    return zlib.crc32("|".join(map(str, content)).encode()) % _ONE_IN == 0


def draw(rng: random.Random, split: str, make: Callable[[], T], key: Callable[[T], Sequence[object]]) -> T:
    """The first of make()'s values that belongs to the split by the hash of key(value)."""
    wanted = split == "test"
    while True:
        value = make()
        if held_back(*key(value)) == wanted:
            return value


def check_options(split: str, think: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"no split {split!r}; there are {', '.join(SPLITS)}")
    if think not in THINK:
        raise ValueError(f"no thinking mode {think!r}; there are {', '.join(THINK)}")


def render(example: Example, with_answer: bool = True) -> str:
    """The official text of the conversation, from BOS; without its last answer, the prompt for it."""
    messages: Sequence[Any] = example.messages if with_answer else example.messages[:-1]
    if example.tools:
        messages = chat.with_tools(messages, example.tools)
    thinking = example.think != "off"
    return chat.encode(messages, thinking=thinking, effort=example.think if thinking else None)


_ANSWER = re.compile(
    f"{re.escape(chat.ASSISTANT)}(?:{chat.THINK_BEGIN}|{chat.THINK_END})(.*?{re.escape(chat.EOS)})", re.DOTALL
)


def trained_spans(text: str) -> list[tuple[int, int]]:
    """Character spans of a rendered text that the model itself writes, each up to its EOS inclusive."""
    return [match.span(1) for match in _ANSWER.finditer(text)]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str, reasoning: str = "") -> Message:
    return {"role": "assistant", "content": text, "reasoning_content": reasoning}


_SYSTEM = [
    "You are a helpful assistant.", "Be brief.", "You are a friendly assistant.", "Answer in English.",
    "You are helpful.", "Answer shortly.", "Be polite.",
]  # fmt: skip


def system(rng: random.Random, share: float) -> list[Message]:
    """A system message that changes nothing, in this share of the conversations."""
    return [{"role": "system", "content": rng.choice(_SYSTEM)}] if rng.random() < share else []


def vary(rng: random.Random, text: str) -> str:
    """The same question as people type it: at times in lower case, at times without the mark at its end."""
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.3:
        text = text.rstrip(".?!")
    return text
