"""`pyflash run` for one answer, in pipes and scripts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import pyflash
from pyflash.chat.conversation import Answer
from pyflash.cli.chat.loop import cut_json
from pyflash.cli.main import cli
from pyflash.machine import hardware
from pyflash.cli import streams

COMMAND = [sys.executable, "-m", "pyflash", "run"]
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": {}}}]


def run(*arguments: object, stdin: str = "", **env: str) -> Result:
    """In this process: quick, and errors come as they are raised."""
    return CliRunner().invoke(cli, ["run", *map(str, arguments)], input=stdin, env=env)


def start(*arguments: object, cwd: Path, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, with a real pipe."""
    return subprocess.run([*COMMAND, *map(str, arguments)], cwd=cwd, input=stdin, capture_output=True,
                          encoding="utf-8", timeout=300, env={**os.environ, **env})  # fmt: skip


def lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def n_prompt(result: Result) -> int:
    return int(lines(result)[-1]["n_prompt"])


# -- prompts from everywhere --


def test_piped_text_goes_after_the_prompt(tmp_path: Path, tiny_model: Path) -> None:
    options = ("-n", 6, "--temp", 0, "--json")
    (tmp_path / "report.txt").write_text("one\ntwo\n")
    counts = {
        json.loads(done.stdout.splitlines()[-1])["n_prompt"]
        for done in (
            start(tiny_model, "Sum up:\n\none\ntwo\n", *options, cwd=tmp_path),
            start(tiny_model, "Sum up:", *options, cwd=tmp_path, stdin="one\ntwo\n"),
            start(tiny_model, "Sum up:", "-f", "report.txt", *options, cwd=tmp_path),
            start(tiny_model, "-p", "Sum up:", "-f", "-", *options, cwd=tmp_path, stdin="one\ntwo\n"),
            start(tiny_model, "-", *options, cwd=tmp_path, stdin="Sum up:\n\none\ntwo\n"),
        )
    }
    assert len(counts) == 1


