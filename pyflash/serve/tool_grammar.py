"""Tool calls held to the tools that there are: from the token that opens them, the names and parameters of the request's
tools are all that a model can write.

The token opens calls only where they begin, after "<" at the beginning of a line, and what the calls end with ends the
answer. What of a schema is about several parameters at once is left to the call's reader.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from pyflash.chat import DSML
from pyflash.chat.answer import AnswerRules, answer_rules
from pyflash.chat.encoding import Opening
from pyflash.engine.grammar import Grammar, Matcher, json_or
from pyflash.engine.model import ModelInfo
from pyflash.engine.tokenizer import Tokenizer
from pyflash.native.errors import ArgumentError, UnsupportedError
from pyflash.serve.request import Request, Tool

Start = Literal["marker", "block", "calls", "json"]

_MOST_GRAMMARS = 64
_MOST_COUNTED = 6  # parameters of which every set has a rule
_MOST_LISTED = 200  # strings that are written down one by one
_LONGEST_CHAIN = 8  # of references, and of alternatives within each other
_OPTIONS = {"whitespace_pattern": r"( |\n[ \t]{0,40})?", "lenient": True}
_STARTS: dict[Start, str] = {
    "marker": r'"tool_calls>\n<" calls',  # behind the token that opens the calls
    "block": r'"\n\n<" MARK "tool_calls>\n<" calls',
    "calls": r'"<" calls',  # behind the first line of them
    "json": r'"\n\n<" MARK "tool_calls>\n<" calls',  # or else JSON of the request's schema
}


def _regex(text: str) -> str:
    """A text within a regular expression of the grammar's notation."""
    return re.sub(r"([\\/.^$|?*+()\[\]{}&~#-])", r"\\\1", text)


def _resolved(schema: Any, root: Mapping[str, Any]) -> Any:
    """A schema in the place of a reference to one of root's."""
    for _ in range(_LONGEST_CHAIN):
        target = schema.get("$ref") if isinstance(schema, Mapping) else None
        if not isinstance(target, str) or not target.startswith("#/"):
            break
        schema = root
        for key in target[2:].split("/"):
            schema = schema.get(key) if isinstance(schema, Mapping) else None
    return schema


def _kinds(schema: Any, root: Mapping[str, Any], depth: int = 0) -> tuple[bool, bool]:
    """Whether a value that fits a schema may be a string, and whether it may be anything else."""
    schema = _resolved(schema, root)
    if not isinstance(schema, Mapping) or depth == _LONGEST_CHAIN:
        return True, True
    kind, values = schema.get("type"), [schema["const"]] if "const" in schema else schema.get("enum")
    kinds = [kind] if isinstance(kind, str) else kind if isinstance(kind, list) else None
    string = kinds is None or "string" in kinds
    other = kinds is None or kinds != ["string"]
    if isinstance(values, list):
        string &= any(isinstance(value, str) for value in values)
        other &= not all(isinstance(value, str) for value in values)
    for key in ("anyOf", "oneOf"):
        if isinstance(ways := schema.get(key), list) and ways:
            found = [_kinds(way, root, depth + 1) for way in ways]
            string &= any(each[0] for each in found)
            other &= any(each[1] for each in found)
    return (string, other) if string or other else (True, True)  # nothing fits, and who wrote it meant something else


