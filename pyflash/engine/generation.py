"""Generation: from tokens to the pieces of a text."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from pyflash.engine.sampling import MAX_LOGPROBS, Sampler, SamplingOptions, TokenLogprob, top_logprobs
from pyflash.engine.speculation import Speculation
from pyflash.engine.stream import Cancellation, Stream
from pyflash.native.errors import ArgumentError, BusyError
from pyflash.native.values import FloatArray, Tokens, integer, token_array

if TYPE_CHECKING:
    from pyflash.engine.grammar import Grammar
    from pyflash.engine.session import Session

Progress = Callable[[int, int], None]
Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Piece:
    """One generated token.

    text: what it adds; held back until its UTF-8 characters are complete and can be no part of a stop string, so it
    may be empty. logprob: natural logarithm of its probability before any filter. finish: on the last piece "stop"
    (the model's end token, which then is the token, or a stop string) or "length", else None. top: the likeliest
    tokens at its place, as many as were asked for.
    """

    token: int
    text: str
    logprob: float
    finish: Finish | None
    top: tuple[TokenLogprob, ...] = ()


class Constraint(Protocol):
    """What restricts the tokens of an answer."""

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        """A bit for each token that may come next, the lowest first; None: any may."""

    def consume(self, token: int) -> None:
        """Takes note of the token that was picked."""

    def forced(self) -> list[int]:
        """Tokens of the text that must come next, as the tokenizer cuts it; a model may cut it otherwise."""


class StopStrings:
    """Ends a text before the first of some strings; what may become one is held back."""

    def __init__(self, stop: str | Sequence[str]) -> None:
        strings = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, Iterable) else [stop]
        if not all(isinstance(string, str) and string for string in strings):
            raise ArgumentError("stop must be a string or a list of strings, none of them empty")
        self._strings = strings
        self._held = ""
        self.found: str | None = None  # the one that ended the text

    def feed(self, text: str, final: bool = False) -> tuple[str, bool]:
        """What of the text so far can be given out now, and whether a stop string ended it. final: no more comes."""
        text = self._held + text
        # The one that is complete first, so that the result does not depend on how the text is cut into pieces.
        ends = [(at + len(string), at, string) for string in self._strings if (at := text.find(string)) >= 0]
        if ends:
            self._held = ""
            _, at, self.found = min(ends)
            return text[:at], True
        kept = 0 if final else self._n_held(text)
        self._held = text[len(text) - kept :]
        return text[: len(text) - kept], False

    def _n_held(self, text: str) -> int:
        """Length of the longest end of text that begins a stop string."""
        longest = max(map(len, self._strings), default=1) - 1
        for n in range(min(longest, len(text)), 0, -1):
            tail = text[-n:]
            if any(string.startswith(tail) for string in self._strings):
                return n
        return 0


@dataclass(frozen=True)
class Choice:
    """A token as picked. finish: why no other follows, as far as tokens tell."""

    token: int
    logprob: float
    top: tuple[TokenLogprob, ...]
    finish: Finish | None


@dataclass(frozen=True)
class Plan:
    """How to pick tokens: the checked arguments of a generation."""

    limit: int
    sampler: Sampler
    n_top: int
    progress: Progress | None
    speculation: Speculation


def plan(session: Session, room: int, max_tokens: int | None, logprobs: int, progress: Progress | None,
         sampling: SamplingOptions, speculation: Speculation) -> Plan:
    """Checks arguments. room: what the context holds beyond the prompt; the last token needs no place in it.

    sampling: what the caller chose; the rest is the model's.
    """
    sampling = {**session.model.sampling, **sampling}
    limit = room + 1
    if max_tokens is not None:
        limit = min(limit, integer("max_tokens", max_tokens, 1))
    return Plan(limit, Sampler(sampling), integer("logprobs", logprobs, 0, MAX_LOGPROBS), progress, speculation)


def choose(session: Session, tokens: Tokens, how: Plan, cancellation: Cancellation,
           constraint: Constraint | None = None) -> Generator[Choice, None, None]:
    """Evaluates tokens, then picks and evaluates one token after the other. The last one stays unevaluated."""
    eos = session.model.info.eos_token
    logits = session.eval(tokens, progress=how.progress, cancellation=cancellation)
    how.speculation.begin()
    n_moves = session.n_moves
    for count in range(1, how.limit + 1):
        token, logprob = how.sampler.pick(logits, constraint.allowed() if constraint else None)
        if constraint:
            constraint.consume(token)
        top = _top(session, logits, how.n_top)
        finish: Finish | None = "stop" if token == eos else "length" if count == how.limit else None
        yield Choice(token, logprob, top, finish)
        if finish:
            return
        if session.n_moves != n_moves:
            raise BusyError("the session was used for something else meanwhile: what was being generated cannot go on")
        logits = how.speculation.after(token, how.limit - count, cancellation)
        n_moves = session.n_moves


def _top(session: Session, logits: FloatArray, n: int) -> tuple[TokenLogprob, ...]:
    if n == 0:
        return ()
    decode = session.tokenizer.decode
    return tuple(TokenLogprob(token, decode([token], special=True), logprob)
                 for token, logprob in top_logprobs(logits, n))  # fmt: skip


class Generation(Stream[Piece]):
    """The pieces of a generated text. Made by Session.generate(). drafts: what drafts have gained so far."""

    def __init__(self, session: Session, tokens: Tokens, how: Plan, stops: StopStrings,
                 grammar: Grammar | None) -> None:
        """Not for callers: use Session.generate()."""
        super().__init__()
        self.drafts = how.speculation.stats
        self._stops = stops
        self._decode_bytes = session.tokenizer.decode_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._check = grammar.check if grammar is not None else None
        self._texts: list[str] = []
        constraint = grammar.matcher(session.tokenizer, session.model.info) if grammar is not None else None
        self._choices = choose(session, tokens, how, self._cancellation, constraint)

    def _step(self) -> Piece:
        try:
            choice = next(self._choices)
        except StopIteration:
            check, self._check = self._check, None
            if check is not None:
                check("".join(self._texts))
            raise
        final = choice.finish is not None
        text, stopped = self._stops.feed(self._decoder.decode(self._decode_bytes([choice.token]), final), final)
        if stopped:
            self._choices.close()
        finish: Finish | None = "stop" if stopped else choice.finish
        self._texts.append(text)
        if stopped or finish == "length":
            self._check = None  # it was cut
        return Piece(choice.token, text, choice.logprob, finish, choice.top)

    def _end(self) -> None:
        self._choices.close()


def generate(
    session: Session, tokens: Tokens, max_tokens: int | None, stop: str | Sequence[str], logprobs: int,
    grammar: Grammar | None, progress: Progress | None, speculation: Speculation, sampling: SamplingOptions,
) -> Generation:
    """Session.generate()."""
    prompt = token_array(tokens)
    room = session.capacity - session.position - len(prompt)
    how = plan(session, room, max_tokens, logprobs, progress, sampling, speculation)
    how.sampler.accept(session.tokens)
    how.sampler.accept(prompt)
    return Generation(session, prompt, how, StopStrings(stop), grammar)
