"""The long fixed texts of DeepSeek-V4's chat encoding, for the encoder and for the templates in exported files.

They are facts of the format: a model has been trained on exactly these bytes, and the tests check their SHA-256.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Release = Literal["preview", "0731"]

EFFORT_MAXIMUM = """\
Reasoning Effort: Absolute maximum with no shortcuts permitted.
You MUST be very thorough in your thinking and comprehensively decompose the problem to resolve the root cause, \
rigorously stress-testing your logic against all potential paths, edge cases, and adversarial scenarios.
Explicitly write out your entire deliberation process, documenting every intermediate step, considered alternative, \
and rejected hypothesis to ensure absolutely no assumption is left unchecked.

"""
EFFORT_BEYOND = """\
Reasoning Effort: Beyond maximum — exhaustive, relentless, and uncompromising.
You MUST reason with the utmost depth and rigor, leaving absolutely nothing to chance: exhaustively decompose the \
problem into its most fundamental components, trace every causal chain to its root, and resolve the underlying cause \
rather than any surface symptom.
Do not stop reasoning until you have independently verified the solution from multiple angles and are certain that no \
assumption remains unchecked and no error remains undiscovered.

"""

# By release and effort: what stands before the first message of a chat with thinking.
EFFORTS: dict[str, dict[str | None, str]] = {
    "preview": {None: "", "high": "", "max": EFFORT_MAXIMUM},
    "0731": {None: "", "low": "", "high": EFFORT_MAXIMUM, "max": EFFORT_BEYOND},
}

TOOLS_TEMPLATE = """\
## Tools

You have access to a set of tools to help answer the user's question. You can invoke tools by writing a \
"<{dsml_token}tool_calls>" block like the following:

<{dsml_token}tool_calls>
<{dsml_token}invoke name="$TOOL_NAME">
<{dsml_token}parameter name="$PARAMETER_NAME" string="true|false">$PARAMETER_VALUE</{dsml_token}parameter>
...
</{dsml_token}invoke>
<{dsml_token}invoke name="$TOOL_NAME2">
...
</{dsml_token}invoke>
</{dsml_token}tool_calls>

String parameters should be specified as is and set `string="true"`. For all other types (numbers, booleans, arrays, \
objects), pass the value in JSON format and set `string="false"`.

If thinking_mode is enabled (triggered by {thinking_start_token}), you MUST output your complete reasoning inside \
{thinking_start_token}...{thinking_end_token} BEFORE any tool calls or final response.

Otherwise, output directly after {thinking_end_token} with tool calls or final response.

### Available Tool Schemas

{tool_schemas}

You MUST strictly follow the above defined tool name and parameter schemas to invoke tool calls.
"""
RESPONSE_FORMAT = "\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"


def told_release(text: Callable[[str], str | None]) -> Release | None:
    """The release that a model file's keys tell; None where they tell none. text: a key's string value.

    general.version says it in the converter's files. Of the two only 0731 has a reasoning effort whose text speaks of
    "Beyond maximum", so that a chat template tells, and names do where it is the preview's or missing.
    """
    if (version := text("general.version")) in ("0731", "preview"):
        return "0731" if version == "0731" else "preview"
    template = text("tokenizer.chat_template")
    names = (text(f"general.{key}") or "" for key in ("name", "basename", "finetune"))
    if "Beyond maximum" in (template or "") or any("0731" in name for name in names):
        return "0731"
    return "preview" if template else None


def release_of(text: Callable[[str], str | None]) -> Release:
    """The release of a model file by its keys: the same rule as pf_chat_release_of() has for C."""
    return told_release(text) or "preview"
