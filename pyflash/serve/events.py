"""What an answer consists of, whatever the protocol: the events of a generation in their order.

Started comes first. Then any number of Progress; then pieces: Reasoning, Content, and of each tool call its
ToolCallBegin, ToolCallArguments and ToolCallEnd, calls never within each other. Finished or Failed is the last."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pyflash.engine.sampling import TokenLogprob
from pyflash.serve.errors import RequestError

FinishReason = Literal["stop", "length", "tool_calls", "context_full"]


@dataclass(frozen=True)
class Usage:
    """Counts of tokens, and how long they took. n_prompt: all of the prompt's, with the n_cached that had been
    evaluated before. n_generated: all of the answer's, with the n_reasoning. n_drafted, n_drafts_kept: see DraftStats."""

    n_prompt: int = 0
    n_cached: int = 0
    n_generated: int = 0
    n_reasoning: int = 0
    prompt_seconds: float = 0.0
    generate_seconds: float = 0.0
    n_drafted: int = 0
    n_drafts_kept: int = 0


@dataclass(frozen=True)
class TokenChance:
    """A token of the answer, with the natural logarithms of the probabilities. data: its bytes."""

    text: str
    data: bytes
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Started:
    """The request has been taken. signature: the opaque text that the client is to send back with this turn, "" for
    none: the signature of its thinking, or the encrypted content of its reasoning. reasons: whether the answer begins
    with reasoning. n_prompt, n_cached: as in Usage, as far as they are known."""

    signature: str = ""
    reasons: bool = False
    n_prompt: int = 0
    n_cached: int = 0


@dataclass(frozen=True)
class Progress:
    """Nothing to show yet; also what keeps a silent connection open. n_done: of the n_prompt tokens, with n_cached.
    seconds: since the request came. queue_position: how many requests come before this one, None once it runs. notice: a line
    on what everybody waits for, where something has gone wrong that is being put right."""

    n_prompt: int = 0
    n_cached: int = 0
    n_done: int = 0
    seconds: float = 0.0
    queue_position: int | None = None
    notice: str = ""

    @property
    def body(self) -> dict[str, object]:
        """As JSON, in the protocols that have a place for it."""
        told: dict[str, object] = {
            "total": self.n_prompt, "cache": self.n_cached, "processed": self.n_done, "time_ms": round(self.seconds * 1000),
            "queue_position": self.queue_position,
        }  # fmt: skip
        return {**told, "notice": self.notice} if self.notice else told


@dataclass(frozen=True)
class Reasoning:
    """A piece of the reasoning."""

    text: str
    tokens: tuple[TokenChance, ...] = ()


@dataclass(frozen=True)
class Content:
    """A piece of the content. tokens: where the client asked for logprobs, those that it is of."""

    text: str
    tokens: tuple[TokenChance, ...] = ()


@dataclass(frozen=True)
class ToolCallBegin:
    """index: counts the answer's calls from 0. call_id: not to be guessed, unique. name: as the model knows the
    tool."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True)
class ToolCallArguments:
    """The next piece of the call's arguments, in JSON; the pieces joined are the whole."""

    index: int
    text: str


@dataclass(frozen=True)
class ToolCallEnd:
    """The call is complete. arguments: the whole of them, JSON of an object."""

    index: int
    arguments: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer. stop: the stop string that ended it, or None."""

    reason: FinishReason
    usage: Usage = field(default_factory=Usage)
    stop: str | None = None


@dataclass(frozen=True)
class Failed:
    """The answer broke off."""

    error: RequestError


Event = (
    Started | Progress | Reasoning | Content | ToolCallBegin | ToolCallArguments | ToolCallEnd | Finished | Failed
)
