"""A prompt on its way through the stages of a model: several pieces at once, on a thread of its own, while the engine's goes on
with other conversations."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import cast

from pyflash.engine.chained_session import ChainedSession
from pyflash.engine.stream import Cancellation
from pyflash.native.values import FloatArray
from pyflash.serve import events
from pyflash.serve.job import Job
from pyflash.serve.pacing import Pacing


class Reading:
    """Evaluates a job's tokens up to a position. The job's session is this thread's until is_over."""

    def __init__(self, job: Job, end: int, pacing: Pacing, patience: Callable[[], float | None], over: Callable[[], None]) -> None:
        """patience: seconds that one stage may take for the next piece, None for any; over: is called at the end. Both on the
        thread of this."""
        assert job.slot is not None
        self._job, self.begin, self.end = job, job.slot.session.position, end
        self._session = cast("ChainedSession", job.slot.session)
        self._pacing, self._patience, self._over = pacing, patience, over
        self._n_stages: int = self._session.model.n_stages
        self._cancellation = Cancellation()
        self._found: FloatArray | BaseException | None = None
        self._began = self._latest = time.monotonic()
        self._n_done = 0
        self._piece_seconds = pacing.seconds(pacing.most)
        self._thread = threading.Thread(target=self._run, name="pyflash reading", daemon=True)
        self._thread.start()

    # -- from any thread --

    def cancel(self) -> None:
        """It ends soon, with CancelledError, at a position that all stages can return to."""
        self._cancellation.request()

    @property
    def is_over(self) -> bool:
        return self._found is not None

    @property
    def latest(self) -> float:
        """When something was evaluated last."""
        return self._latest

    @property
    def seconds_in_front(self) -> float:
        """How long what comes now may wait for the pieces that are under way."""
        return self._piece_seconds * (self._n_stages + 1)

    @property
    def seconds(self) -> float:
        """That it has taken so far."""
        return self._latest - self._began

    def result(self) -> FloatArray:
        """The logits behind the last token, or what ended it. Waits."""
        self._thread.join()
        if isinstance(self._found, BaseException):
            raise self._found
        assert self._found is not None
        return self._found

    # -- on the thread --

    def _run(self) -> None:
        try:
            found: FloatArray | BaseException = self._session.eval(
                self._job.tokens[self.begin : self.end], progress=self._told, cancellation=self._cancellation,
                piece=self._next_piece)  # fmt: skip
        except BaseException as error:  # the engine raises it where it belongs
            found = error
        self._latest = time.monotonic()
        self._found = found
        self._over()

    def _next_piece(self) -> int:
        n = self._pacing.chunk(self._patience())
        self._piece_seconds = self._pacing.seconds(n)
        return n

    def _told(self, n_done: int, _total: int) -> None:
        now, job = time.monotonic(), self._job
        took = now - self._latest if self._n_done else (now - self._latest) / self._n_stages  # the first one filled all stages
        self._pacing.learn(n_done - self._n_done, took)
        self._n_done, self._latest = n_done, now
        at = self.begin + n_done
        if at < self.end:
            job.tell(events.Progress(len(job.tokens), job.n_cached, at, now - job.began))
