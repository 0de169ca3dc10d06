"""Synthetic conversations on which the demonstration model is trained, and the judge of its replies.

Four kinds: "arithmetic", "recall", "tools" and "talk". Everything is made up here from templates and word lists, so
that the data is under this project's licence. What the "test" split draws, "train" never does: see generate().
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from tasks import arithmetic, recall, talk, tools, words
from tasks.arithmetic import draw_sum, short_answer
from tasks.common import SPLITS, THINK, Example, render, trained_spans
from tasks.copies import copies
from tasks.recall import draw_facts, fact, recall_spans

__all__ = [
    "KINDS", "SPLITS", "THINK", "Example", "copies", "draw_facts", "draw_sum", "fact", "generate", "is_right",
    "recall_spans", "render", "short_answer", "trained_spans", "words",
]  # fmt: skip

_MODULES: dict[str, ModuleType] = {"arithmetic": arithmetic, "recall": recall, "tools": tools, "talk": talk}
KINDS = tuple(_MODULES)


def _module(kind: str) -> ModuleType:
    if kind not in _MODULES:
        raise ValueError(f"no kind {kind!r}; there are {', '.join(KINDS)}")
    return _MODULES[kind]


def generate(kind: str, rng: random.Random, split: str, **options: Any) -> Example:
    """One example, the same for the same state of rng.

    kind: one of KINDS. split: "train" or "test". Held back for "test", about a tenth each: operand pairs (arithmetic),
    pairs of name and word (recall), combinations of a tool and its arguments (tools), wordings and topics (talk).
    options: think ("off", "high", "max") for every kind; what recall, tools and talk take besides, their generate()
    tells.
    """
    make: Callable[..., Example] = _module(kind).generate
    return make(rng, split, **options)


def is_right(example: Example, reply: Mapping[str, Any]) -> bool:
    """Whether a reply, a message as pyflash.chat.parse() gives it, answers the example."""
    return bool(_module(example.kind).is_right(example, reply))
