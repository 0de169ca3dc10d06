"""A text as tokens, cut into windows, and which of their tokens are scored."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from pyflash.engine.tokenizer import Tokenizer
from pyflash.eval.statistics import Tokens32
from pyflash.native.errors import ArgumentError, FormatError

LEAST_CONTEXT = 4  # the first window that has tokens to score and some before them
_PIECE_CHARACTERS = 1 << 20
_USER_DEFINED = 4  # of tokenizer.ggml.token_type
# Between a newline and an ASCII letter no pre-tokenizer of these models has a piece, so texts may be cut there.
_CUT = re.compile(r"\n(?=[A-Za-z])")


@dataclass(frozen=True)
class Windows:
    """tokens: of the whole text, or as many as needed. The window i begins at step * i and has n_ctx tokens, of which
    the first is replaced by bos where that is not None. Its positions first to n_ctx - 2 are scored: each on the token
    that follows it.
    """

    tokens: Tokens32
    n_ctx: int
    count: int
    step: int
    first: int
    bos: int | None = None

    @property
    def n_scored(self) -> int:
        """Tokens scored in each window."""
        return self.n_ctx - 1 - self.first

    def inputs(self, index: int) -> Tokens32:
        """What is evaluated: the window but its last token, whose successor nobody asks for."""
        begin = index * self.step
        tokens: Tokens32 = self.tokens[begin : begin + self.n_ctx - 1].copy()
        if self.bos is not None:
            tokens[0] = self.bos
        return tokens

    def targets(self, index: int) -> Tokens32:
        """The scored tokens, [n_scored]."""
        begin = index * self.step
        tokens: Tokens32 = self.tokens[begin + self.first + 1 : begin + self.n_ctx]
        return tokens


def plan_windows(
    tokens: Tokens32, n_ctx: int, most: int | None = None, stride: int | None = None, bos: int | None = None
) -> Windows:
    """Windows as llama.cpp's perplexity tool cuts them.

    Without a stride they lie side by side, the first half of each is context only, and a model that wants a BOS token
    has it in the place of each window's first. With a stride each begins that many tokens after the one before and the
    last `stride` tokens are scored; BOS stands where the tokenizer put it. most: of them, from the beginning.
    """
    if n_ctx < LEAST_CONTEXT:
        raise ArgumentError(f"a context of {n_ctx} tokens has none to score: use at least {LEAST_CONTEXT}")
    if len(tokens) < 2 * n_ctx:
        raise ArgumentError(f"the text has only {len(tokens):,} tokens, and a context of {n_ctx:,} needs twice that "
                            "many: take a longer text or a smaller context")
    if stride is None:
        n_windows, step, first = len(tokens) // n_ctx, n_ctx, n_ctx // 2
    else:
        if not 1 <= stride < n_ctx:
            raise ArgumentError(f"a stride of {stride} does not fit a context of {n_ctx}: use 1 to {n_ctx - 1}")
        n_windows, step, first, bos = -((n_ctx - len(tokens)) // stride), stride, n_ctx - stride - 1, None
    return Windows(tokens, n_ctx, n_windows if most is None else min(most, n_windows), step, first, bos)


def tokens_needed(n_ctx: int, most: int | None, stride: int | None) -> int | None:
    """How many tokens of a text are enough for that many windows; None for all."""
    if most is None:
        return None
    return max(2 * n_ctx, most * n_ctx if stride is None else n_ctx + (most - 1) * stride + 1)


# -- from text to tokens --


@dataclass(frozen=True)
class TextRules:
    """How a model file wants texts read. add_bos: begin with the token bos. plain: ids by the text of tokens that any
    text may give, though they are no part of the vocabulary's merges (GGUF's type USER_DEFINED)."""

    add_bos: bool
    bos: int
    plain: dict[str, int]

    @classmethod
    def of(cls, keys: dict[str, object], bos: int) -> TextRules:
        """From the metadata of a GGUF file."""
        tokens, types = keys.get("tokenizer.ggml.tokens"), keys.get("tokenizer.ggml.token_type")
        plain: dict[str, int] = {}
        if isinstance(tokens, list) and isinstance(types, list):
            plain = {text: token for token, (text, kind) in enumerate(zip(tokens, types, strict=False))
                     if kind == _USER_DEFINED and text}
        return cls(keys.get("tokenizer.ggml.add_bos_token") is True, bos, plain)


def encode_text(
    pieces: Iterable[str], tokenizer: Tokenizer, rules: TextRules, special: bool = False, enough: int | None = None
) -> Tokens32:
    """Tokens of a text that comes in pieces, as llama.cpp's perplexity tool reads it; the first `enough` of them.

    special: text that spells a special token becomes that token, which llama.cpp's tool does for plain ones only.
    Works on a piece at a time: memory is that of the tokens.
    """
    plain = sorted(rules.plain, key=len, reverse=True)
    pattern = re.compile("|".join(map(re.escape, plain))) if plain and not special else None
    found = [np.array([rules.bos] if rules.add_bos else [], dtype=np.int32)]
    total = len(found[0])
    cut = not any("\n" in text for text in plain)
    for piece in _whole_words(pieces) if cut else ("".join(pieces),):
        ids = _encode(piece, tokenizer, rules, pattern, special)
        found.append(np.array(ids, dtype=np.int32))
        total += len(ids)
        if enough is not None and total >= enough:
            break
    return np.concatenate(found)[:enough]


def _encode(
    text: str, tokenizer: Tokenizer, rules: TextRules, pattern: re.Pattern[str] | None, special: bool
) -> Sequence[int]:
    if pattern is None:
        return tokenizer.encode(text, special=special)
    ids: list[int] = []
    end = 0
    for match in pattern.finditer(text):
        ids += tokenizer.encode(text[end : match.start()]) if match.start() > end else []
        ids.append(rules.plain[match[0]])
        end = match.end()
    return ids + tokenizer.encode(text[end:])


def _whole_words(pieces: Iterable[str]) -> Iterator[str]:
    """The same text in pieces that give the same tokens as all of it."""
    held: list[str] = []
    for piece in filter(None, pieces):
        before = held[-1][-1] if held else ""
        cuts = [match.end() - len(before) for match in _CUT.finditer(before + piece)]
        if cuts:
            yield "".join([*held, piece[: cuts[-1]]])
            held = []
        held.append(piece[cuts[-1] :] if cuts else piece)
    yield "".join(held)


def text_pieces(file: TextIO, source: str) -> Iterator[str]:
    """What a file holds, without the newline at its very end, as llama.cpp reads it. source: its name in errors."""
    held = ""
    try:
        while piece := file.read(_PIECE_CHARACTERS):
            yield held + piece[:-1]
            held = piece[-1]
    except UnicodeDecodeError as error:
        raise FormatError(f"{source} is not UTF-8 text ({error.reason}): convert it first") from error
    if held != "\n":
        yield held
