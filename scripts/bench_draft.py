"""What drafts gain with a model, at acceptance rates that are set, and when a text is written again with changes.

    python scripts/bench_draft.py MODEL.gguf
    python scripts/bench_draft.py MODEL.gguf --chances 0.9 --tokens 60 --rounds 5 --rewrite 0
    python scripts/bench_draft.py MODEL.gguf --expert-budget 3 --lengths 1 --rewrite 0     # with most experts read from disk
    python scripts/bench_draft.py MODEL.gguf --mtp mtp-MODEL.gguf       # what a draft of the MTP block, or of DSpark takes

The model's weights may be random: what it says is recorded first, and a drafter proposes that, each token changed with a
chance of 1 - p. Each round times steps of the answer's own tokens, answers with so many drafted tokens a step, a plain
answer, and one with the length by cost; medians of rounds are shown. With a budget of experts each timed answer follows the
same few plain tokens, so that all of them find the same experts in memory. "of the model" is the measured speed over
(tokens a step) / V(k + 1) with the V(T) of the same round and the tokens a step that came true, which says what the loop
costs. In the rewrite the answer is held to a copy of the prompt's text in which one token in twenty is another, and n-grams
draft it.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import pyflash
from pyflash.bench.drafting import step_times, timed_answer
from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.drafts import Draft, NgramDrafter
from pyflash.engine.model import DRAFT_HEAD
from pyflash.engine.sampling import SamplingOptions
from pyflash.engine.speculation import Choosing, DraftStats, Given, Source

PROMPT = 64  # tokens
LENGTHS = "1,2,3,5"  # of drafts that are not chosen by cost
SETTLING = 16  # plain tokens before each timed answer where experts come from disk
SAMPLING: SamplingOptions = {"seed": 1}


class Recorded:
    """Proposes what is known to come, each token with a chance of 1 - p another one."""

    name, is_free, is_whole, longest, priors = "recorded", True, False, 31, (0.5,)

    def __init__(self, known: Sequence[int], p: float) -> None:
        chance = random.Random(1)
        self._drafts = [token if chance.random() < p else token ^ 1 for token in known]
        self._at = 0

    def begin(self, tokens: Any) -> None:
        self._at = 0

    def feed(self, token: int) -> None:
        self._at += 1

    def propose(self, most: int) -> Draft:
        tokens = self._drafts[self._at : self._at + most]
        return Draft(tokens, [0] * len(tokens))

    def always(self, length: int) -> Given:
        """So many tokens behind each, as a function of the tokens so far, of which the first PROMPT are the prompt's."""
        return Given(lambda tokens, most: self._drafts[len(tokens) - PROMPT :][: min(most, length)])


