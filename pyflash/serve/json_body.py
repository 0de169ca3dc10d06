"""JSON of strangers: bytes to plain data that nothing downstream trips over, and data to the bytes of answers."""

from __future__ import annotations

import json
import re
from typing import Any

from pyflash.serve.errors import RequestError

MAX_DEPTH = 128  # lists and objects within each other
MAX_VALUES = 4_000_000  # a context of a million token ids has a quarter; Python's objects of ten times that fill a machine
_SURROGATE = re.compile("[\ud800-\udfff]")
_ESCAPED_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(data: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Halves of characters become U+FFFD. RequestError for anything else: other JSON,
    NaN and infinities, numbers of thousands of digits, more than MAX_DEPTH lists and objects in each other, more than
    MAX_VALUES values (as far as commas and brackets tell, those of texts among them)."""
    if len(data) > MAX_VALUES and sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise RequestError(f"the body has more than {MAX_VALUES:,} values: send less", code="too_large")
    try:
        value = json.loads(data.decode("utf-8-sig"), parse_constant=_no_constant, parse_float=_finite)
    except UnicodeDecodeError:
        raise RequestError("the body is not UTF-8: send JSON in UTF-8") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(value, dict):
        raise RequestError("the body must be a JSON object")
    if _is_deep(value):
        raise _too_deep()
    whole: dict[str, Any] = _whole(value) if _ESCAPED_SURROGATE.search(data) else value
    return whole


def encode(value: Any) -> bytes:
    """A value as JSON in UTF-8, without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def sse(value: Any, event: str | None = None) -> bytes:
    """A server-sent event that has a value as its data."""
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + encode(value) + b"\n\n"


def _too_deep() -> RequestError:
    return RequestError(f"the body has more than {MAX_DEPTH} lists and objects in each other: nest less")


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _is_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = [each.values() if isinstance(each, dict) else each for each in level]
        level = [each for some in inner for each in some if isinstance(each, (dict, list))]
        if not level:
            return False
    return True


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return value
