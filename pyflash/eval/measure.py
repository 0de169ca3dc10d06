"""Evaluates the windows of a text and gathers their statistics."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from pyflash.engine.choices import Choices
from pyflash.engine.model import Model
from pyflash.engine.session import Session
from pyflash.eval.logits_file import LogitsFile, LogitsWriter
from pyflash.eval.statistics import BaseRows, DivergenceStatistics, LogitRows, PerplexityStatistics
from pyflash.eval.windows import Windows
from pyflash.native.values import FloatArray

MOST_LOGITS_BYTES = 1 << 28  # that one evaluation gives: 519 positions of the real vocabulary

Piece = tuple[int, int]  # scored positions begin to end of a window, counted from its first scored one


def pieces(windows: Windows, chunk: int) -> Iterator[Piece]:
    """Those in which a window is evaluated, chunk tokens at most at a time."""
    n, first = windows.n_ctx - 1, windows.first
    for begin in range(0, n, chunk):
        end = min(begin + chunk, n)
        if end > first:
            yield max(begin - first, 0), end - first


class Evaluator:
    """Logits of windows, a piece at a time, in a session of its own."""

    def __init__(self, model: Model, n_ctx: int, cache: str = "auto") -> None:
        self.info = model.info
        self._session: Session = model.session(context=n_ctx, cache=cache, checkpoints=0)
        self.chunk = min(self._session.chunk, max(1, MOST_LOGITS_BYTES // (4 * model.info.n_vocab)))

    def note(self, choices: Choices) -> None:
        """Has every window's choices written there. UnsupportedError with a device."""
        self._session.note_choices(choices)

    def hold(self, choices: Choices) -> None:
        """Has what is written there held in every window. UnsupportedError with a device."""
        self._session.hold_choices(choices)

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
    """The statistics so far, after each window. writer: gets the logits of every scored position, and the choices, if it
    takes any."""
    statistics = PerplexityStatistics()
    choices = None
    if writer is not None and writer.sizes is not None:
        choices = Choices.of(evaluator.info, windows.n_ctx - 1)
        evaluator.note(choices)
    for index in range(windows.count):
        targets = windows.targets(index)
        for (begin, end), logits in evaluator.window(windows, index):
            statistics.add(logits, targets[begin:end])
            if writer is not None:
                writer.add(logits)
            del logits
        if writer is not None and choices is not None:
            writer.add_choices(choices)
        yield statistics


class Base(Protocol):
    """What a model is compared with. chunk: most tokens that a piece may evaluate; None: any number."""

    chunk: int | None

    def window(self, windows: Windows, index: int, chunk: int) -> Callable[[Piece], BaseRows]: ...

    def tell_choices(self, choices: Choices) -> None:
        """From now on those of a piece's tokens, and of the tokens before, are written there when its rows are asked for."""


class ModelBase:
    """Another model, or the same one with other precision, which evaluates the same windows side by side."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.chunk: int | None = evaluator.chunk

    def tell_choices(self, choices: Choices) -> None:
        self._evaluator.note(choices)

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
        self._choices: Choices | None = None

    def tell_choices(self, choices: Choices) -> None:
        self._choices = choices

    def window(self, windows: Windows, index: int, chunk: int) -> Callable[[Piece], BaseRows]:
        if self._choices is not None:
            self._file.read_choices(index, self._choices)
        return lambda piece: self._file.rows(index, *piece)


def measure_divergence(
    evaluator: Evaluator, windows: Windows, base: Base, hold_choices: bool = False
) -> Iterator[DivergenceStatistics]:
    """The statistics so far, after each window. hold_choices: the model attends to the rows and uses the experts that the
    base chose; both must have the same Sizes."""
    statistics = DivergenceStatistics()
    chunk = min(evaluator.chunk, base.chunk or evaluator.chunk)
    if hold_choices:
        choices = Choices.of(evaluator.info, windows.n_ctx - 1)
        base.tell_choices(choices)
        evaluator.hold(choices)
    for index in range(windows.count):
        targets = windows.targets(index)
        base_rows, found = base.window(windows, index, chunk), evaluator.window(windows, index, chunk)
        for piece in pieces(windows, chunk):
            rows = base_rows(piece)  # before the model's: it may need what the base chose
            _, logits = next(found)
            statistics.add(logits, rows, targets[slice(*piece)])
            del logits, rows
        yield statistics
