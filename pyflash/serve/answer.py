"""An answer under way: a step's logits in, events out. Knows no session, so that the engine decides what is evaluated."""

from __future__ import annotations

import codecs
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyflash import chat as encoding
from pyflash.chat.answer import AnswerReader, AnswerRules
from pyflash.engine.generation import StopStrings
from pyflash.engine.model import ModelInfo
from pyflash.engine.sampling import Sampler, SamplingOptions, TokenLogprob, top_logprobs
from pyflash.engine.tokenizer import Tokenizer
from pyflash.native.errors import AnswerError
from pyflash.native.values import FloatArray
from pyflash.serve import events as out
from pyflash.serve.prompts import Prompt
from pyflash.serve.request import Request
from pyflash.serve.tool_grammar import GreedyCalls, ToolConstraint
from pyflash.serve.turns import Turn
from pyflash.serve.writing import EventWriter

_LEAST_RESERVE = 512  # tokens that thinking leaves of max_tokens for the answer
_LONGEST_RUN = 16  # forced tokens that are evaluated at once: others wait for that step
_LONGEST_LOOP = 512  # tokens that reasoning repeats
_LOOPING = 3 * _LONGEST_LOOP  # tokens of nothing but repetitions, after which it is ended
_LOOK_FOR_LOOPS = 64  # tokens between looks


