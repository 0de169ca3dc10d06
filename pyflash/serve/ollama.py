"""Ollama's API: chats and completions, and what its clients ask of a server first."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from pyflash.serve import options
from pyflash.serve.collecting import Call, collect
from pyflash.serve.errors import RequestError
from pyflash.serve.events import (
    Content,
    Event,
    Failed,
    Finished,
    Progress,
    Reasoning,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Usage,
)
from pyflash.serve.fields import Fields, wrong
from pyflash.serve.json_body import encode
from pyflash.serve.request import Request

_ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class ModelFacts:
    """What clients are told of the model that is loaded. n_bytes: of its file. parameters: their count as a text,
    such as "284B". weights: the type of most weights, as in GGUF. modified: seconds since 1970."""

    name: str
    digest: str
    n_bytes: int
    n_ctx: int
    parameters: str
    weights: str
    modified: int
    family: str = "deepseek4"


# -- reading --


def is_load(body: Any) -> bool:
    """Whether a body asks for nothing but that the model be loaded, as clients do before the first question."""
    return isinstance(body, dict) and not body.get("messages") and not body.get("prompt")


def read_chat(body: Any) -> Request:
    """A request to /api/chat. RequestError for what is refused."""
    fields = Fields(body)
    tools = options.Tools()
    for each in fields.objects("tools", options.MAX_TOOLS):
        inner = each.inner("function")
        if inner is None:
            raise RequestError(f"{each.at('function')} is missing: describe the function", param=each.at("function"))
        tools.function(inner, "parameters")
    messages = _messages(fields)
    return _request(fields, "ollama_chat", messages=messages, tool_schemas=tools.schemas, tools=tools.by_name)


def read_generate(body: Any) -> Request:
    """A request to /api/generate. RequestError for what is refused."""
    fields = Fields(body)
    prompt = fields.string("prompt")
    _no_images(fields)
    if "suffix" in fields:
        return _request(fields, "ollama_generate", prompt=prompt, suffix=fields.string("suffix"), think="off")
    if fields.boolean("raw"):
        return _request(fields, "ollama_generate", prompt=prompt, think="off")
    messages = [{"role": "user", "content": prompt}]
    if system := fields.string("system"):
        messages.insert(0, {"role": "system", "content": system})
    return _request(fields, "ollama_generate", messages=messages)


def _request(fields: Fields, protocol: Any, **more: Any) -> Request:
    model = options.model_name(fields)
    given = fields.inner("options") or Fields({}, "options")
    response_format, schema = _format(fields)
    n = given.integer("num_predict", -2)
    more.setdefault("think", _think(fields) or options.think_by_name(model.removesuffix(":latest")))
    return Request(
        protocol, model, stream=fields.boolean("stream", True), max_tokens=n if n and n > 0 else None,
        sampling=options.sampling(given, repetition_penalty="repeat_penalty"), stop=options.stops(given, "stop"),
        response_format=response_format, response_schema=schema, **more,
    )  # fmt: skip


def _think(fields: Fields) -> str | None:
    if isinstance(fields.raw("think"), str):
        return options.effort(fields, "think")
    return ("high" if fields.boolean("think") else "off") if "think" in fields else None


def _format(fields: Fields) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    given = fields.raw("format")
    if given is None or given == "":
        return None, None
    if given == "json":
        return None, {"type": "object"}
    if not isinstance(given, dict):
        raise wrong("format", '"json" or a JSON schema', given)
    schema = options.schema(fields, "format")
    return schema, schema


def _no_images(fields: Fields) -> None:
    if fields.list("images", options.MAX_MESSAGES):
        raise RequestError(f"{fields.at('images')}: this model reads text only", param=fields.at("images"))


def _messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages; calls have no ids here, so those of this function's are given to them and to their results."""
    out: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # ids and names of calls without a result
    for n, each in enumerate(fields.objects("messages", options.MAX_MESSAGES)):
        role = each.choice("role", *_ROLES)
        if role is None:
            raise RequestError(f"{each.at('role')} is missing: send system, user, assistant or tool",
                               param=each.at("role"))  # fmt: skip
        _no_images(each)
        message: dict[str, Any] = {"role": role, "content": each.string("content")}
        if role == "assistant":
            message["reasoning_content"] = each.string("thinking")
            waiting = []
            if calls := [_call(call, f"{n}_{i}") for i, call in enumerate(each.objects("tool_calls", 10_000))]:
                message["tool_calls"] = calls
                waiting = [(call["id"], call["function"]["name"]) for call in calls]
        elif role == "tool":
            message["tool_call_id"] = _result_id(each, waiting)
        out.append(message)
    if not out:
        raise RequestError("messages is missing or empty: send at least one message", param="messages")
    return out


def _call(fields: Fields, number: str) -> dict[str, Any]:
    inner = fields.inner("function")
    if inner is None:
        raise RequestError(f"{fields.at('function')} is missing: send the function that was called",
                           param=fields.at("function"))  # fmt: skip
    given = inner.inner("arguments")
    arguments = json.dumps(given.plain() if given else {}, ensure_ascii=False)
    function = {"name": options.tool_name(inner), "arguments": arguments}
    return {"id": fields.string("id") or f"call_{number}", "type": "function", "function": function}


