"""What of conversations is kept on disk, and when: rows as they are evaluated, a position where a conversation will go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.serve.disk_cache import LEAST_TOKENS, DiskCache
from pyflash.serve.job import Job
from pyflash.serve.turns import TurnStore

_WORTH_READING = 512  # tokens that the disk has and no session
_A_LOSS = 4096  # tokens evaluated of a prompt, after which it is kept on the way
_MOST_LOGGED = 256 << 20
_LONGEST_WAIT = 1.0  # seconds that the end of an answer waits for the disk
_WORTH_KEEPING = 256  # tokens evaluated for a request that was given up


class Keeping:
    """Between the engine and the prefix cache on disk, which may be none. For the engine's thread."""

    def __init__(self, disk: DiskCache | None, turns: TurnStore) -> None:
        self._disk, self._turns = disk, turns
        self._n_logged = 0  # bytes of turns since their log was written anew

    def open(self, model: Model, session: Session) -> None:
        """Finds what there is of a model, its turns too."""
        if self._disk is not None:
            self._disk.open(model, session)
            self._turns.restore(self._disk.read_turns(), model.info.n_vocab)
            self._disk.rewrite_turns(self._turns.dump())

    def close(self) -> None:
        """Writes what waits to be."""
        if self._disk is not None:
            self._disk.close()

    def has_better(self, job: Job, n_kept: int) -> bool:
        """Whether the disk has more of a job's prompt than the n_kept tokens that a session has."""
        return (self._disk is not None and job.request.reuse
                and self._disk.find(job.prompt.tokens, job.salt, n_kept + _WORTH_READING) is not None)

    def restoring(self, job: Job) -> Iterator[None]:
        """Brings a job's session as far into its prompt as the disk goes, piece by piece."""
        assert self._disk is not None and job.slot is not None
        return self._disk.restore(job.slot.session, job.tokens, job.salt, job.slot.session.position + _WORTH_READING)

    def rows(self, job: Job) -> None:
        """After a piece of a job's prompt."""
        if self._disk is not None and job.slot is not None and _is_worth_rows(job):
            self._disk.append(job.slot.session, job.salt)

    def mark(self, job: Job) -> None:
        """Where a prompt was worth a checkpoint: the end of what other conversations begin with, or so far into it that it
        would be a loss."""
        if self._disk is None or job.slot is None or not _is_worth_rows(job):
            return
        position = job.slot.session.position
        is_base = position == job.prompt.system_end
        if is_base or position - job.n_cached >= _A_LOSS:
            self._disk.save(job.slot.session, job.salt, kind="base" if is_base else "turn")

    def end(self, job: Job) -> None:
        """When a job lets go of its slot: where its conversation will go on."""
        if self._disk is None or job.slot is None or job.restoring is not None:
            return
        session, is_read = job.slot.session, job.answer is not None and job.answer.n_generated > 0
        n_new = session.position - job.n_cached
        if n_new < (1 if is_read and job.request.is_conversation else _WORTH_KEEPING) or not _is_worth_rows(job):
            return
        self._disk.save(session, job.salt, len(job.tokens) if is_read and _drops_reasoning(job) else None)

    def when_kept(self, tell: Callable[[], None]) -> None:
        """Calls tell once what there was to keep is written: of an answer whose end has been heard nothing is lost then,
        however the process ends. A disk that is slow is not waited for. On any thread."""
        if self._disk is None:
            tell()
        else:
            self._disk.when_written(tell, _LONGEST_WAIT)

    def turn(self, job: Job) -> None:
        """When a turn is complete."""
        if self._disk is not None and (line := self._turns.line(job.turn_id)):
            self._disk.add_turn(line)
            self._n_logged += len(line)
            if self._n_logged > _MOST_LOGGED:  # the store has let go of most of them
                self._n_logged = 0
                self._disk.rewrite_turns(self._turns.dump())


def _is_worth_rows(job: Job) -> bool:
    """Completions come with every key that somebody types, and are hardly ever gone on with."""
    return job.request.is_conversation or len(job.tokens) - job.n_cached >= LEAST_TOKENS


def _drops_reasoning(job: Job) -> bool:
    """Whether the next turn's prompt leaves out what was thought now, so that it goes on from this prompt's end."""
    opening = job.prompt.opening
    return opening is not None and opening.kind == "reasoning" and not job.request.tool_schemas
