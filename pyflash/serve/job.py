"""A request on its way through the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pyflash.chat.answer import AnswerRules
from pyflash.serve.answer import Answer
from pyflash.serve.drafting import JobDrafts
from pyflash.serve.events import Event, Usage
from pyflash.serve.prompts import Prompt
from pyflash.serve.request import Request
from pyflash.serve.slots import Slot

if TYPE_CHECKING:
    from pyflash.serve.reading import Reading


class Job:
    """What is asked, who is told, and how far it is. tell: is called with each event, on the engine's thread or, with the
    last ones of an answer that was to be kept on disk, on another.

    salt: of the key that it came with; caches and turns of another are not used.
    """

    def __init__(self, request: Request, prompt: Prompt, rules: AnswerRules, salt: bytes, turn_id: bytes,
                 signature: str) -> None:
        self.request = request
        self.prompt = prompt
        self.salt = salt
        self.turn_id = turn_id
        self.signature = signature
        self.rules = rules
        self.tell: Callable[[Event], None] = lambda event: None
        self.is_cancelled = False
        self.why_cancelled = "gone"  # or "slow", "stopped", "abandoned", "shutdown": the client, if nobody says otherwise
        self.first_difference: str | None = None  # the role of the message where it leaves what its slot held
        self.asked = time.monotonic()
        # From here on the engine's own.
        self.tokens: list[int] = prompt.tokens
        self.slot: Slot | None = None
        self.answer: Answer | None = None
        self.drafts: JobDrafts | None = None
        self.n_cached = 0
        self.restoring: Iterator[None] | None = None  # the pieces that are read from disk
        self.reading: Reading | None = None  # of a model in stages, while its prompt goes through them
        self.is_restored = False  # by them
        self.began = 0.0  # when it got its slot
        self.served = 0.0  # when a piece of its prompt was evaluated last
        self.first_token = 0.0
        self.last_token = 0.0
        self.queue_position: int | None = None

    @property
    def n_done(self) -> int:
        return self.slot.session.position if self.slot is not None else 0

    @property
    def n_left(self) -> int:
        """Tokens of the prompt that are not evaluated."""
        return len(self.tokens) - self.n_done

    @property
    def is_streaming(self) -> bool:
        """Whether it has a token to evaluate for the next one."""
        return self.answer is not None and self.answer.next_token is not None

    @property
    def usage(self) -> Usage:
        n_generated = self.answer.n_generated if self.answer else 0
        read = self.first_token or time.monotonic()
        return Usage(len(self.tokens), self.n_cached, n_generated, self.answer.n_reasoning if self.answer else 0,
                     max(0.0, read - self.began) if self.began else 0.0,
                     max(0.0, self.last_token - self.first_token) if self.first_token else 0.0,
                     self.drafts.stats.n_drafted if self.drafts else 0, self.drafts.stats.n_kept if self.drafts else 0)
