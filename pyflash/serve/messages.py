"""Anthropic's Messages, and its counting of tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from pyflash.serve import options
from pyflash.serve.collecting import collect
from pyflash.serve.errors import RequestError
from pyflash.serve.events import (
    Content,
    Event,
    Finished,
    Progress,
    Reasoning,
    Started,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Usage,
)
from pyflash.serve.fields import Fields, wrong
from pyflash.serve.json_body import sse
from pyflash.serve.request import Request, ToolChoice

CONTENT_TYPE = "text/event-stream"
_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use",
                 "context_full": "model_context_window_exceeded"}  # fmt: skip
_BILLING = "x-anthropic-billing-header:"  # differs from request to request, and says nothing to a model
_SERVER_BLOCKS = ("server_tool_use", "web_search_tool_result", "web_fetch_tool_result", "code_execution_tool_result",
                  "bash_code_execution_tool_result", "text_editor_code_execution_tool_result",
                  "tool_search_tool_result", "mcp_tool_use", "mcp_tool_result", "compaction")  # fmt: skip
_STILL_SILENT = 60.0  # seconds after which a client is given more than pings, which its library may swallow


# -- reading --


def read(body: Any) -> Request:
    """A request, of an answer or of a count. RequestError for what is refused."""
    fields = Fields(body)
    model = options.model_name(fields)
    tools = _tools(fields)
    choice, names, parallel = _tool_choice(fields, tools)
    output = fields.inner("output_config")
    think, budget, shown = _thinking(fields, output)
    schema = _response_schema(fields, output)
    metadata = fields.inner("metadata")
    return Request(
        "messages", model, stream=fields.boolean("stream"), messages=_messages(fields),
        tool_schemas=tools.schemas if choice != "none" else [], tools=tools.by_name if choice != "none" else {},
        tool_choice=choice, tool_names=names, parallel_tool_calls=parallel,
        think=think or options.think_by_name(model), thinking_budget=budget, show_reasoning=shown,
        max_tokens=options.max_tokens(fields, "max_tokens"), sampling=options.sampling(fields),
        stop=options.stops(fields, "stop_sequences"), response_format=schema, response_schema=schema,
        hints=options.hints(metadata, "user_id") if metadata else (), notes=tuple(tools.notes),
    )  # fmt: skip


def _messages(fields: Fields) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    if system := _system(fields):
        out.append({"role": "system", "content": system})
    given = list(fields.objects("messages", options.MAX_MESSAGES))
    if not given:
        raise RequestError("messages is missing or empty: send at least one message", param="messages")
    for each in given:
        role = each.choice("role", "user", "assistant", "system")
        if role is None:
            raise RequestError(f"{each.at('role')} is missing: send user or assistant", param=each.at("role"))
        if role == "assistant":
            out.append(_assistant(each))
        elif role == "system":  # at its place among the user's words, as the converter writes it
            content = options.text(each, "content")
            out.append({"role": "user", "content": f"<system-reminder>\n{content}\n</system-reminder>"})
        else:
            out += _user(each)
    if out[-1]["role"] == "assistant" and not out[-1].get("tool_calls"):
        out[-1]["prefix"] = True
    return out


def _system(fields: Fields) -> str:
    given = fields.raw("system")
    if isinstance(given, str):
        return "" if given.startswith(_BILLING) else given
    texts = [options.part_text(part, ("text",), False) for part in fields.objects("system", options.MAX_MESSAGES)]
    return "\n\n".join(text for text in texts if not text.startswith(_BILLING))


def _user(fields: Fields) -> list[dict[str, Any]]:
    """A user's message as one for each result of a tool and for each run of texts."""
    if isinstance(fields.raw("content"), str):
        return [{"role": "user", "content": fields.string("content")}]
    out: list[dict[str, Any]] = []
    for block in fields.objects("content", options.MAX_MESSAGES):
        kind = block.string("type")
        if kind == "tool_result":
            content = options.text(block, "content", ("text",), lenient=True)
            out.append({"role": "tool", "tool_call_id": block.string("tool_use_id"), "content": content})
        elif kind not in _SERVER_BLOCKS:
            out.append({"role": "user", "content": _user_text(block, kind)})
    return out or [{"role": "user", "content": ""}]


