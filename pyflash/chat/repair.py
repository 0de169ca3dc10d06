"""What models write in the place of well-formed tool calls, and what of it can still be taken as one.

A text is only taken as a call where that is closed and, where it is known which tools there are, names one of them and
has the arguments that it requires: texts that merely speak about the markup stay texts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pyflash.chat.format import DSML, to_json

# The tools that a call may name, each with the JSON schema of its parameters.
Tools = Mapping[str, Mapping[str, Any]]

APOLOGY = "The model wrote a malformed tool call: "

# Tolerant forms of what the strict parser reads. The rest of a header, behind a name, may lack or have anything.
LOOSE_NAME = re.compile(r'\s*name="([^"\n]*)"\s*>?\s*')
LOOSE_HEADER = re.compile(r'\s*name="([^"\n]*)"(?:\s+string="?(\w*)"?)?[^>\n]*>')
_MARKUP = re.compile(rf"</?{DSML}(?:tool_?calls|invoke|parameter)?>?")


def is_json(text: str) -> bool:
    """Whether a text is JSON."""
    try:
        json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return False
    return True


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


def without_markers(text: str) -> str:
    """A text that shows the markup but cannot be taken for it."""
    return text.replace(DSML, "")


def says_nothing(text: str) -> bool:
    """Whether a text is nothing but markup."""
    return not _MARKUP.sub("", text).strip(" \n<>/|")


def takes_text(schema: Mapping[str, Any] | None, key: str, value: str) -> bool:
    """Whether a parameter whose markup does not say so is a string. schema: of the tool's parameters, or None."""
    properties = schema.get("properties") if schema is not None else None
    about = properties.get(key) if isinstance(properties, Mapping) else None
    kind = about.get("type") if isinstance(about, Mapping) else None
    kinds = kind if isinstance(kind, list) else [kind]
    return kind is None or "string" in kinds or not is_json(value)


def json_value(value: str, is_string: bool) -> str:
    """A parameter's value in JSON; what should be JSON and is not becomes a string."""
    return value if not is_string and is_json(value) else to_json(value)


def has_parameter(schema: Mapping[str, Any] | None, key: str) -> bool:
    """Whether a tool is known to have a parameter."""
    properties = schema.get("properties") if schema is not None else None
    return isinstance(properties, Mapping) and key in properties


def read_closed(inner: str, tools: Tools | None, mark: str) -> tuple[str, str] | None:
    """The name and the arguments, in JSON, of a call that stands between its opening and its closing; None for none.

    mark: what stands before the words of the markup, DSML or nothing.
    """
    name = LOOSE_NAME.match(inner)
    if name is None or (tools is not None and name[1] not in tools):
        return None
    schema = tools[name[1]] if tools is not None else None
    arguments: dict[str, str] = {}
    at = name.end()
    parameter = re.compile(rf'<{mark}parameter{LOOSE_HEADER.pattern}(.*?)<\n?/{mark}parameter>\s*', re.DOTALL)
    while found := parameter.match(inner, at):
        key, kind, value = found.groups()
        if key in arguments:
            return None
        is_string = kind == "true" if kind in ("true", "false") else takes_text(schema, key, value)
        arguments[key] = json_value(value, is_string)
        at = found.end()
    required = schema.get("required") if schema is not None else None
    if inner[at:].strip(" \n<") or not set(required if isinstance(required, list) else ()) <= arguments.keys():
        return None
    joined = ", ".join(f"{to_json(key)}: {value}" for key, value in arguments.items())
    return name[1], "{" + joined + "}"


PLAIN_BEGINNINGS = ('<invoke name="', '<tool_calls>\n<invoke name="', '<function_calls>\n<invoke name="')
PLAIN_END = "</invoke>"
PLAIN_WRAPPER_ENDS = ("</tool_calls>", "</function_calls>")
