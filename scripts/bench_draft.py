"""What drafts gain with a model, at acceptance rates that are set, and when a text is written again with changes.

    python scripts/bench_draft.py MODEL.gguf
    python scripts/bench_draft.py MODEL.gguf --tokens 100 --rewrite 400

The model's weights may be random: what it says is recorded first, and a drafter proposes that, each token changed with a
chance of 1 - p. "model" is (1 + expected kept) / V(k + 1) with the V(T) that was measured before; the runs take turns with
plain ones. In the rewrite the answer is held to a copy of the prompt's text in which one token in twenty is another, and
n-grams draft it.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

import pyflash
from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.drafts import Draft, NgramDrafter
from pyflash.engine.generation import choose, plan
from pyflash.engine.speculation import Choosing, Given, Speculation
from pyflash.engine.stream import Cancellation

PROMPT = 64  # tokens
SIZES = (1, 2, 3, 4, 6)  # of steps that are timed
FIXED = 5
REPEAT = 3


class Recorded:
    """Proposes what is known to come, each token with a chance of 1 - p another one."""

    name, is_free, longest, priors = "recorded", True, 31, (0.5,)

    def __init__(self, known: Sequence[int], p: float, most: int) -> None:
        chance = random.Random(1)
        self._drafts = [token if chance.random() < p else token ^ 1 for token in known]
        self._most, self._at = most, 0

    def begin(self, tokens: Any) -> None:
        self._at = 0

    def feed(self, token: int) -> None:
        self._at += 1

    def propose(self, most: int) -> Draft:
        tokens = self._drafts[self._at : self._at + min(most, self._most)]
        return Draft(tokens, [0] * len(tokens))


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


def run(session: pyflash.Session, prompt: Sequence[int], n: int, drafts: Speculation, held: Held | None = None
        ) -> tuple[list[int], float]:
    """n tokens, and the seconds of all but the first, which is the prompt's."""
    session.rollback(session.position)
    how = plan(session, n - 1, n, 0, None, {"seed": 1}, drafts)
    choices = choose(session, prompt, how, Cancellation(), held)
    tokens = [next(choices).token]
    began = time.perf_counter()
    tokens += [choice.token for choice in choices]
    return tokens, time.perf_counter() - began


def step_times(session: pyflash.Session, prompt: Sequence[int]) -> dict[int, float]:
    session.rollback(session.position)
    session.eval(prompt)
    seconds: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(9):
        for size in SIZES:
            tokens = np.random.default_rng(size).integers(5, session.model.info.n_vocab, size)
            began = time.perf_counter()
            session.eval_ahead(tokens)
            seconds[size].append(time.perf_counter() - began)
            session.rollback(1)
    return {size: statistics.median(each) for size, each in seconds.items()}


def between(times: dict[int, float], size: int) -> float:
    return float(np.interp(size, list(times), list(times.values())))


def measure_rates(session: pyflash.Session, n: int, chances: Sequence[float]) -> None:
    info = session.model.info
    prompt = np.random.default_rng(3).integers(5, info.n_vocab, PROMPT).tolist()
    times = step_times(session, prompt)
    print("V(T): " + ", ".join(f"{size}: {seconds / times[1]:.2f}" for size, seconds in times.items())
          + f"; one token {times[1] * 1e3:.2f} ms")
    known, _ = run(session, prompt, n, Speculation(session, None, 31))
    print("| acceptance | plain tok/s | five drafts | of the model | length by cost | drafts kept |")
    print("|---|---|---|---|---|---|")
    for p in chances:
        gains: list[tuple[float, float, float]] = []
        ledger = DraftLedger()
        for _ in range(REPEAT):
            plain = run(session, prompt, n, Speculation(session, None, 31))
            fixed = Speculation(session, Given(forced(Recorded(known, p, FIXED))), 31)
            by_five = run(session, prompt, n, fixed)
            chosen = Speculation(session, Choosing([Recorded(known, p, 31)], ledger), 31)
            by_cost = run(session, prompt, n, chosen)
            assert plain[0] == by_five[0] == by_cost[0] == known, "drafts have changed an answer"
            gains.append((plain[1], plain[1] / by_five[1], plain[1] / by_cost[1]))
        expected = (1 + sum(p ** i for i in range(1, FIXED + 1))) * times[1] / between(times, FIXED + 1)
        plain_s, five, cost = (statistics.median(each) for each in zip(*gains))
        stats = chosen.stats
        kept = f"{stats.n_kept / stats.n_drafted:.0%}" if stats.n_drafted else "none drafted"
        print(f"| {p:.1f} | {(n - 1) / plain_s:.1f} | {five:.2f} x | {five / expected:.2f} | {cost:.2f} x | {kept} |")


def forced(drafter: Recorded) -> Any:
    """As a function of the tokens so far, of which the first PROMPT are the prompt's."""
    def propose(tokens: Sequence[int], most: int) -> Sequence[int]:
        drafter._at = len(tokens) - PROMPT
        return drafter.propose(most).tokens

    return propose


def measure_rewrite(session: pyflash.Session, n: int) -> None:
    chance, n_vocab = random.Random(7), session.model.info.n_vocab
    text = [chance.randrange(5, n_vocab) for _ in range(n)]
    copy = [chance.randrange(5, n_vocab) if chance.random() < 0.05 else token for token in text]
    prompt = [*text, 5, 6, 7]
    _, plain = run(session, prompt, n, Speculation(session, None, 31), Held(copy, n_vocab))
    ledger = DraftLedger()
    for seconds in (plain / n,) * 3:
        ledger.times.add(1, seconds)
    drafts = Speculation(session, Choosing([NgramDrafter()], ledger), 31)
    tokens, took = run(session, prompt, n, drafts, Held(copy, n_vocab))
    assert tokens == copy
    print(f"rewrite of {n} tokens, 5 % changed: {plain / took:.2f} x plain; {drafts.stats.tokens_per_step:.1f} tokens a step, "
          f"{drafts.stats.n_kept / max(1, drafts.stats.n_drafted):.0%} of drafts kept")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=60, help="of each run")
    parser.add_argument("--rewrite", type=int, default=200, help="tokens of the text that is written again; 0: none")
    parser.add_argument("--chances", default="0,0.3,0.6,0.9", help="that a drafted token is right")
    parser.add_argument("--threads", type=int)
    asked = parser.parse_args()
    with pyflash.Model.open(asked.model, threads=asked.threads) as model:
        with model.session(context=PROMPT + asked.tokens + 2 * asked.rewrite + 64) as session:
            measure_rates(session, asked.tokens, [float(p) for p in asked.chances.split(",")])
            if asked.rewrite:
                measure_rewrite(session, asked.rewrite)


if __name__ == "__main__":
    main()
