"""Measures drafts on texts: how often they are right, what they and the steps that check them cost, and what is gained."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.drafts import Draft, Drafter
from pyflash.engine.generation import Constraint, choose, plan
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.session import Session
from pyflash.engine.speculation import Choosing, Source, Speculation, drafters_of
from pyflash.engine.stream import Cancellation
from pyflash.native.errors import ArgumentError
from pyflash.native.values import Tokens

SIZES = (1, 2, 3, 4, 6, 8)  # of steps that are timed
_STEP_ROUNDS = 9
_PLACES = 8  # of a draft that are counted
_ENOUGH = 8  # tokens of an answer, below which there is nothing to measure
GREEDY: SamplingOptions = {"temperature": 0}
Note = Callable[[str, int, int], None]  # (what is going on, done, in all)


@dataclass
class DrafterCount:
    """A drafter that was asked behind each token of an answer. n_asked: how often; n_proposed: of these it had something.
    compared, right: by place in the draft, how many proposed tokens stood behind right ones, and were right too. seconds:
    of each draft."""

    name: str
    n_asked: int = 0
    n_proposed: int = 0
    compared: list[int] = field(default_factory=lambda: [0] * _PLACES)
    right: list[int] = field(default_factory=lambda: [0] * _PLACES)
    seconds: list[float] = field(default_factory=list)

    @property
    def acceptance(self) -> list[float]:
        """By place, up to the last one that was compared: that a token is right where those before it are."""
        return [right / n for right, n in zip(self.right, self.compared, strict=True) if n]

    @property
    def typical(self) -> float:
        """Seconds of a draft."""
        return statistics.median(self.seconds) if self.seconds else 0.0


@dataclass(frozen=True)
class DraftSpeed:
    """Drafts of one answer. n_tokens: that it has behind its first. drafters: what each alone would have proposed. steps:
    seconds of a step by the tokens that it checks, which are the answer's own. plain, drafted: seconds of the answer
    without drafts and with them, in turns. n_steps, n_drafted, n_kept: of the last one with drafts, see DraftStats."""

    text: str
    n_prompt: int
    n_tokens: int
    drafters: tuple[DrafterCount, ...]
    steps: dict[int, float]
    plain: tuple[float, ...]
    drafted: tuple[float, ...]
    n_steps: int
    n_drafted: int
    n_kept: int

    @property
    def gain(self) -> float:
        """Of drafts over none: the median of rounds."""
        return statistics.median(plain / drafted for plain, drafted in zip(self.plain, self.drafted, strict=True))

    @property
    def tokens_per_step(self) -> float:
        return (self.n_steps + self.n_kept) / self.n_steps

    @property
    def v(self) -> dict[int, float]:
        """V(T): the time of a step of T tokens over that of one."""
        return {size: seconds / self.steps[1] for size, seconds in self.steps.items()}


class Asking:
    """Asks drafters behind each token and has nothing checked: what they propose is compared with what comes."""

    def __init__(self, drafters: Sequence[Drafter], most: int) -> None:
        self._drafters = drafters
        self._most = min(most, _PLACES)
        self.counts = [DrafterCount(drafter.name) for drafter in drafters]
        self._open: list[tuple[DrafterCount, Draft, int]] = []  # drafts whose first so many tokens were right

    def begin(self, tokens: Tokens) -> None:
        for drafter in self._drafters:
            drafter.begin(tokens)

    def feed(self, token: int) -> None:
        still = []
        for count, draft, n in self._open:
            count.compared[n] += 1
            if draft.tokens[n] == token:
                count.right[n] += 1
                if n + 1 < len(draft.tokens):
                    still.append((count, draft, n + 1))
        self._open = still
        for drafter in self._drafters:
            drafter.feed(token)

    def propose(self, most: int) -> Sequence[int]:
        for drafter, count in zip(self._drafters, self.counts, strict=True):
            began = perf_counter()
            draft = drafter.propose(min(most, self._most, drafter.longest))
            count.n_asked += 1
            if draft.tokens:
                count.seconds.append(perf_counter() - began)
                count.n_proposed += 1
                self._open.append((count, draft, 0))
        return ()

    def took(self, n_rows: int, seconds: float) -> None:
        """It chooses no length."""


def timed_answer(session: Session, prompt: Sequence[int], n: int, source: Source | None, most: int,
                 sampling: SamplingOptions = GREEDY, held: Constraint | None = None) -> tuple[list[int], float, Speculation]:
    """At most n tokens behind a prompt, the seconds of all but the first one, which is the prompt's, and what drafted
    them. What the session has of the prompt is not evaluated again."""
    reused = session.reuse(prompt)
    drafts = Speculation(session, source, most)
    how = plan(session, n - 1, n, 0, None, sampling, drafts)
    choices = choose(session, prompt[reused:], how, Cancellation(), held)
    tokens = [next(choices).token]
    began = perf_counter()
    tokens += [choice.token for choice in choices]
    return tokens, perf_counter() - began, drafts


def step_times(session: Session, prompt: Sequence[int], known: Sequence[int], sizes: Sequence[int]) -> dict[int, float]:
    """Median seconds of steps that check so many of the tokens which come behind a prompt, sizes in turn."""
    fitting = [size for size in sizes if size <= len(known)]
    rest = prompt[session.reuse(prompt):]
    if len(rest):
        session.eval(rest)
    seconds: dict[int, list[float]] = {size: [] for size in fitting}
    at = 0
    for _ in range(_STEP_ROUNDS):
        for size in fitting:
            began = perf_counter()
            session.eval_ahead(known[at:at + size])
            seconds[size].append(perf_counter() - began)
            session.rollback(1)
        if at + fitting[-1] < len(known):
            session.eval(known[at:at + 1])
            at += 1
    return {size: statistics.median(each) for size, each in seconds.items()}


@dataclass(frozen=True)
class DraftPlan:
    """texts: (name, prompt). kind, most: the drafter and how many tokens it may propose, see Session.generate(). n_tokens:
    of each answer; repeat: rounds, of one answer without drafts and one with them."""

    texts: Sequence[tuple[str, Sequence[int]]]
    kind: str
    most: int
    n_tokens: int
    repeat: int

    @property
    def context(self) -> int:
        return max(len(prompt) for _, prompt in self.texts) + self.n_tokens + max(SIZES)


def measure(session: Session, wanted: DraftPlan, note: Note) -> Iterator[DraftSpeed]:
    """Each text's result as it is there. ArgumentError for a kind or a text that nothing can be measured with."""
    if not drafters_of(session, wanted.kind):
        raise ArgumentError("there is nothing to measure without drafts: name a drafter")
    ledger = DraftLedger()
    return (_measure_one(session, name, prompt, wanted, ledger, note) for name, prompt in wanted.texts)


