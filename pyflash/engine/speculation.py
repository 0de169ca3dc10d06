"""Speculation: several tokens that may come next are checked in one step, and no answer is changed by it.

The token behind the last one is picked from the model's own logits, exactly as without drafts, and a drafted token counts
only if it is the one that is picked: then its logits are there already. So an answer depends on the drafts in nothing but
time, whatever the sampling options, and because a step's logits are the same bits however its tokens are split
(docs/bits.md), in no bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

from pyflash.engine.draft_lengths import DraftLedger, DrafterRecord
from pyflash.engine.drafts import Draft, Drafter, DsparkDrafter, MtpDrafter, NgramDrafter
from pyflash.native.errors import ArgumentError, CancelledError, Error, UnsupportedError
from pyflash.native.values import FloatArray, Tokens, integer

if TYPE_CHECKING:
    from pyflash.engine.model import ModelInfo
    from pyflash.engine.session import Session
    from pyflash.engine.stream import Cancellation

# tokens so far, the last of them not evaluated yet; how many may be proposed -> what may come next
Propose = Callable[[Sequence[int], int], Sequence[int]]

DRAFTERS: Final = ("auto", "off", "ngram", "mtp", "dspark")
_OF_MODELS: Final[dict[str, tuple[type[MtpDrafter | DsparkDrafter], str]]] = {
    "mtp": (MtpDrafter, "MTP block"), "dspark": (DsparkDrafter, "DSpark stages"),
}
_COMPARED: Final = 4  # drafts at once, the latest ones, that go on as what is picked does
MOST_DRAFTED: Final = 31  # tokens: by then a draft has gained nearly all that it can


@dataclass(unsafe_hash=True)
class DraftStats:
    """n_steps: steps behind the prompt's; n_drafted: drafted tokens that they checked; n_kept: of these, those that were
    picked. Each step gives one token, and those that it keeps."""

    n_steps: int = 0
    n_drafted: int = 0
    n_kept: int = 0

    @property
    def tokens_per_step(self) -> float:
        return (self.n_steps + self.n_kept) / self.n_steps if self.n_steps else 1.0


class Choosing:
    """Asks drafters, the first one first, and decides by the ledger how many of their tokens are worth a step's rows.

    What a drafter proposes is compared with what is picked, whether it is checked or not.
    """

    def __init__(self, drafters: Sequence[Drafter], ledger: DraftLedger) -> None:
        self._drafters = drafters
        self._ledger = ledger
        self._compared: list[tuple[DrafterRecord, Draft, int]] = []  # drafts, and how many of their tokens were right
        self.promised = 0.0

    def begin(self, tokens: Tokens) -> None:
        for drafter in self._drafters:
            drafter.begin(tokens)

    def feed(self, token: int) -> None:
        for drafter in self._drafters:
            drafter.feed(token)
        still = []
        for record, draft, n in self._compared[-_COMPARED:]:
            is_right = draft.tokens[n] == token
            record.note(draft.sureness[n], n + 1, is_right)
            if is_right and n + 1 < len(draft.tokens):
                still.append((record, draft, n + 1))
        self._compared = still

    def propose(self, most: int) -> Sequence[int]:
        return self.propose_beside(most, 1, 1.0)

    def checkable(self, info: ModelInfo, most: int, n_rows: int, expected: float) -> list[int]:
        """The same beside other rows, up to what cannot be checked: see propose_beside()."""
        return checkable(self.propose_beside(most, n_rows, expected), most, info)

    def propose_beside(self, most: int, n_rows: int, expected: float) -> Sequence[int]:
        """Tokens worth their rows in a step that has n_rows already, of which so many tokens are expected. promised: how
        many more are expected then."""
        times = self._ledger.times
        self.promised = 0.0
        for drafter in self._drafters:
            record = self._ledger.of(drafter)
            n = most if drafter.is_free else record.worth_asking(times, min(most, drafter.longest))
            if n == 0:
                continue
            began = time.perf_counter()
            draft = drafter.propose(n)
            if not draft.tokens:
                continue
            if not drafter.is_free:
                record.took(time.perf_counter() - began, len(draft.tokens))
            self._compared.append((record, draft, 0))
            n, self.promised = record.best_length(draft.sureness, times, n_rows, expected)
            if n:
                return draft.tokens[:n]
        return ()

    def took(self, n_rows: int, seconds: float) -> None:
        """A step did."""
        self._ledger.times.add(n_rows, seconds)


class Source(Protocol):
    """Where drafts of a generation come from: Choosing, Given, or what measures."""

    def begin(self, tokens: Tokens) -> None:
        """A generation begins behind tokens."""

    def feed(self, token: int) -> None:
        """A token was picked, which is not evaluated yet."""

    def propose(self, most: int) -> Sequence[int]:
        """At most so many tokens behind the last one that was picked."""

    def took(self, n_rows: int, seconds: float) -> None:
        """A step of so many rows did."""


class Given:
    """Takes the tokens that a function proposes, as they are."""

    def __init__(self, propose: Propose) -> None:
        self._propose = propose
        self._tokens: list[int] = []

    def begin(self, tokens: Tokens) -> None:
        self._tokens = [int(token) for token in tokens]

    def feed(self, token: int) -> None:
        self._tokens.append(token)

    def propose(self, most: int) -> Sequence[int]:
        return self._propose(self._tokens, most)

    def took(self, n_rows: int, seconds: float) -> None:
        """It measures nothing."""


def checkable(tokens: Sequence[int], most: int, info: ModelInfo) -> list[int]:
    """Tokens up to what can be no row: nothing is evaluated behind the end token."""
    found = []
    for token in tokens[:most]:
        if not 0 <= token < info.n_vocab or token == info.eos_token:
            break
        found.append(int(token))
    return found


class Speculation:
    """Gives a session's logits behind one token after the other, of drafts that came true from the step that checked them."""

    def __init__(self, session: Session, source: Source | None, draft_max: int) -> None:
        """source: of drafts; None: there are none. draft_max: tokens of one, at most."""
        self._session = session
        self._source = source
        self._most = min(draft_max, session.most_ahead - 1)
        self._ahead: list[int] = []  # evaluated behind the last token
        self._rows: list[FloatArray] = []  # logits of the step that they are of
        self._row = 0  # the last token's
        self.stats = DraftStats()

    def begin(self) -> None:
        """The session has evaluated a prompt."""
        if self._source is not None:
            self._source.begin(self._session.tokens)

    def after(self, token: int, left: int, cancellation: Cancellation) -> FloatArray:
        """Logits behind a token, which is evaluated, [vocab]. left: tokens that will be picked at most. Raises what
        Session.eval() raises."""
        if self._source is not None:
            self._source.feed(token)
        if self._ahead and self._ahead.pop(0) == token and self._session.advance():
            self.stats.n_kept += 1
            self._row += 1
            return self._rows[self._row]
        self.stats.n_steps += 1
        self._ahead = self._drafted(left)
        if self._ahead:
            rows = self._checked(token, cancellation)
            if rows is not None:
                self._rows, self._row = list(rows), 0
                return self._rows[0]
        began = time.perf_counter()
        logits = self._session.eval([token], cancellation=cancellation)
        if self._source is not None:
            self._source.took(1, time.perf_counter() - began)
        return logits

    def _drafted(self, left: int) -> list[int]:
        """What a step may check behind a token: nothing behind the end token, and nothing that cannot be picked any more."""
        session = self._session
        most = min(self._most, left - 1, session.capacity - session.position - 1)
        if self._source is None or most < 1 or session.is_watched:
            return []
        return checkable(self._source.propose(most), most, session.model.info)

    def _checked(self, token: int, cancellation: Cancellation) -> FloatArray | None:
        """Logits behind a token and those that were drafted, [1 + n, vocab]; None where the drafts' share cannot be
        evaluated: what fails because of them must not be heard of."""
        run = [token, *self._ahead]
        began = time.perf_counter()
        try:
            rows = self._session.eval_ahead(run, cancellation=cancellation)
        except CancelledError:
            raise
        except Error:
            self._ahead = []
            return None
        assert self._source is not None
        self._source.took(len(run), time.perf_counter() - began)
        self.stats.n_drafted += len(self._ahead)
        return rows


