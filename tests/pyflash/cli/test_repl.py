"""The chat's parts without a terminal: settings, history, conversation, commands, views."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import pyflash
from pyflash.chat.conversation import Answer, Conversation
from pyflash.chat.reply import ChatPiece
from pyflash.cli.advice import LOADING, answering, ways_out
from pyflash.cli.chat.commands import COMMANDS, Commands, Leave
from pyflash.cli.chat.lines import Entry, History, LineReader, complete_path
from pyflash.cli.chat.settings import SAMPLING, Settings, helps, stop_strings
from pyflash.cli.chat.view import JsonView, TextView, call_line, remarks, stats_line
from pyflash.cli.paths import expanded, typed_path
from pyflash.cli.text import read_text
from pyflash.cli.streams import say
from pyflash.machine.places import cache_dir, home, homeless, state_dir
from pyflash.native.text import json_text, visible, visible_line

pytestmark = pytest.mark.quick

CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


class Silent:
    """A view that counts pieces, and can stop an answer as Ctrl-C does."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.n_pieces = 0

    def begin(self) -> None:
        self.n_pieces = 0

    def progress(self, done: int, total: int) -> None:
        if self.stop_after == 0 and done:
            raise KeyboardInterrupt

    def piece(self, piece: ChatPiece) -> None:
        self.n_pieces += 1
        if self.n_pieces == self.stop_after:
            raise KeyboardInterrupt

    def end(self) -> None:
        pass


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny_model) as opened:
        yield opened


def new(model: pyflash.Model, *, max_tokens: int = 8, context: int = 6000, **more: Any) -> Conversation:
    return Conversation(model.session(context=context), Settings(max_tokens=max_tokens), **more)


# -- settings --


def test_every_number_can_be_set_and_shown() -> None:
    settings = Settings()
    for name, value in {"temp": "0.5", "top_k": "7", "top_p": "0.25", "min_p": "0.125", "seed": "-3",
                        "repeat_penalty": "1.5", "presence_penalty": "-0.5", "frequency_penalty": "2",
                        "repeat_last_n": "-1", "max_tokens": "9", "think": "max", "hide_thinking": "on",
                        "stats": "off", "history": "off", "draft": "ngram"}.items():  # fmt: skip
        settings.change(name, value)
        assert settings.shown(name) == value
    assert settings.arguments() == {
        "temperature": 0.5, "top_k": 7, "top_p": 0.25, "min_p": 0.125, "seed": -3, "repetition_penalty": 1.5,
        "presence_penalty": -0.5, "frequency_penalty": 2.0, "penalty_last_n": -1, "max_tokens": 9, "think": "max",
        "stop": (), "draft": "ngram", "draft_max": None,
    }  # fmt: skip
    for setting in SAMPLING:
        settings.change(f"--{setting.name.replace('_', '-')}", "default")
        assert settings.arguments()[setting.keyword] == setting.default
    assert set(helps()) >= {setting.name for setting in SAMPLING}


def test_defaults_are_the_models() -> None:
    settings = Settings({"top_p": 0.5})
    settings.follow({"temperature": 0.25, "top_k": 30, "top_p": 0.75})
    assert [settings.shown(name) for name in ("temp", "top_k", "top_p", "min_p")] == ["0.25", "30", "0.5", "0"]
    settings.change("top_p", "default")
    settings.change("temp", "0")
    settings.change("top_k", "off")
    arguments = settings.arguments()
    assert (arguments["temperature"], arguments["top_k"], arguments["top_p"]) == (0, 0, 0.75)
    settings.change("top_k", "default")
    settings.change("temp", "default")
    assert (settings.shown("top_k"), settings.shown("temp")) == ("30", "0.25")
    settings.follow({})
    assert settings.arguments() == Settings().arguments()


@pytest.mark.parametrize("name, value", [
    ("temp", "nan"), ("temp", "-1"), ("temp", "inf"), ("top_p", "2"), ("repeat_penalty", "0"), ("seed", "x"),
    ("max_tokens", "0"), ("think", "hard"), ("stats", "maybe"), ("nonsense", "1"), ("stop", '"open'), ("stop", '""'),
])  # fmt: skip
def test_bad_settings_change_nothing(name: str, value: str) -> None:
    settings = Settings()
    with pytest.raises(pyflash.ArgumentError):
        settings.change(name, value)
    assert settings == Settings()


