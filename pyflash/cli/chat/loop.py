"""The chat: reads entries, runs commands, answers questions."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator

from gguf_export.errors import reason
from pyflash.chat.conversation import Answer, Conversation
from pyflash.cli.advice import LOADING, answering, ways_out
from pyflash.cli.chat.commands import Commands, Leave, loaded
from pyflash.cli.chat.lines import Entry, LineReader
from pyflash.cli.chat.settings import Settings
from pyflash.cli.chat.view import JsonView, TextView, remarks, stats_line
from pyflash.cli.streams import on_terminal, say
from pyflash.native.errors import Error, FormatError
from pyflash.native.text import visible_line


class SessionFile:
    """The file of --session: continued when there is one, written after each answer, and held meanwhile, so that no
    other process answers the same conversation. What is wrong with it is told here, before an answer."""

    def __init__(self, path: str, conversation: Conversation[Settings]) -> None:
        self._path = path
        self._conversation = conversation
        conversation.hold(path)
        self.resumed = os.path.exists(path) and os.path.getsize(path) > 0
        if self.resumed:
            with ways_out(LOADING):
                conversation.load(path)
        self._written = conversation.messages

    def write(self) -> None:
        """Writes the conversation if it has changed since."""
        messages = self._conversation.messages
        if messages is not self._written:
            self._conversation.save(self._path)
            self._written = messages


class Chat:
    """One chat on stdin and stdout. verbose: the stats line also where there is no terminal. wants_json: an answer that
    is none has failed."""

    def __init__(self, conversation: Conversation[Settings], view: TextView | JsonView, session_file: SessionFile | None,
                 verbose: bool, wants_json: bool = False) -> None:
        self._conversation = conversation
        self._view = view
        self._session_file = session_file
        self._verbose = verbose
        self._wants_json = wants_json
        self._interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self.commands = Commands(conversation, view, say)

    def answer_once(self, question: str) -> bool:
        """Answers one question; False when Ctrl-C ended it."""
        with self._kept(), ways_out(answering(self._conversation.session)):
            answer = self._conversation.ask(question, self._view)
            self._after(answer)
        return not answer.interrupted

    def run(self, reader: LineReader) -> bool:
        """Answers until the end of the input or /bye. False when Ctrl-C ended a chat without a terminal."""
        with self._kept():  # at the end again: an impatient Ctrl-C may have cut the writing after an answer short
            return self._run(reader)

    def _run(self, reader: LineReader) -> bool:
        self._greet()
        interrupts = 0
        while True:
            reader.keep_history = self._conversation.settings.history
            try:
                entry = reader.read()
                interrupts = 0
                if entry is None or not self._take(entry):
                    return True
            except KeyboardInterrupt:
                if not self._interactive:
                    return False
                interrupts += 1
                say("")
                if interrupts == 2:
                    say("(Ctrl-D or /bye leaves)", dim=True)

    def _greet(self) -> None:
        if not self._interactive:
            return
        session = self._conversation.session
        name = visible_line(session.model.info.name) or "a model without a name"
        say(f"{name} | context {session.capacity:,} tokens | /help lists the commands, /bye leaves")
        if self._session_file is not None and self._session_file.resumed:
            say(f"continues {loaded(self._conversation)}")

    def _take(self, entry: Entry) -> bool:
        """Does what was asked; False to leave."""
        is_command = entry.text.startswith("/") and not entry.quoted
        try:
            with self._kept(), ways_out(answering(self._conversation.session)):
                if is_command:
                    answer = self.commands.run(entry.text)
                elif entry.text or self._conversation.attached:
                    answer = self._conversation.ask(entry.text, self._view)
                else:
                    return True
                if answer is not None:
                    self._after(answer)
        except Leave:
            return False
        except BrokenPipeError:
            raise
        except (Error, OSError) as error:
            if not sys.stdin.isatty():  # what a script asks next may build on it
                raise
            say(f"pyflash: error: {_one_line(error)}")
            return True
        if answer is not None and answer.interrupted and not self._interactive:
            raise KeyboardInterrupt
        return True

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        """Writes the session file then, also when a signal ends the answer."""
        try:
            yield
        finally:
            if self._session_file is not None:
                self._session_file.write()

    def _after(self, answer: Answer) -> None:
        if isinstance(self._view, JsonView):
            self._view.finished(answer)
        for line in remarks(answer, stopped=self._interactive):
            say(line)
        if answer.interrupted and self._interactive and self._conversation.attached:
            say("what you read still goes before your next question; /clear drops it")
        settings = self._conversation.settings
        if answer.n_generated and (self._verbose or (settings.stats and self._interactive)):
            line = stats_line(answer)
            say(f"[{line}]" if on_terminal(sys.stderr) else f"pyflash: {line}", dim=True)
        if self._wants_json and not answer.interrupted and (problem := cut_json(answer)):
            raise FormatError(problem)
        if self._interactive:
            say("")


def cut_json(answer: Answer) -> str | None:
    """Why an answer that should be JSON is only the beginning of some, and the way out; None where it is whole."""
    if answer.message.get("tool_calls"):
        return None
    with contextlib.suppress(ValueError):
        value = json.loads(answer.message.get("content", ""))
        if answer.finish == "stop" or isinstance(value, (dict, list)):  # a number may go on
            return None
    where = f"the JSON was cut off after {answer.n_generated:,} tokens"
    if answer.finish == "stop":
        return f"{where} by a stop string: take another one"
    if answer.context_full:
        return f"{where}, when the context was full: " + (
            "a larger -c holds more" if answer.can_grow else "ask for less, or shorten the prompt")
    return f"{where}, which are the most that -n allows: allow more"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {reason(error)}" if error.filename else reason(error)
    return " ".join(str(error).split())
