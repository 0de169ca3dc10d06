"""What was generated before: a text that new answers may repeat, for n-gram drafters."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

import numpy as np
import numpy.typing as npt

from pyflash.engine.drafts import GAP
from pyflash.native.values import Tokens, token_array

_TOKENS: Final = 16384  # of a key
_KEYS: Final = 16
_LEAST: Final = 8  # tokens of an output: shorter ones have nothing to repeat


class EarlierOutputs:
    """The latest outputs by the key that they were asked for with: no key is told of another's. Bounded: of each key so many
    tokens, the latest ones, four bytes each, and of so many keys, those that were used last."""

    def __init__(self, most_tokens: int = _TOKENS, most_keys: int = _KEYS) -> None:
        self._most_tokens, self._most_keys = most_tokens, most_keys
        self._outputs: OrderedDict[bytes, deque[npt.NDArray[np.int32]]] = OrderedDict()

    def add(self, salt: bytes, output: Tokens) -> None:
        """What was generated for a key."""
        if len(output) < _LEAST:
            return
        outputs = self._outputs.setdefault(salt, deque())
        self._outputs.move_to_end(salt)
        outputs.append(np.append(token_array(output)[-self._most_tokens + 1 :], np.int32(GAP)))
        while sum(map(len, outputs)) > self._most_tokens:
            outputs.popleft()
        while len(self._outputs) > self._most_keys:
            self._outputs.popitem(last=False)

    def of(self, salt: bytes) -> Tokens:
        """A key's outputs, the oldest first, behind each of them drafts.GAP."""
        outputs = self._outputs.get(salt)
        return np.concatenate(outputs) if outputs else ()

    @property
    def n_tokens(self) -> int:
        return sum(len(output) for outputs in self._outputs.values() for output in outputs)
