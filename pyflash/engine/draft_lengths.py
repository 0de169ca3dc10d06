"""How many drafted tokens are worth checking: by what steps are measured to take, and how often drafts were right."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyflash.engine.drafts import Drafter

_SAMPLES: Final = 9  # latest ones of each size, whose median counts
_LEAST_SAMPLES: Final = 2  # of plain steps, before which nothing is known
_TRUSTED_SAMPLES: Final = 4  # of longer steps, before which they are taken for no slower than others say
_SPACING: Final = 0.005  # seconds of steps between samples of a size that is trusted, so that a moment's noise is few of them,
# and between decisions of one kind
_STALE: Final = 96  # steps, behind which a size that was not met counts for no more than what others say, and is measured anew
_ROW: Final = 0.35  # of a plain step: what a further row takes, as long as none was measured
_FLATTER: Final = 0.75  # beyond what was measured, than up to there: rows share more and more of what is read
_GAIN: Final = 1.03  # what a draft must promise: less is within the error of measuring
_LEAST_CHANCE: Final = 0.05  # of a token to be kept, below which no row is spent on it
_FADE: Final = 0.98  # of what was counted, with each token that is counted
_DOUBT: Final = 4.0  # tokens that the assumed rate counts as
_PLACES: Final = 8  # of a draft's tokens, that are counted by themselves; those behind count as the last one
_LENGTHS: Final = (1, 2, 3, 4, 5, 7, 11, 15, 23, 31)  # that are weighed: few, so that each is soon measured, and deciding is quick
_LONGER_EVERY: Final = 6  # drafts
_FIRST_PROBE, _LAST_PROBE = 64, 1024  # tokens between attempts where nothing is gained
_FIRST_PLAIN, _LAST_PLAIN = 16, 256  # steps with drafts, behind which one without is measured again


class _Size:
    """What steps of so many rows took. typical: the median of the latest samples. last_step, last_seconds: when one was taken,
    by the steps and the seconds of all."""

    __slots__ = ("last_seconds", "last_step", "samples", "typical")

    def __init__(self) -> None:
        self.samples: deque[float] = deque(maxlen=_SAMPLES)
        self.typical = 0.0
        self.last_step, self.last_seconds = 0, 0.0


class StepTimes:
    """What steps take by their rows: the median of the latest of each size. Between sizes that were measured it is taken
    to rise evenly, and beyond the largest nearly as steeply as before. plain: seconds of a step of one row; None as long as too few
    steps were seen. Of longer ones, where there are no others."""

    def __init__(self) -> None:
        self._of: dict[int, _Size] = {}
        self._sizes: list[int] = []  # ascending
        self._n_steps = 0
        self.seconds = 0.0  # of all steps
        self.plain: float | None = None

    def add(self, n_rows: int, seconds: float) -> None:
        self._n_steps += 1
        self.seconds += seconds
        size = self._of.get(n_rows)
        if size is None:
            size = self._of[n_rows] = _Size()
            insort(self._sizes, n_rows)
        samples = size.samples
        if len(samples) >= _TRUSTED_SAMPLES and self.seconds - size.last_seconds < _SPACING:
            size.last_step = self._n_steps
            return
        while self._is_stale(size) and len(samples) >= _LEAST_SAMPLES:
            samples.popleft()
        samples.append(seconds)
        size.typical = sorted(samples)[(len(samples) - 1) // 2]
        size.last_step, size.last_seconds = self._n_steps, self.seconds
        least = self._sizes[0]
        if n_rows == least and len(samples) >= _LEAST_SAMPLES:
            self.plain = size.typical / (1 + _ROW * (least - 1))

    def _is_stale(self, size: _Size) -> bool:
        return self._n_steps - size.last_step > _STALE

    def of(self, n_rows: int) -> float:
        """Seconds of a step of so many rows. Needs `plain`."""
        size = self._of.get(n_rows)
        if size is None:
            return self._estimate(n_rows)
        if len(size.samples) < _TRUSTED_SAMPLES or self._is_stale(size):
            return min(size.typical, self._estimate(n_rows))
        return size.typical

    def _estimate(self, n_rows: int) -> float:
        """By steps of other sizes. A size that was met once, and late by chance, would otherwise not be tried again."""
        plain, sizes = self.plain, self._fresh(n_rows)
        assert plain is not None
        at = bisect_left(sizes, n_rows)
        below = sizes[at - 1] if at else 1
        low = self._of[below].typical if at else plain
        if at < len(sizes):
            above = sizes[at]
            return low + max(0.0, self._of[above].typical - low) * (n_rows - below) / (above - below)
        slope = _FLATTER * max(0.0, low - plain) / (below - 1) if below > 1 else _ROW * plain
        return low + slope * (n_rows - below)

    def _fresh(self, n_rows: int) -> list[int]:
        """Sizes other than this one that were met of late; all others, where no drafts were checked of late."""
        others = [size for size in self._sizes if size != n_rows]
        fresh = [size for size in others if not self._is_stale(self._of[size])]
        return fresh if fresh and fresh[-1] > self._sizes[0] else others

    def measured(self) -> dict[int, float]:
        """Seconds by rows, of all sizes that there are samples of."""
        return {n_rows: self._of[n_rows].typical for n_rows in self._sizes}


class HitRates:
    """How often drafted tokens were right where all before them were, by sureness and place; older ones count less. A place
    of which little is known is taken to be like the one before it."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._priors = priors
        self._counts: dict[tuple[int, int], tuple[float, float]] = {}  # right ones, all
        self._rates: list[list[float]] = [[] for _ in priors]  # by sureness: of the first places, as far as they were asked for

    def add(self, sureness: int, place: int, is_right: bool) -> None:
        place = min(place, _PLACES)
        right, total = self._counts.get((sureness, place), (0.0, 0.0))
        self._counts[sureness, place] = (right * _FADE + is_right, total * _FADE + 1.0)
        del self._rates[sureness][place - 1 :]

    def of(self, sureness: int, place: int) -> float:
        place = min(place, _PLACES)
        rates = self._rates[sureness]
        while len(rates) < place:
            right, total = self._counts.get((sureness, len(rates) + 1), (0.0, 0.0))
            assumed = rates[-1] if rates else self._priors[sureness]
            rates.append((right + _DOUBT * assumed) / (total + _DOUBT))
        return rates[place - 1]


