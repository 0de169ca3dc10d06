"""Fields that several protocols have: thinking, sampling, stops, tools, parts of texts."""

from __future__ import annotations

from typing import Any

from pyflash.serve.errors import RequestError
from pyflash.serve.fields import Fields, wrong
from pyflash.serve.json_body import encode
from pyflash.serve.request import Tool

MAX_TOOLS = 512
MAX_MESSAGES = 100_000
MAX_TOKENS = 2**21  # of a prompt of token ids; twice the longest context
MAX_LOGPROBS = 20
_MAX_STOPS, _MAX_STOP_BYTES = 16, 256
_MAX_SCHEMA_BYTES = 256 * 1024
_MAX_HINT = 512
_MAX_NAME = 256

EFFORTS = {"none": "off", "minimal": "low", "low": "low", "medium": "high", "high": "high", "xhigh": "high",
           "max": "max", "ultra": "max"}  # fmt: skip


def model_name(fields: Fields) -> str:
    """The model's name; any will do, as one model is loaded."""
    return fields.string("model", longest=_MAX_NAME)


def think_by_name(model: str) -> str | None:
    """What a model's name says about thinking: DeepSeek's older names, and the suffix -chat."""
    if model.endswith("-reasoner"):
        return "high"
    return "off" if model.endswith("-chat") else None


def effort(fields: Fields, key: str) -> str | None:
    """A reasoning effort as `think`; None where it is absent."""
    name = fields.choice(key, *EFFORTS)
    return None if name is None else EFFORTS[name]


def max_tokens(fields: Fields, *keys: str) -> int | None:
    """The first of some fields that is there."""
    for key in keys:
        if key in fields:
            return fields.integer(key, 1)
    return None


def sampling(fields: Fields, **names: str) -> dict[str, Any]:
    """What the client chose of SamplingOptions. names: fields whose name in the body is another."""
    found: dict[str, Any] = {
        "temperature": fields.number(names.get("temperature", "temperature"), 0, 100),
        "top_p": fields.number(names.get("top_p", "top_p"), 0, 1),
        "min_p": fields.number(names.get("min_p", "min_p"), 0, 1),
        "top_k": fields.integer(names.get("top_k", "top_k"), -1),
        "presence_penalty": fields.number("presence_penalty", -2, 2),
        "frequency_penalty": fields.number("frequency_penalty", -2, 2),
        "repetition_penalty": fields.number(names.get("repetition_penalty", "repetition_penalty"), 0.01, 10),
        "seed": fields.integer("seed", -(2**63), 2**64 - 1),
    }
    if found["top_k"] == -1:
        found["top_k"] = 0
    return {name: value for name, value in found.items() if value is not None}


def stops(fields: Fields, key: str) -> tuple[str, ...]:
    """The texts that end an answer: one, or a list of them; empty ones do nothing."""
    given = fields.raw(key)
    found = [given] if isinstance(given, str) else fields.list(key, _MAX_STOPS)
    for n, stop in enumerate(found):
        where = f"{fields.at(key)}[{n}]"
        if not isinstance(stop, str):
            raise wrong(where, "a string", stop)
        if len(stop.encode("utf-8", "replace")) > _MAX_STOP_BYTES:
            raise RequestError(f"{where} is longer than {_MAX_STOP_BYTES} bytes: shorten it", param=where)
    return tuple(stop for stop in found if stop)


def hints(fields: Fields, *keys: str) -> tuple[str, ...]:
    """What a client calls its session. Fields of other types are no hints."""
    found = (fields.raw(key) for key in keys)
    return tuple(hint for hint in found if isinstance(hint, str) and 0 < len(hint) <= _MAX_HINT)


def schema(fields: Fields, key: str) -> dict[str, Any]:
    """A JSON schema, which must be there."""
    value = fields.require(key)
    if not isinstance(value, dict):
        raise wrong(fields.at(key), "an object", value)
    check_size(value, fields.at(key))
    return value


def check_size(value: Any, path: str) -> None:
    """Whether a schema is small enough to become a grammar."""
    if len(encode(value)) > _MAX_SCHEMA_BYTES:
        raise RequestError(f"{path} is larger than {_MAX_SCHEMA_BYTES // 1024} KiB: simplify it", param=path)


