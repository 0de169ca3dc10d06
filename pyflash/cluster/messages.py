"""What goes between the driver, which holds the sessions, and the stages: each message once, in an order of its session."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pyflash.cluster.identity import FileIdentity
from pyflash.engine.model import ModelInfo
from pyflash.engine.stage_chain import Wish

Order = tuple[str, int]  # "keep", "drop" (what waits), "advance", "rollback" or "checkpoint", and how many tokens


@dataclass(frozen=True)
class Ticket:
    """A message's place in the order of a session at one stage, and what the stage is to do with the session before it.

    number: from 0 on; a stage lets a message wait until the one before it has been dealt with.
    """

    number: int
    before: tuple[Order, ...] = ()


@dataclass(frozen=True)
class Share:
    """What one session brings to a step. position: where its tokens go: a stage that stands elsewhere, because a step before
    this one failed, does not compute it. tickets: one a stage."""

    session: int
    tokens: npt.NDArray[np.int32]
    position: int
    tickets: tuple[Ticket, ...]


@dataclass(frozen=True)
class Step:
    """Goes through all stages, from the first to the last, whatever becomes of it on the way.

    epoch: of the pipeline that it was sent in; stages drop those of an earlier one. key: tells steps apart. is_kept: every
    stage keeps the tokens as soon as it has computed, else they wait. errors: by share, of those that are out.
    """

    epoch: int
    key: int
    shares: tuple[Share, ...]
    logits: Wish
    is_kept: bool = False
    errors: dict[int, Exception] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a stage answers. error: what went wrong instead."""

    value: Any = None
    error: Exception | None = None

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


@dataclass(frozen=True)
class StageFacts:
    """What a stage tells of itself when it has opened its layers.

    version: of pyflash. arithmetic: PF_ARITHMETIC_VERSION of its library. kernels: the kernel sets that its machine has, the
    best one first. file: what it has read of the model's file; draft: of the one that drafts, None where there is none.
    node: Ray's id of the machine; host: its name. memory_kills: as of hardware.memory_kills(), there and then.
    """

    info: ModelInfo
    version: str
    arithmetic: int
    kernels: Sequence[str]
    file: FileIdentity
    node: str
    host: str
    process: int
    draft: FileIdentity | None = None
    memory_kills: int = 0

    @property
    def file_number(self) -> int:
        """Stands for what it has read: other tensors, another number."""
        return int.from_bytes(hashlib.blake2b(repr((self.file, self.draft)).encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class SessionFacts:
    capacity: int
    chunk: int
    most_ahead: int


@dataclass(frozen=True)
class Pulse:
    """A stage's answer to whether it lives. n_done: messages dealt with; is_busy: it computes just now."""

    n_done: int
    is_busy: bool
