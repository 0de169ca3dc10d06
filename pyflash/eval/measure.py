"""Evaluates the windows of a text and gathers their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.eval.logits_file import LogitsFile, LogitsWriter
from pyflash.eval.statistics import BaseRows, DivergenceStatistics, LogitRows, PerplexityStatistics
from pyflash.eval.windows import Windows
from pyflash.native.values import FloatArray

MOST_LOGITS_BYTES = 1 << 28  # that one evaluation gives: 519 positions of the real vocabulary

Piece = tuple[int, int]  # scored positions begin to end of a window, counted from its first scored one


class Evaluator:
    """Logits of windows, a piece at a time, in a session of its own."""

    def __init__(self, model: Model, n_ctx: int, cache: str = "auto") -> None:
        self._session: Session = model.session(context=n_ctx, cache=cache, checkpoints=0)
        self.chunk = min(self._session.chunk, max(1, MOST_LOGITS_BYTES // (4 * model.info.n_vocab)))

    def window(self, windows: Windows, index: int, chunk: int | None = None) -> Iterator[tuple[Piece, FloatArray]]:
        """(piece, float32 [its positions, vocab]) in order. chunk: most tokens that one piece evaluates."""
        chunk = chunk or self.chunk
        session, first = self._session, windows.first
        session.rollback(session.position)
        tokens = windows.inputs(index)
        for begin in range(0, len(tokens), chunk):
            end = min(begin + chunk, len(tokens))
            scored = end > first
            logits = session.eval(tokens[begin:end], all_logits=scored)
            if scored:
                yield (max(begin - first, 0), end - first), logits[max(first - begin, 0) :]
            del logits  # before the next ones are made; who iterates does the same

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Evaluator:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def measure_perplexity(
    evaluator: Evaluator, windows: Windows, writer: LogitsWriter | None = None
) -> Iterator[PerplexityStatistics]:
    """The statistics so far, after each window. writer: gets the logits of every scored position."""
    statistics = PerplexityStatistics()
    for index in range(windows.count):
        targets = windows.targets(index)
        for (begin, end), logits in evaluator.window(windows, index):
            statistics.add(logits, targets[begin:end])
            if writer is not None:
                writer.add(logits)
            del logits
        yield statistics


class Base(Protocol):
    """What a model is compared with. chunk: most tokens that a piece may evaluate; None: any number."""

    chunk: int | None

    def window(self, windows: Windows, index: int, chunk: int) -> Callable[[Piece], BaseRows]: ...


class ModelBase:
    """Another model, or the same one with other precision, which evaluates the same windows side by side."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.chunk: int | None = evaluator.chunk

    def window(self, windows: Windows, index: int, chunk: int) -> Callable[[Piece], BaseRows]:
        pieces = self._evaluator.window(windows, index, chunk)

        def rows(piece: Piece) -> BaseRows:
            found, logits = next(pieces)
            if found != piece:
                raise AssertionError(f"pieces {found} and {piece} do not go together")
            return LogitRows(logits)

        return rows


class FileBase:
    """Log-probabilities kept in a file."""

    chunk: int | None = None

    def __init__(self, file: LogitsFile) -> None:
        self._file = file

    def window(self, windows: Windows, index: int, chunk: int) -> Callable[[Piece], BaseRows]:
        return lambda piece: self._file.rows(index, *piece)


def measure_divergence(evaluator: Evaluator, windows: Windows, base: Base) -> Iterator[DivergenceStatistics]:
    """The statistics so far, after each window."""
    statistics = DivergenceStatistics()
    chunk = min(evaluator.chunk, base.chunk or evaluator.chunk)
    for index in range(windows.count):
        targets = windows.targets(index)
        base_rows = base.window(windows, index, chunk)
        for piece, logits in evaluator.window(windows, index, chunk):
            statistics.add(logits, base_rows(piece), targets[slice(*piece)])
            del logits
        yield statistics
