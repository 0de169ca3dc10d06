"""How much of a prompt is evaluated at once, so that others wait no longer than they have patience for."""

from __future__ import annotations

PATIENCE = 0.5  # seconds that a stream waits for others at most, where single steps are no longer
_LEAST_CHUNK = 8  # tokens of a prompt that are evaluated at once, however slow the machine
_FIRST_CHUNK = 16


class Pacing:
    """Learns how fast prompts are read. most: tokens of one step."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._chunk = min(_FIRST_CHUNK, most)  # tokens that fit PATIENCE, as far as is known
        self._rate = 0.0  # tokens a second

    def chunk(self, seconds: float | None) -> int:
        """Tokens that are evaluated in about so many seconds; None: as many as one step can take."""
        if seconds is None:
            return self.most
        share = max(0.0, seconds) / PATIENCE
        return max(min(_LEAST_CHUNK, self.most), min(self.most, int(self._chunk * share)))

    def seconds(self, n: int) -> float:
        """What a step of n tokens will take; an hour where nobody knows."""
        return n / self._rate if self._rate else 3600.0

    def learn(self, n: int, seconds: float) -> None:
        """From what a step of n tokens took."""
        seconds = max(seconds, 1e-6)
        self._rate = n / seconds if n >= 64 or not self._rate else self._rate
        if n * 2 >= self._chunk or seconds > PATIENCE:  # a step has a part that every length costs: short ones tell little
            self._chunk = max(1, int(min(n * PATIENCE / seconds, 2 * n)))