def test_a_pipe_that_is_written_to_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for, after a line that says so and how not to."""
    monkeypatch.setattr(streams, "SILENCE_SECONDS", 0.2)
    read, write = os.pipe()
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        os.write(write, "späte Wörter".encode())
        os.close(write)

    with os.fdopen(read) as late:
        monkeypatch.setattr(sys, "stdin", late)
        assert streams.piped_text(tell) == "späte Wörter"
    assert len(said) == 1 and "< /dev/null" in said[0]


def test_only_pipes_files_and_sockets_are_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with open(os.devnull) as null:
        monkeypatch.setattr(sys, "stdin", null)
        assert streams.piped_text(pytest.fail) == ""
    (tmp_path / "file").write_bytes("\ufeffzwölf\r\n".encode())
    with open(tmp_path / "file") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert streams.piped_text(pytest.fail) == "zwölf\n"


@pytest.mark.parametrize("path", ["./model", "../models/flash", "~/model", "/no/model", "C:\\models\\flash", "."])
def test_a_mistyped_model_is_no_prompt(path: str) -> None:
    done = run(path, stdin="Hello")
    assert isinstance(done.exception, pyflash.Error) and done.stdout == ""
    assert os.path.expanduser(path) in str(done.exception)


def test_a_word_that_is_a_folders_name_is_a_prompt(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tests").mkdir()
    assert run("tests", "-n", 3, PYFLASH_MODEL=str(tiny_model)).exit_code == 0


def test_a_scripted_chat(tiny_model: Path) -> None:
    script = '/set max_tokens 3\n"""two\nlines"""\n/undo\nHello\n/set temp 0\n/regen\n/stats\n/bye\nnot read\n'
    done = run(tiny_model, "--verbose", stdin=script)
    assert done.exit_code == 0, done.exception
    assert "took back: two..." in done.stderr
    assert done.stderr.count("pyflash: 3 tokens (max_tokens)") == 3
    assert ">>>" not in done.output


@pytest.mark.parametrize("line", ["/what", "/read missing.txt", "/load missing.session", "/set temp hot"])
def test_a_scripted_chat_ends_at_a_command_that_fails(tiny_model: Path, line: str) -> None:
    done = run(tiny_model, "-n", 3, stdin=f"{line}\nHello\n")
    assert isinstance(done.exception, pyflash.Error) and done.stdout == ""


def test_a_scripted_chat_ends_at_an_answer_that_fails(tiny_model: Path) -> None:
    done = run(tiny_model, "-c", 30, stdin="many words " * 30 + "\nHello\n")
    assert isinstance(done.exception, pyflash.ContextFullError) and done.stdout == ""


# -- options --


def test_sampling_options_reach_the_sampler(tiny_model: Path) -> None:
    base = (tiny_model, "Hello", "-n", 60, "--temp", 0)
    plain = run(*base).stdout
    assert run(*base, "--repeat-penalty", 1).stdout == plain
    for options in (("--repeat-penalty", 5), ("--presence-penalty", 50), ("--frequency-penalty", 50)):
        changed = run(*base, *options)
        assert changed.exit_code == 0 and changed.stdout != plain, options
        assert run(*base, *options, "--repeat-last-n", 0).stdout == plain, options
    assert run(*base, PYFLASH_PRESENCE_PENALTY="50").stdout == run(*base, "--presence-penalty", 50).stdout
    assert run(*base[:4], "--temp", 5, "--top-k", 1).stdout == plain
    assert run(*base[:4], "--seed", 3).stdout == run(*base[:4], PYFLASH_SEED="3").stdout


def test_stop_strings_end_the_answer(tiny_model: Path) -> None:
    base = (tiny_model, "Hello", "-n", 40, "--temp", 0)
    text = run(*base).stdout.rstrip("\n")
    stop = text[len(text) // 2 :][:2]
    before = text[: text.index(stop)]
    assert run(*base, "--stop", stop, "--stop", "never there").stdout.rstrip("\n") == before.rstrip("\n")
    last = lines(run(*base, "--stop", stop, "--json"))[-1]
    assert last["finish"] == "stop" and last["message"]["content"] == before


def test_every_option_has_its_variable() -> None:
    for option in cli.commands["run"].params:
        if option.param_type_name == "option" and "--help" not in option.opts:
            name = max((name for name in option.opts if name.startswith("--")), key=len)
            assert option.envvar == "PYFLASH_" + name.strip("-").replace("-", "_").upper()


def test_json_lines(tiny_model: Path) -> None:
    text = run(tiny_model, "Hello", "-n", 12, "--temp", 0).stdout
    found = lines(run(tiny_model, "Hello", "-n", 12, "--temp", 0, "--json"))
    *pieces, last = found
    assert last["done"] is True and all("done" not in piece for piece in pieces)
    assert "".join(piece["text"] for piece in pieces) == last["message"]["content"] == text.rstrip("\n")
    assert last["n_generated"] == 12 and last["finish"] == "length" and last["n_prompt"] > 3
    assert last["n_reused"] == 0 and last["prompt_seconds"] > 0 and last["context_used"] == last["n_prompt"] + 11


def test_json_lines_of_a_scripted_chat(tiny_model: Path) -> None:
    found = lines(run(tiny_model, "-n", 4, "--temp", 0, "--json", stdin="Hello\nAnd then?\n"))
    assert [line["n_generated"] for line in found if line.get("done")] == [4, 4]
    assert found[-1]["n_reused"] > 0


def test_logprobs(tiny_model: Path) -> None:
    *pieces, last = lines(run(tiny_model, "Hello", "-n", 8, "--temp", 0, "--json", "--logprobs", 3))
    assert len(pieces) == last["n_generated"] == 8
    for piece in pieces:
        logprobs = [other["logprob"] for other in piece["top"]]
        assert len(logprobs) == 3 and logprobs == sorted(logprobs, reverse=True)
        assert piece["top"][0]["token"] == piece["token"] and piece["logprob"] == logprobs[0] < 0


def test_thinking_hidden_or_not(tiny_model: Path) -> None:
    options = (tiny_model, "Hello", "--think", "-n", 20, "--temp", 0)
    shown, hidden = run(*options), run(*options, "--hide-thinking")
    assert shown.stdout == hidden.stdout == "" and shown.stderr.strip() and hidden.stderr == ""
    assert run(*options, "--json").stdout.count('"reasoning"') > 3
    assert len(lines(run(*options, "--json", "--hide-thinking"))) == 1
    low = run(tiny_model, "Hello", "--think-low")
    assert isinstance(low.exception, pyflash.Error) and "low" in str(low.exception)


def test_tools(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    options = ("-n", 3, "--json")
    plain = n_prompt(run(tiny_model, "Hello", *options))
    assert n_prompt(run(tiny_model, "Hello", *options, "--tools", path)) > plain + 100  # how to call them, and the tool
    for text in ("{", "3", '[{"name": "weather"}]'):
        path.write_text(text)
        bad = run(tiny_model, "Hello", "--tools", path)
        assert isinstance(bad.exception, pyflash.Error) and "tools.json" in str(bad.exception)


@pytest.mark.parametrize("schema", ["{", "missing.json", '{"type": 5}', "[1]"])
def test_bad_schemas(tiny_model: Path, schema: str) -> None:
    done = run(tiny_model, "Hello", "--json-schema", schema, "-n", 3)
    assert isinstance(done.exception, pyflash.Error) and done.stdout == ""
    assert "\n" not in str(done.exception)


def test_answers_as_json(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("llguidance")
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 1, "maximum": 99}},
              "required": ["n"], "additionalProperties": False}  # fmt: skip
    (tmp_path / "schema.json").write_text(json.dumps(schema))
    for given in (json.dumps(schema), str(tmp_path / "schema.json")):
        done = run(tiny_model, "A number", "--json-schema", given, "-n", 400)
        assert done.exit_code == 0, done.exception
        assert 1 <= json.loads(done.stdout)["n"] <= 99


def test_json_that_is_cut_has_failed(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("llguidance")
    schema = json.dumps({"type": "object", "properties": {"things": {"type": "integer"}}, "required": ["things"]})
    cut = run(tiny_model, "Anything", "--json-schema", schema, "--json", "-n", 2)
    last = json.loads(cut.stdout.splitlines()[-1])
    assert last["message"]["content"].lstrip().startswith("{") and last["finish"] == "length"
    assert isinstance(cut.exception, pyflash.FormatError)
    assert "2 tokens" in str(cut.exception) and "-n" in str(cut.exception)
    stopped = run(tiny_model, "Anything", "--json-object", "--stop", "{")
    assert isinstance(stopped.exception, pyflash.FormatError) and "stop string" in str(stopped.exception)
    chat = run(tiny_model, "--json-schema", schema, "-n", 2, stdin="One\nTwo\n")
    assert isinstance(chat.exception, pyflash.FormatError) and chat.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "finish", "is_whole"),
    [('{"a": 1}', "length", True), ("[1]", "stop", True), ('{"a": [1', "length", False), ("12", "length", False),
     ("12", "stop", True), ("null", "stop", True), ("nul", "stop", False), ("", "length", False), ("", "stop", False)],
)  # fmt: skip
def test_when_json_is_whole(content: str, finish: str, is_whole: bool) -> None:
    answer = Answer({"content": content}, False, finish, 5, 0, 3, 0.5, 0.25, 7, 100)
    assert (cut_json(answer) is None) == is_whole
    assert cut_json(Answer({"tool_calls": [{}]}, False, finish, 5, 0, 3, 0.5, 0.25, 7, 100)) is None


def test_json_without_the_library_for_it(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    done = run(tiny_model, "Hello", "--json-object", "-n", 3)
    assert isinstance(done.exception, pyflash.UnsupportedError) and "pip install" in str(done.exception)


# -- sessions --


def test_a_session_goes_on_without_evaluating_again(tmp_path: Path, tiny_model: Path) -> None:
    long_question = "The quick brown fox jumps over the lazy dog. " * 40
    for think in ((), ("--think",)):
        path = tmp_path / f"talk{len(think)}"
        options = (tiny_model, "--session", path, "--json", "-n", 8, "--temp", 0, "-p", *think)
        first = lines(run(*options[:-len(think) or None], long_question, *think))[-1]
        assert first["n_reused"] == 0 and first["n_prompt"] > 800
        second = lines(run(*options[:-len(think) or None], "And then?", *think))[-1]
        assert second["n_prompt"] > first["n_prompt"] and second["n_reused"] >= first["n_prompt"] - 2
        assert second["n_prompt"] - second["n_reused"] < 60
        assert sorted(tmp_path.glob(f"{path.name}*")) == [path]


def test_sessions_that_cannot_be(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "letter").write_text("Dear reader")
    for path in (tmp_path / "letter", tmp_path, tmp_path / "missing" / "s"):
        done = run(tiny_model, "Hello", "--session", path)
        assert isinstance(done.exception, pyflash.Error) and str(path.name) in str(done.exception)
        assert done.stdout == ""
    assert (tmp_path / "letter").read_text() == "Dear reader"
    (tmp_path / "empty").touch()  # as mktemp leaves it
    assert run(tiny_model, "Hello", "-n", 3, "--session", tmp_path / "empty").exit_code == 0
    assert (tmp_path / "empty").stat().st_size > 0


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_an_interrupted_answer_is_kept_in_the_session(tmp_path: Path, tiny_model: Path) -> None:
    for seed in range(10):
        process = subprocess.Popen(
            [*COMMAND, str(tiny_model), "Hello", "-n", "60000", "--seed", str(seed), "--session", "s", "--json"],
            cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYFLASH_CPU": "scalar"},
        )
        assert process.stdout is not None
        process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=120)
        assert b"Traceback" not in errors
        if process.returncode != 0:
            break
    assert process.returncode == 130
    last = json.loads(out.splitlines()[-1])
    assert last["done"] is True and last["finish"] == "interrupted" and last["n_generated"] > 0
    again = lines(run(tiny_model, "More", "--session", tmp_path / "s", "-n", 3, "--json"))[-1]
    assert again["n_reused"] >= last["n_prompt"]


# -- warnings --


def test_a_model_larger_than_memory(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning while at least what is no file's fits, else a refusal."""
    monkeypatch.setattr(hardware, "process_memory", lambda: None)
    with pyflash.Model.open(tiny_model) as model, model.session(context=512) as session:
        memory = session.memory
    own = memory.cache_bytes + memory.buffer_bytes + memory.checkpoint_bytes
    for usable, warned in ((10**12, False), (own + 1000, True)):
        monkeypatch.setattr(hardware, "memory", lambda usable=usable: hardware.MachineMemory(usable, 10**12, None))
        done = run(tiny_model, "Hello", "-n", 3, "-c", 512)
        assert done.exit_code == 0
        assert len(re.findall("^pyflash: warning: .* memory", done.stderr, re.MULTILINE)) == warned
    monkeypatch.setattr(hardware, "memory", lambda: hardware.MachineMemory(own - 1, own - 1, None))
    refused = run(tiny_model, "Hello", "-n", 3, "-c", 512)
    assert isinstance(refused.exception, pyflash.MemoryLimitError) and "--ctx" in str(refused.exception)
    assert "--cache-type" not in str(refused.exception)  # the reference cache is in use already
    larger = run(tiny_model, "Hello", "-n", 3, "-c", 512, "--cache-type", "f32")
    assert isinstance(larger.exception, pyflash.MemoryLimitError) and "--cache-type" not in str(larger.exception)
    monkeypatch.setattr(hardware, "memory", lambda: hardware.MachineMemory(own + 1000, own + 1000, None))
    larger = run(tiny_model, "Hello", "-n", 3, "-c", 512, "--cache-type", "f32")
    assert isinstance(larger.exception, pyflash.MemoryLimitError) and "--cache-type reference" in str(larger.exception)


