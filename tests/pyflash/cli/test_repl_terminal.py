"""The interactive chat as a person meets it: typed and looked at through a pseudo-terminal."""

from __future__ import annotations

import json
import random
import signal
import stat
import sys
from pathlib import Path

import pytest

if sys.platform == "win32":
    pytest.skip("needs a pseudo-terminal", allow_module_level=True)

from pseudo_terminal import CTRL_C, CTRL_D, PROMPT, TAB, UP, Terminal, plain

DIM = "\x1b[2m"
SHORT = ("-n", 6, "--temp", 0)
SLOW = {"PYFLASH_CPU": "scalar"}


def long_text(tmp_path: Path) -> Path:
    """A file of some 8,000 tokens, which the scalar kernels read for many seconds."""
    words = random.Random(1)
    path = tmp_path / "long.txt"
    path.write_text(" ".join(words.choice("abcdefgh") * words.randint(1, 5) for _ in range(3000)))
    return path


def stats(shown: str) -> str:
    """The line with counts and speed."""
    lines = [line for line in shown.splitlines() if line.startswith("[") and "| context" in line]
    assert len(lines) == 1, shown
    return lines[0]


def test_each_command(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "notes.txt").write_text("Some notes to read.\n")
    with Terminal("run", tiny_model, *SHORT, cwd=tmp_path) as terminal:
        assert "/help" in terminal.prompt()
        helped = terminal.enter("/help")
        for name in ("/bye", "/clear", "/regen", "/undo", "/read", "/system", "/set", "/think", "/nothink", "/save",
                     "/load", "/stats", '"""', "Ctrl-C", "Ctrl-D"):  # fmt: skip
            assert name in helped
        assert "no answer yet" in terminal.enter("/regen")
        assert "nothing to take back" in terminal.enter("/undo")
        unknown = terminal.enter("/what is this")
        assert "no command /what" in unknown and "/help" in unknown and unknown.strip().count("\n") == 0

        first = terminal.enter("Hello")
        assert "6 tokens (max_tokens)" in stats(first)
        again = terminal.enter("/regen")
        assert again.splitlines()[1] == first.splitlines()[1]  # temperature 0
        assert "reused" in stats(again)

        assert "there is no system message" in terminal.enter("/system")
        assert "is set" in terminal.enter("/system Be brief.")
        assert "Be brief." in terminal.enter("/system")
        assert "no system message any more" in terminal.enter('/system ""')

        settings = terminal.enter("/set")
        for name in ("temp", "top_p", "top_k", "min_p", "seed", "repeat_penalty", "presence_penalty", "stop",
                     "frequency_penalty", "repeat_last_n", "max_tokens", "think", "stats", "hide_thinking", "history"):
            assert name in settings
        assert "max_tokens is 3" in terminal.enter("/set max_tokens 3")
        assert "top_k is 5" in terminal.enter("/set top-k 5")
        assert "error" in terminal.enter("/set temp hot") and "error" in terminal.enter("/set heat 1")
        assert 'stop is "\\n\\n" "END"' in terminal.enter('/set stop "\\n\\n" END')
        assert "3 tokens" in stats(terminal.enter("Hi"))

        assert "notes.txt: " in terminal.enter("/read notes.txt")
        assert "no-notes.txt" in terminal.enter("/read no-notes.txt")
        assert "which file" in terminal.enter("/read")
        terminal.type(b"/read caf\xe9\r")  # not UTF-8
        assert "cannot read" in terminal.prompt()
        assert "| context" in terminal.enter("")  # sends what was read
        assert "took back: Some notes to read." in terminal.enter("/undo")

        assert "thinks" in terminal.enter("/think")
        assert "0731" in terminal.enter("/think low")
        assert "(max)" in terminal.enter("/think max")
        assert "at once" in terminal.enter("/nothink")
        assert "stats is off" in terminal.enter("/set stats off")
        assert "| context" not in terminal.enter("Hi again")
        shown = terminal.enter("/stats")
        assert "last answer: 3 tokens" in shown and "cache" in shown

        assert "saved" in terminal.enter("/save here.session")
        assert "no saved session" in terminal.enter("/save notes.txt")
        assert (tmp_path / "notes.txt").read_text() == "Some notes to read.\n"
        assert "forgot" in terminal.enter("/clear")
        assert "nothing to take back" in terminal.enter("/undo")
        assert "continues" in terminal.enter("/load here.session")
        assert "took back: Hi again" in terminal.enter("/undo")
        assert "no saved session" in terminal.enter("/load notes.txt")
        assert "error" in terminal.enter("/load nothing.session")
        terminal.type("/bye\r")
        assert terminal.wait() == 0
        assert "Traceback" not in terminal.transcript


