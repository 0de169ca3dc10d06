"""Reading OpenAI's Responses, as Codex and others send them; stateless."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyflash.serve import options
from pyflash.serve.errors import RequestError
from pyflash.serve.fields import Fields, wrong
from pyflash.serve.free_text import arguments_of
from pyflash.serve.request import Request, ToolChoice
from pyflash.serve.responses_stream import Stream, error_body, full
from pyflash.serve.turns import are_of_one_answer

__all__ = ["Stream", "error_body", "full", "read"]

_TEXT_PARTS = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
_ECHOED = ("instructions", "max_output_tokens", "max_tool_calls", "metadata", "parallel_tool_calls", "prompt_cache_key",
           "reasoning", "safety_identifier", "service_tier", "temperature", "text", "tool_choice", "tools",
           "top_logprobs", "top_p", "truncation", "user")  # fmt: skip
_OUTPUTS = ("function_call_output", "custom_tool_call_output")


def read(body: Any) -> Request:
    """A request. RequestError for what is refused."""
    fields = Fields(body)
    model = options.model_name(fields)
    for key in ("previous_response_id", "conversation"):
        if key in fields:
            raise RequestError(f"{key} is not supported, as nothing is stored: send the whole conversation as input",
                               param=key)  # fmt: skip
    if fields.boolean("background"):
        raise RequestError("background is not supported: wait for the answer, or stream it", param="background")
    tools = _tools(fields)
    choice, names = _tool_choice(fields, tools)
    reasoning = fields.inner("reasoning")
    think = options.effort(reasoning, "effort") if reasoning else None
    response_format, schema = _response_format(fields)
    include = fields.list("include", 100)
    logprobs = fields.integer("top_logprobs", 0, options.MAX_LOGPROBS)
    echo = {key: fields.raw(key) for key in _ECHOED if key in fields}
    echo["encrypted"] = "reasoning.encrypted_content" in include
    return Request(
        "responses", model, stream=fields.boolean("stream"), messages=_Items(fields, tools).messages(),
        tool_schemas=tools.schemas if choice != "none" else [], tools=tools.by_name if choice != "none" else {},
        tool_choice=choice, tool_names=names, parallel_tool_calls=fields.boolean("parallel_tool_calls", True),
        think=think or options.think_by_name(model), max_tokens=options.max_tokens(fields, "max_output_tokens"),
        sampling=options.sampling(fields), stop=options.stops(fields, "stop"),
        logprobs=(logprobs or 0) if "message.output_text.logprobs" in include else None,
        response_format=response_format, response_schema=schema,
        hints=options.hints(fields, "prompt_cache_key", "user"), echo=echo, notes=tuple(tools.notes),
    )  # fmt: skip


class _Items:
    """The input while it is read: neighbouring items of the assistant become one message."""

    def __init__(self, fields: Fields, tools: options.Tools) -> None:
        self._fields = fields
        self._tools = tools
        self._out: list[dict[str, Any]] = []
        self._said: dict[str, list[Any]] | None = None

    def messages(self) -> list[dict[str, Any]]:
        fields = self._fields
        if instructions := fields.string("instructions"):
            self._out.append({"role": "system", "content": instructions})
        given = fields.raw("input")
        if isinstance(given, str):
            self._out.append({"role": "user", "content": given})
        else:
            for item in fields.objects("input", options.MAX_MESSAGES):
                self._item(item)
            self._flush()
        if not any(each["role"] != "system" for each in self._out):
            if not isinstance(given, list):
                raise RequestError("input is missing: send a text or a list of items", param="input")
            # Clients probe a server by an empty input.
            self._out.append({"role": "user", "content": ""})
        return self._out

    def _item(self, item: Fields) -> None:
        kind = item.string("type", "message" if "role" in item else "")
        if kind == "message":
            self._message(item)
        elif kind == "reasoning":
            said = self._assistant()
            said["thoughts"] += [options.part_text(part, _TEXT_PARTS, True)
                                 for part in item.objects("content", options.MAX_MESSAGES)]  # fmt: skip
            said["opaque"] += [item.string(key) for key in ("encrypted_content", "id") if key in item]
        elif kind in ("function_call", "custom_tool_call"):
            call = self._call(item, kind)
            (self._turn_of(call) or self._assistant()["calls"]).append(call)
        elif kind in _OUTPUTS:
            self._flush()
            content = options.text(item, "output", _TEXT_PARTS, lenient=True)
            self._out.append({"role": "tool", "tool_call_id": item.string("call_id"), "content": content})
        else:
            self._tools.notes.append(f"an item of the type {kind[:40]!r} is left out")

    def _message(self, item: Fields) -> None:
        role = item.choice("role", "user", "assistant", "system", "developer")
        if role is None:
            raise RequestError(f"{item.at('role')} is missing: send user, assistant, system or developer",
                               param=item.at("role"))  # fmt: skip
        content = options.text(item, "content", _TEXT_PARTS)
        if role == "assistant":
            said = self._assistant()
            said["texts"].append(content)
            said["opaque"] += [item.string("id")] if "id" in item else []
            return
        self._flush()
        # DeepSeek's converter gives a developer's words to the user.
        self._out.append({"role": "system" if role == "system" else "user", "content": content})

    def _call(self, item: Fields, kind: str) -> dict[str, Any]:
        name = options.tool_name(item, _prefix(item.string("namespace")))
        if kind == "custom_tool_call":
            arguments = arguments_of(item.string("input"))
        else:
            arguments = item.string("arguments") or "{}"
        call_id = item.string("call_id") or item.string("id")
        return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}

    def _turn_of(self, call: dict[str, Any]) -> list[Any] | None:
        """The calls of the turn that a call is of, where results have come since: some clients send each behind its call."""
        before = next((each for each in reversed(self._out) if each["role"] != "tool"), None)
        calls: list[Any] = before.get("tool_calls", []) if before is not None and self._said is None else []
        return calls if calls and are_of_one_answer(calls[-1]["id"], call["id"]) else None

    def _assistant(self) -> dict[str, list[Any]]:
        if self._said is None:
            self._said = {"thoughts": [], "texts": [], "calls": [], "opaque": []}
        return self._said

    def _flush(self) -> None:
        """The assistant's turn is over."""
        said, self._said = self._said, None
        if said is None:
            return
        message: dict[str, Any] = {"role": "assistant", "content": "\n\n".join(said["texts"]),
                                   "reasoning_content": "\n".join(said["thoughts"])}  # fmt: skip
        if said["calls"]:
            message["tool_calls"] = said["calls"]
        if said["opaque"]:
            message["opaque"] = said["opaque"]
        self._out.append(message)