def test_limits_of_threads(tiny_model: Path) -> None:
    """The same in help, library and native library."""
    assert run(tiny_model, "Hello", "-t", 1025).exit_code == 2
    for threads in (1025, 0):
        with pytest.raises(pyflash.ArgumentError, match=r"1024|at least 1"):
            pyflash.Model.open(tiny_model, threads=threads)


@pytest.mark.parametrize("path", ["a\0b", "\ud800.gguf", "a" * 5000])
def test_paths_that_cannot_be(path: str) -> None:
    with pytest.raises(pyflash.Error) as raised:
        pyflash.Model.open(path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("line", ["/read a\0b", "/save a\0b", "/load a\0b", "/read ~nosuchuser/x", "/set temp 1e400",
                                  "/set seed " + 5000 * "9", "/set top_k nan"])  # fmt: skip
def test_chat_commands_fail_as_errors(tiny_model: Path, line: str) -> None:
    done = run(tiny_model, "-n", 3, stdin=f"{line}\n")
    assert isinstance(done.exception, pyflash.Error), done.exception


def test_sizes_and_numbers_without_an_end(tiny_model: Path) -> None:
    assert run(tiny_model, "Hello", "--expert-budget", 5000 * "9" + "G").exit_code == 2
    done = run(tiny_model, "Hello", "--json-schema", '{"type": "object", "x": ' + 5000 * "9" + "}")
    assert isinstance(done.exception, pyflash.Error)


def test_a_home_in_an_option_and_a_variable(tiny_model: Path, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("HOME is not the home there")
    (tmp_path / "m.gguf").symlink_to(tiny_model)
    (tmp_path / "notes.txt").write_text("Some notes.")
    for arguments in (("--model=~/m.gguf", "Hello"), ("~/m.gguf", "Hello"), ("Hello",),
                      ("--model=~/m.gguf", "-f", "~/notes.txt", "--session=~/s.session")):  # fmt: skip
        done = start(*arguments, "-n", 3, cwd=tmp_path, HOME=str(tmp_path), PYFLASH_MODEL="~/m.gguf")
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.session").is_file()

