"""Reply: the answer to a conversation while it is generated."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pyflash import chat as encoding
from pyflash.chat.encoding import Opening, answer_opening
from pyflash.chat.messages import plain_data, plain_messages, plain_tools
from pyflash.engine.generation import Choice, Constraint, Finish, Piece, Plan, Progress, StopStrings, choose, plan
from pyflash.engine.grammar import Grammar, json_or_calls
from pyflash.engine.sampling import SamplingOptions
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


@dataclass(frozen=True)
class _Rules:
    """What an answer must be. check: raises AnswerError for finished content; given: how the content begins; tools: the
    schemas of the arguments of those that it may call."""

    constraint: Constraint | None = None
    check: Callable[[str], None] | None = None
    given: str = ""
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Reply(Stream[ChatPiece]):
    """An answer: an iterator over its pieces, which are generated as they are asked for. Made by Session.chat().

    n_prompt: tokens of the prompt. n_reused: those of them that the session had evaluated before. n_generated: tokens
    so far. prompt_seconds, generate_seconds: time spent on the first token, and on the others. finish: "stop" or
    "length" once the answer is complete, else None.
    """

    def __init__(self, session: Session, prompt: Sequence[int], how: Plan, stops: StopStrings,
                 opening: Opening, rules: _Rules) -> None:
        """Not for callers: use Session.chat()."""
        super().__init__()
        self._session = session
        self._stops = stops
        self._rules = rules
        self._broken: AnswerError | None = None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parser = encoding.StreamParser(opening.kind == "reasoning", rules.tools)
        self._markers = _markers(session)
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": [], "tool_call": []}
        self._calls: list[dict[str, Any]] = []
        self.n_prompt = len(prompt)
        self.n_reused = session.reuse(prompt)
        if session.since_checkpoint >= _WORTH_A_CHECKPOINT:
            self._checkpoint()  # so that another question here does not need the answer before it evaluated again
        self.n_generated = 0
        self.prompt_seconds = 0.0
        self.generate_seconds = 0.0
        self.finish: Finish | None = None
        self._choices = choose(session, prompt[self.n_reused :], how, self._cancellation, rules.constraint)
        self._ready: deque[ChatPiece] = deque()
        self._left_out = False  # whether the last token is no part of the message

    def _step(self) -> ChatPiece:
        while not self._ready:
            if self._broken is not None:
                error, self._broken = self._broken, None
                raise error
            started = time.monotonic()
            choice = next(self._choices)
            seconds = time.monotonic() - started
            if self._left_out:
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
        kind: Kind = self._parser.kind
        events, stopped = self._stop(_merged(self._events(choice)), choice.finish is not None)
        if stopped:
            self._choices.close()
        events = events or [encoding.Event(kind)]
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

    def _events(self, choice: Choice) -> list[encoding.Event]:
        """What a token adds to the answer. Special tokens of the format never come out as text."""
        final = choice.finish is not None
        marker = self._markers.get(choice.token)
        if marker is None:
            data = self._session.tokenizer.decode_bytes([choice.token])
            self._left_out = not data
            events = self._parser.feed(self._decoder.decode(data, final))
        else:
            events = self._parser.feed(self._decoder.decode(b"", True))  # no character reaches across it
            kind = self._parser.kind
            belongs = kind == "tool_call" or marker in (encoding.EOS, encoding.DSML)
            belongs |= marker == encoding.THINK_END and kind == "reasoning"
            self._left_out = not belongs
            if belongs:
                events += self._parser.feed(marker)
            else:
                events.append(encoding.Event(kind, problem=f"{marker!r} does not belong here"))
        return events + self._parser.finish() if final else events

    def _stop(self, events: list[encoding.Event], final: bool) -> tuple[list[encoding.Event], bool]:
        """The events up to a stop string in the content, and whether there was one."""
        out: list[encoding.Event] = []
        for event in events:
            if event.kind != "content":
                held, _ = self._stops.feed("", final=True)  # the content is over, for now
                if held:
                    out.append(encoding.Event("content", held))
                out.append(event)
                continue
            text, stopped = self._stops.feed(event.text)
            out.append(replace(event, text=text))
            if stopped:
                return out, True
        if final and (held := self._stops.feed("", final=True)[0]):
            out.append(encoding.Event("content", held))
        return _merged(out), False

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


def _merged(events: Sequence[encoding.Event]) -> list[encoding.Event]:
    """Neighbouring events of the same kind and call as one."""
    out: list[encoding.Event] = []
    for event in events:
        last = out[-1] if out else None
        if last is None or last.call or (last.kind, last.index) != (event.kind, event.index):
            out.append(event)
        else:
            problem = "; ".join(filter(None, (last.problem, event.problem))) or None
            out[-1] = replace(event, text=last.text + event.text, name=event.name or last.name, problem=problem)
    return out


def _markers(session: Session) -> dict[int, str]:
    """The special tokens that structure an answer, as far as the vocabulary has them."""
    texts = (encoding.EOS, encoding.THINK_BEGIN, encoding.THINK_END, encoding.DSML)
    ids = (session.tokenizer.token_id(text) for text in texts)
    return {token: text for token, text in zip(ids, texts, strict=True) if token is not None}


class _AfterThinking:
    """Lets a model think freely, if it thinks, and binds what comes then to a grammar."""

    def __init__(self, grammar: Constraint, session: Session, thinks: bool) -> None:
        self._grammar = grammar
        self._end = session.tokenizer.token_id(encoding.THINK_END) if thinks else None
        bits = np.ones(session.model.info.n_vocab, dtype=np.uint8)
        bits[session.model.info.eos_token] = 0  # an answer must follow
        bits = np.pad(bits, (0, -len(bits) % 32))
        self._all_but_eos: npt.NDArray[np.uint32] = np.packbits(bits, bitorder="little").view(np.uint32)

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        return self._grammar.allowed() if self._end is None else self._all_but_eos

    def consume(self, token: int) -> None:
        if self._end is None:
            self._grammar.consume(token)
        elif token == self._end:
            self._end = None


def _response_schema(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The JSON schema that a response_format asks for; None for plain text."""
    if response_format is None:
        return None
    asked = plain_data(response_format, "response_format")
    if not isinstance(asked, dict):
        raise ArgumentError(f"response_format must be a mapping, not {type(response_format).__name__}")
    kind = asked.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        return asked
    inner = asked.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if not isinstance(schema, dict):
        raise ArgumentError('response_format must be {"type": "json_schema", "json_schema": {"schema": {...}}}')
    return schema


