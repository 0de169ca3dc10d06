"""examples/python, on real models and scripted ones."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pyflash
import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "python"


def test_chat(demo_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "chat.py"]
    done = subprocess.run(command, input="Hello\nAnd then?\n", capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONUTF8": "1"})  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    before, first, second, after = done.stdout.split("> ", 1)[0], *done.stdout.split("\n> ", 2)
    assert before == "" and len(first) > 10 and len(second) > 10 and after == ""


@pytest.fixture
def tools() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tools_example", FOLDER / "tools.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_calculator(tools: ModuleType) -> None:
    assert tools.calculate("(2 + 3) * -4.5") == "-22.5"
    assert tools.calculate(" 12345 * 6789 ") == "83810205"
    for bad in ("1 / 0", "2 ** 9", "__import__('os')", "1 +", "(" * 300, "-" * 100000 + "1"):
        assert tools.calculate(bad).startswith("error: "), bad


class Reply:
    """A reply without pieces."""

    def __init__(self, message: dict[str, Any]) -> None:
        self.message = message

    def __iter__(self) -> Iterator[pyflash.ChatPiece]:
        return iter(())


class Scripted:
    """A session's chat whose answers are known; keeps the prompts that a model would have been given."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.prompts: list[str] = []

    def chat(self, messages: list[Any], think: str, tools: list[Any], **_options: Any) -> Reply:
        self.prompts.append(pyflash.chat.encode(pyflash.chat.with_tools(messages, tools), thinking=True, effort=think))
        parser = pyflash.chat.StreamParser(thinking=True)
        parser.feed(self.answers.pop(0))
        parser.finish()
        message = parser.message
        message["tool_calls"] = [{"id": f"call_{n}", **call} for n, call in enumerate(message["tool_calls"])]

        return Reply(message)


def call_text(expression: str) -> str:
    message = {"role": "assistant", "reasoning_content": "I compute.", "tool_calls": [
        {"type": "function", "function": {"name": "calculate", "arguments": '{"expression": "%s"}' % expression}}]}
    conversation = [{"role": "user", "content": "x"}]
    with_call = pyflash.chat.with_tools([*conversation, message], [])
    before = pyflash.chat.encode(pyflash.chat.with_tools(conversation, []), thinking=True)
    return pyflash.chat.encode(with_call, thinking=True)[len(before) :]


def test_tool_loop(tools: ModuleType) -> None:
    session = Scripted(call_text("2 + 3"), call_text("1 / 0"), "Good.</think>It is 5.<｜end▁of▁sentence｜>")
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 2 + 3?"}]
    assert tools.answer(session, messages) == "It is 5."
    assert [message["role"] for message in messages] == ["user", "assistant", "tool", "assistant", "tool", "assistant"]
    assert messages[2]["content"] == "5" and messages[2]["tool_call_id"] == messages[1]["tool_calls"][0]["id"]
    assert session.prompts[1].count("<tool_result>5</tool_result>") == 1
    assert "<tool_result>error: division by zero</tool_result>" in session.prompts[2]
    assert all("calculate" in prompt for prompt in session.prompts)


def test_tool_loop_ends(tools: ModuleType) -> None:
    session = Scripted(*[call_text("1 + 1")] * tools.MAX_ROUNDS)
    assert "rounds" in tools.answer(session, [{"role": "user", "content": "What is 1 + 1?"}])
    assert not session.answers


def test_tools_on_a_real_model(tools: ModuleType, tiny_model: Path) -> None:
    """Random weights write no call; the prompt and the reply are real."""
    messages: list[dict[str, Any]] = [{"role": "user", "content": "What is 2 + 3?"}]
    with pyflash.Model.open(tiny_model) as model, model.session(context=4096) as session:
        tools.answer(session, messages, max_tokens=20, temperature=0)
    assert [message["role"] for message in messages] == ["user", "assistant"]
    assert messages[1]["content"] or messages[1]["reasoning_content"]


def ask_document(folder: Path, *questions: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, FOLDER / "ask_document.py", "text.txt"], input="".join(f"{each}\n" for each in questions),
                          capture_output=True, text=True, cwd=folder, env={**os.environ, "PYTHONUTF8": "1"})  # fmt: skip


def test_ask_document(demo_model: Path, tmp_path: Path) -> None:
    """The text is read once; when it has changed, again."""
    text = tmp_path / "text.txt"
    fill = "The floor is grey now. " * 150
    text.write_text(f"The secret word of Grace is apple. {fill}The secret word of Nick is hammer.", encoding="utf-8")
    first = ask_document(tmp_path, "The secret word of Nick?", "Say the secret word of Grace.")
    assert first.stdout == "> The secret word of Nick is hammer.\n> The secret word of Grace is apple.\n> ", first.stderr
    assert "reading:" in first.stderr
    again = ask_document(tmp_path, "Tell me the secret word of Grace.")
    assert (again.stdout, again.stderr) == ("> The secret word of Grace is apple.\n> ", "")
    text.write_text(f"The secret word of Grace is robot. {fill}The secret word of Nick is hammer.", encoding="utf-8")
    changed = ask_document(tmp_path, "Say the secret word of Grace.")
    assert changed.stdout == "> The secret word of Grace is robot.\n> ", changed.stderr
    assert "reading:" in changed.stderr