def test_stop_strings() -> None:
    settings = Settings()
    settings.change("stop", r'"\n\n" END "two words" "a\\n" C:\dir')
    assert settings.stop == ("\n\n", "END", "two words", r"a\n", "C:\\dir")
    again = Settings()
    again.change("stop", settings.shown("stop"))
    assert again.stop == settings.stop
    settings.change("stop", "off")
    assert settings.stop == ()
    with pytest.raises(pyflash.ArgumentError):
        stop_strings([""])


# -- what is typed --


def typed(monkeypatch: pytest.MonkeyPatch, text: str | bytes, told: list[str] | None = None) -> list[Entry]:
    data = text.encode() if isinstance(text, str) else text
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    reader = LineReader(False, None, lambda _line: [], pytest.fail if told is None else told.append)
    entries = []
    while (entry := reader.read()) is not None:
        entries.append(entry)
    return entries


def test_lines_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    text = ('one\n\n"""two\n  lines"""\n"""one"""\n/set temp 1\n/save C:\\dir\\\na\\\nb\n'
            '/system """x\ny"""\nsay """hi"""\n')
    assert typed(monkeypatch, text) == [
        Entry("one", True), Entry("", True), Entry("two\n  lines", True), Entry("one", True),
        Entry("/set temp 1", False), Entry("/save C:\\dir\\", False), Entry("a\nb", True),
        Entry("/system x\ny", False), Entry('say """hi"""', True),
    ]  # fmt: skip
    with pytest.raises(pyflash.FormatError, match='line 2 .*"""'):
        typed(monkeypatch, 'one\n"""never closed\nat all\n')


def test_lines_that_are_not_plain_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert typed(monkeypatch, "\ufeff/help\r\nzwölf\r\n") == [Entry("/help", False), Entry("zwölf", True)]
    told: list[str] = []
    latin = typed(monkeypatch, b"hello\nall of the caf\xe9s\n", told)
    assert latin == [Entry("hello", True), Entry("all of the caf\ufffds", True)]
    assert len(told) == 1 and "line 2 of stdin" in told[0] and "byte 15" in told[0]
    for data, word in (("Hi\n".encode("utf-16"), "UTF-16"), ("Hi\n".encode("utf-32"), "UTF-32"),
                       (b"a\0b\n", "zero bytes"), ("Grüße".encode("cp500"), "not UTF-8")):  # fmt: skip
        with pytest.raises(pyflash.FileError, match=word):
            typed(monkeypatch, data)


def test_history(tmp_path: Path) -> None:
    path = tmp_path / "new" / "history"
    history = History(path)
    entries = ["plain", "two\nlines", "back\\slash\\n", "ünï", "  "]
    assert [history.add(entry) for entry in entries] == [True, True, True, True, False]
    assert not history.add("ünï")  # the same again
    assert not history.add("x" * 30_000)
    assert History(path).entries == entries[:-1]
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.touch(0o600)
    path.write_text("".join(f"{n}\n" for n in range(2500)))
    assert History(path).entries == [str(n) for n in range(1500, 2500)]
    assert len(path.read_text().splitlines()) == 1000
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_history_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    history = History(tmp_path / "file" / "history")
    assert history.add("hello") and history.entries == ["hello"]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX's special files")
