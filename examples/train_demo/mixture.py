"""Training sequences: conversations of the tasks, packed into rows of fixed length with the places the loss looks at."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import tasks
import torch
from tokenizers import Tokenizer
from torch import Tensor

CONTEXT_WEIGHT = 0.25  # of text that the model reads and never writes
WORDS_WEIGHT = 0.3  # of random words that come again
DRILL_SHARE = 0.25  # of the rows are drills
_CONTEXT_SHARE = 0.2
_SHORT = {"arithmetic": 0.7, "talk": 0.3}
Pair = tuple[int, int]


@dataclass
class Batch:
    """tokens [B, S+1]; weights [B, S]: how much the prediction of tokens[:, 1:] counts; positions [S].

    lookups [K, 3]: row, place of a token whose successor stands earlier in the row (a fact's word, a digit of a sum, a
    tool's argument), and that successor's place there. A token with several such places has several entries.
    """

    tokens: Tensor
    weights: Tensor
    positions: Tensor
    lookups: Tensor


def lengths(progress: float) -> dict[int, float]:
    """Shares of sequence lengths while training goes from 0 to 1."""
    return {256: 0.5, 512: 0.5} if progress < 0.75 else {256: 0.4, 512: 0.4, 1024: 0.2}


def drills(progress: float) -> dict[str, float]:
    """Shares of the drills: to copy and to look up until that is learned, then more of the rest."""
    if progress < 0.55:
        return {"words": 0.1, "facts": 0.6, "sums": 0.3}
    return {"facts": 0.25, "sums": 0.35, "arguments": 0.4}


class Mixture:
    """An endless source of batches, the same for the same seed."""

    def __init__(self, tokenizer: Path, seed: int, longest: int = 16384) -> None:
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._rng = random.Random(seed)
        self._longest = longest
        encode = self._tokenizer.encode
        self._of_is = tuple(encode(text).ids[-1] for text in (" of", " is"))
        self._words = [encode(" " + word).ids[-1] for word in (*tasks.words.NAMES, *tasks.words.SECRETS)]
        self._word_set = set(self._words)

    def batch(self, length: int, n_tokens: int, progress: float, drilled: float = DRILL_SHARE) -> Batch:
        """n_tokens of rows of the same length. progress: of the training, 0 to 1. drilled: the share of drills."""
        kinds = drills(progress)
        rows = [self._drill(length, self._choice(kinds)) if self._rng.random() < drilled else self._row(length)
                for _ in range(max(1, n_tokens // length))]  # fmt: skip
        tokens = torch.tensor([ids for ids, _, _ in rows])
        weights = torch.tensor([counted for _, counted, _ in rows])
        found = [(b, query, source) for b, (ids, _, pairs) in enumerate(rows)
                 for query, source in (*pairs, *self._lookups(ids)) if query < length]  # fmt: skip
        return Batch(tokens, weights, self._positions(length), torch.tensor(found).view(-1, 3))

    def _choice(self, shares: dict[str, float]) -> str:
        return self._rng.choices(list(shares), list(shares.values()))[0]

    def _lookups(self, ids: list[int]) -> Iterator[Pair]:
        """Pairs of places in a row: the "is" of a repeated fact, and the fact's word where it stood before."""
        of, is_ = self._of_is
        seen: dict[tuple[int, int], list[int]] = {}
        for i in range(3, len(ids)):
            if ids[i - 1] == is_ and ids[i - 3] == of and ids[i] in self._word_set:
                places = seen.setdefault((ids[i - 2], ids[i]), [])
                yield from ((i - 1, place) for place in places)
                places.append(i)

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

    def _document(self, kind: str, room: int) -> tuple[list[int], list[float], list[Pair]]:
        """Token ids, the weight of each as something to predict, and what to look up where (as Batch.lookups)."""
        rng = self._rng
        think = self._choice({"off": 0.5, "high": 0.35, "max": 0.15})
        if kind == "arithmetic":
            think = self._choice({"off": 0.2, "high": 0.5, "max": 0.3})  # "off" has its drill
        if kind == "recall":
            think = "off" if rng.random() < 0.8 else think
            n_tokens = room if room > 512 or rng.random() < 0.5 else rng.randint(64, room)
            example = tasks.generate(kind, rng, "train", think=think, n_tokens=n_tokens, reminders=rng.random() < 0.7)
        elif kind == "tools":
            think = "off" if think == "max" else think  # its long prompt leaves no room in short rows
            example = tasks.generate(kind, rng, "train", think=think, n_turns=rng.choice((1, 2, 3, 4)))
        else:
            example = tasks.generate(kind, rng, "train", think=think)
        return self._encode(example)

    def _encode(self, example: tasks.Example) -> tuple[list[int], list[float], list[Pair]]:
        rng, text = self._rng, tasks.render(example)
        encoding = self._tokenizer.encode(text)
        weights = [CONTEXT_WEIGHT if rng.random() < _CONTEXT_SHARE else 0.0 for _ in encoding.ids]
        starts = [start for start, _ in encoding.offsets]
        spans = tasks.trained_spans(text) + (tasks.recall_spans(text) if example.kind == "recall" else [])
        for begin, end in spans:
            for i in range(bisect_left(starts, begin), bisect_left(starts, end)):
                weights[i] = 1.0
        pairs = {
            (bisect_right(starts, copy + i) - 2, bisect_right(starts, original + i) - 1)
            for copy, original, n in tasks.copies(text, example)
            for i in range(n)
        }
        return encoding.ids, weights, sorted(pairs)

    def _sums(self, length: int) -> tuple[list[int], list[float], list[Pair]]:
        """Sums and their results, one after the other."""
        ids, weights = [self._tokenizer.token_to_id("<｜begin▁of▁sentence｜>")], [0.0]
        while len(ids) < length + 1:
            text = tasks.short_answer(*tasks.draw_sum(self._rng, "train", "off"))
            encoding = self._tokenizer.encode(f" {text}")
            begin = text.index("=") + 2
            ids += encoding.ids
            weights += [float(end > begin) for _, end in encoding.offsets]
        return ids[: length + 1], weights[1 : length + 1], []

    def _arguments(self, length: int) -> tuple[list[int], list[float], list[Pair]]:
        """Calls of tools that nobody has described, of which only what is copied counts."""
        ids: list[int] = []
        weights: list[float] = []
        pairs: list[Pair] = []
        while len(ids) < length + 1:
            example = tasks.generate("tools", self._rng, "train", think=self._choice({"off": 0.6, "high": 0.4}), n_turns=4)
            more, _, found = self._encode(replace(example, tools=None))
            pairs += [(len(ids) + query, len(ids) + source) for query, source in found]
            copied = {query + 1 for query, _ in found}
            weights += [float(i in copied) for i in range(len(more))]
            ids += more
        return ids[: length + 1], weights[1 : length + 1], pairs

    def _drill(self, length: int, kind: str) -> tuple[list[int], list[float], list[Pair]]:
        """Sums, or random words or facts over and over; facts in another order each time."""
        if kind == "sums":
            return self._sums(length)
        if kind == "arguments":
            return self._arguments(length)
        rng = self._rng
        bos = self._tokenizer.token_to_id("<｜begin▁of▁sentence｜>")
        ids, weights = [bos], [0.0]
        if kind == "words":
            n = rng.randint(4, min(length // 3, 100))
            units = [[rng.choice(self._words)] for _ in range(n)]
            counted = [[WORDS_WEIGHT]] * n
        else:
            facts = tasks.draw_facts(rng, "train", rng.randint(3, min(length // 20, 24)))
            texts = [" " + tasks.fact(name, word) for name, word in facts.items()]
            units = [self._tokenizer.encode(text).ids for text in texts]
            counted = [[0.0] * (len(unit) - 2) + [1.0, 0.0] for unit in units]  # the word before the full stop
        order = list(range(len(units)))
        first = True
        while len(ids) < length + 1:
            for i in order:
                ids += units[i]
                weights += [0.0] * len(units[i]) if first else counted[i]
            if len(units[0]) > 1:
                rng.shuffle(order)
            first = False
        return ids[: length + 1], weights[1 : length + 1], []

    def _row(self, length: int) -> tuple[list[int], list[float], list[Pair]]:
        rng = self._rng
        ids: list[int] = []
        weights: list[float] = []
        pairs: list[Pair] = []
        shares = {256: (0.15, 0.0, 0.85), 512: (0.15, 0.6, 0.25)}.get(length, (0.5, 0.35, 0.15))  # a tool's text is long
        kind = rng.choices(("recall", "tools", "short"), shares)[0]
        while len(ids) < length + 1:
            more, counted, found = self._document(self._choice(_SHORT) if kind == "short" else kind, length - 16)
            pairs += [(len(ids) + query, len(ids) + source) for query, source in found]
            ids += more
            weights += counted
            kind = "tools" if length > 512 and rng.random() < 0.3 else "short"
        return ids[: length + 1], weights[1 : length + 1], pairs
