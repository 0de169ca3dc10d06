"""Drafters: what proposes how a text may go on, for the model to check several tokens in one step."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from pyflash.native.errors import MemoryLimitError
from pyflash.native.values import Tokens

if TYPE_CHECKING:
    from pyflash.engine.session import Session


@dataclass(frozen=True)
class Draft:
    """Tokens that may come next. sureness: of each, how sure the drafter is, as a small number: how often tokens of the same
    sureness were right is counted."""

    tokens: Sequence[int] = ()
    sureness: Sequence[int] = ()


class Drafter(Protocol):
    """Proposes tokens. What it proposes changes no answer, only how soon it is there.

    is_free: whether proposing takes next to no time, so that it may be asked where nothing may come of it. is_whole: whether
    a draft takes about the same, however many tokens of it are asked for. longest: tokens that it proposes at most. priors: how
    often tokens of each sureness are right, as long as nobody has counted.
    """

    name: ClassVar[str]
    is_free: ClassVar[bool]
    is_whole: ClassVar[bool]
    longest: int
    priors: ClassVar[Sequence[float]]

    def begin(self, tokens: Tokens) -> None:
        """A generation begins behind tokens."""

    def feed(self, token: int) -> None:
        """A token was picked, which is not evaluated yet."""

    def propose(self, most: int) -> Draft:
        """At most so many tokens behind the last one that was picked."""


_HASH: Final = (0x9E3779B1, 0x85EBCA6B, 0xC2B2AE35)  # odd: of an n-gram's tokens
GAP: Final = -1  # no token: nothing reaches across it
_SETTLED = 8  # tokens of a match behind which a single other one is taken for a change in it


class NgramDrafter:
    """Proposes what followed the longest match of the text's end, in the text itself or in texts that were given.

    An index of all n-grams, as in a compressor of the LZ77 family: the latest position of each by a table of hashes, and
    for each position the one before it. Memory: 12 bytes a token and a table; time: a bounded number of comparisons a
    token. As long as the text goes on like the match, nothing is looked up. Where it differs in one token, the match is
    taken to go on behind that, as in a text that is copied with changes.
    """

    name: ClassVar[str] = "ngram"
    is_free: ClassVar[bool] = True
    is_whole: ClassVar[bool] = False
    longest: int = 31
    priors: ClassVar[Sequence[float]] = (0.35, 0.45, 0.6, 0.75, 0.85)
    LEAST = 3  # tokens of a match: shorter ones are chance
    _LENGTHS = (LEAST, 5, 9, 17)  # of matches, from which the next sureness begins
    _LONGEST = 32  # tokens that are compared
    _CANDIDATES = 12

    def __init__(self, prediction: Tokens = (), earlier: Tokens = ()) -> None:
        """prediction: what the answer may be like; it is proposed from its beginning on. earlier: other texts, with GAP
        between."""
        self._prediction = prediction
        self._earlier = earlier

    def begin(self, tokens: Tokens) -> None:
        gap = np.full(1, GAP, dtype=np.int32)
        earlier, given, own = (np.asarray(each, dtype=np.int32) for each in (self._earlier, self._prediction, tokens))
        text = np.concatenate([earlier, gap, given, gap, own])
        self._bits = min(20, max(12, len(text).bit_length() + 1))
        self._text = array("i", text.tobytes())
        self._heads, self._before = _index(text, self._bits)
        self._source = len(earlier) + 1 if len(given) else -1  # of the next token, as the match has it; -1: there is none
        self._length = _SETTLED if len(given) else 0  # tokens of the match so far

    def feed(self, token: int) -> None:
        if self._source >= 0:
            if self._text[self._source] == token:
                self._length += 1
            else:
                self._source = -1 if self._length < _SETTLED else self._source
                self._length = 0
            if self._source >= 0:
                self._source += 1
        text = self._text
        text.append(token)
        at = len(text) - 1
        key = _hash(text[at - 2], text[at - 1], token, self._bits) if at >= 2 else 0
        self._before.append(self._heads[key])
        self._heads[key] = at

    def propose(self, most: int) -> Draft:
        if self._source < 0 or self._length < self.LEAST:
            self._look_up()
        if self._source < 0:
            return Draft()
        text, at, end = self._text, self._source, len(self._text)
        tokens = text[at : at + most].tolist()
        period = end - at
        while len(tokens) < most:  # the match reaches up to here: it repeats itself
            tokens += tokens[len(tokens) - period :][: most - len(tokens)]
        if GAP in tokens:
            tokens = tokens[: tokens.index(GAP)]
        return Draft(tokens, [bisect_right(self._LENGTHS, self._length)] * len(tokens))

    def _look_up(self) -> None:
        """Finds the longest match of the text's end, the latest among equals."""
        text, last = self._text, len(self._text) - 1
        best, length = -1, self.LEAST - 1
        at = self._before[last]
        for _ in range(self._CANDIDATES):
            if at < 0:
                break
            n = 0
            while n < self._LONGEST and n <= at and text[at - n] == text[last - n] != GAP:
                n += 1
            if n > length:
                best, length = at, n
            at = self._before[at]
        if best >= 0:
            self._source, self._length = best + 1, length