def test_history_that_is_no_file(tmp_path: Path) -> None:
    """A link to /dev/null is how people switch histories off; opening a pipe would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    for name in ("pipe", "null"):
        history = History(tmp_path / name)
        assert history.entries == [] and history.add("hello")


def test_a_damaged_history_stops_no_chat(tmp_path: Path) -> None:
    (tmp_path / "history").write_bytes(b"caf\xe9\n\xff\xfe\n\0\n\n two\xe2\x80\xa8lines\n")
    history = History(tmp_path / "history")
    assert history.entries == ["caf\ufffd", "\ufffd\ufffd", "\\", " two\u2028lines"]
    assert LineReader(False, history, lambda _line: []).keep_history


def test_state_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PYFLASH_STATE", raising=False)
    assert state_dir().name == "pyflash"
    monkeypatch.setenv("PYFLASH_STATE", str(tmp_path))
    assert state_dir() == tmp_path
    monkeypatch.setenv("PYFLASH_STATE", "~/state")
    assert str(state_dir()) == os.path.expanduser("~/state")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="others have their homes elsewhere")
def test_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("PYFLASH_STATE", "PYFLASH_CACHE", "XDG_STATE_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert homeless() is None
    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert home() is None and state_dir() is None
    folder = tmp_path / f"pyflash-{os.getuid()}"
    assert cache_dir() == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700
    told = homeless()
    assert told is not None and str(folder) in told and "PYFLASH_CACHE" in told
    folder.chmod(0o777)
    with pytest.raises(pyflash.FileError, match="PYFLASH_CACHE"):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which that variable's specification has ignored
    with pytest.raises(pyflash.FileError):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "pyflash" and homeless() is None


# -- the conversation: what the cache holds is never evaluated again --


def overhead(model: pyflash.Model, question: str) -> int:
    """Tokens that a question adds: the last one of the answer before, which ended it without having been evaluated,
    the end token, the question between the tokens of its turn, and how the next answer begins.
    """
    return len(model.tokenizer.encode(question)) + 5


def tame(talk: Conversation, n_prompt: int) -> bool:
    """Whether the random model kept to text in the last answer, as a real one does: no control tokens."""
    assert talk.last is not None
    tokenizer, said = talk.session.model.tokenizer, talk.last.message["content"]
    return (not talk.last.problems and all(tokenizer.decode([token]) for token in talk.session.tokens[n_prompt:])
            and len(tokenizer.encode(said)) <= talk.last.n_generated)  # fmt: skip


@pytest.mark.parametrize("think", ["off", "high"])
def test_later_turns_evaluate_only_what_is_new(model: pyflash.Model, tmp_path: Path, think: str) -> None:
    long_question = "The quick brown fox jumps over the lazy dog. " * 60
    talk = new(model, max_tokens=5)
    talk.settings.think, talk.settings.sampling["seed"] = think, 0
    first = talk.ask(long_question, Silent())
    assert first.n_reused == 0 and first.n_prompt > 1000
    while not tame(talk, first.n_prompt):
        again = talk.regenerate(Silent())
        assert (again.n_prompt, again.n_evaluated) == (first.n_prompt, 1)
    n_answer = 0 if think == "off" else len(model.tokenizer.encode(talk.messages[-1]["content"])) + 1
    second = talk.ask("And then?", Silent())
    # An answer without reasoning is there already. One with it stood after the reasoning, which is dropped.
    assert second.n_evaluated <= overhead(model, "And then?") + n_answer
    again = talk.regenerate(Silent())
    assert (again.n_prompt, again.n_evaluated) == (second.n_prompt, 1)
    talk.undo()
    instead = talk.ask("Or else?", Silent())
    assert instead.n_evaluated <= overhead(model, "Or else?") + n_answer
    assert len(talk.messages) == 4

    path = str(tmp_path / "saved")
    talk.save(path)
    other = new(model)
    other.settings.think = think
    other.load(path)
    assert other.messages == talk.messages
    resumed = other.regenerate(Silent())
    assert (resumed.n_prompt, resumed.n_evaluated) == (instead.n_prompt, 1)
    for conversation in (talk, other):
        conversation.session.close()


def test_stopped_answers(model: pyflash.Model) -> None:
    talk = new(model, max_tokens=50)
    talk.settings.sampling["temperature"] = 0.0
    stopped = talk.ask("Hello", Silent(stop_after=5))
    assert stopped.interrupted and 0 < stopped.n_generated <= 5 and stopped.finish is None
    assert talk.messages[1] == stopped.message and stopped.message["role"] == "assistant"
    before = list(talk.messages)
    dropped = talk.ask("some words " * 500, Silent(stop_after=0))
    assert dropped.interrupted and dropped.n_generated == 0 and talk.messages == before
    talk.attached.append("some words " * 500)
    assert talk.ask("What is that?", Silent(stop_after=0)).interrupted and len(talk.attached) == 1
    kept = talk.regenerate(Silent(stop_after=0))
    assert kept.interrupted and kept.n_generated == 0 and talk.messages == before
    assert "nothing has changed" in remarks(dropped)[0] and remarks(stopped) == ["(stopped)"]
    talk.session.close()


def test_full_context(model: pyflash.Model) -> None:
    talk = new(model, context=40, max_tokens=4)
    for ways, way_out in ({}, "a session with a larger context$"), (answering(talk.session), "-c .* /clear"):
        with pytest.raises(pyflash.ContextFullError, match=way_out) as raised, ways_out(ways):
            talk.ask("many words " * 40, Silent())
        assert "\n" not in str(raised.value) and talk.messages == []
    talk.settings.max_tokens = None
    for seed in range(50):
        talk.settings.sampling["seed"] = seed
        if talk.ask("Hello", Silent()).context_full:
            break
        talk.clear()
    assert talk.last is not None and "-c" in remarks(talk.last)[-1]
    talk.session.close()


def test_seeds(model: pyflash.Model) -> None:
    """-1 is a random one, as elsewhere, and no other becomes it by being regenerated with."""
    seen = []
    talk = new(model, max_tokens=12)
    talk.settings.change("temp", "5")
    for seed in ("-1", "-1", "-2"):
        talk.settings.change("seed", seed)
        talk.clear()
        seen.append(talk.ask("hello", Silent()).message["content"])
    assert seen[0] != seen[1]
    again = [talk.regenerate(Silent()).message["content"] for _ in range(2)]
    talk.settings.change("seed", "-2")
    talk.clear()
    assert talk.ask("hello", Silent()).message["content"] == seen[2]
    assert [talk.regenerate(Silent()).message["content"] for _ in range(2)] == again
    talk.session.close()


def test_regenerating_with_a_seed_gives_another_answer(model: pyflash.Model) -> None:
    talk = new(model)
    talk.settings.sampling["seed"] = 5
    first = talk.ask("Hello", Silent()).message
    others = [talk.regenerate(Silent()).message for _ in range(2)]
    assert first not in others and others[0] != others[1]
    talk.undo()
    assert talk.ask("Hello", Silent()).message == first
    talk.session.close()


def test_results_of_tools(model: pyflash.Model) -> None:
    talk = new(model, tools=[{"type": "function", "function": {"name": "weather", "parameters": {}}}])
    with pytest.raises(pyflash.ArgumentError):
        talk.give_result("sunny", Silent())
    calls = [CALL, {**CALL, "id": "call_2"}]
    talk.messages = [{"role": "user", "content": "How is it?"},
                     {"role": "assistant", "content": "", "tool_calls": calls}]  # fmt: skip
    assert talk.give_result("sunny", Silent()) is None
    assert [call["id"] for call in talk.open_calls()] == ["call_2"]
    assert talk.give_result("rainy", Silent()) is not None
    assert [message.get("tool_call_id") for message in talk.messages] == [None, None, "call_1", "call_2", None]
    talk.session.close()


def test_files_of_others_are_left_alone(model: pyflash.Model, tmp_path: Path) -> None:
    talk = new(model)
    talk.ask("Hello", Silent())
    before = list(talk.messages)
    letter = tmp_path / "letter.txt"
    letter.write_text("Dear reader")
    for path in (letter, tmp_path):
        with pytest.raises(pyflash.Error):
            talk.save(str(path))
        with pytest.raises(pyflash.Error):
            talk.load(str(path))
    talk.session.note = b"something else"
    talk.session.save(tmp_path / "foreign")
    with pytest.raises(pyflash.FormatError, match="no conversation"):
        talk.load(str(tmp_path / "foreign"))
    assert letter.read_text() == "Dear reader" and talk.messages == before
    talk.session.close()


def test_session_files_that_do_not_fit(model: pyflash.Model, tmp_path: Path) -> None:
    talk, file = new(model), tmp_path / "saved"
    talk.ask("Hello", Silent())
    talk.save(str(file))
    damaged = tmp_path / "damaged"
    damaged.write_bytes(file.read_bytes()[:-100])
    small, other = new(model, context=9), Conversation(model.session(100, cache="f16"), Settings())
    text = tmp_path / "text"
    text.write_text("no session")
    for reader, path, way_out in ((small, file, "a larger -c"), (other, file, "--cache-type"),
                                  (talk, damaged, "remove it"), (talk, text, "--session write them")):  # fmt: skip
        with pytest.raises(pyflash.Error, match=way_out) as raised, ways_out(LOADING):
            reader.load(str(path))
        assert str(path) in str(raised.value) and "\n" not in str(raised.value)
        with pytest.raises(pyflash.Error) as raised:
            reader.load(str(path))
        assert not re.search(r" -|/\w+ and", str(raised.value))  # the API's notions, no flags or commands
    for reader in (talk, small, other):
        reader.session.close()


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_saving_goes_through_links(model: pyflash.Model, tmp_path: Path) -> None:
    talk, link = new(model), tmp_path / "link"
    link.symlink_to(tmp_path / "file")
    talk.save(str(link))
    assert link.is_symlink() and (tmp_path / "file").is_file()
    talk.session.close()


def test_reading_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes("\ufeffzwölf\r\nBoxkämpfer".encode())
    assert read_text(str(tmp_path / "text"), pytest.fail) == "zwölf\nBoxkämpfer"
    (tmp_path / "binary").write_bytes(b"a\0b")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "greek").write_bytes("Τίποτα".encode("iso8859-7"))
    (tmp_path / "half").write_bytes(b"\xff\xfea")
    for name in ("binary", "empty", "missing", ".", "greek", "half", "zero\0byte", "~nosuchuser/file"):
        with pytest.raises(pyflash.FileError) as raised:
            read_text(name if name[0] == "~" else str(tmp_path / name), pytest.fail)
        assert "\n" not in str(raised.value)


def test_reading_files_that_are_not_plain_utf8(tmp_path: Path) -> None:
    """Nothing changes without a word."""
    told: list[str] = []
    for encoding in ("utf-16", "utf-32"):
        (tmp_path / encoding).write_text("zwölf\n", encoding=encoding)
        assert read_text(str(tmp_path / encoding), told.append) == "zwölf\n"
        assert encoding.upper() in told.pop() and not told
    (tmp_path / "latin").write_bytes("im Café sind zwölf \ufffd".encode() + "ä".encode("latin-1"))
    assert read_text(str(tmp_path / "latin"), told.append) == "im Café sind zwölf \ufffd\ufffd"
    assert len(told) == 1 and "in 1 place," in told[0] and "latin" in told[0]


def test_a_home_in_place_of_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME" if sys.platform != "win32" else "USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert Path(expanded("~/m.gguf")) == tmp_path / "m.gguf"
    assert expanded("~nosuchuser/m.gguf") == "~nosuchuser/m.gguf"
    (tmp_path / "~").write_text("")
    assert expanded("~") == "~"  # a file of that very name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("plain.txt", "plain.txt"), (r"My\ File.txt", "My File.txt"), ("'My File.txt'", "My File.txt"),
        ('"My File.txt"', "My File.txt"), ("My File.txt", "My File.txt"), (r"'it'\''s.txt'", "it's.txt"),
        ("it's.txt", "it's.txt"), (r"a\(1\)\&b.txt", "a(1)&b.txt"), ("file://{here}/My%20File.txt", "My File.txt"),
        ("file://localhost{here}/My%20File.txt", "My File.txt"), ("{here}/My File.txt", "My File.txt"),
        ("~/My\\ File.txt", "My File.txt"), ("two words", "two words"), ("'", "'"), (r"back\slash", r"back\slash"),
    ],
)  # fmt: skip
def test_paths_as_terminals_paste_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, name: str) -> None:
    if sys.platform == "win32":
        pytest.skip("backslashes separate folders there")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for file in ("plain.txt", "My File.txt", "it's.txt", "a(1)&b.txt", r"back\slash"):
        (tmp_path / file).write_text("")
    assert (tmp_path / typed_path(text.format(here=tmp_path))) == tmp_path / name


# -- commands --


def test_commands_talk_in_lines(model: pyflash.Model) -> None:
    said: list[str] = []
    talk = new(model)
    commands = Commands(talk, Silent(), said.append)
    for command in COMMANDS:
        if command.name in ("/bye", "/regen", "/undo", "/read", "/save", "/load", "/result"):
            with pytest.raises((Leave, pyflash.ArgumentError)):
                commands.run(command.name)
        else:
            said.clear()
            assert commands.run(command.name) is None and said
    assert talk.settings.think == "off"  # after /think came /nothink
    commands.run("/SET temperature 0.5")
    assert talk.settings.sampling["temperature"] == 0.5
    for alias in ("/exit", "/quit"):
        with pytest.raises(Leave):
            commands.run(alias)
    with pytest.raises(pyflash.ArgumentError, match="/usr/bin.*/help"):
        commands.run("/usr/bin is what?")
    talk.session.close()


def test_completion(model: pyflash.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = new(model)
    commands = Commands(talk, Silent(), lambda _line: None)
    assert commands.complete("/re") == ["/regen", "/read ", "/result "]
    assert commands.complete("") == [] and commands.complete("hello /re") == []
    assert commands.complete("/think m") == ["/think max"]
    assert commands.complete("/set pres") == ["/set presence_penalty "]
    (tmp_path / "a folder").mkdir()
    (tmp_path / "a file[1].txt").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert commands.complete("/load a f") == ["/load a file[1].txt", "/load a folder/"]
    assert complete_path("a file[") == ["a file[1].txt"]
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert complete_path("~/a fo") == ["~/a folder/"]
    talk.session.close()


# -- views --


def piece(kind: Any, text: str, **more: Any) -> ChatPiece:
    return ChatPiece(token=9, text=text, logprob=-0.5, finish=None, kind=kind, **more)


PIECES = [
    piece("reasoning", "Hm"), piece("reasoning", "..."), piece("content", "Let me "), piece("content", "look."),
    piece("tool_call", '{"city"', index=0, name="weather"),
    piece("tool_call", '"}', index=0, name="weather", call=CALL),
]  # fmt: skip
LINE = '{"id": "call_1", "name": "weather", "arguments": {"city": "Köln"}}'


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO], **settings: Any) -> tuple[str, str]:
    out, err = stream(), stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    view = TextView(Settings(**settings))
    view.begin()
    view.progress(0, 1000)
    view.progress(500, 1000)
    for each in PIECES:
        view.piece(each)
    view.end()
    monkeypatch.undo()
    return out.getvalue(), err.getvalue()


def test_text_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = shown(monkeypatch, FakeTerminal)
    assert out == f"\x1b[2mHm\x1b[0m\x1b[2m...\x1b[0m\n\nLet me look.\n{LINE}\n"
    assert "reading 0 of 1,000 tokens" in err and "calling weather..." in err and err.endswith("\r\x1b[K")
    hidden, err = shown(monkeypatch, FakeTerminal, hide_thinking=True)
    assert hidden == f"Let me look.\n{LINE}\n" and "thinking... 1" in err


def test_text_in_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO) == (f"Let me look.\n{LINE}\n", "Hm...\n")
    assert shown(monkeypatch, io.StringIO, hide_thinking=True) == (f"Let me look.\n{LINE}\n", "")


def test_answers_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out = FakeTerminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("TERM", "xterm")
    TextView(Settings()).piece(piece("content", "a\x1b]0;title\x07\x9b2J\r\tb\n"))
    assert out.getvalue() == "a␛]0;title␇\ufffd2J␍\tb\n"


def test_text_that_cannot_steer_a_terminal() -> None:
    assert visible("a\x1b[2J\x07\x7f\x85\x9b\u202e\u2066\u2028z\n\t") == "a␛[2J␇␡" + 5 * "\ufffd" + "z\n\t"
    assert visible_line("a\nb\tc") == "a␊b␉c"
    assert visible(os.fsdecode(b"caf\xe9 \xc3\xa9") + "\ud800") == "caf\\xe9 é\ufffd"
    odd = {"name": "a\x1b\x7f\x9b\u202e\ud800é\udce9"}
    text = json_text(odd)
    assert json.loads(text) == odd and visible(text) == text and "é" in text
    text.encode()


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_without_colours(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, {"NO_COLOR": "1", "TERM": "dumb"}[name])
    out, err = FakeTerminal(), FakeTerminal()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    view = TextView(Settings())
    view.piece(piece("reasoning", "Hm"))
    say("(stopped)", dim=True)
    assert out.getvalue() + err.getvalue() == "Hm(stopped)\n"


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Answer({"role": "assistant", "content": "x"}, False, "stop", 5, 2, 3, 0.5, 0.25, 7, 100, ("odd",))
    for logprobs in (0, 1):
        view = JsonView(Settings(), logprobs)
        view.begin()
        for each in [*PIECES, piece("content", "")]:
            view.piece(each)
        view.end()
        view.finished(answer)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(lines) == 7 + logprobs and lines[5]["call"] == CALL and ("logprob" in lines[0]) == bool(logprobs)
        assert [line.get("done") for line in lines] == [None] * (6 + logprobs) + [True]
        assert lines[-1]["n_reused"] == 2 and lines[-1]["finish"] == "stop" and lines[-1]["problems"] == ["odd"]


def test_lines_about_an_answer() -> None:
    answer = Answer({}, False, "length", 1500, 500, 21, 2.0, 4.0, 1520, 60_000, ("odd", "odd"))
    line = stats_line(answer)
    assert line == "21 tokens (max_tokens), 5.0 tok/s | prompt 1,000 + 500 reused, 500 tok/s | context 1,520/60,000"
    assert remarks(answer) == ["pyflash: the answer's format is broken: odd"]
    full = dataclasses.replace(answer, used=60_000, problems=())
    assert "-c makes it larger" in remarks(full)[0]
    assert "-c" not in remarks(dataclasses.replace(full, can_grow=False))[0]
    broken = {**CALL, "function": {"name": "f", "arguments": "{broken"}}
    assert json.loads(call_line(broken))["arguments"] == "{broken"
    assert os.linesep not in call_line(CALL)
