"""A conversation with a session behind it, without a terminal."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from pyflash.chat.messages import plain_messages
from pyflash.chat.reply import ChatPiece, Reply
from pyflash.chat.settings import AnswerSettings
from pyflash.engine.session import Session
from pyflash.engine.speculation import DraftStats
from pyflash.native.errors import ArgumentError, ContextFullError, Error, FileError, FormatError

_ROLES = ("system", "user", "assistant", "tool")
_FIELDS = ("role", "content", "reasoning_content", "tool_calls", "tool_call_id")
_SESSION_MAGIC = b"PFSESSIO"
S = TypeVar("S", bound=AnswerSettings)


class View(Protocol):
    """What shows an answer while it comes."""

    def begin(self) -> None:
        """Before anything of an answer."""

    def progress(self, done: int, total: int) -> None:
        """How many tokens of the prompt have been evaluated, of those that must be."""

    def piece(self, piece: ChatPiece) -> None:
        """The next piece of the answer."""

    def end(self) -> None:
        """After the last piece that comes, whatever the reason."""


@dataclass(frozen=True)
class Answer:
    """What became of one answer. used, capacity: tokens in the context; can_grow: the model takes a larger one. Counts
    and times as in Reply."""

    message: dict[str, Any]
    interrupted: bool
    finish: str | None
    n_prompt: int
    n_reused: int
    n_generated: int
    prompt_seconds: float
    generate_seconds: float
    used: int
    capacity: int
    problems: tuple[str, ...] = ()
    can_grow: bool = True
    drafts: DraftStats = DraftStats()

    @property
    def context_full(self) -> bool:
        """Whether the answer ended because there was no more room."""
        return self.finish == "length" and self.used + 1 >= self.capacity

    @property
    def n_evaluated(self) -> int:
        """Prompt tokens that had to be evaluated."""
        return self.n_prompt - self.n_reused


@dataclass
class _Running:
    """An answer that is coming."""

    reply: Reply | None = None
    interrupted: bool = False
    problems: list[str] = field(default_factory=list)


class Conversation(Generic[S]):
    """Messages, and the session that answers them.

    What is asked and answered stays, also when Ctrl-C ends an answer; where that comes before the first token of one,
    all is as it was before the question. attached: texts that go before the next question.
    """

    def __init__(
        self, session: Session, settings: S, *, system: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None, response_format: Mapping[str, Any] | None = None,
        logprobs: int = 0,
    ) -> None:
        self.session = session
        self.settings = settings
        self.messages: list[dict[str, Any]] = []
        self.attached: list[str] = []
        self.last: Answer | None = None
        self._tools = tools
        self._response_format = response_format
        self._logprobs = logprobs
        self._attempt = 0
        if system:
            self.system = system

    # -- the messages --

    @property
    def system(self) -> str:
        """The system message, "" without one."""
        first = self.messages[0] if self.messages else {}
        return str(first["content"]) if first.get("role") == "system" else ""

    @system.setter
    def system(self, text: str) -> None:
        rest = self.messages[1:] if self.system else self.messages
        self.messages = [{"role": "system", "content": text}, *rest] if text else list(rest)

    def clear(self) -> None:
        """Forgets everything but the system message."""
        self.messages = [message for message in self.messages[:1] if message["role"] == "system"]
        self.attached.clear()
        self.last = None

    def undo(self) -> str | None:
        """Takes the last question and its answer back, and returns the question; None when there is none."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                question = str(self.messages[at]["content"])
                self.messages = self.messages[:at]
                self.last = None
                return question
        return None

    def open_calls(self) -> list[dict[str, Any]]:
        """Tool calls of the latest answer that have no result yet."""
        answered = []
        for message in reversed(self.messages):
            if message["role"] == "tool":
                answered.append(message.get("tool_call_id"))
            elif message["role"] == "assistant":
                return [call for call in message.get("tool_calls") or () if call.get("id") not in answered]
            else:
                break
        return []

    # -- answers --

    def ask(self, text: str, view: View) -> Answer:
        """Answers a question, together with what is attached."""
        attached = list(self.attached)
        content = "\n\n".join([*attached, text] if text else attached)
        self.attached.clear()
        self._attempt = 0
        answer = self._answer([*self.messages, {"role": "user", "content": content}], view)
        if answer.interrupted and not answer.n_generated:
            self.attached = attached
        return answer

    def give_result(self, text: str, view: View) -> Answer | None:
        """Gives the first open tool call its result; answers when it was the last open one."""
        calls = self.open_calls()
        if not calls:
            raise ArgumentError("no tool call waits for a result")
        messages = [*self.messages, {"role": "tool", "tool_call_id": calls[0].get("id"), "content": text}]
        if len(calls) > 1:
            self.messages = messages
            return None
        return self._answer(messages, view)

    def regenerate(self, view: View) -> Answer:
        """Another answer instead of the last one, which stays when the new one does not even begin."""
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ArgumentError("there is no answer yet to give again")
        self._attempt += 1  # a fixed seed would only repeat the answer
        return self._answer(self.messages[:-1], view)

    def _answer(self, messages: list[dict[str, Any]], view: View) -> Answer:
        running = _Running()
        view.begin()
        try:
            self._stream(messages, view, running)
        except KeyboardInterrupt:
            running.interrupted = True
        finally:
            if running.reply is not None:
                running.reply.close()
                if running.reply.n_generated:
                    self.messages = [*messages, _kept(running.reply.message)]
            view.end()
        self.last = self._finished(running)
        return self.last

    def _stream(self, messages: list[dict[str, Any]], view: View, running: _Running) -> None:
        arguments = self.settings.arguments()
        if arguments.get("seed") not in (None, -1):  # both are random ones
            arguments["seed"] = (arguments["seed"] + self._attempt) % 2**64
        reply = running.reply = self.session.chat(
            messages, tools=self._tools, response_format=self._response_format, logprobs=self._logprobs,
            progress=view.progress, **arguments,
        )
        view.progress(0, reply.n_prompt - reply.n_reused)
        for piece in reply:
            cut = piece.finish == "length" and piece.kind != "tool_call"  # text that was cut short has no proper end
            if piece.problem and not cut:
                running.problems.append(piece.problem)
            view.piece(piece)

    def _finished(self, running: _Running) -> Answer:
        reply, session = running.reply, self.session
        if reply is None:  # Ctrl-C while the question was made into tokens
            return Answer({}, True, None, 0, 0, 0, 0.0, 0.0, session.position, session.capacity)
        return Answer(
            _kept(reply.message) if reply.n_generated else {}, running.interrupted, reply.finish, reply.n_prompt,
            reply.n_reused, reply.n_generated, reply.prompt_seconds, reply.generate_seconds, session.position,
            session.capacity, tuple(running.problems), self._can_grow, replace(reply.drafts),
        )

    @property
    def _can_grow(self) -> bool:
        """Whether the model takes a larger context than this session's."""
        return self.session.capacity < self.session.model.info.n_ctx_train

    # -- files --

    def save(self, path: str) -> None:
        """Writes the session and the conversation. FileError for a file that is something else, or that another
        process holds or has changed since it was read."""
        _refuse_foreign(path)
        self.session.note = json.dumps({"version": 1, "messages": self.messages}).encode()
        self.session.save(path)

    def hold(self, path: str) -> None:
        """Keeps other processes from saving there. FileError for all that save() would refuse, and where one does."""
        _refuse_foreign(path)
        self.session.hold(path)

    def load(self, path: str) -> None:
        """Continues what save() wrote. On failure nothing has changed."""
        if os.path.exists(path) and not _is_session(path):
            raise FormatError(f"{path} is no saved session", "Session.save() writes them")
        try:
            self.session.load(path)
        except ContextFullError as error:
            raise ContextFullError(_what(error), "open a session with a larger context") from error
        except ArgumentError as error:
            raise ArgumentError(
                _what(error), "open the model and the session as they were then, or take another file"
            ) from error
        except FormatError as error:
            raise FormatError(f"{path} is damaged or incomplete: take another file, or remove it to start anew"
                              ) from error
        self.messages = _conversation(self.session.note, path)
        self.attached.clear()
        self.last = None


def _what(error: Error) -> str:
    """What is wrong, of a message of the library's that ends in a way out."""
    return str(error).rpartition(": ")[0] or str(error)


def _kept(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message without its empty parts."""
    return {key: value for key, value in message.items() if value or key in ("role", "content")}


def _is_session(path: str) -> bool:
    if not os.path.isfile(path):
        return False
    with open(path, "rb") as file:
        return file.read(len(_SESSION_MAGIC)) == _SESSION_MAGIC


def _refuse_foreign(path: str) -> None:
    """FileError for files that hold something else."""
    if os.path.isfile(path) and os.path.getsize(path) and not _is_session(path):
        raise FileError(f"{path} exists and is no saved session; choose another name")


def _conversation(note: bytes, path: str) -> list[dict[str, Any]]:
    """The messages of a note. A session without them is of no use here, though its file is sound."""
    with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
        messages = plain_messages(json.loads(note)["messages"])
        if all(message["role"] in _ROLES for message in messages):
            return [_kept({key: message[key] for key in _FIELDS if key in message}) for message in messages]
    raise FormatError(f"{path} holds no conversation: another program saved it, or its note is damaged")
