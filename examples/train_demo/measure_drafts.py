"""Measures the demonstration model's drafters on its own greedy answers to held-back questions.

    python measure_drafts.py MODEL.gguf --mtp mtp-MODEL.gguf --mtp dspark-MODEL.gguf [--stages STAGES --checkpoint CHECKPOINT]

Texts and proposals come from pyflash, and with --stages a second time from PyTorch. Behind each token of an answer a draft is
made. A place is counted where all tokens before it were right, and where the answer does not end. "In the loop" is what
generating with these drafts keeps, all of them checked.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyflash
import torch
import torch.nn.functional as F
from torch import Tensor

import measure
from dspark import Drafter, Sizes, Target
from model import Params
from widen import read_params

ROWS = ("arithmetic, off", "arithmetic, high", "arithmetic, max", "recall, 1K", "tools", "talk")
PADDED = 128  # the model takes multiples of it
MTP_BLOCK = 2  # tokens that pyflash has an MTP block draft
Drafts = dict[int, tuple[list[int], list[float]]]  # behind a place: tokens, and the logits of their chances


@dataclass(frozen=True)
class Text:
    """tokens: prompt and answer, its end token last. begin: the answer's place."""

    row: str
    tokens: list[int]
    begin: int

    def anchors(self) -> range:
        """Places of the answer's tokens behind which others than the end come."""
        return range(self.begin, len(self.tokens) - 2)


def greedy(session: pyflash.Session, rows: Sequence[str], count: int, seed: int) -> list[Text]:
    """Answers that end, to count questions of each row."""
    eos, tokenizer = session.model.info.eos_token, session.model.tokenizer
    texts = []
    for row in rows:
        prompts = measure.prompts_of(measure.questions(row, count, tokenizer, seed), tokenizer)
        answers = measure.answer(session, prompts)
        texts += [Text(row, [*prompt, *found], len(prompt)) for prompt, found in zip(prompts, answers, strict=True)
                  if found[-1] == eos]  # fmt: skip
    return texts


class Proposals:
    """What is proposed behind each token of a text: tokens [block] and confidences' logits, by the token's place."""

    def __init__(self, target: Target, p: Params) -> None:
        self._target, self._p, self._drafter = target, p, Drafter(target)

    def __call__(self, text: Text) -> Drafts:
        tokens = torch.tensor([text.tokens + [0] * (-len(text.tokens) % PADDED)])
        taps, _ = self._target.read(self._p, tokens)
        places = torch.tensor(text.anchors())
        if len(places) == 0:
            return {}
        context = self._drafter.context(self._p, taps)
        anchors = torch.stack([torch.zeros_like(places), places], 1)
        drafts, sure = self._drafter.propose(self._p, context, anchors, tokens[0, places])
        return dict(zip(text.anchors(), zip(drafts.tolist(), sure.tolist(), strict=True), strict=True))


def kept(text: Text, place: int, draft: Sequence[int]) -> int:
    """How many of a draft's tokens come behind a place, the end token apart."""
    following = text.tokens[place + 1 : -1]
    return next((n for n, (a, b) in enumerate(zip(draft, following)) if a != b), min(len(draft), len(following)))


@dataclass
class Counts:
    """By place of the block: how often a token was looked at, and was right; and of those the confidences' logits."""

    looked: list[int]
    right: list[int]
    sure: list[list[tuple[float, bool]]]
    steps: int = 0
    kept: int = 0

    @classmethod
    def of(cls, block: int) -> Counts:
        return cls([0] * block, [0] * block, [[] for _ in range(block)])

    def add(self, text: Text, drafts: Drafts) -> None:
        for place, (draft, sure) in drafts.items():
            n = kept(text, place, draft)
            last = min(n + 1, len(draft), len(text.tokens) - 2 - place)
            for i in range(last):
                self.looked[i] += 1
                self.right[i] += i < n
                self.sure[i].append((sure[i], i < n))
        place = text.begin
        while place < len(text.tokens) - 1:  # as a loop goes that always checks the whole block
            n = kept(text, place, drafts[place][0]) if place in drafts else 0
            self.steps, self.kept, place = self.steps + 1, self.kept + n, place + n + 1

    def lines(self) -> list[str]:
        each = [right / max(1, looked) for right, looked in zip(self.right, self.looked, strict=True)]
        whole = [math.prod(each[: i + 1]) for i in range(len(each))]
        return ["  right, where all before it was: " + " ".join(f"{share:.3f}" for share in each),
                "  all up to there right:          " + " ".join(f"{share:.3f}" for share in whole),
                f"  kept in a loop that checks all: {self.kept / self.steps:.3f} of {len(each)} a step, {self.steps} steps"]


def calibration_error(sure: Tensor, right: Tensor, bins: int = 10) -> float:
    """Expected calibration error of chances sure [n], over bins of equal width."""
    which = (sure * bins).long().clamp(max=bins - 1)
    return sum(float((sure[which == b].mean() - right[which == b].mean()).abs() * (which == b).float().mean())
               for b in range(bins) if (which == b).any())