def _user_text(block: Fields, kind: str) -> str:
    if kind == "document" and (source := block.inner("source")):
        if source.string("type") == "text":
            return source.string("data")
        if source.string("type") == "content":
            return options.text(source, "content")
    if kind == "search_result":
        return options.text(block, "content")
    return options.part_text(block, ("text",), False)


def _assistant(fields: Fields) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning_content": ""}
    if isinstance(fields.raw("content"), str):
        return {**message, "content": fields.string("content")}
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[dict[str, Any]] = []
    opaque: list[str] = []
    for block in fields.objects("content", options.MAX_MESSAGES):
        kind = block.string("type")
        if kind == "thinking":
            thoughts.append(block.string("thinking"))
            opaque.append(block.string("signature"))
        elif kind == "redacted_thinking":
            opaque.append(block.string("data"))
        elif kind == "tool_use":
            calls.append(_call(block))
        elif kind not in _SERVER_BLOCKS:
            texts.append(options.part_text(block, ("text",), False))
    message |= {"content": "\n\n".join(texts), "reasoning_content": "\n".join(thoughts)}
    if calls:
        message["tool_calls"] = calls
    if opaque := [text for text in opaque if text]:
        message["opaque"] = opaque
    return message


def _call(block: Fields) -> dict[str, Any]:
    given = block.raw("input")
    if given is not None and not isinstance(given, dict):
        raise wrong(block.at("input"), "an object", given)
    function = {"name": options.tool_name(block), "arguments": json.dumps(given or {}, ensure_ascii=False)}
    return {"id": block.string("id"), "type": "function", "function": function}


def _tools(fields: Fields) -> options.Tools:
    tools = options.Tools()
    for each in fields.objects("tools", options.MAX_TOOLS):
        kind = each.string("type", "custom")
        if kind == "custom":
            tools.function(each, "input_schema")
        else:
            tools.drop(kind)
    return tools


def _tool_choice(fields: Fields, tools: options.Tools) -> tuple[ToolChoice, tuple[str, ...], bool]:
    given = fields.inner("tool_choice")
    if given is None or not tools.by_name:
        return "auto", (), True
    parallel = not given.boolean("disable_parallel_tool_use")
    kind = given.choice("type", "auto", "any", "tool", "none")
    if kind == "none":
        return "none", (), parallel
    if kind == "tool":
        return "required", tools.names([given.string("name")], given.at("name")), parallel
    return ("required" if kind == "any" else "auto"), (), parallel


def _thinking(fields: Fields, output: Fields | None) -> tuple[str | None, int | None, bool]:
    """What `think` is to be, the most tokens of reasoning, and whether it is shown."""
    think = options.effort(output, "effort") if output else None
    given = fields.inner("thinking")
    if given is None:
        return think, None, True
    kind = given.choice("type", "enabled", "disabled", "adaptive")
    if kind == "disabled":
        return "off", None, True
    if kind is not None and think in (None, "off"):
        think = "high"
    budget = given.integer("budget_tokens", 0) if kind == "enabled" else None
    return think, budget, given.string("display") != "omitted"


def _response_schema(fields: Fields, output: Fields | None) -> dict[str, Any] | None:
    asked = (output.inner("format") if output else None) or fields.inner("output_format")
    if asked is None:
        return None
    asked.choice("type", "json_schema")
    return options.schema(asked, "schema")


# -- writing --


def count_body(n_tokens: int) -> dict[str, Any]:
    """The answer to a request for a count."""
    return {"input_tokens": n_tokens}


def _usage(n_prompt: int, n_cached: int, n_generated: int) -> dict[str, Any]:
    """Counts whose three kinds of input tokens add up to the whole prompt."""
    return {"input_tokens": n_prompt - n_cached, "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached, "output_tokens": n_generated}  # fmt: skip


def _usage_of(usage: Usage) -> dict[str, Any]:
    return _usage(usage.n_prompt, usage.n_cached, usage.n_generated)


def _stop_reason(event_reason: str, stop: str | None) -> str:
    return "stop_sequence" if event_reason == "stop" and stop is not None else _STOP_REASONS[event_reason]


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as Anthropic writes it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 413: "request_too_large",
             429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip
    kind = "api_error" if error.code == "generation_failed" else kinds.get(error.status, "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": error.message}}


