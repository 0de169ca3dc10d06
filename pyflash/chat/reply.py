"""Reply: the answer to a conversation while it is generated."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from pyflash import chat as encoding
from pyflash.chat.prompt import encode_prompt
from pyflash.engine.generation import Choice, Constraint, Finish, Piece, Plan, Progress, StopStrings, choose, plan
from pyflash.engine.grammar import Grammar, json_or_calls
from pyflash.engine.sampling import SamplingOptions
from pyflash.native.errors import ArgumentError, ContextFullError, MemoryLimitError, UnsupportedError

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


class Reply(Iterator[ChatPiece]):
    """An answer: an iterator over its pieces, which are generated as they are asked for. Made by Session.chat().

    n_prompt: tokens of the prompt. n_reused: those of them that the session had evaluated before. n_generated: tokens
    so far. prompt_seconds, generate_seconds: time spent on the first token, and on the others. finish: "stop" or
    "length" once the answer is complete, else None.
    """

    def __init__(self, session: Session, prompt: Sequence[int], how: Plan, stops: StopStrings, thinking: bool,
                 constraint: Constraint | None) -> None:
        """Not for callers: use Session.chat()."""
        self._session = session
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parser = encoding.StreamParser(thinking)
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
        self._choices = choose(session, prompt[self.n_reused :], how, constraint)
        self._ready: deque[ChatPiece] = deque()

    def __iter__(self) -> Reply:
        return self

    def __next__(self) -> ChatPiece:
        while not self._ready:
            started = time.monotonic()
            choice = next(self._choices)
            seconds = time.monotonic() - started
            if self.n_generated == 0:
                self.prompt_seconds = seconds
                self._checkpoint()
            else:
                self.generate_seconds += seconds
            self.n_generated += 1
            self._ready.extend(self._take(choice))
        return self._give(self._ready.popleft())

    def _checkpoint(self) -> None:
        with suppress(UnsupportedError, MemoryLimitError):  # it only saves work later
            self._session.checkpoint()

    def close(self) -> None:
        """Ends the answer here. What there is of it stays in the session and in message."""
        self._choices.close()
        self._ready.clear()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def message(self) -> dict[str, Any]:
        """The assistant's message so far, as in OpenAI's chat API: what the pieces had, with the complete calls."""
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
        return [self._piece(choice, event, finish if event is events[-1] else None) for event in events]

    def _events(self, choice: Choice) -> list[encoding.Event]:
        """What a token adds to the answer. Special tokens of the format never come out as text."""
        final = choice.finish is not None
        marker = self._markers.get(choice.token)
        if marker is None:
            data = self._session.tokenizer.decode_bytes([choice.token])
            events = self._parser.feed(self._decoder.decode(data, final))
        else:
            events = self._parser.feed(self._decoder.decode(b"", True))  # no character reaches across it
            kind = self._parser.kind
            if kind == "tool_call" or marker in (encoding.EOS, encoding.DSML) or (
                    marker == encoding.THINK_END and kind == "reasoning"):
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

    def __init__(self, grammar: Constraint, session: Session, thinking: bool) -> None:
        self._grammar = grammar
        self._end = session.tokenizer.token_id(encoding.THINK_END) if thinking else None
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


def _response_schema(response_format: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The JSON schema that a response_format asks for; None for plain text."""
    if response_format is None:
        return None
    if not isinstance(response_format, Mapping):
        raise ArgumentError(f"response_format must be a mapping, not {type(response_format).__name__}")
    kind = response_format.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        return response_format
    inner = response_format.get("json_schema")
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if not isinstance(schema, Mapping):
        raise ArgumentError('response_format must be {"type": "json_schema", "json_schema": {"schema": {...}}}')
    return schema


def reply(
    session: Session, messages: Sequence[encoding.Message], think: str, tools: Sequence[Mapping[str, Any]] | None, *,
    release: str | None, response_format: Mapping[str, Any] | None, max_tokens: int | None,
    stop: str | Sequence[str], logprobs: int, progress: Progress | None, sampling: SamplingOptions,
) -> Reply:
    """Session.chat()."""
    if think not in THINKING_MODES:
        raise ArgumentError(f"unknown thinking mode {think!r}; use one of {', '.join(THINKING_MODES)}")
    model = session.model
    thinking = think != "off"
    if tools:
        messages = encoding.with_tools(messages, tools)
    constraint = None
    if (schema := _response_schema(response_format)) is not None:
        messages = encoding.with_response_format(messages, schema)
        marker = session.tokenizer.token_id(encoding.DSML) if tools else None
        grammar = Grammar.json_schema(schema) if marker is None else json_or_calls(schema, marker)
        constraint = _AfterThinking(grammar.matcher(session.tokenizer, model.info), session, thinking)
    pieces = encoding.segments(
        messages, thinking=thinking, effort=think if thinking else None, release=release or model.release
    )
    prompt = encode_prompt(session.tokenizer, pieces, session.tokens.tolist())
    known = session.align(prompt)  # also where only a part of an answer is still there
    if len(known) <= session.capacity:
        prompt = known
    if len(prompt) > session.capacity:
        raise ContextFullError(
            f"the conversation has {len(prompt)} tokens and the context holds {session.capacity}",
            "open a session with a larger context",
        )
    how = plan(session, session.capacity - len(prompt), max_tokens, logprobs, progress, sampling)
    how.sampler.accept(prompt)
    return Reply(session, prompt, how, StopStrings(stop), thinking, constraint)
