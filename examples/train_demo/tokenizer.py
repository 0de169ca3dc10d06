"""Trains the demonstration model's tokenizer: python tokenizer.py OUT_FOLDER [--vocab 2048] [--seed 0]

Byte-level BPE with the official pre-tokenizer, special tokens and layout. The merges are learned on generated
conversations, under three rules that make small models copy well:

- Digits never merge, so every digit is one token.
- Capitalised words are learned without the space before them, and words without punctuation before them: "Paris" is
  the same tokens in " Paris", ">Paris" and '"Paris', so a tool's argument is copied as it stands in the question.
- What recall looks up, names and secret words, becomes one token together with its space; so does every word of
  which tools' arguments are made, capitalised ones without the space.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tasks
from tasks import words
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from gguf_export.errors import ConvertError
from gguf_export.outputs import write_output
from gguf_export.synthetic_tokenizer import build_tokenizer, byte_alphabet, least_vocabulary, merge_room

Pair = tuple[str, str]

SPACE = byte_alphabet()[0x20]
VOCAB = 3072
_CORPUS = {"arithmetic": 3000, "recall": 1500, "tools": 2500, "talk": 4000}  # examples of each kind
_COMMON = 48  # capitalised words with their space, and words with a punctuation mark before them, that become one token
_DAMPING = 0.75  # exponent on counts, so that rare words of small talk get something beside the long notes

_LEARNED = re.compile(r"^(\W|_)?([A-Za-z]+)$")
# Words with which a tool's argument may begin. They stay apart from a space or a mark before them...
_VALUES = {
    text.split()[0]
    for texts in (
        words.CITIES, words.RECEIVERS, words.TITLE_FIRST, words.SYMBOLS, words.CURRENCIES, words.LANGUAGES, words.DAYS,
        words.PHRASES, ["I"],
    )
    for text in texts
}  # fmt: skip
# ...except these in lower case, where each is one token with the space and one without.
_BOTH = [*words.ROOMS, *words.EVENTS, *words.QUERY_FIRST]


def single_tokens() -> list[str]:
    """The texts that are one token each, in the alphabet of the vocabulary."""
    capitalised = (
        words.CITIES, words.RECEIVERS, words.TITLE_FIRST, words.TITLE_SECOND, words.SYMBOLS, words.CURRENCIES,
        words.LANGUAGES, words.DAYS,
    )  # fmt: skip
    inner = [text.split()[1:] for text in words.PHRASES] + [text.split() for text in (*words.MESSAGE_VERBS, *words.MESSAGE_ENDS)]
    lower = {word for part in inner for word in part if word.isalpha()} | set(words.QUERY_SECOND)
    spaced = [SPACE + word for word in (*words.NAMES, *words.SECRETS, *_BOTH, *sorted(lower - set(_BOTH)))]
    return list(dict.fromkeys([*spaced, *_BOTH, *(word for part in capitalised for word in part)]))


def corpus(seed: int) -> Iterator[str]:
    """Rendered training examples of all kinds and thinking modes."""
    for kind, number in _CORPUS.items():
        rng = random.Random(f"{seed} {kind}")
        for i in range(number):
            think = "max" if i % 10 == 0 else "high" if i % 4 == 0 else "off"
            options = {"chars_per_token": 4.5} if kind == "recall" else {}
            yield tasks.render(tasks.generate(kind, rng, "train", think=think, **options))


def count_pieces(texts: Iterator[str]) -> Counter[str]:
    """How often each pre-token occurs, special tokens and everything with digits left out."""
    empty = build_tokenizer(least_vocabulary(), [])["tokenizer.json"]
    split = Tokenizer.from_str(json.dumps(empty)).pre_tokenizer
    specials = sorted((token["content"] for token in empty["added_tokens"]), key=len, reverse=True)
    border = re.compile("|".join(map(re.escape, specials)))
    parts = Counter(part for text in texts for part in border.split(text))
    pieces: Counter[str] = Counter()
    for part, n in parts.items():
        for piece, _ in split.pre_tokenize_str(part):
            if not any(map(str.isdigit, piece)):
                pieces[piece] += n
    return pieces


def _bare(piece: str) -> str:
    """The piece as it is learned: without what must not merge with it."""
    match = _LEARNED.match(piece.replace(SPACE, " "))
    if not match or not match[1]:
        return piece
    return piece if match[1] == " " and match[2][0].islower() else match[2]


def learn(pieces: Counter[str], most: int) -> list[Pair]:
    """Merges by frequency; the words of single_tokens() count as frequent."""
    counts: Counter[str] = Counter()
    for piece, n in pieces.items():
        counts[_bare(piece)] += n
    weights = {piece: round(10 * n**_DAMPING) for piece, n in counts.items()}
    frequent = sorted(weights.values(), reverse=True)[min(len(weights) - 1, 500)]
    for piece in single_tokens():
        weights[_bare(piece)] = max(weights.get(_bare(piece), 0), frequent)
    # Each piece as often as it weighs, in lines: the trainer takes no counts.
    lines = ["\n".join([piece] * weight) for piece, weight in sorted(weights.items())]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "removed")
    trainer = trainers.BpeTrainer(
        vocab_size=len(byte_alphabet()) + most, initial_alphabet=list(byte_alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(lines, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [(left, right) for left, right in merges]


def _encode(text: str, ranks: dict[Pair, int]) -> list[str]:
    symbols = list(text)
    while len(symbols) > 1:
        pairs = zip(symbols, symbols[1:], strict=False)
        rank, at = min((ranks.get(pair, len(ranks)), i) for i, pair in enumerate(pairs))
        if rank == len(ranks):
            break
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    return symbols


def complete(merges: Sequence[Pair], texts: Sequence[str]) -> list[Pair]:
    """The merges, and behind them those that make one token of each of the texts."""
    ranks = {pair: rank for rank, pair in enumerate(merges)}
    for text in texts:
        head = ""
        if not text[0].isalpha() or text[0] == SPACE:
            # A mark or a space merges with the whole word, never with the beginning of one.
            head, text = (text[0], text[1:]) if not text[1:2].islower() or text[0] != SPACE else ("", text)
        symbols = _encode(text, ranks)
        while len(symbols) > 1:
            ranks.setdefault((symbols[0], symbols[1]), len(ranks))
            symbols = _encode(text, ranks)
        if head:
            ranks.setdefault((head, text), len(ranks))
    return list(ranks)


def _common(pieces: Counter[str]) -> list[str]:
    """The most frequent pieces that learn() took apart, arguments of tools left out."""
    apart = [(n, piece) for piece, n in pieces.items() if _bare(piece) != piece and _bare(piece) not in _VALUES]
    known = set(single_tokens())
    apart.sort(key=lambda entry: (-entry[0], entry[1]))
    return [piece for _, piece in apart if piece not in known][:_COMMON]


def train(vocab_size: int = VOCAB, seed: int = 0) -> list[Pair]:
    """Merges that fill a vocabulary. ValueError when it is too small for the texts of single_tokens()."""
    room = merge_room(vocab_size)
    too_small = f"a vocabulary of {vocab_size} is too small for the words that must be one token"
    if len(single_tokens()) > room:
        raise ValueError(too_small)
    pieces = count_pieces(corpus(seed))
    wanted = [*single_tokens(), *_common(pieces)]
    learned = learn(pieces, room)
    for most in range(len(learned), 0, -1):
        merges = complete(learned[:most], wanted)
        if len(merges) <= room:
            return merges
    raise ValueError(too_small)


def write(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    """Each file complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in files.items():
        text = json.dumps(value, ensure_ascii=False, indent=1)
        write_output(folder / name, text.encode("utf-8"), streams=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the demonstration model's tokenizer.")
    parser.add_argument("folder", type=Path, help="where tokenizer.json and tokenizer_config.json go")
    parser.add_argument("--vocab", type=int, default=VOCAB, help=f"number of ids in all (default {VOCAB})")
    parser.add_argument("--seed", type=int, default=0, help="of the generated corpus (default 0)")
    args = parser.parse_args()
    try:
        merges = train(args.vocab, args.seed)
        write(args.folder, build_tokenizer(args.vocab, merges))
    except (ConvertError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(f"{args.vocab} ids with {len(merges)} merges in {args.folder}")


if __name__ == "__main__":
    main()
