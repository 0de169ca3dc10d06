"""How many drafted tokens are worth checking: by what steps are measured to take, and how often drafts were right."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pyflash.engine.drafts import Drafter

_SAMPLES: Final = 9  # latest ones of each size, whose median counts
_LEAST_SAMPLES: Final = 2  # of plain steps, before which nothing is known
_TRUSTED_SAMPLES: Final = 4  # of longer steps, before which they are taken for no slower than others say
_ROW: Final = 0.35  # of a plain step: what a further row takes, as long as none was measured
_GAIN: Final = 1.03  # what a draft must promise: less is within the error of measuring
_LEAST_CHANCE: Final = 0.05  # of a token to be kept, below which no row is spent on it
_FADE: Final = 0.97  # of what was counted, with each token that is counted
_DOUBT: Final = 4.0  # tokens that the assumed rate counts as
_PLACES: Final = 8  # of a draft's tokens, that are counted by themselves; those behind count as the last one
_LONGER_EVERY: Final = 6  # drafts
_FIRST_PROBE, _LAST_PROBE = 64, 1024  # tokens between attempts where nothing is gained


class StepTimes:
    """What steps take by their rows: the median of the latest of each size. Between sizes that were measured it is taken
    to rise evenly, and beyond the largest as steeply as before."""

    def __init__(self) -> None:
        self._samples: dict[int, deque[float]] = {}
        self._typical: dict[int, float] = {}  # their medians

    def add(self, n_rows: int, seconds: float) -> None:
        samples = self._samples.setdefault(n_rows, deque(maxlen=_SAMPLES))
        samples.append(seconds)
        self._typical[n_rows] = sorted(samples)[(len(samples) - 1) // 2]

    @property
    def plain(self) -> float | None:
        """Seconds of a step of one row; None as long as too few steps were seen. Of longer ones, where there are no others."""
        size = 1 if 1 in self._typical else min(self._typical, default=1)
        if len(self._samples.get(size, ())) < _LEAST_SAMPLES:
            return None
        return self._typical[size] / (1 + _ROW * (size - 1))

    def of(self, n_rows: int) -> float:
        """Seconds of a step of so many rows. Needs `plain`."""
        estimate = self._estimate(n_rows)
        if n_rows not in self._typical:
            return estimate
        typical = self._typical[n_rows]
        return typical if len(self._samples[n_rows]) >= _TRUSTED_SAMPLES else min(typical, estimate)

    def _estimate(self, n_rows: int) -> float:
        """By steps of other sizes. A size that was met once, and late by chance, would otherwise not be tried again."""
        plain = self.plain
        assert plain is not None
        below = max((size for size in self._typical if size < n_rows), default=1)
        above = min((size for size in self._typical if size > n_rows), default=0)
        low = self._typical.get(below, plain)
        if above:
            return low + max(0.0, self._typical[above] - low) * (n_rows - below) / (above - below)
        slope = max(0.0, low - plain) / (below - 1) if below > 1 else _ROW * plain
        return low + slope * (n_rows - below)

    def measured(self) -> dict[int, float]:
        """Seconds by rows, of all sizes that there are samples of."""
        return dict(sorted(self._typical.items()))


class HitRates:
    """How often drafted tokens were right where all before them were, by sureness and place; older ones count less. A place
    of which little is known is taken to be like the one before it."""

    def __init__(self, priors: Sequence[float]) -> None:
        self._priors = priors
        self._counts: dict[tuple[int, int], tuple[float, float]] = {}  # right ones, all

    def add(self, sureness: int, place: int, is_right: bool) -> None:
        key = (sureness, min(place, _PLACES))
        right, total = self._counts.get(key, (0.0, 0.0))
        self._counts[key] = (right * _FADE + is_right, total * _FADE + 1.0)

    def of(self, sureness: int, place: int) -> float:
        place = min(place, _PLACES)
        right, total = self._counts.get((sureness, place), (0.0, 0.0))
        assumed = self.of(sureness, place - 1) if place > 1 else self._priors[sureness]
        return (right + _DOUBT * assumed) / (total + _DOUBT)


class Probes:
    """When to try again what does not pay: rarely, and ever more rarely."""

    def __init__(self) -> None:
        self._wait = _FIRST_PROBE
        self._waited = 0

    def is_due(self) -> bool:
        """Asked once for each token that nothing was tried for."""
        self._waited += 1
        if self._waited < self._wait:
            return False
        self._waited, self._wait = 0, min(2 * self._wait, _LAST_PROBE)
        return True

    def reset(self) -> None:
        self._wait, self._waited = _FIRST_PROBE, 0


class DrafterRecord:
    """What is known of one drafter: how often it is right, and what its drafts take. is_whole: as of Drafter."""

    def __init__(self, priors: Sequence[float], is_whole: bool) -> None:
        self.rates = HitRates(priors)
        self._is_whole = is_whole
        self.overall = HitRates((sum(priors) / len(priors),))  # whatever the sureness
        self._seconds: deque[float] = deque(maxlen=_SAMPLES)
        self._probes = Probes()
        self._is_probing = False
        self._n_asked = 0

    def took(self, seconds: float, n: int) -> None:
        """A draft of n tokens did."""
        self._seconds.append(seconds if self._is_whole else seconds / n)

    @property
    def seconds(self) -> float:
        """Of a drafted token, or of a draft where these take the same whatever is asked for."""
        return sorted(self._seconds)[len(self._seconds) // 2] if self._seconds else 0.0

    def worth_asking(self, times: StepTimes, most: int) -> int:
        """How many tokens a drafter that takes time is to be asked for: those that gain on average, now and then
        one more, which else would never be counted; or one, to try it again; 0 for none. All, where they take no longer."""
        if times.plain is None:
            return 0
        rates = [self.overall.of(0, place) for place in range(1, most + 1)]
        first, each = (self.seconds, 0.0) if self._is_whole else (0.0, self.seconds)
        n, _ = _best(rates, times, 1, 1.0, first, each)
        if n:
            self._probes.reset()
            self._n_asked += 1
            n = min(most, n + (self._n_asked % _LONGER_EVERY == 0))
        else:
            self._is_probing = self._probes.is_due()
            n = int(self._is_probing)
        return most if n and self._is_whole else n

    def best_length(self, sureness: Sequence[int], times: StepTimes, n_rows: int, expected: float) -> tuple[int, float]:
        """How many tokens of a draft to check, 0 for none, and how many of these are expected to be right. n_rows: that the
        step has without them, of which so many tokens are expected."""
        if times.plain is None:
            return 0, 0.0
        rates = [self.rates.of(sure, place) for place, sure in enumerate(sureness, 1)]
        n, promised = _best(rates, times, n_rows, expected)
        if n:
            self._probes.reset()
        elif rates[0] > 0.5 and (self._is_probing or self._probes.is_due()):
            n, promised = 1, rates[0]  # it would be right, and steps take too long: as far as is known
        self._is_probing = False
        return n, promised


def _best(rates: Sequence[float], times: StepTimes, n_rows: int, expected: float, first: float = 0.0, each: float = 0.0
          ) -> tuple[int, float]:
    """The length that most tokens a second are expected of, and how many tokens more. rates: that a token is right where
    those before it are; n_rows, expected: rows and tokens of the step without it; first, each: seconds that drafting any
    tokens takes, and that each of them adds."""
    best, gained, promised, highest = 0, 0.0, 0.0, _GAIN * expected / times.of(n_rows)
    for n, chance in enumerate(accumulate(rates, mul), 1):
        if chance < _LEAST_CHANCE:
            break
        promised += chance
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
            self._records[drafter.name] = DrafterRecord(drafter.priors, drafter.is_whole)
        return self._records[drafter.name]
