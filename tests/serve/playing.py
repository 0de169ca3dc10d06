"""A server whose model says what a script has it say, token by token, above real sessions and their cache, on a real socket.

The tokens are not those that a tokenizer makes of the text, and JSON has blanks of its own: only the turns' own tokens, found
again in what a client sends back, are in the cache.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pyflash import Model
from pyflash.chat import DSML, THINK_END
from pyflash.serve import app, engine
from pyflash.serve.job import Job
from pyflash.serve.request import Request
from pyflash.serve.server import Place, listen

REASONING = "First  this, then that.\n"
_SPECIAL = (DSML, THINK_END)


class Call(NamedTuple):
    """A call that the model writes."""

    name: str
    arguments: dict[str, Any]


class Says(NamedTuple):
    """What the model says in one answer, after its reasoning."""

    content: str = ""
    calls: Sequence[Call] = ()


Script = Callable[[Request], Says]  # a request, and what the model says to it


def steps(*says: Says | Script, aside: str = "A title") -> Script:
    """Answers one after the other, by how many there are in a conversation with tools; aside: what is said to others."""

    def script(request: Request) -> Says:
        if not request.tools:
            return Says(aside)
        n = sum(message["role"] == "assistant" for message in request.messages)
        step = says[min(n, len(says) - 1)]
        return step if isinstance(step, Says) else step(request)

    return script


def _json(value: Any) -> str:
    """As nobody else writes it: numbers with an exponent where they have a point, blanks before colons."""
    return f"{value:.1e}" if isinstance(value, float) else json.dumps(value, separators=(", ", " : "), ensure_ascii=False)


def _written(says: Says) -> str:
    """As the model writes it, DSML's token as such."""
    out = says.content
    if says.calls:
        out += f"\n\n<{DSML}tool_calls>"
    for call in says.calls:
        out += f'\n<{DSML}invoke name="{call.name}">'
        for name, value in call.arguments.items():
            is_text = isinstance(value, str)
            text = value if is_text else _json(value)
            out += f'\n<{DSML}parameter name="{name}" string="{"true" if is_text else "false"}">{text}</{DSML}parameter>'
        out += f"\n</{DSML}invoke>" if call.arguments else f"\n\n</{DSML}invoke>"
    return out + (f"\n</{DSML}tool_calls>" if says.calls else "")


