"""Tool calls as the model has been seen to write them badly, and texts that only speak about the markup."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pyflash import chat

pytestmark = pytest.mark.quick

D, E = chat.DSML, chat.EOS
TOOLS: dict[str, dict[str, Any]] = {
    "bash": {"type": "object", "required": ["command"],
             "properties": {"command": {"type": "string"}, "timeout": {"type": "integer"}}},
    "now": {"type": "object", "properties": {}},
}  # fmt: skip
COMMAND = f'<{D}parameter name="command" string="true">ls -l</{D}parameter>\n'
TIMEOUT = f'<{D}parameter name="timeout" string="false">5</{D}parameter>\n'
BASH = f'<{D}invoke name="bash">\n{COMMAND}</{D}invoke>\n'
LS = ("bash", {"command": "ls -l"})
LS_5 = ("bash", {"command": "ls -l", "timeout": 5})


def block(*invokes: str) -> str:
    return f"\n\n<{D}tool_calls>\n" + "".join(invokes) + f"</{D}tool_calls>"


def read(pieces: list[str], thinking: bool, tools: Any) -> tuple[dict[str, Any], list[str]]:
    parser = chat.StreamParser(thinking, tools)
    events = [event for piece in pieces for event in parser.feed(piece)] + parser.finish()
    return parser.message, [event.problem for event in events if event.problem]


def read_every_way(text: str, thinking: bool = False, tools: Any = TOOLS) -> tuple[dict[str, Any], list[str]]:
    """The message and the problems, the same however the text is cut."""
    found, problems = read([text], thinking, tools)
    for pieces in (list(text), *([text[:cut], text[cut:]] for cut in range(1, len(text)))):
        again, others = read(pieces, thinking, tools)
        assert again == found and set(others) == set(problems)
    return found, problems


def calls(message: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    return [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in message["tool_calls"]]


FOUND = {
    "one newline before the block": (f"so{block(BASH)[1:]}", [LS], "so\n"),
    "within the reasoning": (f"<think>hm{block(BASH)}", [LS], ""),
    "no end of the calls": (f"so\n\n<{D}tool_calls>\n{BASH}", [LS], "so"),
    "no end of the calls, and text": (f"\n\n<{D}tool_calls>\n{BASH}Done.", [LS], "\nDone."),
    "closed again and again": (block(BASH) + f"\n</{D}invoke>\n</{D}tool_calls></invoke></{D}tool_calls>", [LS], ""),
    "toolcalls": (block(BASH, BASH).replace("tool_calls", "toolcalls"), [LS, LS], ""),
    "toolcalls with another end": (block(BASH).replace("tool_calls", "toolcalls", 1), [LS], ""),
    "no opening of the calls": (f"so\n{BASH}</{D}tool_calls>", [LS], "so\n"),
    "no opening of the calls, two": (f"so\n{BASH}{BASH}", [LS, LS], "so\n"),
    "no opening of the call": (block(BASH.replace(f"<{D}invoke ", "")), [LS], ""),
    "no end of a parameter": (block(f'<{D}invoke name="bash">\n<{D}parameter name="command" string="true">ls -l\n'
                                    f"{TIMEOUT}</{D}invoke>\n"), [LS_5], ""),
    "no end of the last parameter": (block(f'<{D}invoke name="bash">\n{TIMEOUT}'
                                           f'<{D}parameter name="command" string="true">ls -l\n</{D}invoke>\n'),
                                     [LS_5], ""),
    "no string=": (block(BASH.replace(' string="true"', "")), [LS], ""),
    "no string=, and a number": (block(f'<{D}invoke name="bash">\n{COMMAND}{TIMEOUT}</{D}invoke>\n'
                                       .replace(' string="false"', "")), [LS_5], ""),
    "no JSON": (block(BASH.replace('"true"', '"false"')), [LS], ""),
    "no markers": (BASH.replace(D, ""), [LS], ""),
    "no markers, in tags": (f"so\n<tool_calls>\n{BASH}{BASH}</tool_calls>".replace(D, ""), [LS, LS], "so\n"),
    "no newline behind the name": (block(BASH.replace('bash">\n', 'bash">')), [LS], ""),
    "no newlines between": (block(BASH).replace("\n", ""), [LS], ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_a_closed_call_of_a_tool_is_found(name: str) -> None:
    text, expected, content = FOUND[name]
    thinking = text.startswith("<think>")
    message, problems = read_every_way(text.removeprefix("<think>") + E, thinking)
    assert calls(message) == expected and problems
    assert message["content"].replace("\n", "") == content.replace("\n", "") and D not in message["content"]


LOST = {
    "no call of any name": block(f"{COMMAND}</{D}invoke>\n"),
    "no such tool": block(BASH.replace("bash", "rm")),
    "no name": block(BASH.replace(' name="bash"', "")),
    "no such tool, no opening": BASH.replace("bash", "rm"),
    "no required argument, no opening": f'<{D}invoke name="bash">\n{TIMEOUT}</{D}invoke>\n',
    "parameter without a name": block(BASH.replace(' name="command" string="true"', "")),
    "parameter twice": block(f'<{D}invoke name="bash">\n{COMMAND}{COMMAND}</{D}invoke>\n'),
    "text between parameters": block(f'<{D}invoke name="bash">\n{COMMAND}and {TIMEOUT}</{D}invoke>\n'),
}


@pytest.mark.parametrize("name", LOST)
def test_what_is_no_call_is_told_in_words(name: str) -> None:
    """Nothing vanishes, and no marker comes out that would be taken for a call when the client sends it back."""
    message, problems = read_every_way(LOST[name] + E)
    assert not message["tool_calls"] and problems
    assert "malformed tool call" in message["content"] and D not in message["content"]
    for word in ("ls -l",) if "ls -l" in LOST[name] else ("timeout", "5"):
        assert word in message["content"]


def test_a_good_call_beside_a_lost_one() -> None:
    message, _ = read_every_way(block(BASH.replace("bash", "rm"), BASH) + E)
    assert calls(message) == [LS] and 'name="rm"' in message["content"]


PROSE = [
    f"The block begins with `<{D}tool_calls>` and ends with `</{D}tool_calls>`.",
    f"A call is <{D}invoke> within it.",
    f"Write <{D}parameter name=\"x\"> for each.",
    "In XML you would write <invoke name=\"bash\"> there.",
    "So:\n```xml\n<invoke name=\"bash\">\n<parameter name=\"command\" string=\"true\">ls</parameter>\n</invoke>\n```\n",
    "<invoke name=\"rm\">\n<parameter name=\"command\" string=\"true\">ls</parameter>\n</invoke>",
    "<invoke name=\"bash\">\n</invoke>",
    "<tool_calls> is a tag, <function_calls>\n<invoke is none",
]  # fmt: skip


@pytest.mark.parametrize("text", PROSE)
def test_prose_about_the_markup_is_no_call(text: str) -> None:
    message, _ = read_every_way(text + E)
    assert not message["tool_calls"] and message["content"].endswith(text.replace(D, ""))


@pytest.mark.parametrize("text", [*PROSE, *LOST.values(), block(BASH), BASH, *(text for text, _, _ in FOUND.values())])
def test_without_tools_all_markup_is_text(text: str) -> None:
    message, _ = read_every_way(text.removeprefix("<think>") + E, tools={})
    assert not message["tool_calls"] and message["content"] == text.removeprefix("<think>")


def test_markers_within_a_value_are_part_of_it() -> None:
    """Of a file about this very markup, say: what the value's own end closes."""
    value = f'x\n</{D}invoke>\n</{D}tool_calls>\n<{D}parameter name="other" string="true">y'
    message, problems = read_every_way(block(BASH.replace("ls -l", value)) + E)
    assert calls(message) == [("bash", {"command": value})] and not problems


def test_a_call_that_is_cut_is_none() -> None:
    text = block(BASH)
    for cut in range(len(text)):
        message, _ = read([text[:cut]], False, TOOLS)
        assert not message["tool_calls"] or cut > text.index(f"</{D}invoke")
