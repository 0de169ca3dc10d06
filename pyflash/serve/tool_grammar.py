"""Tool calls held to the tools that there are: from the token that opens them, the names and parameters of the request's
tools are all that a model can write.

The token opens calls only where they begin, after "<" at the beginning of a line. What of a schema is about several
parameters at once is left to the call's reader.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import permutations
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyflash.chat import DSML
from pyflash.engine.grammar import Grammar, Matcher
from pyflash.engine.model import ModelInfo
from pyflash.engine.tokenizer import Tokenizer
from pyflash.native.errors import ArgumentError, UnsupportedError
from pyflash.serve.request import Request, Tool

Start = Literal["marker", "block", "calls"]

_MOST_GRAMMARS = 64
_MOST_DEMANDED = 3  # required parameters whose orders are few enough to be written down
_OPTIONS = {"whitespace_pattern": r"( |\n[ \t]{0,40})?", "lenient": True}
_STARTS: dict[Start, str] = {
    "marker": r'"tool_calls>\n<" calls',  # behind the token that opens the calls
    "block": r'"\n\n<" MARK "tool_calls>\n<" calls',
    "calls": r'"<" calls',  # behind the first line of them
}


def _regex(text: str) -> str:
    """A text within a regular expression of the grammar's notation."""
    return re.sub(r"([\\/.^$|?*+()\[\]{}&~#-])", r"\\\1", text)


def _parameter(name: str, schema: Any, root: Mapping[str, Any], number: str) -> tuple[str, list[str]]:
    """The alternatives for a parameter, and the rules that they need."""
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    head = f'parameter name="{name}" string='
    ways, rules = [], []
    if kind == "string" or not isinstance(kind, str):
        rules.append(f"S{number}: /{_regex(head)}\"true\">(?s:.)*<\\//")
        ways.append(f"S{number}")
    if kind != "string":
        inner = dict(schema) if isinstance(schema, Mapping) else {}
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        rules.append(f"v{number}: %json {json.dumps({**shared, **inner, 'x-guidance': _OPTIONS})}")
        ways.append(f"{json.dumps(head + chr(34) + 'false' + chr(34) + '>', ensure_ascii=False)} v{number} \"</\"")
    return " | ".join(ways), rules


def _tool(n: int, tool: Tool, typed: bool) -> list[str]:
    """The rules of a tool's call. Few required parameters are demanded, in any order; of many, that there is one."""
    found = tool.schema.get("properties")
    properties: Mapping[str, Any] = {"input": {"type": "string"}} if tool.kind == "custom" else (
        found if isinstance(found, Mapping) else {})
    listed = tool.schema.get("required")
    required = set(filter(_is_name, listed)) if isinstance(listed, list) else set()
    free: list[str] = []
    demanded: list[str] = []
    rules: list[str] = []
    for i, (name, schema) in enumerate(properties.items()):
        if '"' in name or "\n" in name:
            continue  # the format has no way to write it
        way, more = _parameter(name, schema if typed or _is_string(schema) else {}, tool.schema, f"{n}_{i}")
        rules += [*more, f"q{n}_{i}: MARK ({way}) MARK \"parameter>\""]
        (demanded if name in required else free).append(f"q{n}_{i}")
    if len(demanded) > _MOST_DEMANDED:
        free, demanded = free + demanded, []
    ways = []
    if free:
        rules.append(f"p{n}: {' | '.join(free)}")
    before, after = (f'(p{n} "\\n<")*', f'("\\n<" p{n})*') if free else ("", "")
    for order in permutations(demanded):
        ways.append(f'"<" {before} ' + ' "\\n<" '.join(f"{each} {after}" for each in order) if order else
                    f'"<" p{n} {after}' if free else "")
    inner = " | ".join(filter(None, ways))
    if inner:
        rules.append(f"a{n}: {inner}")
    is_optional = not (demanded or (required and free))
    head = json.dumps(f'invoke name="{tool.name}">\n', ensure_ascii=False)
    rules.append(f"c{n}: MARK {head} {f'a{n}' + '?' * is_optional if inner else ''} \"\\n</\" MARK \"invoke>\"")
    return rules