def _hash(first: int, second: int, third: int, bits: int) -> int:
    return ((first * _HASH[0] + second * _HASH[1] + third * _HASH[2]) & 0xFFFFFFFF) >> (32 - bits)


def _index(text: npt.NDArray[np.int32], bits: int) -> tuple[array[int], array[int]]:
    """The latest position of each hash of three tokens, -1 for none, and of each position the one of its hash before it."""
    heads, before = np.full(1 << bits, -1, dtype=np.int32), np.full(len(text), -1, dtype=np.int32)
    if len(text) >= 3:
        wide = text.astype(np.uint32)
        keys = (wide[:-2] * np.uint32(_HASH[0]) + wide[1:-1] * np.uint32(_HASH[1]) + wide[2:] * np.uint32(_HASH[2]))
        keys >>= np.uint32(32 - bits)
        order = np.argsort(keys, kind="stable")
        places = (order + 2).astype(np.int32)
        same = keys[order[1:]] == keys[order[:-1]]
        before[places[1:][same]] = places[:-1][same]
        heads[keys[order]] = places  # of several the last one stays, which is the latest
    return array("i", heads.tobytes()), array("i", before.tobytes())


class ModelDrafter:
    """Proposes what a part of the model drafts from what the session evaluates."""

    is_free: ClassVar[bool] = False
    priors: ClassVar[Sequence[float]] = (0.2, 0.4, 0.6, 0.8)
    _CHANCES = (0.3, 0.6, 0.85)  # that it gives a token, from which the next sureness begins

    def __init__(self, session: Session, longest: int) -> None:
        self.longest = longest
        with suppress(MemoryLimitError):  # then it drafts with the head itself
            session.model.prepare_drafts()
        self._session = session
        self._token = 0

    def begin(self, tokens: Tokens) -> None:
        """It sees what the session evaluates."""

    def feed(self, token: int) -> None:
        self._token = token

    def propose(self, most: int) -> Draft:
        tokens, chances = self._session.draft_tokens(self._token, min(most, self.longest))
        return Draft(tokens, [bisect_right(self._CHANCES, chance) for chance in chances])


class MtpDrafter(ModelDrafter):
    """Proposes what the model's MTP block drafts: a token, and one behind that."""

    name: ClassVar[str] = "mtp"
    is_whole: ClassVar[bool] = False

    def __init__(self, session: Session) -> None:
        super().__init__(session, 2)  # it is trained for one; a third is hardly ever right


class DsparkDrafter(ModelDrafter):
    """Proposes what the model's DSpark stages draft: a block of tokens at once, whose confidences are the chances."""

    name: ClassVar[str] = "dspark"
    is_whole: ClassVar[bool] = True

    def __init__(self, session: Session) -> None:
        super().__init__(session, session.model.info.draft_most)