def _measure_one(session: Session, name: str, prompt: Sequence[int], wanted: DraftPlan, ledger: DraftLedger, note: Note
                 ) -> DraftSpeed:
    n, most, rounds = wanted.n_tokens, wanted.most, 2 * wanted.repeat + 2
    note(f"{name}: what is right", 0, rounds)
    asking = Asking(drafters_of(session, wanted.kind), most)
    known, _, _ = timed_answer(session, prompt, n, asking, most)
    if len(known) < _ENOUGH:
        raise ArgumentError(f"the answer to {name} ends after {len(known)} tokens, and {_ENOUGH} are needed: give another text")
    note(f"{name}: steps", 1, rounds)
    steps = step_times(session, prompt, known[:-1], [size for size in SIZES if size <= most + 1])
    plain, drafted = [], []
    for number in range(wanted.repeat):
        note(f"{name}: answers", 2 * number + 2, rounds)
        plain.append(timed_answer(session, prompt, n, None, most)[1])
        note(f"{name}: answers", 2 * number + 3, rounds)
        choosing = Choosing(drafters_of(session, wanted.kind), ledger)
        tokens, seconds, drafts = timed_answer(session, prompt, n, choosing, most)
        assert tokens == known, "drafts have changed an answer"
        drafted.append(seconds)
    stats = drafts.stats
    return DraftSpeed(name, len(prompt), len(known) - 1, tuple(asking.counts), steps, tuple(plain), tuple(drafted),
                      stats.n_steps, stats.n_drafted, stats.n_kept)