def text(fields: Fields, key: str, kinds: tuple[str, ...] = ("text",), *, lenient: bool = False) -> str:
    """Content: a string, or a list of parts whose texts are joined by blank lines, as DeepSeek's converters join them.

    kinds: the types of the parts that have a "text". lenient: other parts become a note to the model, as those of
    results do, which a client cannot help; else they are refused."""
    value = fields.raw(key)
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong(fields.at(key), "a string or a list of parts", value)
    return "\n\n".join(part_text(part, kinds, lenient) for part in fields.objects(key, MAX_MESSAGES))


def part_text(part: Fields, kinds: tuple[str, ...], lenient: bool) -> str:
    """One part of a content as text."""
    kind = part.string("type", "text" if isinstance(part.raw("text"), str) else "")
    if kind in kinds:
        return part.string("text")
    if kind == "refusal":
        return part.string("refusal")
    if lenient:
        return "[Unsupported Image]" if "image" in kind else f"[Unsupported {kind[:40]}]"
    raise RequestError(
        f"{part.path} is of the type {kind[:40]!r}: this model reads text only", param=part.at("type")
    )


def tool_name(fields: Fields, prefix: str = "") -> str:
    """The name of a tool, which must fit into the markup of a call."""
    name = prefix + fields.string("name")
    where = fields.at("name")
    if not fields.string("name"):
        raise RequestError(f"{where} is missing: give the tool a name", param=where)
    if len(name) > _MAX_NAME or any(char in name for char in '"<>\n\r｜'):
        raise RequestError(f"{where} must be a name of at most {_MAX_NAME} characters without quotes", param=where)
    return name


def function_schema(name: str, description: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """A tool as the model is told of it: the members in the converters' order, a missing description as an empty
    one."""
    inner = {"name": name, "description": description, "parameters": parameters}
    return {"type": "function", "function": inner}


class Tools:
    """The tools of a request while they are read."""

    def __init__(self) -> None:
        self.schemas: list[dict[str, Any]] = []
        self.by_name: dict[str, Tool] = {}
        self.notes: list[str] = []

    def add(self, tool: Tool, schema: dict[str, Any], where: str) -> None:
        if tool.name in self.by_name:
            raise RequestError(f"{where}: there are two tools of the name {tool.name!r}; send one of them", param=where)
        if len(self.by_name) == MAX_TOOLS:
            raise RequestError(f"{where}: there are more than {MAX_TOOLS} tools; send fewer", param=where)
        check_size(schema, where)
        self.by_name[tool.name] = tool
        self.schemas.append(schema)

    def function(self, fields: Fields, parameters: str, namespace: str = "", prefix: str = "") -> None:
        """A function; parameters: the field that has its schema."""
        name = tool_name(fields, prefix)
        inner = fields.inner(parameters)
        schema = inner.plain() if inner else {}
        local_name = fields.string("name") if namespace else ""
        tool = Tool(name, "function", namespace, local_name, schema, strict=fields.boolean("strict"))
        self.add(tool, function_schema(name, fields.string("description"), schema), fields.path)

    def custom(self, fields: Fields, grammar: Fields | None, namespace: str = "", prefix: str = "") -> None:
        """A tool of a free text: a function of one string to the model. grammar: where the notation of the text stands."""
        name = tool_name(fields, prefix)
        description, syntax = fields.string("description"), None
        if grammar is not None:
            notation = grammar.choice("syntax", "lark", "regex") or "lark"
            definition = grammar.string("definition")
            check_size(definition, grammar.at("definition"))
            syntax = (notation, definition)
            shown = "Lark grammar" if notation == "lark" else "regular expression"
            description += f"\n\nThe input must match this {shown}:\n{definition}"
        schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
        local_name = fields.string("name") if namespace else ""
        self.add(Tool(name, "custom", namespace, local_name, schema, syntax),
                 function_schema(name, description.strip(), schema), fields.path)  # fmt: skip

    def drop(self, kind: str) -> None:
        """Leaves out what only another service can run."""
        self.notes.append(f"a tool of the type {kind[:40]!r} is left out")

    def names(self, wanted: list[str], path: str) -> tuple[str, ...]:
        """Names that a choice of tools has, checked."""
        for name in wanted:
            if name not in self.by_name:
                raise RequestError(f"{path} names the tool {name[:60]!r}, which is not among the tools", param=path)
        return tuple(wanted)
