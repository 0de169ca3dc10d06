"""A coding agent's session, recorded once and played to servers again: what it says, and what the model answered.

scripts/record_session.py makes the file, scripts/bench_serve.py plays it. The file is JSON:

    {"client": "pi 1.6.0", "tools": [...], "turns": [{"asks": [...], "says": {...}}, ...]}

asks: the messages of a turn's request that the one before did not have, as the client sent them. The first of them is, after
the first turn, the client's copy of the answer before. says: what the model answered: reasoning, content, calls of a name
and arguments. Calls are named call_TURN_INDEX, since each server gives ids of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyflash import Tokenizer
from pyflash.serve import chat_completions, rendering

PATH = Path(__file__).resolve().parent / "recorded_session.json"


@dataclass(frozen=True)
class Session:
    """See above."""

    client: str
    tools: list[dict[str, Any]]
    turns: list[dict[str, Any]]

    @classmethod
    def load(cls, path: Path = PATH) -> Session:
        return cls(**json.loads(path.read_text(encoding="utf-8")))

    def cut(self, n_turns: int) -> Session:
        return Session(self.client, self.tools, self.turns[:n_turns])

    def messages(self, turn: int, ids: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """The messages of a turn's request, turns counted from 0. ids: what a server has named the calls."""
        messages = [message for each in self.turns[: turn + 1] for message in each["asks"]]
        return [_renamed(message, ids or {}) for message in messages]

    def answer(self, turn: int) -> dict[str, Any]:
        """A turn's answer as a message."""
        says = self.turns[turn]["says"]
        calls = [{"id": call_name(turn, n), "type": "function",
                  "function": {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}}
                 for n, call in enumerate(says["calls"])]
        return {"role": "assistant", "content": says["content"], "reasoning_content": says["reasoning"],
                **({"tool_calls": calls} if calls else {})}

    def tokens(self, turn: int, tokenizer: Tokenizer) -> list[int]:
        """The tokens that the model writes in a turn, as the tokenizer cuts them; the last one ends the answer. The releases
        differ in the prompt's beginning alone."""
        messages = [*self.messages(turn), self.answer(turn), {"role": "user", "content": "."}]
        request = chat_completions.read({"model": "", "messages": messages, "tools": self.tools})
        written = [part for part in rendering.render(request, "preview").turns if part.kind == "assistant"][-1:]
        return tokenizer.encode_segments(rendering.Prompt(written, "think", "reasoning").segments)


def call_name(turn: int, index: int) -> str:
    return f"call_{turn}_{index}"


def _renamed(message: dict[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """A message whose calls have a server's ids."""
    if message["role"] == "tool":
        return {**message, "tool_call_id": ids.get(message["tool_call_id"], message["tool_call_id"])}
    if not message.get("tool_calls"):
        return message
    return {**message, "tool_calls": [{**call, "id": ids.get(call["id"], call["id"])} for call in message["tool_calls"]]}


@dataclass(frozen=True)
class Measured:
    """What a server took for one turn. n_prompt: tokens of the whole prompt, n_evaluated of them were evaluated;
    first_token: seconds from the request to the first text."""

    n_prompt: int
    n_evaluated: int
    n_generated: int
    prompt_seconds: float
    decode_seconds: float
    first_token: float

    def n_new(self, before: Measured) -> int:
        """Tokens of the prompt that no server can have evaluated: without the prompt before and its answer, whose last
        token is evaluated with what follows."""
        return self.n_prompt - before.n_prompt - (before.n_generated - 1)


def reuse_ratio(turns: Sequence[Measured], cold: Sequence[int] = ()) -> float:
    """Tokens evaluated after the first turn, by those that were new; 1 is the least. cold: turns that are left out."""
    counted = [n for n in range(1, len(turns)) if n not in cold]
    return sum(turns[n].n_evaluated for n in counted) / sum(turns[n].n_new(turns[n - 1]) for n in counted)