def speculation(session: Session, draft: str | Propose, draft_max: int | None, prediction: Tokens = ()) -> Speculation:
    """What draft and draft_max of Session.generate() ask for. prediction: what an n-gram drafter has beside the session."""
    most = MOST_DRAFTED if draft_max is None else integer("draft_max", draft_max, 1, MOST_DRAFTED)
    if callable(draft):
        return Speculation(session, Given(draft), most)
    drafters = drafters_of(session, draft, prediction)
    return Speculation(session, Choosing(drafters, session.draft_ledger) if drafters else None, most)


def drafters_of(session: Session, draft: str, prediction: Tokens = (), earlier: Tokens = ()) -> list[Drafter]:
    """The drafters that a name stands for, [] for none. prediction, earlier: see NgramDrafter. ArgumentError, or
    UnsupportedError where the model has none such."""
    if draft not in DRAFTERS:
        raise ArgumentError(f"unknown drafter {draft!r:.40}; use one of {', '.join(DRAFTERS)}, or a function")
    found = session.model.info.drafts
    why_not = unusable_drafter(draft, session.model.info)
    if why_not:
        raise UnsupportedError(f'{why_not}; use draft "auto" or "ngram"')
    drafters: list[Drafter] = []
    if draft in ("auto", "ngram"):
        drafters.append(NgramDrafter(prediction, earlier))
    if draft in ("auto", found) and found in _OF_MODELS:
        drafters.append(_OF_MODELS[found][0](session))
    return drafters


def unusable_drafter(draft: str | None, info: ModelInfo) -> str:
    """Why a drafter that is named can never work with a model; "" where it can."""
    if draft not in _OF_MODELS or draft == info.drafts:
        return ""
    has = f", but {_OF_MODELS[info.drafts][1]}" if info.drafts in _OF_MODELS else ""
    return f"this model has no {_OF_MODELS[draft][1]} to draft with{has}"
