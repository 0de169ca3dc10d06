"""How a model's authors mean its tokens to be chosen: generation_config.json, and general.sampling.* in a GGUF.

The keys and the fields they come from are llama.cpp's. As there, do_sample is not looked at.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recommendable:
    """field: the name in generation_config.json. key: in a GGUF. least, most: what makes sense, both included."""

    field: str
    key: str
    least: float
    most: float
    whole: bool = False

    def checked(self, value: Any) -> float | None:
        """The value as a sampler can use it; None where it is no number, or one that makes no sense.

        Numbers that are not whole get the fewest digits that stand for the same float32: a file's 0.95 is that again.
        """
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return None
        try:
            number = float(value)
            if self.whole:
                return int(number) if self.least <= number <= self.most and number.is_integer() else None
            single = _float32(number)
        except OverflowError:
            return None
        if not self.least <= single <= self.most:
            return None
        return next(short for digits in range(1, 10) if _float32(short := float(f"{single:.{digits}g}")) == single)


def _float32(number: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", number))[0])


_MOST_INT32 = 2**31 - 1

RECOMMENDABLE = (
    Recommendable("temperature", "general.sampling.temp", 0, 1e30),
    Recommendable("top_k", "general.sampling.top_k", 0, _MOST_INT32, whole=True),
    Recommendable("top_p", "general.sampling.top_p", 0, 1),
    Recommendable("min_p", "general.sampling.min_p", 0, 1),
    Recommendable("repetition_penalty", "general.sampling.penalty_repeat", 1e-30, 1e30),
    Recommendable("penalty_last_n", "general.sampling.penalty_last_n", -1, _MOST_INT32, whole=True),
)


def recommended(value_of: Callable[[Recommendable], Any]) -> dict[str, Any]:
    """What is recommended and makes sense, by field: numbers, whole ones as int. value_of: what stands there."""
    checked = {each.field: each.checked(value_of(each)) for each in RECOMMENDABLE}
    return {name: value for name, value in checked.items() if value is not None}
