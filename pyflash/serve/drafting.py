"""Drafts of the server's answers: several tokens of each stream are checked in a step, and no answer is changed by it."""

from __future__ import annotations

from collections.abc import Sequence

from pyflash.engine.draft_lengths import DraftLedger
from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.engine.speculation import MOST_DRAFTED, Choosing, DraftStats, drafters_of, unusable_drafter
from pyflash.native.values import Tokens
from pyflash.serve.answer import Answer
from pyflash.serve.earlier import EarlierOutputs
from pyflash.serve.errors import RequestError
from pyflash.serve.request import Request


class JobDrafts:
    """The drafts of one answer. Its drafters know the text of its session, what its client predicts, and what was generated
    before for the same key: nothing of other keys'."""

    def __init__(self, session: Session, choosing: Choosing | None, most: int) -> None:
        self._session = session
        self._choosing = choosing
        self._most = min(most, session.most_ahead - 1)
        self._has_begun = False
        self.stats = DraftStats()

    def run(self, answer: Answer, rows: int, expected: float) -> tuple[list[int], float]:
        """The next token of an answer and those that are to be checked behind it, and how many of these are expected to
        come true. rows, expected: of the step so far, with the token."""
        token = answer.next_token
        assert token is not None
        self.stats.n_steps += 1
        if answer.expected:  # by a grammar; they are nearly always right
            ahead = answer.expected[: min(self._room(), self._session.most_ahead - 1)]
            return [token, *ahead], float(len(ahead))
        most = min(self._most, self._room(), answer.n_left - 1)
        if self._choosing is None or most < 1 or answer.left_out or self._session.is_watched:
            return [token], 0.0
        if not self._has_begun:
            self._choosing.begin(self._session.tokens)
            self._choosing.feed(token)
            self._has_begun = True
        ahead = self._choosing.checkable(self._session.model.info, most, rows, expected)
        return [token, *ahead], self._choosing.promised

    def _room(self) -> int:
        return self._session.capacity - self._session.position - 1

    def picked(self, token: int) -> None:
        if self._has_begun and self._choosing is not None:
            self._choosing.feed(token)


class Drafting:
    """What drafts all streams of a model, and what is measured of its steps."""

    def __init__(self, model: Model, draft: str, draft_max: int | None) -> None:
        """draft, draft_max: of requests that say nothing, see Session.generate()."""
        self._model = model
        self._draft, self._most = draft, draft_max or MOST_DRAFTED
        self._ledger = DraftLedger()
        self._earlier = EarlierOutputs()

    def begin(self, request: Request, session: Session, salt: bytes) -> JobDrafts:
        """Of an answer to a request that came with a key."""
        draft = request.draft or self._draft
        prediction = self._model.tokenizer.encode(request.prediction) if request.prediction else ()
        drafters = drafters_of(session, draft, prediction, self._earlier.of(salt))
        return JobDrafts(session, Choosing(drafters, self._ledger) if drafters else None, self._most)

    def ended(self, salt: bytes, output: Tokens) -> None:
        """An answer did, with these tokens: drafts of later ones for the same key know them."""
        if self._draft != "off":
            self._earlier.add(salt, output)

    def took(self, n_rows: int, seconds: float) -> None:
        """A step of so many rows did."""
        self._ledger.times.add(n_rows, seconds)

    def runs(self, work: Sequence[tuple[JobDrafts, Answer]]) -> list[list[int]]:
        """What each stream brings to a step: the drafts of one cost what the rows of all before it leave."""
        rows, expected, runs = len(work), float(len(work)), []
        for drafts, answer in work:
            run, promised = drafts.run(answer, rows, expected)
            rows, expected = rows + len(run) - 1, expected + promised
            runs.append(run)
        return runs


def check_draft(request: Request, model: Model) -> None:
    """RequestError for a drafter that can never work with the model."""
    why_not = unusable_drafter(request.draft, model.info)
    if why_not:
        raise RequestError(f"draft: {why_not}; leave it out, or ask for \"auto\"", param="draft")