def test_thinking_is_dimmed_and_hidden_on_demand(tmp_path: Path, tiny_model: Path) -> None:
    with Terminal("run", tiny_model, "--think", "-n", 40, "--temp", 0, "--min-p", 0, cwd=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("Hello\r")
        shown = terminal.prompt()
        dim, _, _ = shown.partition("tokens (max_tokens)")
        assert dim.count(DIM) > 10  # each piece of it, and the line of counts
        terminal.enter("/set hide_thinking on")
        terminal.type("/regen\r")
        shown = terminal.prompt()
        assert "thinking... 1" in shown
        lines = [line.rpartition("\x1b[K")[2] for line in shown.splitlines()]  # what stays on the screen
        assert "thinking..." not in "".join(lines)


def test_several_lines(tmp_path: Path, tiny_model: Path) -> None:
    with Terminal("run", tiny_model, *SHORT, "--session", "s", cwd=tmp_path) as terminal:
        terminal.prompt()
        terminal.type('"""/first\r')
        terminal.until("... ")
        terminal.type("\r")
        terminal.until("... ")
        terminal.type('last"""\r')
        assert stats(plain(terminal.prompt()))
        terminal.type("one\\\r")
        terminal.until("... ")
        terminal.enter("two")
        terminal.type("\x1b[200~/pasted\nwith \"\"\"\nthree lines\x1b[201~")
        assert "| context" not in terminal.until("three lines")
        terminal.type("\r")
        assert stats(plain(terminal.prompt()))
        terminal.type('"""dropped\r')
        terminal.until("... ")
        terminal.interrupt(terminal.prompt)
        terminal.type('/system """Two\r')
        terminal.until("... ")
        assert "is set" in terminal.enter('lines"""')
        assert "Two\nlines" in terminal.enter("/system")
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    questions = [message["content"] for message in note(tmp_path / "s") if message["role"] == "user"]
    assert questions == ["/first\n\nlast", "one\ntwo", '/pasted\nwith """\nthree lines']


def note(path: Path) -> list[dict[str, str]]:
    """The conversation in a session file, read without the library: JSON that stands as it is near its end."""
    data = path.read_bytes()
    begin = data.rindex(b'{"version": 1, "messages": ')
    messages = json.JSONDecoder().raw_decode(data[begin:].decode("utf-8", "replace"))[0]["messages"]
    assert isinstance(messages, list)
    return messages


def test_history_and_completion(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "a file.txt").write_text("text")
    for start in range(2):
        with Terminal("run", tiny_model, *SHORT, cwd=tmp_path) as terminal:
            terminal.prompt()
            if start == 0:
                terminal.enter("remember this")
                terminal.enter("/set history off")
                terminal.enter("but not this")
                terminal.type("/rea" + TAB.decode() + "a f" + TAB.decode() + "\r")
                assert "a file.txt: " in plain(terminal.prompt())
                terminal.type("/set repeat_p" + TAB.decode() + "1.5\r")
                assert "repeat_penalty is 1.5" in plain(terminal.prompt())
            else:
                terminal.type(UP)
                terminal.until("/set history off")
                terminal.type(UP)
                terminal.until("remember this")
                terminal.type("\r")
                assert stats(plain(terminal.prompt()))
            terminal.type(CTRL_D)
            assert terminal.wait() == 0
    history = tmp_path / "state" / "history"
    assert history.read_text() == "remember this\n/set history off\nremember this\n"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600


def test_ctrl_c_in_a_long_prompt(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    long_text(tmp_path)
    with Terminal("run", tiny_model, *SHORT, "-t", 1, cwd=tmp_path, env=SLOW) as terminal:
        terminal.prompt()
        terminal.enter("/read long.txt")
        terminal.type("What is this?\r")
        terminal.until("tok/s")  # the line of progress, after the first step
        shown, seconds = terminal.interrupt(lambda: terminal.until("(stopped before the answer began", "| context"))
        with capsys.disabled():
            print(f"\nCtrl-C within a long prompt: {seconds:.3f} s to '(stopped'")
        assert "(stopped before" in shown
        terminal.prompt()
        assert "nothing to take back" in terminal.enter("/undo")
        assert "6 tokens" in stats(terminal.enter("Hi"))
        terminal.type(CTRL_D)
        assert terminal.wait() == 0


def test_ctrl_c_in_an_answer_keeps_it(tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal("run", tiny_model, "-n", 60000, "--session", "s", cwd=tmp_path, env=SLOW) as terminal:
        terminal.prompt()
        for seed in range(10):
            terminal.enter(f"/set seed {seed}")
            terminal.type("Hello\r")
            terminal.until("Hello")
            while len(plain(terminal.until("\n")).strip()) == 0:
                pass
            shown, seconds = terminal.interrupt(terminal.prompt)
            if "(stopped)" in shown:  # else the answer had ended by itself
                break
            terminal.enter("/clear")
        else:
            pytest.fail("no answer was stopped")
        with capsys.disabled():
            print(f"\nCtrl-C within an answer: {seconds:.3f} s to the prompt")
        terminal.interrupt(terminal.prompt)  # and at the prompt it drops what was typed
        terminal.type("half a question")
        terminal.until("question")
        terminal.interrupt(terminal.prompt)
        terminal.type(CTRL_D)
        assert terminal.wait() == 0
    user, answer = note(tmp_path / "s")
    assert user["content"] == "Hello" and answer["role"] == "assistant" and answer["content"].strip()


@pytest.mark.parametrize("end", ["SIGTERM", "closed terminal"])
def test_ends_cleanly_from_outside(tmp_path: Path, tiny_model: Path, end: str) -> None:
    """Also within a long prompt; the session file has what was answered before."""
    long_text(tmp_path)
    with Terminal("run", tiny_model, *SHORT, "-t", 1, "--session", "s", cwd=tmp_path, env=SLOW) as terminal:
        terminal.prompt()
        terminal.enter("Hello")
        terminal.enter("/read long.txt")
        terminal.type("\r")
        terminal.until("tok/s")
        if end == "SIGTERM":
            terminal.signal(signal.SIGTERM)
            assert terminal.wait() == 128 + signal.SIGTERM
        else:
            terminal.hang_up()
            assert terminal.process.wait(timeout=120) in (128 + signal.SIGHUP, 1)
        assert "Traceback" not in terminal.transcript
    assert [message["content"] for message in note(tmp_path / "s")][0] == "Hello"


def test_full_context_has_a_way_out(tmp_path: Path, tiny_model: Path) -> None:
    with Terminal("run", tiny_model, *SHORT, "-c", 40, cwd=tmp_path) as terminal:
        terminal.prompt()
        terminal.enter("Hello")
        shown = terminal.enter("many words " * 30)
        assert "context" in shown and "/clear" in shown and "-c" in shown
        assert "6 tokens" in stats(terminal.enter("Hi"))  # the question that did not fit is gone
        shown = terminal.enter("/set max_tokens default") + terminal.enter("more")
        assert "the context is full" in shown or "| context" in shown
        assert PROMPT not in shown and "Traceback" not in terminal.transcript
        terminal.type(CTRL_C)