class _Picks:
    """Stands for a sampler: picks tokens that make up a text, each the shortest way of writing a few characters of it that is
    allowed there."""

    def __init__(self, tokenizer: Any, text: str, eos: int, faults: list[str]) -> None:
        self._tokenizer, self._left, self._eos, self._faults = tokenizer, text, eos, faults
        self._begun: list[int] = []  # the rest of a character of several tokens

    def pick(self, logits: Any, allowed: Any = None) -> tuple[int, float]:
        for tokens, text in [(self._begun, "")] if self._begun else self._ways():
            if allowed is None or allowed[tokens[0] // 32] >> tokens[0] % 32 & 1:
                self._begun, self._left = tokens[1:], self._left.removeprefix(text)
                return tokens[0], -1.0
        self._faults.append(f"{self._left[:60]!r} is not allowed")
        return self._eos, -1.0

    def _ways(self) -> Iterator[tuple[list[int], str]]:
        """Tokens that what is left may go on with, and their text."""
        if not self._left:
            yield [self._eos], ""
            return
        for special in _SPECIAL:
            if self._left.startswith(special):
                yield [self._tokenizer.token_id(special)], special
        for n in (5, 4, 3, 2, *range(6, 40)):
            token = self._tokenizer.encode(self._left[:n])[0]
            text = self._tokenizer.decode([token])
            if len(self._left) >= n and self._left.startswith(text):
                yield [token], text
        yield self._tokenizer.encode(self._left[:1]), self._left[:1]


@dataclass
class Played:
    """A server that runs. jobs: all that were asked, in their order. n_read: tokens of prompts that were evaluated. faults:
    what a test must not see."""

    address: str
    name: str
    n_ctx: int
    script: Script = steps(Says("Hello."))
    jobs: list[Job] = field(default_factory=list)
    n_read: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def work(self) -> list[Job]:
        """Those that are the agent's own, and no requests for titles."""
        return [job for job in self.jobs if job.request.tools]

    def check(self, least_turns: int) -> None:
        """Of an agent's session: that each turn had everything cached that had been evaluated or generated, and that nothing
        else was read than what the usages tell."""
        assert not self.faults, self.faults[:3]
        work = self.work
        assert len(work) >= least_turns, [job.request for job in self.jobs]
        assert all(job.answer is not None and job.answer.end is not None and not job.answer.problems for job in work)
        for job in work:
            texts = [text for message in job.request.messages for text in (
                message["content"], *(call["function"]["arguments"] for call in message.get("tool_calls", ())))]
            assert not any("DSML" in text for text in texts), texts
            n = sum(message["role"] == "assistant" for message in job.request.messages)
            assert job.prompt.n_replayed == n, f"{job.prompt.n_replayed} of {n} turns were known"
        for before, after in zip(work, work[1:], strict=False):
            known = len(before.tokens) + before.usage.n_generated - 1
            assert after.tokens[:known] == [*before.tokens, *said(before)][:known], difference(before, after)
            assert after.n_cached >= known, (after.n_cached, known)
        assert self.n_read <= sum(len(job.tokens) - job.n_cached for job in self.jobs)


def said(job: Job) -> list[int]:
    """The tokens of an answer."""
    assert job.answer is not None
    return job.answer._tokens


def difference(before: Job, after: Job) -> str:
    """Where a turn leaves what was evaluated before it."""
    known = [*before.tokens, *said(before)]
    n = next((n for n, (one, other) in enumerate(zip(known, after.tokens, strict=False)) if one != other), len(known))
    assert before.answer is not None
    one, other = (before.answer._tokenizer.decode(each[max(0, n - 20) : n + 40], True) for each in (known, after.tokens))
    return f"token {n} of {len(known)}: {one!r} became {other!r}"


@contextmanager
def playing(model: Path, script: Script, patch: pytest.MonkeyPatch, **options: Any) -> Iterator[Played]:
    """A server that plays a script, at a port of its own."""
    import uvicorn

    options = {"context": 32768, "parallel": 2, "keepalive": 1.0, **options}
    application = app(lambda: Model.open(model, threads=2), name="pyflash-demo", **options)
    listening = listen(Place(port=0))
    played = Played(f"http://127.0.0.1:{listening.getsockname()[1]}", "pyflash-demo", options["context"], script)
    _play(played, application, patch)
    config = uvicorn.Config(application, loop="asyncio", http="h11", ws="none", lifespan="on", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
    thread.start()
    try:
        assert application.engine.wait_ready(120), application.engine.failure
        yield played
    finally:
        server.should_exit = True
        thread.join(60)
        listening.close()


def _play(played: Played, application: Any, patch: pytest.MonkeyPatch) -> None:
    make_answer, evaluate, submit = engine.Answer, engine.evaluate, application.engine.submit

    def answer(request: Request, *arguments: Any) -> Any:
        made = make_answer(request, *arguments)
        model = application.engine.use().model
        reasons = made._prompt.opening is not None and made._prompt.opening.kind == "reasoning"
        text = (REASONING + THINK_END if reasons else "") + _written(played.script(request))
        made._sampler = _Picks(model.tokenizer, text, model.info.eos_token, played.faults)  # type: ignore[assignment]
        return made

    def evaluated(work: Any, logits: Any, cancellation: Any = None) -> Any:
        results = evaluate(work, logits, cancellation)
        played.n_read += sum(len(tokens) for _, tokens in work) if logits == "last" else 0
        return results

    def submitted(job: Job, tell: Any) -> None:
        played.jobs.append(job)
        submit(job, tell)

    patch.setattr(engine, "Answer", answer)
    patch.setattr(engine, "evaluate", evaluated)
    patch.setattr(application.engine, "submit", submitted)
