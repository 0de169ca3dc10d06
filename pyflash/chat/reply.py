"""Reply: the answer to a conversation while it is generated."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pyflash import chat as encoding
from pyflash.chat.answer import AnswerReader, AnswerRules, answer_rules, response_schema
from pyflash.chat.encoding import Opening, answer_opening
from pyflash.chat.messages import plain_messages, plain_tools
from pyflash.engine.generation import Choice, Finish, Piece, Plan, Progress, StopStrings, choose, plan
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.speculation import Propose, speculation
from pyflash.engine.stream import Stream
from pyflash.native.errors import AnswerError, ArgumentError, ContextFullError, MemoryLimitError, UnsupportedError

if TYPE_CHECKING:
    from pyflash.engine.session import Session

Kind = Literal["reasoning", "content", "tool_call"]

_WORTH_A_CHECKPOINT = 256  # tokens; fewer are soon evaluated again, and can be rolled back while they are the last

THINKING_MODES = encoding.thinking_modes()


@dataclass(frozen=True)
class ChatPiece(Piece):
    """A piece of an answer.

    kind "reasoning" or "content": text is the next piece of it. kind "tool_call": index counts the answer's calls from
    0, name is the function's, text is the next piece of its arguments, in JSON, and the call's last piece has call, the
    whole of it as in a message. problem: what is wrong with the form of what the model wrote, None nearly always.
    Every token gives at least one piece; where it gives several, all carry it, and the last its finish.
    """

    kind: Kind = "content"
    call: dict[str, Any] | None = None
    index: int | None = None
    name: str | None = None
    problem: str | None = None


class Reply(Stream[ChatPiece]):
    """An answer: an iterator over its pieces, which are generated as they are asked for. Made by Session.chat().

    n_prompt: tokens of the prompt. n_reused: those of them that the session had evaluated before. n_generated: tokens
    so far. drafts: what drafts have gained so far. prompt_seconds, generate_seconds: time spent on the first token, and on
    the others. finish: "stop" or "length" once the answer is complete, else None.
    """

    def __init__(self, session: Session, prompt: Sequence[int], how: Plan, stops: StopStrings,
                 opening: Opening, rules: AnswerRules) -> None:
        """Not for callers: use Session.chat()."""
        super().__init__()
        self._session = session
        self._rules = rules
        self._broken: AnswerError | None = None
        self._reader = AnswerReader(session.tokenizer, opening, stops, rules.tools)
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": [], "tool_call": []}
        self._calls: list[dict[str, Any]] = []
        self.n_prompt = len(prompt)
        self.n_reused = session.reuse(prompt)
        if session.since_checkpoint >= _WORTH_A_CHECKPOINT:
            self._checkpoint()  # so that another question here does not need the answer before it evaluated again
        self.n_generated = 0
        self.drafts = how.speculation.stats
        self.prompt_seconds = 0.0
        self.generate_seconds = 0.0
        self.finish: Finish | None = None
        self._choices = choose(session, prompt[self.n_reused :], how, self._cancellation, rules.constraint)
        self._ready: deque[ChatPiece] = deque()

    def _step(self) -> ChatPiece:
        while not self._ready:
            if self._broken is not None:
                error, self._broken = self._broken, None
                raise error
            started = time.monotonic()
            choice = next(self._choices)
            seconds = time.monotonic() - started
            if self._reader.left_out:
                self._session.hide_last()  # the token before this one
            if self.n_generated == 0:
                self.prompt_seconds = seconds
                self._checkpoint()
            else:
                self.generate_seconds += seconds
            self.n_generated += 1
            self._ready.extend(self._take(choice))
        return self._give(self._ready.popleft())

    def _end(self) -> None:
        self._choices.close()
        self._ready.clear()

    def _checkpoint(self) -> None:
        with suppress(UnsupportedError, MemoryLimitError):  # it only saves work later
            self._session.checkpoint()

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message so far, as in OpenAI's chat API: what the pieces had, with the complete calls.

        Without what a "prefix" gave, which the answer goes on with.
        """
        return {"role": "assistant", "content": "".join(self._texts["content"]),
                "reasoning_content": "".join(self._texts["reasoning"]), "tool_calls": list(self._calls)}  # fmt: skip

    def _take(self, choice: Choice) -> list[ChatPiece]:
        """The pieces that a token gives."""
        events, stopped = self._reader.read(choice.token, choice.finish is not None)
        if stopped:
            self._choices.close()
        finish: Finish | None = "stop" if stopped else choice.finish
        pieces = [self._piece(choice, event, finish if event is events[-1] else None) for event in events]
        if choice.finish == "stop" and not stopped:
            pieces[-1] = self._checked(pieces)
        return pieces

    def _checked(self, pieces: list[ChatPiece]) -> ChatPiece:
        """The last of an answer's pieces, with what the finished content breaks."""
        last = pieces[-1]
        if self._rules.check is None or self._calls or any(piece.call for piece in pieces):
            return last
        content = [*self._texts["content"], *(piece.text for piece in pieces if piece.kind == "content")]
        try:
            self._rules.check(self._rules.given + "".join(content))
        except AnswerError as error:
            self._broken = error
            return replace(last, problem="; ".join(filter(None, (last.problem, str(error)))))
        return last

    def _piece(self, choice: Choice, event: encoding.Event, finish: Finish | None) -> ChatPiece:
        call = event.call
        if call is not None:  # the format has no ids; these are different within a conversation
            call = {"id": f"call_{self.n_prompt}_{event.index}", **call}
        return ChatPiece(choice.token, event.text, choice.logprob, finish, choice.top, event.kind, call, event.index,
                         event.name, event.problem)  # fmt: skip

    def _give(self, piece: ChatPiece) -> ChatPiece:
        """The piece, now part of the message."""
        self._texts[piece.kind].append(piece.text)
        if piece.call is not None:
            self._calls.append(piece.call)
        self.finish = piece.finish
        return piece


