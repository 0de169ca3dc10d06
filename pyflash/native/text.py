"""Text that files and models wrote, made fit to be shown."""

from __future__ import annotations

import json
import re
from typing import Any

_BIDI = (*range(0x202A, 0x202F), *range(0x2066, 0x206A))  # overrides, which show text in another order than it has
_BREAKS = (0x2028, 0x2029)
# Control characters become visible ones.
_VISIBLE = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_VISIBLE |= dict.fromkeys((*range(0x80, 0xA0), *_BIDI, *_BREAKS), 0xFFFD)
_ONE_LINE = {ord("\n"): 0x240A, ord("\t"): 0x2409}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that stand for no byte
_STEERING = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Text that a file or a model wrote, for a terminal, which it must not steer. Newlines and tabs stay.

    What os.fsdecode() keeps of a file name's bytes that are no UTF-8 becomes \\xNN.
    """
    if _SURROGATE.search(text):
        escaped = _NO_BYTE.sub("\ufffd", text).encode("utf-8", "surrogateescape")
        text = escaped.decode("utf-8", "backslashreplace")
    return text.translate(_VISIBLE)


def visible_line(text: str) -> str:
    """The same for what must stay on its line, such as a name."""
    return visible(text).translate(_ONE_LINE)


def json_text(value: Any) -> str:
    """JSON on one line, in which no character steers a terminal, and that is UTF-8 whatever it holds."""
    return _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))
