"""What is common to all ways of generating an answer: reading its tokens, and what binds them."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from pyflash import chat as encoding
from pyflash.chat.encoding import Opening
from pyflash.chat.messages import plain_data
from pyflash.engine.generation import Constraint, StopStrings
from pyflash.engine.grammar import Grammar, json_or_calls
from pyflash.engine.model import ModelInfo
from pyflash.engine.tokenizer import Tokenizer
from pyflash.native.errors import ArgumentError


class AnswerReader:
    """Takes an answer's tokens and gives its events, up to a stop string in the content.

    Special tokens of the format never come out as text. left_out: whether the last token is no part of the message.
    """

    def __init__(self, tokenizer: Tokenizer, opening: Opening, stops: StopStrings,
                 tools: Mapping[str, Mapping[str, Any]] | None = None, begun: str = "") -> None:
        """tools: see StreamParser. begun: markup of the answer that stands in the prompt already."""
        self._decode_bytes = tokenizer.decode_bytes
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._parser = encoding.StreamParser(opening.kind == "reasoning", tools)
        self._parser.feed(begun)
        self._markers = _markers(tokenizer)
        self.left_out = False

    @property
    def kind(self) -> str:
        """What the next token will be read as: "reasoning", "content" or "tool_call"."""
        return self._parser.kind

    def read(self, token: int, final: bool) -> tuple[list[encoding.Event], bool]:
        """The events of a token, at least one, and whether a stop string ends the answer with it. final: the last one."""
        kind = self._parser.kind
        events, stopped = self._stop(_merged(self._events(token, final)), final)
        return events or [encoding.Event(kind)], stopped

    def _events(self, token: int, final: bool) -> list[encoding.Event]:
        marker = self._markers.get(token)
        if marker is None:
            data = self._decode_bytes([token])
            self.left_out = not data
            events = self._parser.feed(self._decoder.decode(data, final))
        else:
            events = self._parser.feed(self._decoder.decode(b"", True))  # no character reaches across it
            kind = self._parser.kind
            belongs = kind == "tool_call" or marker in (encoding.EOS, encoding.DSML)
            belongs |= marker == encoding.THINK_END and kind == "reasoning"
            self.left_out = not belongs
            if belongs:
                events += self._parser.feed(marker)
            else:
                events.append(encoding.Event(kind, problem=f"{marker!r} does not belong here"))
        return events + self._parser.finish(cut=marker != encoding.EOS) if final else events

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


def _markers(tokenizer: Tokenizer) -> dict[int, str]:
    """The special tokens that structure an answer, as far as the vocabulary has them."""
    texts = (encoding.EOS, encoding.THINK_BEGIN, encoding.THINK_END, encoding.DSML)
    ids = (tokenizer.token_id(text) for text in texts)
    return {token: text for token, text in zip(ids, texts, strict=True) if token is not None}


@dataclass(frozen=True)
class AnswerRules:
    """What an answer must be. check: raises AnswerError for finished content; given: how the content begins; tools: the
    schemas of the arguments of those that it may call."""

    constraint: Constraint | None = None
    check: Callable[[str], None] | None = None
    given: str = ""
    tools: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class _AfterThinking:
    """Lets a model think freely, if it thinks, and binds what comes then to a grammar."""

    def __init__(self, grammar: Constraint, tokenizer: Tokenizer, info: ModelInfo, thinks: bool) -> None:
        self._grammar = grammar
        self._end = tokenizer.token_id(encoding.THINK_END) if thinks else None
        bits = np.ones(info.n_vocab, dtype=np.uint8)
        bits[info.eos_token] = 0  # an answer must follow
        bits = np.pad(bits, (0, -len(bits) % 32))
        self._all_but_eos: npt.NDArray[np.uint32] = np.packbits(bits, bitorder="little").view(np.uint32)

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        return self._grammar.allowed() if self._end is None else self._all_but_eos

    def consume(self, token: int) -> None:
        if self._end is None:
            self._grammar.consume(token)
        elif token == self._end:
            self._end = None

    def forced(self) -> list[int]:
        return self._grammar.forced() if self._end is None else []


def response_schema(response_format: Mapping[str, Any] | None) -> dict[str, Any] | None:
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


def answer_rules(tokenizer: Tokenizer, info: ModelInfo, schema: dict[str, Any], tools: Collection[str],
                 opening: Opening) -> AnswerRules:
    """What binds an answer to a schema; to that or to calls of tools, where there are names of any."""
    marker = tokenizer.token_id(encoding.DSML) if tools else None
    grammar = Grammar.json_schema(schema) if marker is None else json_or_calls(schema, marker, tools)
    matcher = grammar.matcher(tokenizer, info)
    for token in tokenizer.encode(opening.given):
        if not int(matcher.allowed()[token // 32]) >> token % 32 & 1:
            raise ArgumentError("the answer to go on with does not begin as the response format demands")
        matcher.consume(token)
    return AnswerRules(_AfterThinking(matcher, tokenizer, info, opening.kind == "reasoning"), grammar.check, opening.given)