def _callable(messages: Sequence[encoding.Message]) -> dict[str, Mapping[str, Any]]:
    """The tools that any of the messages offers, each with the schema of its arguments."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in (tool for message in messages for tool in message.get("tools", ())):
        schema = tool["function"].get("parameters")
        found[str(tool["function"].get("name"))] = schema if isinstance(schema, Mapping) else {}
    return found


def reply(
    session: Session, messages: Sequence[encoding.Message], think: str, tools: Sequence[Mapping[str, Any]] | None, *,
    release: str | None, response_format: Mapping[str, Any] | None, max_tokens: int | None,
    stop: str | Sequence[str], logprobs: int, progress: Progress | None, draft: str | Propose, draft_max: int | None,
    prediction: str | None, sampling: SamplingOptions,
) -> Reply:
    """Session.chat()."""
    if think not in THINKING_MODES:
        raise ArgumentError(f"unknown thinking mode {think!r}; use one of {', '.join(THINKING_MODES)}")
    thinking = think != "off"
    messages = plain_messages(messages)
    opening = answer_opening(messages, thinking=thinking)
    offered = plain_tools(tools) if tools is not None else []
    if offered:
        messages = encoding.with_tools(messages, offered)
    rules = AnswerRules()
    if (schema := response_schema(response_format)) is not None:
        messages = encoding.with_response_format(messages, schema)
        rules = answer_rules(session.tokenizer, session.model.info, schema, _callable(messages), opening)
    pieces = encoding.segments(
        messages, thinking=thinking, effort=think if thinking else None, release=release or session.model.release
    )
    prompt = session.tokenizer.encode_segments(pieces)
    known = session.align(prompt)
    if len(known) <= session.capacity:
        prompt = known
    if len(prompt) > session.capacity:
        raise ContextFullError(
            f"the conversation has {len(prompt)} tokens and the context holds {session.capacity}",
            "open a session with a larger context" if session.capacity < session.model.info.n_ctx_train else "shorten it",
        )
    rules = replace(rules, tools=_callable(messages))
    drafts = speculation(session, draft, draft_max, session.tokenizer.encode(prediction) if prediction else ())
    how = plan(session, session.capacity - len(prompt), max_tokens, logprobs, progress, sampling, drafts)
    how.sampler.accept(prompt)
    return Reply(session, prompt, how, StopStrings(stop), opening, rules)
