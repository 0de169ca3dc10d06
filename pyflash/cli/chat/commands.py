"""The slash commands of the chat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyflash.chat import thinking_modes
from pyflash.chat.conversation import Answer, Conversation, View
from pyflash.chat.reply import THINKING_MODES
from pyflash.cli.advice import LOADING, ways_out
from pyflash.cli.chat.lines import complete_path
from pyflash.cli.chat.settings import Settings, canonical, helps
from pyflash.cli.chat.view import stats_line
from pyflash.cli.paths import typed_path
from pyflash.cli.text import read_text
from pyflash.machine.units import format_bytes
from pyflash.native.errors import ArgumentError

Say = Callable[[str], None]

HELP_ON_LINES = (
    '""" begins and ends a text of several lines; a line that ends with \\ goes on in the next.',
    "Ctrl-C stops an answer and keeps what there is; Ctrl-D leaves.",
)


class Leave(Exception):
    """The chat is over."""


@dataclass(frozen=True)
class Command:
    """name as typed. takes: what the help shows after it. path: what is typed after it is a file's name."""

    name: str
    takes: str
    help: str
    run: Callable[[Commands, str], Answer | None]
    path: bool = False


class Commands:
    """Runs slash commands on a conversation. say: shows a line to the user."""

    def __init__(self, conversation: Conversation[Settings], view: View, say: Say) -> None:
        self._conversation = conversation
        self._settings = conversation.settings
        self._view = view
        self._say = say

    def run(self, line: str) -> Answer | None:
        """Runs "/name argument". Returns the answer if it gave one; raises Leave to end the chat, and Errors."""
        name, _, argument = line.partition(" ")
        command = _BY_NAME.get(name.lower())
        if command is None:
            raise ArgumentError(f'there is no command {name}; /help lists them, and """{name}...""" is a question')
        return command.run(self, argument.strip())

    # -- the conversation --

    def _help(self, _argument: str) -> None:
        width = max(len(f"{command.name} {command.takes}") for command in COMMANDS)
        for command in COMMANDS:
            self._say(f"  {f'{command.name} {command.takes}':{width}}  {command.help}")
        self._say("")
        for line in HELP_ON_LINES:
            self._say(f"  {line}")

    def _bye(self, _argument: str) -> None:
        raise Leave

    def _clear(self, _argument: str) -> None:
        self._conversation.clear()
        self._say("forgot the conversation; the system message stays" if self._conversation.system
                  else "forgot the conversation")  # fmt: skip

    def _regen(self, _argument: str) -> Answer:
        return self._conversation.regenerate(self._view)

    def _undo(self, _argument: str) -> None:
        question = self._conversation.undo()
        if question is None:
            raise ArgumentError("there is nothing to take back")
        first, *more = question.split("\n")
        self._say(f"took back: {first[:60]}{'...' if more or len(first) > 60 else ''}")

    def _read(self, argument: str) -> None:
        path = _path(argument, "/read FILE")
        text = read_text(path, self._say)
        session = self._conversation.session
        n_tokens = len(session.model.tokenizer.encode(text))
        if n_tokens >= session.capacity:
            way = "a larger -c holds more" if session.capacity < session.model.info.n_ctx_train else "take a part of it"
            raise ArgumentError(f"{path} has {n_tokens:,} tokens, and the context holds {session.capacity:,}: {way}")
        self._conversation.attached.append(text)
        self._say(f"read {path}: {n_tokens:,} tokens; they go before your next question (Enter alone sends them)")

    def _system(self, argument: str) -> None:
        if not argument:
            self._say(self._conversation.system or "there is no system message")
            return
        self._conversation.system = "" if argument == '""' else argument
        self._say("the system message is set" if self._conversation.system else "there is no system message any more")

    def _result(self, argument: str) -> Answer | None:
        answer = self._conversation.give_result(argument, self._view)
        if answer is None:
            self._say(f"{len(self._conversation.open_calls())} more tool calls wait for a result")
        return answer

    # -- settings --

    def _set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        if not name:
            width = max(map(len, helps()))
            for known, text in helps().items():
                self._say(f"  {known:{width}}  {self._settings.shown(known):8}  {text}")
            return
        if value.strip():
            if canonical(name) == "think":
                self._think(value.strip())
                return
            self._settings.change(name, value)
        self._say(f"{canonical(name)} is {self._settings.shown(name)}")

    def _think(self, argument: str) -> None:
        mode = argument.lower() or "high"
        release = self._conversation.session.model.release
        if mode in THINKING_MODES and mode not in thinking_modes(release):
            raise ArgumentError(f"only the release 0731 can think {mode}, and this model is of {release}")
        self._settings.change("think", mode)
        self._say("answers at once" if mode == "off" else f"thinks before it answers ({mode})")

    def _nothink(self, _argument: str) -> None:
        self._think("off")

    def _stats(self, _argument: str) -> None:
        conversation, session = self._conversation, self._conversation.session
        if conversation.last is not None:
            self._say(f"last answer: {stats_line(conversation.last)}")
        memory = session.memory
        self._say(f"conversation: {len(conversation.messages)} messages, {session.position:,} of {session.capacity:,} "
                  f"tokens of context")  # fmt: skip
        self._say(f"memory for the whole context: cache {format_bytes(memory.cache_bytes)}, "
                  f"buffers {format_bytes(memory.buffer_bytes)}, checkpoints {format_bytes(memory.checkpoint_bytes)}")

    # -- files --

    def _save(self, argument: str) -> None:
        path = _path(argument, "/save FILE")
        self._conversation.save(path)
        self._say(f"saved the conversation and its cache in {path}; /load brings them back")

    def _load(self, argument: str) -> None:
        path = _path(argument, "/load FILE")
        with ways_out(LOADING):
            self._conversation.load(path)
        self._say(f"continues {path}: {loaded(self._conversation)}")

    # -- completion --

    def complete(self, line: str) -> list[str]:
        """The lines that a beginning can become."""
        name, space, argument = line.partition(" ")
        if not space:
            return [f"{command.name} " if command.takes else command.name
                    for command in COMMANDS if line and command.name.startswith(line)]  # fmt: skip
        command = _BY_NAME.get(name)
        if command is None:
            return []
        choices: list[str] = []
        if command.path:
            choices = complete_path(argument)
        elif name == "/think":
            choices = [mode for mode in THINKING_MODES if mode.startswith(argument)]
        elif name == "/set":
            choices = [f"{known} " for known in helps() if known.startswith(argument)]
        return [f"{name} {choice}" for choice in choices]


