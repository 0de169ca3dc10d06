"""The chat encoding of plain turns."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyflash
import pytest
from pyflash import chat

USER = {"role": "user", "content": "question"}
ANSWER = {"role": "assistant", "content": "answer", "reasoning_content": "thought"}
B, E, U, A = chat.BOS, chat.EOS, chat.USER, chat.ASSISTANT


@pytest.mark.parametrize(
    ("messages", "options", "expected"),
    [
        ([], {}, B),
        ([USER], {}, f"{B}{U}question{A}</think>"),
        ([USER], {"thinking": True}, f"{B}{U}question{A}<think>"),
        ([{"role": "system", "content": "rules"}, USER], {}, f"{B}rules{U}question{A}</think>"),
        ([USER, ANSWER], {}, f"{B}{U}question{A}</think>answer{E}"),
        ([USER, ANSWER], {"thinking": True}, f"{B}{U}question{A}<think>thought</think>answer{E}"),
        ([USER, ANSWER, USER], {"thinking": True}, f"{B}{U}question{A}</think>answer{E}{U}question{A}<think>"),
        (
            [USER, ANSWER, USER],
            {"thinking": True, "drop_thinking": False},
            f"{B}{U}question{A}<think>thought</think>answer{E}{U}question{A}<think>",
        ),
        ([USER, USER], {}, f"{B}{U}question\n\nquestion{A}</think>"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"},
                                          {"type": "text", "text": "b"}]}],
            {},
            f"{B}{U}a\n\n[Unsupported image_url]\n\nb{A}</think>",
        ),
    ],
)  # fmt: skip
def test_encode(messages: list[dict[str, Any]], options: dict[str, Any], expected: str) -> None:
    assert chat.encode(messages, **options) == expected


@pytest.mark.parametrize(
    ("release", "effort", "digest"),
    [
        ("preview", None, None),
        ("preview", "high", None),
        ("preview", "max", "f7a24f3b3050d4a83781e9b755b316aae2ec1d9dc87562541d90bcb04d7350f7"),
        ("0731", None, None),
        ("0731", "low", None),
        ("0731", "high", "f7a24f3b3050d4a83781e9b755b316aae2ec1d9dc87562541d90bcb04d7350f7"),
        ("0731", "max", "53fb31b8392ec5b4a926481943efc67636748f137c1a49d493a7af4d4fa55d2c"),
    ],
)
def test_effort_prefix(release: str, effort: str | None, digest: str | None) -> None:
    """The published texts, by their SHA-256, right after BOS and only when thinking."""
    text = chat.encode([USER], thinking=True, effort=effort, release=release)
    prefix = text.removeprefix(B).removesuffix(f"{U}question{A}<think>")
    assert prefix == "" if digest is None else hashlib.sha256(prefix.encode()).hexdigest() == digest
    assert chat.encode([USER], effort=effort, release=release) == chat.encode([USER])


def test_published_conversation(shared: Path) -> None:
    """A published pair, less its reminder and its final task, which later versions will encode."""
    folder = shared / "vectors" / "encoding"
    messages = json.loads((folder / "input_4.json").read_text(encoding="utf-8"))
    published = (folder / "output_4.txt").read_text(encoding="utf-8")
    reminder = next(message for message in messages if message["role"] == "latest_reminder")
    plain = [message for message in messages[:-1] if message is not reminder]
    plain[-1] = {key: value for key, value in plain[-1].items() if key != "task"}
    expected = published.replace("<｜latest_reminder｜>" + reminder["content"], "")
    expected = expected[: expected.rindex(A)] + f"{A}</think>"
    assert chat.encode(plain) == expected


@pytest.mark.parametrize(
    "message",
    [
        {"role": "developer", "content": "x"},
        {"role": "tool", "content": "x"},
        {"content": "x"},
        {"role": "user", "content": "x", "task": "action"},
        {"role": "system", "content": "x", "tools": [{}]},
        {"role": "assistant", "content": "x", "tool_calls": [{}]},
    ],
    ids=str,
)
def test_what_is_not_supported_yet_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(pyflash.UnsupportedError):
        chat.encode([USER, message])


@pytest.mark.parametrize("options", [{"effort": "low"}, {"effort": "some"}, {"release": "2030"}], ids=str)
def test_bad_options(options: dict[str, str]) -> None:
    with pytest.raises(pyflash.ArgumentError):
        chat.encode([USER], thinking=True, **options)
