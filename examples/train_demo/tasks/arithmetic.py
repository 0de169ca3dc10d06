"""Sums: answered at once for small numbers, digit by digit when thinking."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from tasks.common import Example, assistant, check_options, held_back, system, user, vary
from tasks.words import NAMES

NEAR_SHARE = 0.1  # of the sums without thinking: 83 - 77 is the hardest kind
_PLACES = ("Ones", "Tens", "Hundreds", "Thousands")
Sum = tuple[int, str, int]

_QUESTIONS = {
    "+": [
        "What is {a} + {b}?", "{a}+{b}", "{a} + {b}", "{a} + {b} = ?", "How much is {a} plus {b}?",
        "What is {a} plus {b}?", "Please compute {a} + {b}.", "Compute {a} + {b}.", "Calculate {a} + {b}.",
        "{a} plus {b}?", "Add {a} and {b}.", "What is the sum of {a} and {b}?", "Can you add {a} and {b}?",
        "What's {a} + {b}?", "How much is {a} + {b}?", "Tell me {a} + {b}.", "{a}+{b}=", "What is {a}+{b}?",
    ],
    "-": [
        "What is {a} - {b}?", "{a}-{b}", "{a} - {b}", "{a} - {b} = ?", "How much is {a} minus {b}?",
        "What is {a} minus {b}?", "Please compute {a} - {b}.", "Compute {a} - {b}.", "Calculate {a} - {b}.",
        "{a} minus {b}?", "Subtract {b} from {a}.", "Take {b} away from {a}.", "What's {a} - {b}?",
        "How much is {a} - {b}?", "Tell me {a} - {b}.", "{a}-{b}=", "What is {a}-{b}?",
    ],
    "*": [
        "What is {a} * {b}?", "{a}*{b}", "{a} * {b}", "{a} x {b}", "{a} * {b} = ?", "How much is {a} times {b}?",
        "What is {a} times {b}?", "Please compute {a} * {b}.", "Compute {a} * {b}.", "Calculate {a} times {b}.",
        "{a} times {b}?", "Multiply {a} by {b}.", "Multiply {a} and {b}.", "What's {a} times {b}?",
        "How much is {a} x {b}?", "Tell me {a} * {b}.", "{a}*{b}=", "What is {a}*{b}?", "What is {a} x {b}?",
    ],
}  # fmt: skip

_THINGS = "apples books cards coins eggs flowers pens stamps stones tickets".split()
_STORIES = {
    "+": [
        "{name} has {a} {things} and buys {b} more. How many {things} does {name} have?",
        "{name} has {a} {things} and finds {b} more. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} adds {b} more. How many {things} are in the box?",
        "{name} has {a} {things} and {other} has {b}. How many {things} do they have together?",
    ],
    "-": [
        "{name} has {a} {things} and loses {b}. How many {things} are left?",
        "{name} has {a} {things} and sells {b} of them. How many {things} does {name} have now?",
        "There are {a} {things} in a box. {name} takes {b} away. How many {things} are left?",
        "{name} has {a} {things} and gives {b} to {other}. How many {things} does {name} have left?",
    ],
    "*": [
        "{name} has {a} boxes with {b} {things} each. How many {things} does {name} have?",
        "There are {a} bags with {b} {things} in each. How many {things} are there?",
        "{name} buys {a} packs of {b} {things}. How many {things} does {name} have?",
    ],
}


def result(a: int, op: str, b: int) -> int:
    return a + b if op == "+" else a - b if op == "-" else a * b


def short_answer(a: int, op: str, b: int) -> str:
    return f"{a} {op} {b} = {result(a, op, b)}."


def _digits(number: int, width: int) -> list[int]:
    """From the ones upwards."""
    return [number // 10**place % 10 for place in range(width)]


def _add(a: int, b: int) -> str:
    width = max(len(str(a)), len(str(b)))
    out, carry = [f"{a:0{width}} + {b:0{width}}."], 0
    for place, (x, y) in enumerate(zip(_digits(a, width), _digits(b, width), strict=True)):
        total = x + y + carry
        terms = f"{x} + {y}" + (f" + {carry}" if place else "")
        carry = total // 10
        out.append(f"{_PLACES[place]}: {terms} = {total}, write {total % 10}, carry {carry}.")
    return " ".join([*out, f"So {a + b}."])


def _subtract(a: int, b: int) -> str:
    width = max(len(str(a)), len(str(b)))
    out, borrow = [f"{a:0{width}} - {b:0{width}}."], 0
    for place, (x, y) in enumerate(zip(_digits(a, width), _digits(b, width), strict=True)):
        rest = f" - {y}" + (f" - {borrow}" if place else "")
        left = x - y - borrow
        text = f"{_PLACES[place]}: {x}{rest}"
        if left < 0:
            left += 10
            text += f" is below 0, {x + 10}{rest}"
            borrow = 1
        else:
            borrow = 0
        out.append(f"{text} = {left}, write {left}, borrow {borrow}.")
    return " ".join([*out, f"So {a - b}."])


def _multiply(a: int, b: int) -> str:
    if a < 10 <= b:
        a, b = b, a
    if a < 10:
        return f"{a} * {b}. {a} * {b} = {a * b}. So {a * b}."
    if b >= 10:
        steps = f"{a} * 10 = {a * 10}."
        if b > 10:
            steps += f" {a} * {b - 10} = {a * (b - 10)}. {a * 10} + {a * (b - 10)} = {a * b}."
        return f"{a} * {b}. {steps} So {a * b}."
    ones, tens = a % 10 * b, a // 10 * b
    carry = ones // 10
    return (f"{a} * {b}. Ones: {a % 10} * {b} = {ones}, write {ones % 10}, carry {carry}. "
            f"Tens: {a // 10} * {b} = {tens}, {tens} + {carry} = {tens + carry}. So {a * b}.")


def _check(a: int, op: str, b: int) -> str:
    if op == "+":
        return _subtract(a + b, b)
    if op == "-":
        return _add(a - b, b)
    if a < 10 <= b:
        a, b = b, a
    if a < 10 or b >= 10:
        return _multiply(b, a)
    tens, ones = a // 10 * 10, a % 10
    return (f"{tens} * {b} = {tens * b}, {ones} * {b} = {ones * b}, {tens * b} + {ones * b} = {a * b}. "
            f"So {a * b}.")


def reasoning(a: int, op: str, b: int, think: str) -> str:
    """The written calculation; with "max" also a check by the inverse or by a second way."""
    if think == "off":
        return ""
    text = {"+": _add, "-": _subtract, "*": _multiply}[op](a, b)
    return f"{text} Check: {_check(a, op, b)} Right." if think == "max" else text


def _number(rng: random.Random, most: int) -> int:
    """Every number of digits often enough."""
    return rng.randint(0, min(most, rng.choice((9, 99, 99, most))))


def _draw_operands(rng: random.Random, think: str) -> Sum:
    op = rng.choice("+-*")
    if op == "*":
        if think == "off" or rng.random() < 0.3:
            return rng.randint(0, 12), op, rng.randint(0, 12)
        a, b = rng.randint(10, 99), rng.randint(2, 9)
        return (a, op, b) if rng.random() < 0.7 else (b, op, a)
    most = 99 if think == "off" else 999
    a, b = _number(rng, most), _number(rng, most)
    return (max(a, b), op, min(a, b)) if op == "-" else (a, op, b)


def is_held_back(a: int, op: str, b: int) -> bool:
    """Products are facts, so of a product and its mirror image at most one is held back."""
    return (op != "*" or a < b) and held_back("arithmetic", a, op, b)


def draw_sum(rng: random.Random, split: str, think: str) -> Sum:
    """Two operands and the sign between them, from the split; in training small differences more often."""
    while True:
        operands = _draw_operands(rng, think)
        if split == "train" and think == "off" and rng.random() < NEAR_SHARE:
            a = rng.randint(10, 99)
            operands = a, "-", a - rng.randint(0, 10)
        if is_held_back(*operands) == (split == "test"):
            return operands


def question(rng: random.Random, a: int, op: str, b: int, stories: float = 0.2) -> str:
    """The question in one of many wordings, in this share of the cases as a small story."""
    if rng.random() < stories:
        name, other = rng.sample(NAMES, 2)
        things = rng.choice(_THINGS)
        return rng.choice(_STORIES[op]).format(name=name, other=other, things=things, a=a, b=b)
    text = rng.choice(_QUESTIONS[op]).format(a=a, b=b)
    return text if text.endswith("=") else vary(rng, text)


def generate(rng: random.Random, split: str, think: str = "off") -> Example:
    """One question and its answer."""
    check_options(split, think)
    a, op, b = draw_sum(rng, split, think)
    asked = user(question(rng, a, op, b))
    reply = assistant(short_answer(a, op, b), reasoning(a, op, b, think))
    return Example("arithmetic", [*system(rng, 0.1), asked, reply], None, think, result(a, op, b))


def is_right(example: Example, reply: Mapping[str, Any]) -> bool:
    """The last number of the content is the result, and there is reasoning where it was asked for."""
    numbers = re.findall(r"-?\d+", reply.get("content") or "")
    if example.think != "off" and not (reply.get("reasoning_content") or "").strip():
        return False
    return bool(numbers) and int(numbers[-1]) == example.answer and not reply.get("tool_calls")
