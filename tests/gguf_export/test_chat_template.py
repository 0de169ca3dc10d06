"""The stored Jinja template against the published chat encoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyflash.chat
from gguf_export.chat_template import CHAT_TEMPLATE

BOS, EOS, USER, BOT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"


def render(messages: list[dict[str, Any]], add_generation_prompt: bool = True, **variables: Any) -> str:
    template = jinja2.Environment().from_string(CHAT_TEMPLATE)
    return template.render(messages=messages, add_generation_prompt=add_generation_prompt, **variables)


def message(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


CHAT = [
    message("system", "Be brief."),
    message("user", "Hi"),
    message("assistant", "Hello!", reasoning_content="A greeting."),
    message("user", "Bye"),
]


@pytest.mark.parametrize(
    "variables, opening",
    [({}, "</think>"), ({"enable_thinking": False}, "</think>"), ({"enable_thinking": True}, "<think>"),
     ({"thinking": True}, "<think>")],
)  # fmt: skip
def test_reasoning_of_earlier_turns_is_dropped(variables: dict[str, Any], opening: str) -> None:
    expected = f"{BOS}Be brief.{USER}Hi{BOT}</think>Hello!{EOS}{USER}Bye{BOT}{opening}"
    assert render(CHAT, **variables) == expected


def test_reasoning_of_the_last_turn_is_kept() -> None:
    expected = f"{BOS}Be brief.{USER}Hi{BOT}<think>A greeting.</think>Hello!{EOS}"
    assert render(CHAT[:3], enable_thinking=True) == expected
    assert render(CHAT[:3]) == f"{BOS}Be brief.{USER}Hi{BOT}</think>Hello!{EOS}"


def test_no_generation_prompt() -> None:
    assert render(CHAT[:2], add_generation_prompt=False) == f"{BOS}Be brief.{USER}Hi"


def test_user_turns_and_tool_results_merge() -> None:
    messages = [message("user", "a"), message("user", "b"), message("assistant", ""), message("tool", "1"),
                message("tool", "2")]  # fmt: skip
    expected = (
        f"{BOS}{USER}a\n\nb{BOT}</think>{EOS}"
        f"{USER}<tool_result>1</tool_result>\n\n<tool_result>2</tool_result>{BOT}<think>"
    )
    assert render(messages, enable_thinking=True) == expected


def test_list_content() -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "image_url"}, {"type": "text", "text": "two"}]
    assert render([message("user", parts)]) == f"{BOS}{USER}one\n\n[Unsupported image_url]\n\ntwo{BOT}</think>"
    assert render([message("user", "x"), message("assistant", None)]) == f"{BOS}{USER}x{BOT}</think>{EOS}"


def test_published_vector_without_its_reminder(shared: Path) -> None:
    folder = shared / "vectors/encoding"
    messages = json.loads((folder / "input_4.json").read_text(encoding="utf-8"))
    output = (folder / "output_4.txt").read_text(encoding="utf-8")
    plain = [entry for entry in messages if entry["role"] != "latest_reminder"][:3]  # what follows is a task
    for entry in messages:
        if entry["role"] == "latest_reminder":
            output = output.replace("<｜latest_reminder｜>" + entry["content"], "")
    rendered = render(plain)
    assert len(rendered) > 1000 and output.startswith(rendered)


@settings(deadline=None, max_examples=60)
@given(
    turns=st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("ab \n<", max_size=5), st.booleans()),
        min_size=1,
        max_size=7,
    ),
    thinking=st.booleans(),
)
def test_same_as_the_encoder(turns: list[tuple[str, str, bool]], thinking: bool) -> None:
    """Any chat of system, user and assistant turns, in any order."""
    messages = [
        message(role, text, **({"reasoning_content": "why"} if reasons and role == "assistant" else {}))
        for role, text, reasons in turns
    ]
    assert render(messages, enable_thinking=thinking) == pyflash.chat.encode(messages, thinking=thinking)