def temperature(logits: Tensor, right: Tensor) -> float:
    """By which logits are divided for the least cross-entropy: of a grid, 0.25 to 8."""
    grid = 2 ** torch.linspace(-2, 3, 101)
    losses = [F.binary_cross_entropy_with_logits(logits / t, right) for t in grid]
    return float(grid[int(torch.stack(losses).argmin())])


def calibration(fitted: Counts, held: Counts) -> list[str]:
    """Temperatures from half of the answers, the error on the other half."""
    lines = []
    for i, (fit, test) in enumerate(zip(fitted.sure, held.sure, strict=True)):
        if not fit or not test:
            break
        a, b = torch.tensor(fit), torch.tensor(test)
        t = temperature(a[:, 0], a[:, 1])
        before, after = (calibration_error(torch.sigmoid(b[:, 0] / each), b[:, 1]) for each in (1, t))
        lines.append(f"  confidence {i + 1}: error {before:.1%}, {after:.1%} at temperature {t:.2f}")
    return lines


def pyflash_drafts(session: pyflash.Session, text: Text, most: int) -> Drafts:
    """What pyflash drafts behind each token of a text."""
    session.rollback(session.position)
    session.eval(text.tokens[: text.begin])
    found = {}
    for place in text.anchors():
        tokens, chances = session.draft_tokens(text.tokens[place], most)
        found[place] = list(tokens), [math.log(max(x, 1e-9) / max(1 - x, 1e-9)) for x in chances]
        session.eval([text.tokens[place]])
    return found


def in_the_loop(session: pyflash.Session, texts: Sequence[Text], most: int) -> float:
    """Drafted tokens that a step keeps, where answers are generated again with drafts that are all checked."""
    n_steps = n_kept = 0
    for text in texts:
        session.rollback(session.position)
        generation = session.generate(text.tokens[: text.begin], measure.MAX_TOKENS, temperature=0,
                                      draft=lambda tokens, n: session.draft_tokens(tokens[-1], min(n, most))[0])  # fmt: skip
        found = [piece.token for piece in generation]
        assert found == text.tokens[text.begin :][: len(found)], "drafts have changed an answer"
        n_steps, n_kept = n_steps + generation.drafts.n_steps, n_kept + generation.drafts.n_kept
    return n_kept / n_steps


def report(name: str, texts: Sequence[Text], drafts: Sequence[Drafts], block: int) -> None:
    for row in (*dict.fromkeys(text.row for text in texts), "all"):
        counts = Counts.of(block)
        for text, found in zip(texts, drafts, strict=True):
            if row in (text.row, "all"):
                counts.add(text, found)
        print(f"{name}, {row}:", *counts.lines(), sep="\n", flush=True)
    halves = Counts.of(block), Counts.of(block)
    for i, (text, found) in enumerate(zip(texts, drafts, strict=True)):
        halves[i % 2].add(text, found)
    print(*calibration(*halves), sep="\n", flush=True)


def load(checkpoint: Path, stages: Path) -> tuple[Target, Params]:
    """The target, and its parameters with those of the stages, as they are stored."""
    config = json.loads((stages / "config.json").read_text(encoding="utf-8"))
    return Target(config, Sizes.of(config).layers), read_params(checkpoint) | read_params(stages, with_drafts=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="GGUF file")
    parser.add_argument("--mtp", action="append", default=[], help="GGUF file that drafts for it; may be repeated")
    parser.add_argument("--stages", type=Path, help="folder of DSpark stages, whose drafts PyTorch computes")
    parser.add_argument("--checkpoint", type=Path, help="of the model, for --stages")
    parser.add_argument("--counts", type=int, default=40, metavar="N", help="questions in each row (default: 40)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.stages and not options.checkpoint:
        parser.error("--stages needs the model's --checkpoint")
    torch.set_num_threads(1)
    with pyflash.Model.open(options.model, threads=1) as model, model.session(context=4096) as session:
        texts = greedy(session, ROWS, options.counts, options.seed)
    print(json.dumps({"texts": len(texts), "tokens": sum(len(text.tokens) - text.begin for text in texts)}))
    for file in options.mtp:
        with pyflash.Model.open(options.model, threads=1, mtp=file) as model, model.session(context=4096) as session:
            name, block = model.info.drafts, model.info.draft_most or MTP_BLOCK
            report(name, texts, [pyflash_drafts(session, text, block) for text in texts], block)
            print(f"  kept in the loop: {in_the_loop(session, texts, block):.3f}", flush=True)
    if options.stages:
        target, p = load(options.checkpoint, options.stages)
        proposals = Proposals(target, p)
        report("PyTorch", texts, [proposals(text) for text in texts], Sizes.of(target.config).block)


if __name__ == "__main__":
    main()
