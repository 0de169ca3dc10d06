"""Small talk, small facts, and an honest answer to everything else."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks import arithmetic
from tasks.common import Example, assistant, check_options, draw, system, user
from tasks.common import vary as _vary
from tasks.talk_data import (
    CAPITAL_QUESTIONS,
    CAPITALS,
    COUNT_QUESTIONS,
    FALLBACK,
    FALLBACK_QUESTIONS,
    FALLBACK_THOUGHT,
    INTENTS,
    NEXT_DAY_QUESTIONS,
    NUMBERS,
    OPPOSITE_QUESTIONS,
    OPPOSITES,
    Intent,
)
from tasks.words import DAYS, TOPICS

MOST_TURNS = 4


@dataclass(frozen=True)
class Turn:
    """A question, the right answers and the reasoning before any of them."""

    question: str
    answers: tuple[str, ...]
    thought: str


def _polite(rng: random.Random, text: str) -> str:
    """At times with a "please" or an opening, which ask for nothing else."""
    drawn = rng.random()
    if drawn < 0.06 and "lease" not in text:
        return text.rstrip(".?!") + ", please" + text[len(text.rstrip(".?!")) :]
    if drawn < 0.1 and text[0].isupper() and " " in text:
        return f"Well, {text}"
    return text


def _worded(rng: random.Random, split: str, questions: list[str], x: str, polite: bool = True) -> str:
    """A wording of which this variant, for this x, belongs to the split."""

    def make() -> str:
        text = rng.choice(questions).replace("{x}", x)
        if text[-1] not in ".?!":
            text += rng.choice(("", "", ".", "!"))
        if polite and " " in text:
            text = _polite(rng, text)
        return _vary(rng, text) or text

    return draw(rng, split, make, lambda text: ("talk", text))


def intent_turn(rng: random.Random, split: str, intent: Intent | None = None) -> Turn:
    """A turn of one of the intents."""
    intent = intent or rng.choice(INTENTS)
    return Turn(_worded(rng, split, intent.questions, ""), tuple(intent.answers), intent.thought)


def opposite(rng: random.Random, split: str) -> Turn:
    x = rng.choice(list(OPPOSITES))
    answer = f"The opposite of {x} is {OPPOSITES[x]}."
    return Turn(_worded(rng, split, OPPOSITE_QUESTIONS, x), (answer,), "The user wants an opposite.")


def capital(rng: random.Random, split: str) -> Turn:
    x = rng.choice(list(CAPITALS))
    answer = f"The capital of {x} is {CAPITALS[x]}."
    return Turn(_worded(rng, split, CAPITAL_QUESTIONS, x), (answer,), "The user wants a capital.")


def next_day(rng: random.Random, split: str) -> Turn:
    n = rng.randrange(7)
    answer = f"After {DAYS[n]} comes {DAYS[(n + 1) % 7]}."
    return Turn(_worded(rng, split, NEXT_DAY_QUESTIONS, DAYS[n]), (answer,), "The user wants the next day.")


def count(rng: random.Random, split: str) -> Turn:
    n = rng.randint(2, 10)
    x = rng.choice((NUMBERS[n - 1], str(n)))
    answer = (", ".join(NUMBERS[:n]) + ".").capitalize()
    return Turn(_worded(rng, split, COUNT_QUESTIONS, x), (answer,), "The user wants me to count.")


def fallback(rng: random.Random, split: str) -> Turn:
    """A question outside the model's world; the words that it is about belong to the split."""
    x, y = (draw(rng, split, lambda: rng.choice(TOPICS), lambda topic: ("topic", topic)) for _ in range(2))
    text = rng.choice(FALLBACK_QUESTIONS).replace("{x}", x).replace("{y}", y)
    return Turn(_vary(rng, text[0].upper() + text[1:]), (FALLBACK,), FALLBACK_THOUGHT)


_FACTS: list[Callable[[random.Random, str], Turn]] = [opposite, opposite, capital, capital, next_day, count]


def small_talk(rng: random.Random, split: str) -> Turn:
    """A turn of any sort but sums."""
    drawn = rng.random()
    if drawn < 0.15:
        return fallback(rng, split)
    if drawn < 0.4:
        return rng.choice(_FACTS)(rng, split)
    return intent_turn(rng, split)


def _sum_turn(rng: random.Random, split: str, think: str) -> Turn:
    a, op, b = arithmetic.draw_sum(rng, split, "off")
    text = arithmetic.question(rng, a, op, b)
    return Turn(text, (arithmetic.short_answer(a, op, b),), arithmetic.reasoning(a, op, b, think))


def _thought(turn: Turn, think: str) -> str:
    if think == "off":
        return ""
    return f"{turn.thought} That is enough." if think == "max" and "So " not in turn.thought else turn.thought


def generate(rng: random.Random, split: str, think: str = "off", n_turns: int | None = None) -> Example:
    """A chat of 1 to 4 turns; the last one is never a sum, those have a kind of their own."""
    check_options(split, think)
    n_turns = n_turns or rng.choice((1, 1, 1, 2, 2, 3, 4))
    messages = system(rng, 0.1)
    for left in range(n_turns - 1, -1, -1):
        is_sum = left and rng.random() < 0.25
        turn = _sum_turn(rng, split, think) if is_sum else small_talk(rng, split)
        messages += [user(turn.question), assistant(rng.choice(turn.answers), _thought(turn, think))]
    return Example("talk", messages, None, think, turn.answers)


def is_right(example: Example, reply: Mapping[str, Any]) -> bool:
    """The content is one of the right answers, word for word."""
    return (reply.get("content") or "").strip() in example.answer and not reply.get("tool_calls")