class Probes:
    """When to try again what does not pay: rarely, and ever more rarely."""

    def __init__(self, first: int = _FIRST_PROBE, last: int = _LAST_PROBE) -> None:
        self._first, self._last = first, last
        self._wait, self._waited = first, 0

    def is_due(self) -> bool:
        """Asked once each time that nothing was tried."""
        self._waited += 1
        if self._waited < self._wait:
            return False
        self._waited, self._wait = 0, min(2 * self._wait, self._last)
        return True

    def reset(self) -> None:
        self._wait, self._waited = self._first, 0


class DrafterRecord:
    """What is known of one drafter: how often it is right, and what its drafts take. is_free, is_whole: as of Drafter."""

    def __init__(self, priors: Sequence[float], is_free: bool, is_whole: bool) -> None:
        self.rates = HitRates(priors)
        self._is_free = is_free
        self._is_whole = is_whole
        self.overall = HitRates((sum(priors) / len(priors),))  # whatever the sureness; not of free ones, which are always asked
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
        self._probes = Probes()
        self._plain_probes = Probes(_FIRST_PLAIN, _LAST_PLAIN)
        self._is_probing = False
        self._n_asked = 0
        self._decided: dict[tuple[object, ...], tuple[int, float]] = {}
        self._decided_at = 0.0

    def took(self, seconds: float, n: int) -> None:
        """A draft of n tokens did."""
        self._seconds.append(seconds if self._is_whole else seconds / n)

    def note(self, sureness: int, place: int, is_right: bool) -> None:
        """A drafted token behind right ones was compared with what came."""
        self.rates.add(sureness, place, is_right)
        if not self._is_free:
            self.overall.add(0, place, is_right)

    @property
    def seconds(self) -> float:
        """Of a drafted token, or of a draft where these take the same whatever is asked for."""
        return sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0

    def worth_asking(self, times: StepTimes, most: int) -> int:
        """How many tokens a drafter that takes time is to be asked for: those that gain on average, now and then
        one more, which else would never be counted; or one, to try it again; 0 for none. All, where they take no longer."""
        if times.plain is None:
            return 0
        n = self._decide(("ask", most), times, lambda: self._gaining(times, most))[0]
        if n:
            self._probes.reset()
            self._n_asked += 1
            n = min(most, n + (self._n_asked % _LONGER_EVERY == 0))
        else:
            self._is_probing = self._probes.is_due()
            n = int(self._is_probing)
        return most if n and self._is_whole else n

    def _gaining(self, times: StepTimes, most: int) -> tuple[int, float]:
        rates = (self.overall.of(0, place) for place in range(1, most + 1))
        first, each = (self.seconds, 0.0) if self._is_whole else (0.0, self.seconds)
        return _best(rates, times, 1, 1.0, first, each)

    def best_length(self, sureness: Sequence[int], times: StepTimes, n_rows: int, expected: float) -> tuple[int, float]:
        """How many tokens of a draft to check, 0 for none, and how many of these are expected to be right. n_rows: that the
        step has without them, of which so many tokens are expected."""
        if times.plain is None:
            return 0, 0.0
        of = self.rates.of
        n, promised = self._decide((*sureness, n_rows, expected), times, lambda: _best(
            (of(sure, place) for place, sure in enumerate(sureness, 1)), times, n_rows, expected))
        if n:
            self._probes.reset()
            # Without drafts so far: what they are weighed against may have been measured when all was slower.
            if n_rows == expected and self._plain_probes.is_due():
                return 0, 0.0
        elif (likely := of(sureness[0], 1)) > 0.5 and (self._is_probing or self._probes.is_due()):
            n, promised = 1, likely  # it would be right, and steps take too long: as far as is known
        self._is_probing = False
        return n, promised

    def _decide(self, case: tuple[object, ...], times: StepTimes, decide: Callable[[], tuple[int, float]]) -> tuple[int, float]:
        """As it was decided for the same case a moment ago: where steps are short, weighing would cost as much as it gains."""
        if times.seconds - self._decided_at >= _SPACING:
            self._decided.clear()
            self._decided_at = times.seconds
        found = self._decided.get(case)
        if found is None:
            found = self._decided[case] = decide()
        return found


