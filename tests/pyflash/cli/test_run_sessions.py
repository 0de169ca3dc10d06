"""`pyflash run`: conversations from files, and answers that break their schema."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pyflash
from pyflash.cli.main import cli

QUESTION = [{"role": "user", "content": "Hello"}]


def run(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(cli, ["run", *map(str, arguments)], env=env)


def saved(model: Path, path: Path, note: bytes) -> Path:
    with pyflash.Model.open(model) as opened, opened.session(context=512) as session:
        session.eval([5, 6])
        session.note = note
        session.save(path)
    return path


def last(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.output
    line: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return line


def test_a_session_is_continued_and_left_as_it_is(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "s"
    options = (tiny_model, "-n", 6, "--temp", 0, "--json")
    assert last(run(*options, "Hello", "--session", path))["done"]
    before, stat = path.read_bytes(), path.stat()
    os.chmod(path, 0o400)
    os.chmod(tmp_path, 0o500)  # where nothing could be written either
    try:
        answers = [last(run(*options, "And then?", "--session-ro", path)) for _ in range(2)]
    finally:
        os.chmod(tmp_path, 0o700)
    assert answers[0]["n_reused"] > 6 and answers[0]["message"] == answers[1]["message"]
    assert path.read_bytes() == before and path.stat().st_mtime_ns == stat.st_mtime_ns
    assert os.listdir(tmp_path) == ["s"]


def test_session_options_exclude_each_other(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "s"
    done = run(tiny_model, "Hello", "--session", path, "--session-ro", path)
    assert done.exit_code == 2 and "choose one" in done.stderr and not path.exists()
    missing = run(tiny_model, "Hello", "--session-ro", path, PYFLASH_SESSION=str(tmp_path / "other"))
    assert isinstance(missing.exception, pyflash.FileError) and str(path) in str(missing.exception)
    assert not os.listdir(tmp_path)


def deep(depth: int) -> bytes:
    return b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"


NOTES = {
    "no JSON": b"\xff\x00",
    "empty": b"",
    "a number": b"5",
    "a list": b"[]",
    "no messages": b'{"version": 1}',
    "messages of text": b'{"messages": "abc"}',
    "messages by name": b'{"messages": {"role": "user"}}',
    "a text among them": b'{"messages": ["abc"]}',
    "no role": b'{"messages": [{"content": "x"}]}',
    "role of a list": b'{"messages": [{"role": [], "content": "x"}]}',
    "unknown role": b'{"messages": [{"role": "robot", "content": "x"}]}',
    "a role of others": b'{"messages": [{"role": "developer", "content": "x"}]}',
    "content of a number": b'{"messages": [{"role": "user", "content": 5}]}',
    "content of an object": b'{"messages": [{"role": "assistant", "content": {"a": 1}}]}',
    "reasoning of a number": b'{"messages": [{"role": "assistant", "content": "", "reasoning_content": 5}]}',
    "calls of a number": b'{"messages": [{"role": "assistant", "content": "", "tool_calls": 5}]}',
    "a call of a text": b'{"messages": [{"role": "assistant", "content": "", "tool_calls": ["f"]}]}',
    "a call without a name": b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}',
    "a call of a number": b'{"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}',
    "deep": deep(100_000),
    "less deep": deep(900),
    "deep arguments": b'{"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": '
                      + b"[" * 500 + b"]" * 500 + b"}}]}]}",
    "a large number": b'{"messages": 1' + b"0" * 5000 + b"}",
}  # fmt: skip


@pytest.mark.parametrize("case", NOTES)
@pytest.mark.parametrize("option", ["--session", "--session-ro"])
def test_damaged_notes(tmp_path: Path, tiny_model: Path, case: str, option: str) -> None:
    path = saved(tiny_model, tmp_path / "s", NOTES[case])
    before = path.read_bytes()
    done = run(tiny_model, "Hello", "-n", 2, "-c", 512, option, path)
    assert isinstance(done.exception, pyflash.FormatError), done.exception
    assert "holds no conversation" in str(done.exception) and "\n" not in str(done.exception)
    assert path.read_bytes() == before


def test_notes_that_end_anywhere(tmp_path: Path, tiny_model: Path) -> None:
    """A question follows whatever was said last; what only another program knows is passed over."""
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    for messages in ([], [{"role": "system", "content": "s"}], QUESTION,
                     [*QUESTION, {"role": "assistant", "content": "yes", "prefix": True, "task": "title"}],
                     [*QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}],
                     [{"role": "user", "content": [{"type": "text", "text": "x"}], "time": {"a": [1]}}]):  # fmt: skip
        path = saved(tiny_model, tmp_path / "s", json.dumps({"messages": messages}).encode())
        assert last(run(tiny_model, "More", "-n", 2, "-c", 512, "--json", "--session", path))["done"]


def test_an_answer_that_breaks_its_schema(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("llguidance")
    pytest.importorskip("jsonschema")
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"x": {"enum": [1], "not": {"const": 1}}}, "required": ["x"], '
                      '"additionalProperties": false}')
    done = run(tiny_model, "Hello", "--json-schema", schema, "-n", 60, "--seed", 1, "--session", tmp_path / "s")
    assert isinstance(done.exception, pyflash.AnswerError)  # the command's exit code is 1, as of every error
    assert "at $.x" in str(done.exception) and "not" in str(done.exception) and "\n" not in str(done.exception)
    assert json.loads(done.stdout) == {"x": 1}
    with pyflash.Model.open(tiny_model) as model, model.session(context=65536) as session:
        session.load(tmp_path / "s")
        assert json.loads(session.note)["messages"][-1]["content"] == done.stdout.rstrip("\n")
    for text in ('{"const": NaN}', '{"maximum": 1e400}', '{"const": "\\ud800"}', '{"a":' * 5000 + "1" + "}" * 5000):
        schema.write_text(text)
        done = run(tiny_model, "Hello", "--json-schema", schema, "-n", 2)
        assert isinstance(done.exception, (pyflash.ArgumentError, pyflash.FormatError)) and done.exit_code == 1
        assert not done.stdout and "\n" not in str(done.exception)