def _listed(schema: Any, root: Mapping[str, Any], depth: int = 0) -> list[str] | None:
    """The strings that alone fit a schema; None where it lists none, or too many."""
    schema = _resolved(schema, root)
    if not isinstance(schema, Mapping) or depth == _LONGEST_CHAIN:
        return None
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    found = [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
    for key in ("anyOf", "oneOf"):
        ways = schema.get(key)
        for way in ways if isinstance(ways, list) and not found else ():
            listed = _listed(way, root, depth + 1)
            if listed is None and _kinds(way, root)[0]:
                return None
            found += listed or ()
    return found if 0 < len(found) <= _MOST_LISTED else None


def _literal(text: str) -> str:
    """A text in the grammar's notation."""
    return json.dumps(text, ensure_ascii=False)


def _parameter(name: str, schema: Any, root: Mapping[str, Any], number: str, typed: bool) -> tuple[str, list[str]]:
    """The alternatives for a parameter, and the rules that they need. typed: held to its schema, else only to whether it is a
    string."""
    head = f'parameter name="{name}" string='
    string, other = _kinds(schema, root)
    ways: list[str] = []
    rules: list[str] = []
    if string:
        if typed and (listed := _listed(schema, root)):
            ways += (_literal(f'{head}"true">{value}</') for value in listed)
        else:
            rules.append(f"S{number}: /{_regex(head)}\"true\">(?s:.)*<\\//")
            ways.append(f"S{number}")
    if other:
        inner = dict(schema) if typed and isinstance(schema, Mapping) else {}
        shared = {key: root[key] for key in ("$defs", "definitions") if key in root}
        rules.append(f"v{number}: %json {json.dumps({**shared, **inner, 'x-guidance': _OPTIONS})}")
        opening = _literal(f'{head}"false">')
        ways.append(f'{opening} v{number} "</"')
    return " | ".join(ways), rules


def _tool(n: int, tool: Tool, typed: bool) -> list[str]:
    """The rules of a tool's call.

    A rule for each set of parameters that are there already says which may follow, so that none comes twice and the required
    ones come. With many parameters only the required ones are counted, with many of these none."""
    found = tool.schema.get("properties")
    properties: Mapping[str, Any] = {"input": {"type": "string"}} if tool.kind == "custom" else (
        found if isinstance(found, Mapping) else {})
    listed = tool.schema.get("required")
    required = set(filter(_is_name, listed)) if isinstance(listed, list) else set()
    rules: list[str] = []
    ways: dict[str, str] = {}  # by parameter: its rule
    for i, (name, schema) in enumerate(properties.items()):
        if '"' in name or "\n" in name:
            continue  # the format has no way to write it
        way, more = _parameter(name, schema, tool.schema, f"{n}_{i}", typed)
        ways[name] = f"q{n}_{i}"
        rules += [*more, f"q{n}_{i}: MARK ({way}) MARK \"parameter>\""]
    counted = list(ways)
    if len(counted) > _MOST_COUNTED:
        counted = [name for name in ways if name in required]
        counted = counted if len(counted) <= _MOST_COUNTED else []
    free = [way for name, way in ways.items() if name not in counted]
    needed = sum(1 << i for i, name in enumerate(counted) if name in required)

    def after(there: int, separator: str) -> str:
        """What may follow a set of parameters."""
        steps = [f"{ways[name]} s{n}_{there | 1 << i}" for i, name in enumerate(counted) if not there >> i & 1]
        steps += (f"{way} s{n}_{there}" for way in free)
        out = [f"{_literal(separator + '<')} {step}" for step in steps]
        is_bare = not separator and bool(required & ways.keys())
        if needed & ~there == 0 and not is_bare:
            out.append(_literal("\n</") + ' MARK "invoke>"')
        return " | ".join(out)

    if ways:
        rules += (f"s{n}_{there}: {after(there, chr(10))}" for there in range(1 << len(counted)))
    head = _literal(f'invoke name="{tool.name}">\n')
    rules.append(f"c{n}: MARK {head} ({after(0, '')})")
    return rules


def _rules(tools: Sequence[Tool], parallel: bool, typed: bool) -> str:
    """The rule "calls" and what it needs. typed: with the parameters' own schemas, else any JSON."""
    more_calls = r'("\n<" call)*' if parallel else ""
    lines = [f"calls: call {more_calls} \"\\n</\" MARK \"tool_calls>\"",
             f"call: {' | '.join(f'c{n}' for n in range(len(tools)))}"]
    lines += (rule for n, tool in enumerate(tools) for rule in _tool(n, tool, typed))
    return "\n".join(lines)


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


class ToolGrammars:
    """The grammars of requests' tools, the latest of them kept. For any thread."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo) -> None:
        self._tokenizer, self._info = tokenizer, info
        self._marker = tokenizer.token_id(DSML)
        self._lock = Lock()
        self._kept: OrderedDict[str, Grammar | None] = OrderedDict()

    def rules(self, request: Request, begun: str, opening: Opening) -> AnswerRules:
        """What holds an answer to the request's tools and to its schema. begun: markup of the calls that stands in the prompt.

        Where a tool must be called, the answer is its call, whatever the schema; else it is JSON of the schema or calls.
        ArgumentError for a schema that no grammar can be made of; UnsupportedError where llguidance is missing and something
        is demanded that cannot be promised without it. What is not demanded is then helped by GreedyCalls."""
        must = request.tool_choice == "required" and bool(request.tools)
        schema = None if must else request.response_schema
        if schema is not None and (not request.tools or self._marker is None or opening.given):
            return answer_rules(self._tokenizer, self._info, dict(schema), list(request.tools), opening)
        if not request.tools or self._marker is None:
            return AnswerRules()
        tools = [tool for name, tool in request.tools.items() if not request.tool_names or name in request.tool_names]
        parallel, first = request.parallel_tool_calls, None
        try:
            trigger = self._grammar(tools, "marker", parallel)
            if must:
                first = self._grammar(tools, "calls" if begun else "block", parallel)
            elif schema is not None:
                first = self._grammar(tools, "json", parallel, schema)
        except UnsupportedError:
            if must or schema is not None:
                raise
            return AnswerRules(GreedyCalls(self._tokenizer, self._marker))
        if first is None and must:
            raise ArgumentError("tool_choice: no grammar can be made of the tools, so that a call cannot be promised; simplify "
                                "their schemas, or let the model choose")
        if first is None and schema is not None:
            return answer_rules(self._tokenizer, self._info, dict(schema), [tool.name for tool in tools], opening)
        thinks = opening.kind == "reasoning"
        constraint = ToolConstraint(self._tokenizer, self._info, self._marker, trigger, first, thinks)
        return AnswerRules(constraint, first.check if first else None)

    def _grammar(self, tools: Sequence[Tool], start: Start, parallel: bool, schema: Mapping[str, Any] | None = None
                 ) -> Grammar | None:
        """None where none can be made of the tools."""
        key = json.dumps([start, parallel, schema, [(tool.name, tool.kind, tool.schema) for tool in tools]])
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._made(tools, start, parallel, schema)
                if len(self._kept) > _MOST_GRAMMARS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _made(self, tools: Sequence[Tool], start: Start, parallel: bool, schema: Mapping[str, Any] | None) -> Grammar | None:
        for typed in (True, False):
            opening, rules = (text.replace("MARK", f"<[{self._marker}]>")
                              for text in (_STARTS[start], _rules(tools, parallel, typed)))
            try:
                grammar = Grammar.lark(f"start: {opening}\n{rules}") if schema is None else json_or(schema, opening, rules)
                grammar.matcher(self._tokenizer, self._info)  # the vocabulary's form takes seconds, once a model
            except ArgumentError:
                continue
            return grammar
        return None


class ToolConstraint:
    """Free, until calls begin; then what the grammar allows, up to their end, which is the answer's. Where the whole answer is
    held, that begins after the reasoning."""

    def __init__(self, tokenizer: Tokenizer, info: ModelInfo, marker: int, trigger: Grammar | None, first: Grammar | None,
                 thinks: bool) -> None:
        """trigger: for what follows the marker. first: for the whole answer but its reasoning, None for any."""
        self._tokenizer, self._info = tokenizer, info
        self._marker = marker
        self._trigger, self._first = trigger, first
        self._think_end = tokenizer.token_id("</think>") if thinks else None
        self._matcher: Matcher | None = None
        self._is_over = False
        self._tail = "\n"  # of the text so far
        only_eos = np.zeros(info.n_vocab + -info.n_vocab % 32, dtype=np.uint8)
        only_eos[info.eos_token] = 1
        self._only_eos = _bits(only_eos)
        self._all_but_eos = _bits(1 - only_eos)
        if first is not None and self._think_end is None:
            self._matcher = first.matcher(tokenizer, info)

    @property
    def is_held(self) -> bool:
        """Whether the next token is one of calls, or of the answer that they or JSON must be."""
        return self._matcher is not None

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        if self._is_over:
            return self._only_eos
        if self._matcher is not None:
            return self._matcher.allowed()
        return self._all_but_eos if self._first is not None else None

    def forced(self) -> list[int]:
        return self._matcher.forced() if self._matcher is not None else []

    def consume(self, token: int) -> None:
        if self._is_over:
            return
        if self._matcher is not None:
            self._matcher.consume(token)
            if self._matcher.is_over:
                self._matcher, self._is_over = None, True
        elif token == self._think_end:
            self._think_end, self._tail = None, "\n"
            if self._first is not None:
                self._matcher = self._first.matcher(self._tokenizer, self._info)
        elif token == self._marker and self._trigger is not None and self._tail.endswith("\n<"):
            self._matcher = self._trigger.matcher(self._tokenizer, self._info)
        else:
            self._tail = (self._tail + self._tokenizer.decode([token]))[-4:]


_VALUE_OPENING = re.compile(r'parameter name="[^"\n]*" string="(?:true|false)">')


class GreedyCalls:
    """Free, but for the markup of calls, where the likeliest token is taken: what is done without llguidance. Values of
    parameters stay free. It keeps the form, mostly; names and types are the model's own."""

    def __init__(self, tokenizer: Tokenizer, marker: int) -> None:
        self._tokenizer, self._marker = tokenizer, marker
        self._tail = "\n"  # of the text before calls
        self._markup: str | None = None  # since the last marker, where calls have begun
        self._is_closing = False  # whether "</" is before that marker
        self._is_value = False  # whether a parameter's header is complete

    @property
    def is_held(self) -> bool:
        """Whether calls have begun, and not ended."""
        return self._markup is not None

    @property
    def is_greedy(self) -> bool:
        """Whether the next token is markup."""
        return self._markup is not None and not self._is_value

    def allowed(self) -> npt.NDArray[np.uint32] | None:
        return None

    def forced(self) -> list[int]:
        return []

    def consume(self, token: int) -> None:
        if token == self._marker:
            if self._markup is not None or self._tail.endswith("\n<"):
                self._markup, self._is_closing, self._is_value = "", self._tail.endswith("</"), False
            return
        text = self._tokenizer.decode([token])
        self._tail = (self._tail + text)[-4:]
        if self._markup is None or self._is_value:
            return
        self._markup += text
        self._is_value = _VALUE_OPENING.match(self._markup) is not None
        if self._is_closing and self._markup.startswith("tool_calls>"):
            self._markup = None


def _bits(flags: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """A bit for each token, the lowest first. flags: uint8 of a multiple of 32 tokens."""
    words: npt.NDArray[np.uint32] = np.packbits(flags, bitorder="little").view(np.uint32)
    return words