def _path(argument: str, usage: str) -> str:
    """A file's name as typed or dropped."""
    path = "" if "\0" in argument else typed_path(argument)
    if not path:
        raise ArgumentError("a path cannot hold a zero byte" if argument else f"which file? {usage}")
    return path


def loaded(conversation: Conversation[Settings]) -> str:
    """How much a session file held."""
    return f"{len(conversation.messages)} messages, {conversation.session.position:,} tokens"


COMMANDS = (
    Command("/help", "", "this list", Commands._help),
    Command("/bye", "", "leave (also Ctrl-D)", Commands._bye),
    Command("/clear", "", "forget the conversation", Commands._clear),
    Command("/regen", "", "another answer instead of the last one", Commands._regen),
    Command("/undo", "", "take the last question and its answer back", Commands._undo),
    Command("/read", "FILE", "put a text file before the next question", Commands._read, path=True),
    Command("/system", "[TEXT]", 'show or set the system message; "" removes it', Commands._system),
    Command("/set", "[NAME [VALUE]]", "list, show or change settings; VALUE default: the model's", Commands._set),
    Command("/think", "[low|high|max]", "let the model think before it answers", Commands._think),
    Command("/nothink", "", "answer at once", Commands._nothink),
    Command("/result", "TEXT", "the result of the tool call that waits for one", Commands._result),
    Command("/save", "FILE", "write conversation and cache to a file", Commands._save, path=True),
    Command("/load", "FILE", "continue from such a file", Commands._load, path=True),
    Command("/stats", "", "tokens, speed and memory", Commands._stats),
)
_BY_NAME = {command.name: command for command in COMMANDS} | {
    alias: next(command for command in COMMANDS if command.name == "/bye") for alias in ("/exit", "/quit")
}
_BY_NAME["/?"] = COMMANDS[0]