def _prefix(namespace: str) -> str:
    """What stands before a name of a namespace."""
    if not namespace:
        return ""
    return namespace if namespace.endswith("__") else f"{namespace}__"


def _tools(fields: Fields) -> options.Tools:
    tools = options.Tools()
    for each in fields.objects("tools", options.MAX_TOOLS):
        if each.string("type") == "namespace":
            namespace = each.string("name")
            for inner in each.objects("tools", options.MAX_TOOLS):
                _tool(tools, inner, namespace)
        else:
            _tool(tools, each, "")
    return tools


def _tool(tools: options.Tools, fields: Fields, namespace: str) -> None:
    kind = fields.string("type", "function")
    if kind == "function":
        tools.function(fields, "parameters", namespace, _prefix(namespace))
    elif kind == "custom":
        given = fields.inner("format")
        is_bound = given is not None and given.choice("type", "text", "grammar") == "grammar"
        tools.custom(fields, given if is_bound else None, namespace, _prefix(namespace))
    else:
        tools.drop(kind)


def _tool_choice(fields: Fields, tools: options.Tools) -> tuple[ToolChoice, tuple[str, ...]]:
    given = fields.raw("tool_choice")
    if given is None or not tools.by_name:
        return "auto", ()
    if isinstance(given, str):
        choice = fields.choice("tool_choice", "auto", "none", "required")
        return ("none" if choice == "none" else "required" if choice == "required" else "auto"), ()
    if not isinstance(given, dict):
        raise wrong("tool_choice", "a string or an object", given)
    inner = Fields(given, "tool_choice")
    kind = inner.string("type")
    if kind in ("function", "custom"):
        return "required", tools.names([_full_name(inner)], inner.at("name"))
    if kind == "allowed_tools":
        wanted = [_full_name(each) for each in _callable(inner)]
        mode = inner.choice("mode", "auto", "required")
        return ("required" if mode == "required" else "auto"), tools.names(wanted, inner.at("tools"))
    return "auto", ()  # of a tool that is left out


def _callable(fields: Fields) -> Iterator[Fields]:
    return (each for each in fields.objects("tools", options.MAX_TOOLS)
            if each.string("type") in ("function", "custom"))  # fmt: skip


def _full_name(fields: Fields) -> str:
    return _prefix(fields.string("namespace")) + fields.string("name")


def _response_format(fields: Fields) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The format in pyflash.chat's form, and the schema that the answer must match."""
    text = fields.inner("text")
    asked = text.inner("format") if text else None
    kind = asked.choice("type", "text", "json_object", "json_schema") if asked else None
    if asked and kind == "json_schema":
        schema = options.schema(asked, "schema")
        return schema, schema
    return None, {"type": "object"} if kind == "json_object" else None
