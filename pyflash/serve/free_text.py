"""Custom tools: to the model a function of one string, "input"; to the client a free text."""

from __future__ import annotations

import json
import re

_INPUT_OPENING = re.compile(r'\s*\{\s*"input"\s*:\s*"')
_ESCAPES = re.compile(r'(?:[^"\\]|\\u[dD][89abAB]..\\u....|\\u(?![dD][89abAB])....|\\[^u])*')


def arguments_of(text: str) -> str:
    """The arguments that stand for an input, as JSON."""
    return json.dumps({"input": text}, ensure_ascii=False)


def free_text(arguments: str) -> str:
    """The input of a custom tool in its arguments; they themselves where they are something else."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


class FreeText:
    """The input of a custom tool while its arguments come."""

    def __init__(self) -> None:
        self._raw = ""
        self._within = False

    def feed(self, text: str) -> str:
        """What text adds to the input."""
        self._raw += text
        if not self._within:
            opening = _INPUT_OPENING.match(self._raw)
            if opening is None:
                return ""
            self._within, self._raw = True, self._raw[opening.end() :]
        whole = _ESCAPES.match(self._raw)
        if whole is None or not whole.end():
            return ""
        self._raw = self._raw[whole.end() :]
        return str(json.loads(f'"{whole[0]}"', strict=False))