def _best(rates: Iterable[float], times: StepTimes, n_rows: int, expected: float, first: float = 0.0, each: float = 0.0
          ) -> tuple[int, float]:
    """The length that most tokens a second are expected of, and how many tokens more. rates: that a token is right where
    those before it are; n_rows, expected: rows and tokens of the step without it; first, each: seconds that drafting any
    tokens takes, and that each of them adds."""
    best, gained, promised, highest = 0, 0.0, 0.0, _GAIN * expected / times.of(n_rows)
    for n, chance in enumerate(accumulate(rates, mul), 1):
        if chance < _LEAST_CHANCE:
            break
        promised += chance
        if n not in _LENGTHS:
            continue
        speed = (expected + promised) / (first + each * n + times.of(n_rows + n))
        if speed > highest:
            best, gained, highest = n, promised, speed
    return best, gained


class DraftLedger:
    """What is measured of steps and drafters, across the answers of a session."""

    def __init__(self) -> None:
        self.times = StepTimes()
        self._records: dict[str, DrafterRecord] = {}

    def of(self, drafter: Drafter) -> DrafterRecord:
        if drafter.name not in self._records:
            self._records[drafter.name] = DrafterRecord(drafter.priors, drafter.is_free, drafter.is_whole)
        return self._records[drafter.name]