@dataclass(frozen=True)
class Limits:
    """How long an answer may be. room: tokens that the context has for it."""

    room: int
    max_tokens: int | None = None
    thinking_budget: int | None = None

    @property
    def most(self) -> int:
        return self.room if self.max_tokens is None else min(self.room, self.max_tokens)

    @property
    def most_reasoning(self) -> int | None:
        """Tokens of reasoning after which it is closed: what was asked, and what leaves room for an answer."""
        kept = self.most - max(_LEAST_RESERVE, self.most // 10)
        reserve = kept if kept > _LEAST_RESERVE else None  # a short answer has none to spare
        asked = [each for each in (self.thinking_budget, reserve) if each is not None]
        return min(asked, default=None)


class Reader(Protocol):
    """What tells the text of tokens: AnswerReader for conversations, PlainReader for completions."""

    left_out: bool

    @property
    def kind(self) -> str: ...

    def read(self, token: int, final: bool) -> tuple[list[encoding.Event], bool]: ...


class PlainReader:
    """A completion's tokens: all of it is content."""

    kind = "content"

    def __init__(self, tokenizer: Tokenizer, stops: StopStrings) -> None:
        self._decode_bytes = tokenizer.decode_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = stops
        self.left_out = False

    def read(self, token: int, final: bool) -> tuple[list[encoding.Event], bool]:
        text, stopped = self._stops.feed(self._decoder.decode(self._decode_bytes([token]), final), final)
        return [encoding.Event("content", text)], stopped


def repeats(tokens: Sequence[int], longest: int) -> bool:
    """Whether tokens are nothing but a run of at most longest tokens, again and again; the last one may be cut.

    By the failure function of Knuth, Morris and Pratt: what a text ends with and begins with tells its period."""
    borders = [0] * len(tokens)
    matched = 0
    for i in range(1, len(tokens)):
        while matched and tokens[i] != tokens[matched]:
            matched = borders[matched - 1]
        matched += tokens[i] == tokens[matched]
        borders[i] = matched
    return bool(tokens) and len(tokens) - borders[-1] <= longest


class Answer:
    """What is generated for one request.

    next_token: what is to be evaluated for the next logits, None before the first ones and at the end. end: how it ended,
    None while it goes on. expected: tokens that are picked after it if the model cuts a text that is forced as the tokenizer
    does, none of them the last one. turn: the whole of it as sampled, where it ended by itself.
    """

    def __init__(self, request: Request, prompt: Prompt, limits: Limits, sampling: SamplingOptions, tokenizer: Tokenizer,
                 info: ModelInfo, rules: AnswerRules) -> None:
        """sampling: the model's own; the request's goes before it."""
        self._request = request
        self._tokenizer, self._info = tokenizer, info
        self._limits = limits
        self._rules = rules
        self._sampler = Sampler({**sampling, **request.sampling},  # type: ignore[typeddict-item]
                                with_logprobs=request.logprobs is not None)
        self._sampler.accept(prompt.tokens)
        self._stops = StopStrings(request.stop)
        self._prompt, self._opening = prompt, prompt.opening
        self._reader: Reader = (PlainReader(tokenizer, self._stops) if prompt.opening is None
                                else AnswerReader(tokenizer, prompt.opening, self._stops,
                                                  {name: tool.schema for name, tool in request.tools.items()}, prompt.begun))
        name = secrets.token_hex(12)
        self._writer = EventWriter(lambda index: f"call_{name}_{index}")
        self._waiting: tuple[out.TokenChance, ...] = ()  # chances of tokens that no text has come of yet
        self._think_end = tokenizer.token_id(encoding.THINK_END)
        self._tokens: list[int] = []
        self._texts: dict[str, list[str]] = {"reasoning": [], "content": []}
        self._calls: list[tuple[str, str, str]] = []  # complete ones: id, name, arguments
        self._begun = ("", "")
        self.next_token: int | None = None
        self.expected: list[int] = []
        self.end: out.FinishReason | None = None
        self.n_reasoning = 0
        self.is_hurried = False  # set from any thread: the reasoning ends with the next token

    @property
    def n_generated(self) -> int:
        return len(self._tokens)

    @property
    def n_left(self) -> int:
        """Tokens that may still be picked."""
        return self._limits.most - len(self._tokens)

    @property
    def problems(self) -> list[str]:
        """What was wrong with its form."""
        return self._writer.problems

    @property
    def call_ids(self) -> list[str]:
        return [call_id for call_id, _, _ in self._calls]

    @property
    def left_out(self) -> bool:
        """Whether the last token is no part of the message: Session.hide_last() is for it."""
        return self._reader.left_out

    def take(self, logits: FloatArray) -> list[out.Event]:
        """Picks the next token. Sets next_token and end. AnswerError where the finished answer breaks its schema."""
        forced = self._forced()
        constraint = self._rules.constraint
        if forced is None and isinstance(constraint, GreedyCalls) and constraint.is_greedy:
            forced = self._only(int(np.argmax(logits)))
        allowed = forced if forced is not None else constraint.allowed() if constraint else None
        token, logprob = self._sampler.pick(logits, allowed)
        if constraint:
            constraint.consume(token)
        self._tokens.append(token)
        self.n_reasoning += self._reader.kind == "reasoning"
        ended = token == self._info.eos_token
        cut = len(self._tokens) >= self._limits.most
        pieces, stopped = self._reader.read(token, ended or cut)
        shown = self._shown(pieces, self._chances(token, logprob, logits))
        if ended or stopped:
            self.end = "stop"
        elif cut:
            asked = self._limits.max_tokens
            self.end = "length" if asked is not None and asked <= self._limits.room else "context_full"
        elif self._calls and not self._request.parallel_tool_calls:
            self.end = "tool_calls"
        self.next_token = None if self.end else token
        self.expected = self._expected()
        if ended:
            self._check()
        return shown

    def finish(self, usage: out.Usage) -> list[out.Event]:
        """The last events."""
        assert self.end is not None
        return self._writer.finish(self.end, usage, self._stops.found)

    def _check(self) -> None:
        if self._rules.check is not None and not self._calls:
            try:
                self._rules.check(self._rules.given + "".join(self._texts["content"]))
            except AnswerError as error:
                self.problems.append(str(error))

    def _forced(self) -> npt.NDArray[np.uint32] | None:
        """The end of the reasoning as the only choice, where that has gone on for long enough."""
        constraint = self._rules.constraint
        if self._reader.kind != "reasoning" or self._think_end is None:
            return None
        if isinstance(constraint, (ToolConstraint, GreedyCalls)) and constraint.is_held:
            return None  # a call has begun, though the reader cannot know it yet
        most = self._limits.most_reasoning
        if not (self.is_hurried or (most is not None and self.n_reasoning >= most) or self._repeats()):
            return None
        return self._only(self._think_end)

    def _only(self, token: int) -> npt.NDArray[np.uint32]:
        """A bit for each token, of which one is set."""
        bits = np.zeros((self._info.n_vocab + 31) // 32, dtype=np.uint32)
        bits[token // 32] = 1 << token % 32
        return bits

    def _expected(self) -> list[int]:
        if self.next_token is None or self.left_out or self._rules.constraint is None:
            return []
        n = min(_LONGEST_RUN, self._limits.most - self.n_generated - 1)
        eos = self._info.eos_token
        return list(takewhile(lambda token: token != eos, self._rules.constraint.forced()[:n]))

    def _repeats(self) -> bool:
        if self.n_reasoning < _LOOPING or self.n_reasoning % _LOOK_FOR_LOOPS:
            return False
        return repeats(self._tokens[-_LOOPING:], _LONGEST_LOOP)

    def _chances(self, token: int, logprob: float, logits: FloatArray) -> tuple[out.TokenChance, ...]:
        if self._request.logprobs is None:
            return ()
        data = self._tokenizer.decode_bytes([token], special=True)
        top = tuple(TokenLogprob(each, self._tokenizer.decode([each], special=True), chance)
                    for each, chance in top_logprobs(logits, self._request.logprobs)) if self._request.logprobs else ()
        return (out.TokenChance(data.decode("utf-8", "replace"), data, logprob, top),)

    def _shown(self, pieces: list[encoding.Event], chances: tuple[out.TokenChance, ...]) -> list[out.Event]:
        """The events of pieces, and taking note of what they say."""
        self._waiting += chances
        events = self._writer.feed(pieces, self._waiting)
        for event in events:
            if isinstance(event, (out.Reasoning, out.Content)):
                self._texts["reasoning" if isinstance(event, out.Reasoning) else "content"].append(event.text)
                self._waiting = () if event.tokens else self._waiting
            elif isinstance(event, out.ToolCallBegin):
                self._begun = (event.call_id, event.name)
            elif isinstance(event, out.ToolCallEnd):
                self._calls.append((*self._begun, event.arguments))
        return events

    @property
    def turn(self) -> Turn | None:
        """See above. None also for what goes on with a message that was given, and for a cut answer that tells less than its
        tokens say, or calls tools."""
        if self._opening is None or self._opening.given or not self._tokens:
            return None
        is_whole = self._tokens[-1] == self._info.eos_token
        if not is_whole and (self.end not in ("length", "context_full") or self._calls):
            return None
        tokens = tuple(self._tokens[:-1] if is_whole else self._tokens)
        reasoning: tuple[int, ...] = ()
        if self._opening.kind == "reasoning":
            if self._think_end not in tokens:
                return None
            at = tokens.index(self._think_end)
            reasoning, tokens = tokens[:at], tokens[at + 1 :]
        if not is_whole and self._tokenizer.decode(tokens) != "".join(self._texts["content"]):
            return None
        return Turn("".join(self._texts["reasoning"]), "".join(self._texts["content"]),
                    tuple((name, arguments) for _, name, arguments in self._calls), reasoning,
                    (*self._prompt.begun_tokens, *tokens))
