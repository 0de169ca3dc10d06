"""A trace of what each request found evaluated, for finding out why a prompt was read anew: where it differs, with words."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pyflash.chat.format import ASSISTANT, USER
from pyflash.engine.tokenizer import Tokenizer
from pyflash.native.errors import FileError

_log = logging.getLogger("pyflash.serve")
_SHOWN = 60  # characters on each side
_LOOKED_AT = 64  # tokens that are decoded for them


def parting(held: Sequence[int] | npt.NDArray[np.int32], asked: Sequence[int]) -> int:
    """The first token that differs, or where the shorter list ends."""
    n = min(len(held), len(asked))
    differing = np.flatnonzero(np.asarray(held[:n]) != np.asarray(asked[:n]))
    return int(differing[0]) if differing.size else n


def role_of_difference(held: Sequence[int] | npt.NDArray[np.int32], asked: Sequence[int], tokenizer: Tokenizer) -> str | None:
    """"system", "user" or "assistant": the message of what is asked in which it leaves what was evaluated. None where it does
    not, since one list goes on from the other, or nothing was evaluated."""
    at = parting(held, asked)
    if at == min(len(held), len(asked)):
        return None
    roles = {tokenizer.token_id(text): role for text, role in ((USER, "user"), (ASSISTANT, "assistant"))}
    return next((roles[token] for token in reversed(asked[: at + 1]) if token in roles), "system")


def difference(held: Sequence[int] | npt.NDArray[np.int32], asked: Sequence[int], tokenizer: Tokenizer) -> dict[str, Any]:
    """Where tokens that were evaluated and those that are asked for part: at the first that differs, or where one list ends.

    before: text up to there; held, asked: how each goes on. "" at an end."""
    at = parting(held, asked)

    def text(tokens: Sequence[int] | npt.NDArray[np.int32]) -> str:
        return tokenizer.decode([int(token) for token in tokens], special=True)

    return {"at": at, "before": text(asked[max(0, at - _LOOKED_AT) : at])[-_SHOWN:],
            "held": text(held[at : at + _LOOKED_AT])[:_SHOWN], "asked": text(asked[at : at + _LOOKED_AT])[:_SHOWN]}


class Trace:
    """A file of JSON lines, one a request, that the user alone can read. For any thread."""

    def __init__(self, folder: Path) -> None:
        """folder: is made where there is none. FileError."""
        self.path = folder / time.strftime(f"serve-%Y%m%d-%H%M%S-{os.getpid()}.jsonl")
        self._lock = threading.Lock()
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as error:
            raise FileError(f"cannot write {self.path}: {error.strerror}; choose another folder for the trace") from error
        self._file = os.fdopen(handle, "w", encoding="utf-8", errors="replace")

    def write(self, entry: dict[str, Any]) -> None:
        """A line. One that cannot be written is told once, and ends the trace; nobody's answer ends with it."""
        with self._lock:
            if self._file.closed:
                return
            try:
                self._file.write(json.dumps({"time": round(time.time(), 3), **entry}, ensure_ascii=False) + "\n")
                self._file.flush()
            except OSError as error:
                _log.warning("%s: %s; the trace ends here", self.path, error.strerror)
                self.close_quietly()

    def close_quietly(self) -> None:
        try:
            self._file.close()
        except OSError:
            pass
