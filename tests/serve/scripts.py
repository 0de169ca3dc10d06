"""Answers as the events that a server gets of them."""

from __future__ import annotations

from pyflash.engine.sampling import TokenLogprob
from pyflash.serve.errors import RequestError
from pyflash.serve.events import (
    Content,
    Event,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Reasoning,
    Started,
    TokenChance,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Usage,
)

USAGE = Usage(n_prompt=100, n_cached=60, n_generated=20, n_reasoning=5, prompt_seconds=2.0, generate_seconds=4.0)
STARTED = Started(signature="sig-1", reasons=True, n_prompt=100, n_cached=60)
WAITING = [Progress(100, 60, 60, 0.0, queue_position=1), Progress(100, 60, 80, 61.0), Progress(100, 60, 100, 70.0)]
REASONING = [Reasoning("let me "), Reasoning("think 😀")]
TEXT = [Content("Hello"), Content(" wörld\n")]
CHANCES = [Content("Hi", (TokenChance("Hi", b"Hi", -0.5, (TokenLogprob(5, "Hi", -0.5), TokenLogprob(6, "Ho", -1.5))),))]


def call(index: int, name: str, *pieces: str) -> list[Event]:
    arguments = [ToolCallArguments(index, piece) for piece in pieces]
    return [ToolCallBegin(index, f"call_{name}", name), *arguments, ToolCallEnd(index, "".join(pieces))]


CALLS = [*call(0, "f", "{", '"a": "', 'x \\"y', '"', "}"), *call(1, "g", "{", "}")]


def answer(*middle: Event, reason: FinishReason = "stop", stop: str | None = None) -> list[Event]:
    return [STARTED, *middle, Finished(reason, USAGE, stop)]


PLAIN = answer(*WAITING, *REASONING, *TEXT)
WITH_CALLS = answer(*WAITING, *REASONING, *TEXT, *CALLS, reason="tool_calls")
CUT = answer(*TEXT, reason="length")
CUT_CALL = answer(ToolCallBegin(0, "call_f", "f"), ToolCallArguments(0, '{"a": "x'), reason="length")
BROKEN = [STARTED, *TEXT, Failed(RequestError("the grammar cannot go on: simplify it", code="generation_failed"))]
