"""Slots: sessions that conversations take turns in, and which one a request gets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pyflash.engine.session import Session
from pyflash.native.errors import MemoryLimitError, UnsupportedError

_HALF_LIFE = 1800.0  # seconds in which what a slot holds loses half of its worth
_WORTH_WAITING = 256  # tokens: a prompt so long is not read twice at once
_SAME_SESSION = 0.5  # of that worth, for the client that the slot's content is of


class Slot:
    """A session and whose it is."""

    def __init__(self, index: int, session: Session) -> None:
        self.index = index
        self.session = session
        self.is_busy = False
        self.salt = b""
        self.hints: tuple[str, ...] = ()
        self.last_used = 0.0
        self.wanted: list[int] = []  # the prompt that it is busy with

    def forget(self) -> None:
        """Drops all that is evaluated."""
        self.session.rollback(self.session.position)

    def checkpoint(self) -> None:
        with contextlib.suppress(UnsupportedError, MemoryLimitError):  # it only saves work later
            self.session.checkpoint()


@dataclass(frozen=True)
class Choice:
    """A slot for a request. tokens: the prompt in the slot's own tokens as far as they spell it; n_kept: how many of them
    are evaluated there; n_lost: tokens that it drops."""

    slot: Slot
    tokens: list[int]
    n_kept: int
    n_lost: int


def measured(slot: Slot, prompt: Sequence[int], salt: bytes, reuse: bool = True, *, aligned: bool = True) -> Choice:
    """What a slot has of a prompt; nothing there changes. aligned: also of the same text in other tokens."""
    position = slot.session.position
    tokens = list(prompt)
    if slot.salt != salt or not reuse:
        return Choice(slot, tokens, 0, position)
    kept = slot.session.reusable(tokens)
    if aligned:
        others = slot.session.align(tokens)
        if len(others) <= slot.session.capacity and (better := slot.session.reusable(others)) > kept:
            tokens, kept = others, better
    return Choice(slot, tokens, kept, position - kept)


def cost(choice: Choice, hints: Sequence[str], now: float) -> float:
    """Tokens to evaluate, and what the loss is worth: the less the longer nobody asked for it."""
    age = max(0.0, now - choice.slot.last_used)
    worth = float(0.5 ** (age / _HALF_LIFE))
    if set(hints) & set(choice.slot.hints):
        worth *= _SAME_SESSION
    return len(choice.tokens) - choice.n_kept + worth * choice.n_lost


def choose(slots: Sequence[Slot], prompt: Sequence[int], salt: bytes, hints: Sequence[str], *,
           reuse: bool = True) -> Choice | None:
    """The slot where a request costs least, of those that are free; None: it waits, because none is free, or because one
    is busy with the very prompt that this one repeats or goes on with."""
    if reuse and any(_goes_on(slot, prompt, salt) for slot in slots if slot.is_busy):
        return None
    free = [measured(slot, prompt, salt, reuse) for slot in slots if not slot.is_busy]
    now = time.monotonic()
    return min(free, key=lambda choice: (cost(choice, hints, now), choice.slot.last_used), default=None)


def _goes_on(slot: Slot, prompt: Sequence[int], salt: bytes) -> bool:
    n = len(slot.wanted)
    return n >= _WORTH_WAITING and slot.salt == salt and len(prompt) >= n and list(prompt[:n]) == slot.wanted


def take(choice: Choice, prompt: Sequence[int], salt: bytes, hints: Sequence[str]) -> int:
    """Makes a slot busy with a request; returns how many of the choice's tokens are evaluated."""
    slot = choice.slot
    slot.is_busy, slot.hints, slot.wanted = True, tuple(hints), list(prompt)
    if slot.salt != salt or choice.n_kept == 0:
        slot.forget()
    slot.salt = salt
    return slot.session.reuse(choice.tokens)


def release(slot: Slot) -> None:
    slot.is_busy, slot.wanted = False, []
    slot.last_used = time.monotonic()