def _callable(messages: Sequence[encoding.Message]) -> dict[str, Mapping[str, Any]]:
    """The tools that any of the messages offers, each with the schema of its arguments."""
    found: dict[str, Mapping[str, Any]] = {}
    for tool in (tool for message in messages for tool in message.get("tools", ())):
        schema = tool["function"].get("parameters")
        found[str(tool["function"].get("name"))] = schema if isinstance(schema, Mapping) else {}
    return found


def _rules(session: Session, schema: dict[str, Any], tools: Collection[str], opening: Opening) -> _Rules:
    """What binds an answer to a schema."""
    marker = session.tokenizer.token_id(encoding.DSML) if tools else None
    grammar = Grammar.json_schema(schema) if marker is None else json_or_calls(schema, marker, tools)
    matcher = grammar.matcher(session.tokenizer, session.model.info)
    for token in session.tokenizer.encode(opening.given):
        if not int(matcher.allowed()[token // 32]) >> token % 32 & 1:
            raise ArgumentError("the answer to go on with does not begin as the response format demands")
        matcher.consume(token)
    return _Rules(_AfterThinking(matcher, session, opening.kind == "reasoning"), grammar.check, opening.given)


def reply(
    session: Session, messages: Sequence[encoding.Message], think: str, tools: Sequence[Mapping[str, Any]] | None, *,
    release: str | None, response_format: Mapping[str, Any] | None, max_tokens: int | None,
    stop: str | Sequence[str], logprobs: int, progress: Progress | None, sampling: SamplingOptions,
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
    rules = _Rules()
    if (schema := _response_schema(response_format)) is not None:
        messages = encoding.with_response_format(messages, schema)
        rules = _rules(session, schema, _callable(messages), opening)
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
    how = plan(session, session.capacity - len(prompt), max_tokens, logprobs, progress, sampling)
    how.sampler.accept(prompt)
    return Reply(session, prompt, how, StopStrings(stop), opening, rules)