class Held:
    """Allows one text's tokens only."""

    def __init__(self, tokens: Sequence[int], n_vocab: int) -> None:
        self._tokens, self._at, self._words = tokens, 0, (n_vocab + 31) // 32

    def allowed(self) -> Any:
        bits = np.zeros(self._words, dtype=np.uint32)
        token = self._tokens[self._at]
        bits[token // 32] = np.uint32(1 << token % 32)
        return bits

    def consume(self, token: int) -> None:
        self._at += 1

    def forced(self) -> list[int]:
        return []


def table_row(p: float, plain: Sequence[float], fixed: dict[int, list[tuple[float, float]]], chosen: Sequence[float],
              by_cost: str) -> str:
    gains = {length: statistics.median(gain for gain, _ in rounds) for length, rounds in fixed.items()}
    cells = [f"{p:.1f}", f"{statistics.median(plain):.1f}"]
    for length, rounds in fixed.items():
        cells.append(f"{gains[length]:.2f} x, {statistics.median(share for _, share in rounds):.2f}")
    best = max([1.0, *gains.values()])
    gain = statistics.median(chosen)
    return "| " + " | ".join([*cells, f"{gain:.2f} x, {gain / best:.2f}", by_cost]) + " |"


@dataclass(frozen=True)
class Rates:
    """What to measure at acceptance rates that are set. n: tokens of an answer. settles: whether what was in memory before a timed
    answer has to be made the same."""

    session: pyflash.Session
    prompt: Sequence[int]
    n: int
    lengths: Sequence[int]
    n_rounds: int
    settles: bool

    def answer(self, source: Source | None) -> tuple[list[int], float, DraftStats]:
        if self.settles:
            timed_answer(self.session, self.prompt, min(self.n, SETTLING), None, 31, SAMPLING)
        tokens, seconds, drafts = timed_answer(self.session, self.prompt, self.n, source, 31, SAMPLING)
        return tokens, seconds, drafts.stats

    def row(self, p: float, known: Sequence[int], steps: list[dict[int, float]]) -> str:
        """A row of the table; steps are added to."""
        plain, chosen, ledger = [], [], DraftLedger()
        fixed: dict[int, list[tuple[float, float]]] = {length: [] for length in self.lengths}
        for _ in range(self.n_rounds):
            steps.append(step_times(self.session, self.prompt, known[:-1], (1, *(length + 1 for length in self.lengths))))
            drafted = {length: self.answer(Recorded(known, p).always(length)) for length in self.lengths}
            tokens, seconds, _ = self.answer(None)
            again, took, stats = self.answer(Choosing([Recorded(known, p)], ledger))
            assert again == tokens == known, "drafts have changed an answer"
            plain.append((self.n - 1) / seconds)
            chosen.append(seconds / took)
            for length, (tokens, took, made) in drafted.items():
                assert tokens == known, "drafts have changed an answer"
                promised = made.tokens_per_step / steps[-1][length + 1]
                fixed[length].append((seconds / took, (self.n - 1) / took / promised))
        kept = f", {stats.n_kept / stats.n_drafted:.0%} kept" if stats.n_drafted else ""
        return table_row(p, plain, fixed, chosen, f"{stats.tokens_per_step:.2f}{kept}")


def measure_rates(what: Rates, chances: Sequence[float]) -> None:
    known, _, _ = what.answer(None)
    steps: list[dict[int, float]] = []
    rows = [what.row(p, known, steps) for p in chances]
    times = {size: statistics.median(each[size] for each in steps) for size in steps[0]}
    print("V(T): " + ", ".join(f"{size}: {seconds / times[1]:.2f}" for size, seconds in times.items())
          + f"; one token {times[1] * 1e3:.2f} ms")
    heads = [f"{length} drafted, of the model" for length in what.lengths]
    print("| " + " | ".join(["acceptance", "plain tok/s", *heads, "by cost, of the best", "tokens a step"]) + " |")
    print("|---" * (len(heads) + 4) + "|")
    print("\n".join(rows), flush=True)


def measure_rewrite(session: pyflash.Session, n: int, n_rounds: int) -> None:
    chance, n_vocab = random.Random(7), session.model.info.n_vocab
    text = [chance.randrange(5, n_vocab) for _ in range(n)]
    copy = [chance.randrange(5, n_vocab) if chance.random() < 0.05 else token for token in text]
    prompt = [*text, 5, 6, 7]
    gains, ledger = [], DraftLedger()
    for _ in range(n_rounds):
        _, plain, _ = timed_answer(session, prompt, n, None, 31, SAMPLING, Held(copy, n_vocab))
        ledger.times.add(1, plain / n)
        tokens, took, drafts = timed_answer(session, prompt, n, Choosing([NgramDrafter()], ledger), 31, SAMPLING,
                                            Held(copy, n_vocab))
        assert tokens == copy
        gains.append(plain / took)
    print(f"rewrite of {n} tokens, 5 % changed: {', '.join(f'{gain:.2f}' for gain in gains)} x plain; "
          f"{drafts.stats.tokens_per_step:.1f} tokens a step, "
          f"{drafts.stats.n_kept / max(1, drafts.stats.n_drafted):.0%} of drafts kept")
    print("seconds of steps: " + ", ".join(f"{size}: {seconds:.3f}" for size, seconds in ledger.times.measured().items()))


def measure_price(path: str, mtp: str, threads: int | None) -> None:
    """What a draft takes, with the whole head and with the small copy of it; the two take turns."""
    heads = ("whole head", "copy of it")
    with contextlib.ExitStack() as stack:
        sessions = []
        for rows in (0, DRAFT_HEAD):
            model = stack.enter_context(pyflash.Model.open(path, threads=threads, mtp=mtp, draft_head=rows))
            model.prepare_drafts()
            sessions.append(stack.enter_context(model.session(context=256)))
            sessions[-1].eval(list(range(5, 5 + PROMPT)))
        name, longest = model.info.drafts, model.info.draft_most or 2
        sizes = (0, 1, longest)
        seconds: dict[tuple[str, int], list[float]] = {(head, n): [] for head in heads for n in sizes}
        for token in range(100, 130):
            for head, session in zip(heads, sessions, strict=True):
                for n in sizes:
                    began = time.perf_counter()
                    if n:
                        session.draft_tokens(token, n)
                    else:
                        session.eval([token])
                    seconds[head, n].append(time.perf_counter() - began)
    for head in heads:
        step, one, most = (1e3 * statistics.median(seconds[head, n]) for n in sizes)
        print(f"{name}, {head}: a draft of one token {one:.2f} ms, of {longest} {most:.2f} ms; "
              f"a step of one token {step:.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=60, help="of each answer; 0: none")
    parser.add_argument("--rewrite", type=int, default=200, help="tokens of the text that is written again; 0: none")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--chances", default="0,0.3,0.6,0.9", help="that a drafted token is right")
    parser.add_argument("--lengths", default=LENGTHS, help="of drafts that are not chosen by cost; \"\": none")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--expert-budget", type=float, default=0, metavar="GB",
                        help="of experts in memory, the others read from disk as they are chosen; 0: left to the system")
    parser.add_argument("--mtp", help="GGUF that drafts for the model; what its drafts take is measured instead")
    asked = parser.parse_args()
    if asked.mtp:
        measure_price(asked.model, asked.mtp, asked.threads)
        return
    budget = int(1e9 * asked.expert_budget)
    with pyflash.Model.open(asked.model, threads=asked.threads, expert_budget=budget) as model:
        with model.session(context=PROMPT + asked.tokens + 2 * asked.rewrite + 64) as session:
            if asked.tokens:
                prompt = np.random.default_rng(3).integers(5, model.info.n_vocab, PROMPT).tolist()
                lengths = [int(length) for length in asked.lengths.split(",") if length]
                measure_rates(Rates(session, prompt, asked.tokens, lengths, asked.rounds, budget > 0),
                              [float(p) for p in asked.chances.split(",")])
            if asked.rewrite:
                measure_rewrite(session, asked.rewrite, asked.rounds)


if __name__ == "__main__":
    main()
