"""The fixed strings of DeepSeek-V4's chat encoding, and how tools and tool calls are written.

The texts are facts of the format: a model has been trained on exactly these bytes, and the tests check their SHA-256.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gguf_export.chat_texts import EFFORTS as EFFORTS
from gguf_export.chat_texts import RESPONSE_FORMAT
from gguf_export.chat_texts import TOOLS_TEMPLATE as TOOLS_TEMPLATE
from pyflash.native.errors import ArgumentError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
USER = "<｜User｜>"
ASSISTANT = "<｜Assistant｜>"
LATEST_REMINDER = "<｜latest_reminder｜>"
THINK_BEGIN = "<think>"
THINK_END = "</think>"
DSML = "｜DSML｜"
TASKS = {name: f"<｜{name}｜>" for name in ("action", "query", "authority", "domain", "title", "read_url")}

CALLS_BEGIN = f"<{DSML}tool_calls"
CALLS_END = f"</{DSML}tool_calls>"
INVOKE_BEGIN = f"<{DSML}invoke"
INVOKE_END = f"</{DSML}invoke"
PARAMETER_BEGIN = f"<{DSML}parameter"
PARAMETER_END = f"/{DSML}parameter"  # what parsers look for; the "<" before it is then required
NAME = re.compile(r'^\s*name="(.*?)">\n$', re.DOTALL)

_MARKERS = {"{dsml_token}": DSML, "{thinking_start_token}": THINK_BEGIN, "{thinking_end_token}": THINK_END}

Segment = tuple[str, bool]


def thinking_modes(release: str | None = None) -> tuple[str, ...]:
    """What `think` can be for a release, "preview" or "0731", in growing order; None: for any."""
    known = EFFORTS[release].keys() if release else {effort for texts in EFFORTS.values() for effort in texts}
    return ("off", *(effort for effort in ("low", "high", "max") if effort in known))


def to_json(value: Any) -> str:
    """JSON as the published encoder writes it. ArgumentError for what JSON cannot express."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentError(f"a message holds what JSON cannot express: {error}") from None


def tools_block(tools: Sequence[Mapping[str, Any]]) -> list[Segment]:
    """The description of tools, each {"type": "function", "function": {...}}, with the blank line before it."""
    schemas = "\n".join(to_json(tool["function"]) for tool in tools)
    out: list[Segment] = [("\n\n", False)]
    for piece in re.split(r"(\{\w+\})", TOOLS_TEMPLATE):
        if piece == "{tool_schemas}":
            out.append((schemas, False))
        else:
            out.append((_MARKERS.get(piece, piece), piece in _MARKERS))
    return out


def response_format_block(schema: Any) -> Segment:
    """The demand for replies of a schema, with the blank line before it."""
    return (RESPONSE_FORMAT + to_json(schema), False)


def _arguments(called: Mapping[str, Any]) -> Mapping[str, Any]:
    """A call's arguments by name; those that are no JSON object become one, named "arguments"."""
    given = called.get("arguments")
    if given is None:
        return {}
    if isinstance(given, str):
        try:
            parsed = json.loads(given)
        except (ValueError, RecursionError):
            return {"arguments": given}
        return parsed if isinstance(parsed, dict) else {"arguments": given}
    return given if isinstance(given, Mapping) else {"arguments": given}


def calls_block(calls: Sequence[Mapping[str, Any]], *, blank_without: bool = True) -> list[Segment]:
    """Tool calls, each {"function": {"name": str, "arguments": JSON str}}, with the blank line before them.

    blank_without: whether a call without arguments has an empty line in their place.
    """
    mark: Segment = (DSML, True)
    out: list[Segment] = [("\n\n<", False), mark, ("tool_calls>\n", False)]
    for n, call in enumerate(calls):
        called = call["function"]
        out += [("\n<" if n else "<", False), mark, (f'invoke name="{called["name"]}">\n', False)]
        given = _arguments(called)
        for i, (key, value) in enumerate(given.items()):
            is_string = isinstance(value, str)
            header = f'parameter name="{key}" string="{"true" if is_string else "false"}">'
            out += [("\n<" if i else "<", False), mark, (header + (value if is_string else to_json(value)), False)]
            out += [("</", False), mark, ("parameter>", False)]
        out += [("\n</" if given or blank_without else "</", False), mark, ("invoke>", False)]
    return [*out, ("\n</", False), mark, ("tool_calls>", False)]