def _result_id(fields: Fields, waiting: list[tuple[str, str]]) -> str:
    """The call that a result is of: the one it names, the first of the tool it names, or the first."""
    given, name = fields.string("tool_call_id"), fields.string("tool_name") or fields.string("name")
    fitting = [call for call in waiting if call[0] == given] or [call for call in waiting if call[1] == name] or waiting
    if not fitting:
        return given
    waiting.remove(fitting[0])
    return fitting[0][0]


# -- writing --


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as Ollama writes it."""
    return {"error": error.message}


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)


def _end(reason: str, usage: Usage) -> dict[str, Any]:
    """What the last line has; times in nanoseconds."""
    return {
        "done": True, "done_reason": "length" if reason in ("length", "context_full") else "stop",
        "total_duration": _nanoseconds(usage.prompt_seconds + usage.generate_seconds), "load_duration": 0,
        "prompt_eval_count": usage.n_prompt, "prompt_eval_duration": _nanoseconds(usage.prompt_seconds),
        "eval_count": usage.n_generated, "eval_duration": _nanoseconds(usage.generate_seconds),
    }  # fmt: skip


def _call_body(index: int, call: Call) -> dict[str, Any]:
    function = {"index": index, "name": call.name, "arguments": json.loads(call.arguments or "{}")}
    return {"id": call.call_id, "function": function}


def _said(request: Request, content: str = "", thinking: str = "",
          calls: Iterable[dict[str, Any]] = ()) -> dict[str, Any]:  # fmt: skip
    """The members that carry text: of a message, or for /api/generate of the line itself."""
    more: dict[str, Any] = {"thinking": thinking} if thinking else {}
    if request.protocol == "ollama_generate":
        return {"response": content, **more}
    if listed := list(calls):
        more["tool_calls"] = listed
    return {"message": {"role": "assistant", "content": content, **more}}


class Stream:
    """Events to the lines of a streamed answer. created: seconds since 1970."""

    content_type = "application/x-ndjson"

    def __init__(self, request: Request, response_id: str, created: int) -> None:
        self._request = request
        self._head = {"model": request.model, "created_at": _time(created)}
        self._call = Call("", "")

    def feed(self, event: Event) -> bytes:
        """What an event adds."""
        if isinstance(event, Reasoning) and self._request.show_reasoning:
            return self._line(_said(self._request, thinking=event.text))
        if isinstance(event, Content):
            return self._line(_said(self._request, event.text))
        if isinstance(event, (Progress, Reasoning)):
            return self._line(_said(self._request))
        if isinstance(event, ToolCallBegin):
            self._call = Call(event.call_id, event.name)
            return b""
        if isinstance(event, ToolCallArguments):
            return self._line(_said(self._request))  # which shows that the server lives
        if isinstance(event, ToolCallEnd):
            self._call.arguments = event.arguments
            return self._line(_said(self._request, calls=[_call_body(event.index, self._call)]))
        if isinstance(event, Finished):
            return encode({**self._head, **_said(self._request), **_end(event.reason, event.usage)}) + b"\n"
        return encode(error_body(event.error)) + b"\n" if isinstance(event, Failed) else b""

    def _line(self, said: dict[str, Any]) -> bytes:
        return encode({**self._head, **said, "done": False}) + b"\n"


def full(request: Request, events: Iterable[Event], response_id: str, created: int) -> dict[str, Any]:
    """The body of an answer in one piece. RequestError where it broke off."""
    answer = collect(events)
    thinking = answer.reasoning if request.show_reasoning else ""
    calls = [_call_body(n, call) for n, call in enumerate(answer.calls)]
    return {"model": request.model, "created_at": _time(created),
            **_said(request, answer.content, thinking, calls), **_end(answer.reason, answer.usage)}  # fmt: skip


def load_body(body: dict[str, Any], created: int, *, chat: bool) -> dict[str, Any]:
    """The answer to a body that is_load()."""
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    return {"model": Fields(body).string("model"), "created_at": _time(created), **said, "done": True,
            "done_reason": "load"}  # fmt: skip


def _details(facts: ModelFacts) -> dict[str, Any]:
    return {"parent_model": "", "format": "gguf", "family": facts.family, "families": [facts.family],
            "parameter_size": facts.parameters, "quantization_level": facts.weights}  # fmt: skip


def _entry(facts: ModelFacts) -> dict[str, Any]:
    return {"name": facts.name, "model": facts.name, "modified_at": _time(facts.modified), "size": facts.n_bytes,
            "digest": facts.digest, "details": _details(facts)}  # fmt: skip


def tags_body(facts: ModelFacts) -> dict[str, Any]:
    """/api/tags: the models that there are."""
    return {"models": [_entry(facts)]}


def ps_body(facts: ModelFacts, expires: int) -> dict[str, Any]:
    """/api/ps: the models that are loaded. expires: when the model may be closed, seconds since 1970."""
    return {"models": [{**_entry(facts), "expires_at": _time(expires), "size_vram": 0,
                        "context_length": facts.n_ctx}]}  # fmt: skip


def show_body(facts: ModelFacts) -> dict[str, Any]:
    """/api/show: what the model is and can do."""
    info = {"general.architecture": facts.family, f"{facts.family}.context_length": facts.n_ctx}
    return {"modelfile": "", "parameters": "", "template": "", "license": "", "details": _details(facts),
            "model_info": info, "capabilities": ["completion", "tools", "thinking", "insert"],
            "modified_at": _time(facts.modified)}  # fmt: skip


def version_body() -> dict[str, Any]:
    """/api/version: of Ollama, the oldest that has all of this; clients refuse older ones."""
    return {"version": "0.13.3"}
