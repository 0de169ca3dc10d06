"""Events of an answer gathered, for protocols that give it in one piece."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from pyflash.serve.errors import RequestError
from pyflash.serve.events import (
    Content,
    Event,
    Failed,
    Finished,
    FinishReason,
    Reasoning,
    Started,
    TokenChance,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Usage,
)


@dataclass
class Call:
    """A tool call. arguments: JSON, once it is complete."""

    call_id: str
    name: str
    arguments: str = ""
    is_complete: bool = False


@dataclass
class Answer:
    """A whole answer. calls: the complete ones; what there was of one that was cut is told at the content's end.
    tokens: of the content, where the client asked for logprobs."""

    signature: str = ""
    reasoning: str = ""
    content: str = ""
    calls: list[Call] = field(default_factory=list)
    tokens: tuple[TokenChance, ...] = ()
    reason: FinishReason = "stop"
    stop: str | None = None
    usage: Usage = field(default_factory=Usage)


def collect(events: Iterable[Event]) -> Answer:
    """All of an answer. Raises the error with which it broke off."""
    answer = Answer()
    reasoning: list[str] = []
    content: list[str] = []
    tokens: list[TokenChance] = []
    finished = False
    for event in events:
        if isinstance(event, Started):
            answer.signature = event.signature
        elif isinstance(event, Reasoning):
            reasoning.append(event.text)
        elif isinstance(event, Content):
            content.append(event.text)
            tokens += event.tokens
        elif isinstance(event, ToolCallBegin):
            answer.calls.append(Call(event.call_id, event.name))
        elif isinstance(event, ToolCallArguments):
            answer.calls[-1].arguments += event.text
        elif isinstance(event, ToolCallEnd):
            answer.calls[-1].is_complete = True
        elif isinstance(event, Finished):
            answer.reason, answer.stop, answer.usage, finished = event.reason, event.stop, event.usage, True
        elif isinstance(event, Failed):
            raise event.error
    if not finished:
        raise RequestError("the answer broke off: send the request again", code="generation_failed")
    if answer.calls and not answer.calls[-1].is_complete:
        cut = answer.calls[-1]
        content.append(f"The answer was cut within a call of {cut.name}, whose arguments begin with {cut.arguments}")
    answer.calls = [call for call in answer.calls if call.is_complete]
    answer.reasoning, answer.content, answer.tokens = "".join(reasoning), "".join(content), tuple(tokens)
    return answer