class Stream:
    """Events to the bytes of a streamed answer. response_id: unique; created is not told."""

    content_type = CONTENT_TYPE

    def __init__(self, request: Request, response_id: str, created: int) -> None:
        self._request = request
        self._id = response_id
        self._signature = ""
        self._reasons = False
        self._open: str | None = None  # the type of the block that is open
        self._index = -1

    def feed(self, event: Event) -> bytes:
        """What an event adds."""
        if isinstance(event, Started):
            return self._start(event)
        if isinstance(event, Progress):
            return self._wait(event)
        if isinstance(event, Reasoning):
            out = self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            if not self._request.show_reasoning:
                return out + _event("ping", {})
            return out + self._delta({"type": "thinking_delta", "thinking": event.text})
        if isinstance(event, Content):
            if not event.text:
                return b""
            out = self._block("text", {"type": "text", "text": ""})
            return out + self._delta({"type": "text_delta", "text": event.text})
        if isinstance(event, ToolCallBegin):
            block = {"type": "tool_use", "id": event.call_id, "name": event.name, "input": {}}
            return self._close() + self._block("tool_use", block)
        if isinstance(event, ToolCallArguments):
            return self._delta({"type": "input_json_delta", "partial_json": event.text})
        if isinstance(event, ToolCallEnd):
            return self._close()
        if isinstance(event, Finished):
            return self._end(event)
        return sse(error_body(event.error), "error")

    def _start(self, event: Started) -> bytes:
        self._signature, self._reasons = event.signature, event.reasons
        message: dict[str, Any] = {
            "id": self._id, "type": "message", "role": "assistant", "model": self._request.model, "content": [],
            "stop_reason": None, "stop_sequence": None, "usage": _usage(event.n_prompt, event.n_cached, 0),
        }  # fmt: skip
        return _event("message_start", {"message": message})

    def _wait(self, event: Progress) -> bytes:
        out = _event("ping", {})
        if self._reasons and event.seconds >= _STILL_SILENT and self._open in (None, "thinking"):
            out += self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
            out += self._delta({"type": "thinking_delta", "thinking": ""})
        return out

    def _block(self, kind: str, block: dict[str, Any]) -> bytes:
        """Opens a block, unless one of its kind is open."""
        if self._open == kind:
            return b""
        out = self._close()
        self._index += 1
        self._open = kind
        return out + _event("content_block_start", {"index": self._index, "content_block": block})

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _close(self) -> bytes:
        if self._open is None:
            return b""
        out = b""
        if self._open == "thinking":
            out = self._delta({"type": "signature_delta", "signature": self._signature})
            self._reasons = False
        self._open = None
        return out + _event("content_block_stop", {"index": self._index})

    def _end(self, event: Finished) -> bytes:
        delta = {"stop_reason": _stop_reason(event.reason, event.stop), "stop_sequence": event.stop}
        out = self._close() + _event("message_delta", {"delta": delta, "usage": _usage_of(event.usage)})
        return out + _event("message_stop", {})


def _event(name: str, members: dict[str, Any]) -> bytes:
    return sse({"type": name, **members}, name)


def full(request: Request, events: Iterable[Event], response_id: str, created: int) -> dict[str, Any]:
    """The body of an answer in one piece. RequestError where it broke off."""
    answer = collect(events)
    content: list[dict[str, Any]] = []
    if answer.reasoning:
        shown = answer.reasoning if request.show_reasoning else ""
        content.append({"type": "thinking", "thinking": shown, "signature": answer.signature})
    if answer.content:
        content.append({"type": "text", "text": answer.content})
    for call in answer.calls:
        content.append({"type": "tool_use", "id": call.call_id, "name": call.name, "input": json.loads(call.arguments)})
    return {
        "id": response_id, "type": "message", "role": "assistant", "model": request.model, "content": content,
        "stop_reason": _stop_reason(answer.reason, answer.stop), "stop_sequence": answer.stop,
        "usage": _usage_of(answer.usage),
    }  # fmt: skip