def _source(tools: Sequence[Tool], marker: int, start: Start, parallel: bool, typed: bool) -> str:
    """The grammar as text. typed: with the parameters' own schemas, else any JSON."""
    more_calls = r'("\n<" call)*' if parallel else ""
    lines = [f"start: {_STARTS[start]}", f"calls: call {more_calls} \"\\n</\" MARK \"tool_calls>\"",
             f"call: {' | '.join(f'c{n}' for n in range(len(tools)))}"]
    lines += (rule for n, tool in enumerate(tools) for rule in _tool(n, tool, typed))
    return "\n".join(lines).replace("MARK", f"<[{marker}]>")


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _is_string(schema: Any) -> bool:
    return isinstance(schema, Mapping) and schema.get("type") == "string"


class ToolGrammars:
    """The grammars of requests' tools, the latest of them kept. For any thread."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo) -> None:
        self._tokenizer, self._info = tokenizer, info
        self._marker = tokenizer.token_id(DSML)
        self._lock = Lock()
        self._kept: OrderedDict[str, Grammar | None] = OrderedDict()

    def constraint(self, request: Request, begun: str, thinks: bool) -> ToolConstraint | None:
        """What holds an answer to the request's tools; None where there are none, or no llguidance. begun: markup of the
        calls that stands in the prompt. thinks: whether the answer begins with reasoning."""
        if not request.tools or self._marker is None:
            return None
        tools = [tool for name, tool in request.tools.items() if not request.tool_names or name in request.tool_names]
        must = request.tool_choice == "required"
        try:
            trigger = self._grammar(tools, "marker", request.parallel_tool_calls)
            first = self._grammar(tools, "calls" if begun else "block", request.parallel_tool_calls) if must else None
        except UnsupportedError:
            return None
        return ToolConstraint(self._tokenizer, self._info, self._marker, trigger, first, thinks)

    def _grammar(self, tools: Sequence[Tool], start: Start, parallel: bool) -> Grammar | None:
        """None where none can be made of the tools."""
        assert self._marker is not None
        key = json.dumps([start, parallel, [(tool.name, tool.kind, tool.schema) for tool in tools]])
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._made([_source(tools, self._marker, start, parallel, typed) for typed in (True, False)])
                if len(self._kept) > _MOST_GRAMMARS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _made(self, sources: list[str]) -> Grammar | None:
        for source in sources:
            try:
                grammar = Grammar.lark(source)
                grammar.matcher(self._tokenizer, self._info)  # the vocabulary's form takes seconds, once a model
            except ArgumentError:
                continue
            return grammar
        return None


class ToolConstraint:
    """Free, until calls begin; then what the grammar allows, up to their end. Where a tool must be called, that comes after
    the reasoning."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, marker: int, trigger: Grammar | None, first: Grammar | None,
                 thinks: bool) -> None:
        """trigger: for what follows the marker. first: for the whole answer but its reasoning, None for any."""
        self._tokenizer, self._info = tokenizer, info
        self._marker = marker
        self._trigger, self._first = trigger, first
        self._think_end = tokenizer.token_id("</think>") if thinks else None
        self._matcher: Matcher | None = None
        self._tail = "\n"  # of the text so far
        self._all_but_eos: npt.NDArray[np.uint32] | None = None
        if first is not None:
            bits = np.pad(np.ones(info.n_vocab, dtype=np.uint8), (0, -info.n_vocab % 32))
            bits[info.eos_token] = 0
            self._all_but_eos = np.packbits(bits, bitorder="little").view(np.uint32)
            if self._think_end is None:
                self._matcher = first.matcher(tokenizer, info)

    @property
    def is_held(self) -> bool:
        """Whether the next token is one of calls."""
        return self._matcher is not None

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        if self._matcher is not None:
            return self._matcher.allowed()
        return self._all_but_eos if self._think_end is not None else None

    def forced(self) -> list[int]:
        return self._matcher.forced() if self._matcher is not None else []

    def consume(self, token: int) -> None:
        if self._matcher is not None:
            self._matcher.consume(token)
            if self._matcher.is_over:
                self._matcher = None
            return
        if token == self._think_end:
            self._think_end, self._tail = None, "\n"
            if self._first is not None:
                self._matcher = self._first.matcher(self._tokenizer, self._info)
        elif token == self._marker and self._trigger is not None and self._tail.endswith("\n<"):
            self._matcher = self._trigger.matcher(self._tokenizer, self._info)
        else:
            self._tail = (self._tail + self._tokenizer.decode([token]))[-4:]
