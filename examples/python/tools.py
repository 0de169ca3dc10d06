"""The model uses a calculator: python tools.py MODEL.gguf "What is 12345 times 6789?" """

from __future__ import annotations

import ast
import json
import operator
import sys
from collections.abc import Callable
from typing import Any

import pyflash

MAX_ROUNDS = 8
OPERATORS: dict[type, Callable[..., float]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.USub: operator.neg,
}  # fmt: skip
TOOLS = [{"type": "function", "function": {
    "name": "calculate",
    "description": "Computes an expression of numbers with + - * / and parentheses.",
    "parameters": {"type": "object", "required": ["expression"],
                   "properties": {"expression": {"type": "string", "description": "for example (2 + 3) * 4.5"}}},
}}]  # fmt: skip


def calculate(expression: str) -> str:
    """The value, or what is wrong, for the model to read. Never eval(): the model may write anything."""

    def value(node: ast.AST) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(operand))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
        raise ValueError("only numbers, + - * / and parentheses")

    if len(expression) > 1000:  # Python's own parser may run out of stack
        return "error: too long"
    try:
        return str(value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError) as problem:
        return f"error: {problem}"


def run(call: dict[str, Any]) -> str:
    try:
        arguments = json.loads(call["function"]["arguments"])
    except ValueError as problem:
        return f"error: the arguments are no JSON: {problem}"
    if call["function"]["name"] != "calculate" or not isinstance(arguments.get("expression"), str):
        return "error: there is only calculate(expression: string)"
    return calculate(arguments["expression"])


def answer(session: pyflash.Session, messages: list[dict[str, Any]], **options: Any) -> str:
    """Goes on with the conversation until the model answers without calls; keeps every message in messages."""
    for _ in range(MAX_ROUNDS):
        reply = session.chat(messages, think="high", tools=TOOLS, **options)
        for _ in reply:
            pass
        messages.append(reply.message)
        if not reply.message["tool_calls"]:
            return str(reply.message["content"])
        for call in reply.message["tool_calls"]:
            result = run(call)
            print(f"{call['function']['name']}({call['function']['arguments']}) = {result}", file=sys.stderr)
            messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    return f"(no answer after {MAX_ROUNDS} rounds of calls)"


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with pyflash.Model.open(sys.argv[1]) as model, model.session(context=16384) as session:
        print(answer(session, [{"role": "user", "content": sys.argv[2]}]))
