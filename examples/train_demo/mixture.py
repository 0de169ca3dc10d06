"""Training sequences: conversations of the tasks, packed into rows of fixed length with the places the loss looks at."""

from __future__ import annotations

import random
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path

import tasks
import torch
from tokenizers import Tokenizer
from torch import Tensor

CONTEXT_WEIGHT = 0.25  # of text that the model reads and never writes
DRILL_WEIGHT = 0.3
DRILL_SHARE = 0.15  # of the rows only teach to copy and to look up
_CONTEXT_SHARE = 0.2
_SHORT = ("arithmetic", "talk")


@dataclass
class Batch:
    """tokens [B, S+1]; weights [B, S]: how much the prediction of tokens[:, 1:] counts; positions [S]."""

    tokens: Tensor
    weights: Tensor
    positions: Tensor


def lengths(progress: float) -> dict[int, float]:
    """Shares of sequence lengths while training goes from 0 to 1."""
    return {256: 0.5, 512: 0.5} if progress < 0.75 else {256: 0.4, 512: 0.4, 1024: 0.2}


class Mixture:
    """An endless source of batches, the same for the same seed."""

    def __init__(self, tokenizer: Path, seed: int, longest: int = 16384) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._rng = random.Random(seed)
        self._longest = longest
        encode = self._tokenizer.encode
        self._words = [encode(" " + word).ids[-1] for word in (*tasks.words.NAMES, *tasks.words.SECRETS)]

    def batch(self, length: int, n_tokens: int, drilled: float = DRILL_SHARE) -> Batch:
        """n_tokens of rows of the same length. drilled: the share of drills among them."""
        rows = [self._drill(length) if self._rng.random() < drilled else self._row(length)
                for _ in range(max(1, n_tokens // length))]  # fmt: skip
        tokens, weights = (torch.tensor(part) for part in zip(*rows, strict=True))
        return Batch(tokens, weights, self._positions(length))

    def _positions(self, length: int) -> Tensor:
        """0, 1, 2, … with jumps at multiples of 128 in half of the long batches: distances of long contexts for the
        price of short ones (positional skip-wise training, Zhu et al. 2023)."""
        positions = torch.arange(length)
        if length >= 512 and self._rng.random() < 0.5:
            room = (self._longest - length) // 128
            for _ in range(self._rng.randint(1, 3)):
                jump = self._rng.randint(0, room)
                room -= jump
                positions[128 * self._rng.randint(1, length // 128 - 1) :] += 128 * jump
        return positions

    def _document(self, kind: str, room: int) -> tuple[list[int], list[float]]:
        """Token ids, and the weight of each as something to predict."""
        rng = self._rng
        think = rng.choices(("off", "high", "max"), (0.5, 0.4, 0.1))[0]
        if kind == "recall":
            think = "off" if rng.random() < 0.8 else think
            n_tokens = room if room > 512 or rng.random() < 0.5 else rng.randint(64, room)
            example = tasks.generate(kind, rng, "train", think=think, n_tokens=n_tokens, reminders=rng.random() < 0.7)
        elif kind == "tools":
            think = "off" if think == "max" else think  # its long prompt leaves no room in short rows
            example = tasks.generate(kind, rng, "train", think=think, n_turns=rng.choice((1, 2, 3, 4)))
        else:
            example = tasks.generate(kind, rng, "train", think=think)
        text = tasks.render(example)
        encoding = self._tokenizer.encode(text)
        weights = [CONTEXT_WEIGHT if rng.random() < _CONTEXT_SHARE else 0.0 for _ in encoding.ids]
        starts = [start for start, _ in encoding.offsets]
        spans = tasks.trained_spans(text) + (tasks.recall_spans(text) if kind == "recall" else [])
        for begin, end in spans:
            for i in range(bisect_left(starts, begin), bisect_left(starts, end)):
                weights[i] = 1.0
        return encoding.ids, weights

    def _drill(self, length: int) -> tuple[list[int], list[float]]:
        """Random words, or facts, over and over; facts in another order each time."""
        rng = self._rng
        bos = self._tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
        ids, weights = [bos], [0.0]
        if rng.random() < 0.5:
            n = rng.randint(4, min(length // 3, 100))
            units = [[rng.choice(self._words)] for _ in range(n)]
            counted = [[DRILL_WEIGHT]] * n
        else:
            facts = tasks.draw_facts(rng, "train", rng.randint(3, min(length // 20, 24)))
            texts = [" " + tasks.fact(name, word) for name, word in facts.items()]
            units = [self._tokenizer.encode(text).ids for text in texts]
            counted = [[0.0] * (len(unit) - 2) + [DRILL_WEIGHT, 0.0] for unit in units]  # the word before the full stop
        order = list(range(len(units)))
        first = True
        while len(ids) < length + 1:
            for i in order:
                ids += units[i]
                weights += [0.0] * len(units[i]) if first else counted[i]
            if len(units[0]) > 1:
                rng.shuffle(order)
            first = False
        return ids[: length + 1], weights[1 : length + 1]

    def _row(self, length: int) -> tuple[list[int], list[float]]:
        rng = self._rng
        ids: list[int] = []
        weights: list[float] = []
        shares = {256: (0.4, 0.0, 0.6), 512: (0.3, 0.5, 0.2)}.get(length, (0.9, 0.1, 0.0))  # a tool's text is long
        kind = rng.choices(("recall", "tools", "short"), shares)[0]
        while len(ids) < length + 1:
            more, counted = self._document(kind if kind in ("recall", "tools") else rng.choices(_SHORT, (0.65, 0.35))[0], length - 16)
            ids += more
            weights += counted
            kind = "tools" if length > 512 and rng.random() < 0.3 else "short"
        return ids[: length + 1], weights[1 : length + 1]
