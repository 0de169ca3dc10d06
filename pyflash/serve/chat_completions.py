"""OpenAI's Chat Completions, with DeepSeek's, vLLM's and llama-server's additions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyflash.engine.speculation import DRAFTERS
from pyflash.serve import options
from pyflash.serve.chances import logprobs_content
from pyflash.serve.collecting import Answer, Call, collect
from pyflash.serve.errors import RequestError
from pyflash.serve.events import (
    Content,
    Event,
    Failed,
    Finished,
    Progress,
    Reasoning,
    Started,
    ToolCallArguments,
    ToolCallBegin,
    Usage,
)
from pyflash.serve.fields import Fields, wrong
from pyflash.serve.free_text import FreeText, arguments_of, free_text
from pyflash.serve.json_body import sse
from pyflash.serve.request import Request, ToolChoice

CONTENT_TYPE = "text/event-stream"
_FINISH = {"stop": "stop", "length": "length", "tool_calls": "tool_calls", "context_full": "length"}
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "latest_reminder")


# -- reading --


def read(body: Any) -> Request:
    """A request. RequestError for what is refused."""
    fields = Fields(body)
    model = options.model_name(fields)
    if (fields.integer("n", 1) or 1) > 1:
        raise RequestError("n must be 1: ask for one answer at a time", param="n")
    tools = _tools(fields)
    choice, names = _tool_choice(fields, tools)
    think, budget = _thinking(fields)
    messages = read_messages(fields)
    response_format, schema = _response_format(fields)
    stream_options = fields.inner("stream_options")
    return Request(
        "chat_completions", model, stream=fields.boolean("stream"), messages=messages,
        tool_schemas=tools.schemas if choice != "none" else [], tools=tools.by_name if choice != "none" else {},
        tool_choice=choice, tool_names=names, parallel_tool_calls=fields.boolean("parallel_tool_calls", True),
        think=think or options.think_by_name(model), thinking_budget=budget,
        max_tokens=options.max_tokens(fields, "max_completion_tokens", "max_tokens"),
        sampling=options.sampling(fields), stop=options.stops(fields, "stop"), logprobs=_logprobs(fields),
        response_format=response_format, response_schema=schema,
        include_usage=bool(stream_options and stream_options.boolean("include_usage")),
        draft=fields.choice("draft", *DRAFTERS), prediction=_prediction(fields),
        report_progress=fields.boolean("return_progress"), reuse=fields.boolean("cache_prompt", True),
        hints=options.hints(fields, "prompt_cache_key", "user_id", "user"), notes=tuple(tools.notes),
    )  # fmt: skip


def _prediction(fields: Fields) -> str:
    """The text that the client expects, "" for none."""
    given = fields.inner("prediction")
    if given is None:
        return ""
    given.choice("type", "content")
    return options.text(given, "content")


def read_messages(fields: Fields) -> list[dict[str, Any]]:
    """The messages of a body, at least one."""
    given = list(fields.objects("messages", options.MAX_MESSAGES))
    if not given:
        raise RequestError("messages is missing or empty: send at least one message", param="messages")
    messages = [_message(each) for each in given]
    if fields.boolean("continue_final_message") and messages[-1]["role"] == "assistant":
        messages[-1]["prefix"] = True
    return messages


def _message(fields: Fields) -> dict[str, Any]:
    role = fields.string("role")
    if role not in _ROLES:
        raise RequestError(f"{fields.at('role')} must be one of {', '.join(_ROLES)}", param=fields.at("role"))
    if role in ("tool", "function"):
        content = options.text(fields, "content", lenient=True)
        call_id = fields.string("tool_call_id") or fields.string("name")
        return {"role": "tool", "tool_call_id": call_id, "content": content}
    message: dict[str, Any] = {"role": "system" if role == "developer" else role,
                               "content": options.text(fields, "content")}  # fmt: skip
    if role == "assistant":
        message["reasoning_content"] = fields.string("reasoning_content") or fields.string("reasoning")
        if calls := [_call(each) for each in fields.objects("tool_calls", options.MAX_MESSAGES)]:
            message["tool_calls"] = calls
        if fields.boolean("prefix"):
            message["prefix"] = True
    return message


def _call(fields: Fields) -> dict[str, Any]:
    kind = fields.choice("type", "function", "custom") or "function"
    inner = _described(fields, kind, "send what was called")
    name = options.tool_name(inner)
    if kind == "custom":
        arguments: Any = arguments_of(inner.string("input"))
    else:
        arguments = inner.raw("arguments")
        if arguments is not None and not isinstance(arguments, (str, dict)):
            raise wrong(inner.at("arguments"), "a string", arguments)
    return {"id": fields.string("id"), "type": "function", "function": {"name": name, "arguments": arguments or "{}"}}


def _described(fields: Fields, kind: str, what_to_do: str) -> Fields:
    """The object that a tool, a call or a choice keeps its name in; it has the name of the tool's kind."""
    inner = fields.inner(kind)
    if inner is None:
        raise RequestError(f"{fields.at(kind)} is missing: {what_to_do}", param=fields.at(kind))
    return inner


def _tools(fields: Fields) -> options.Tools:
    tools = options.Tools()
    for each in fields.objects("tools", options.MAX_TOOLS):
        kind = each.string("type", "function")
        if kind == "function":
            tools.function(_described(each, kind, "describe the function"), "parameters")
        elif kind == "custom":
            inner = _described(each, kind, "describe the tool")
            given = inner.inner("format")
            is_bound = given is not None and given.choice("type", "text", "grammar") == "grammar"
            tools.custom(inner, given.inner("grammar") if given is not None and is_bound else None)
        else:
            tools.drop(kind)
    return tools


def _tool_choice(fields: Fields, tools: options.Tools) -> tuple[ToolChoice, tuple[str, ...]]:
    given = fields.raw("tool_choice")
    if given is None or not tools.by_name:
        return "auto", ()
    if isinstance(given, str):
        choice = fields.choice("tool_choice", "auto", "none", "required")
        return ("none" if choice == "none" else "required" if choice == "required" else "auto"), ()
    inner = Fields(given, "tool_choice")
    kind = inner.choice("type", "function", "custom", "allowed_tools") or "function"
    if kind != "allowed_tools":
        named = _described(inner, kind, "name the tool")
        return "required", tools.names([named.string("name")], named.at("name"))
    allowed = Fields(inner.require("allowed_tools"), "tool_choice.allowed_tools")
    wanted = [_described(each, each.choice("type", "function", "custom") or "function", "name the tool").string("name")
              for each in allowed.objects("tools", options.MAX_TOOLS)]  # fmt: skip
    mode = allowed.choice("mode", "auto", "required")
    return ("required" if mode == "required" else "auto"), tools.names(wanted, allowed.at("tools"))


def _thinking(fields: Fields) -> tuple[str | None, int | None]:
    """What `think` is to be, and the most tokens of reasoning."""
    think = options.effort(fields, "reasoning_effort")
    kwargs = fields.inner("chat_template_kwargs")
    if kwargs:
        think = think or options.effort(kwargs, "reasoning_effort")
        for key in ("thinking", "enable_thinking"):
            if key in kwargs:
                think = _switched(think, kwargs.boolean(key))
    budget = fields.integer("reasoning_budget", -1)
    if budget is None:
        budget = fields.integer("thinking_token_budget", -1)
    if thinking := fields.inner("thinking"):
        kind = thinking.choice("type", "enabled", "disabled", "adaptive", "auto")
        if kind is not None and kind != "auto":
            think = _switched(think, kind != "disabled")
        if "budget_tokens" in thinking:
            budget = thinking.integer("budget_tokens", -1)
    return think, None if budget == -1 else budget


def _switched(think: str | None, on: bool) -> str:
    """An effort with thinking switched on or off."""
    if not on:
        return "off"
    return "high" if think in (None, "off") else think


def _logprobs(fields: Fields) -> int | None:
    top = fields.integer("top_logprobs", 0, options.MAX_LOGPROBS)
    return (top or 0) if fields.boolean("logprobs") else None


def _response_format(fields: Fields) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The format in pyflash.chat's form, and the schema that the answer must match."""
    asked = fields.inner("response_format")
    if asked is None:
        return None, None
    kind = asked.choice("type", "text", "json_object", "json_schema")
    if kind == "json_schema":
        schema = options.schema(Fields(asked.require("json_schema"), asked.at("json_schema")), "schema")
        return schema, schema
    if kind == "json_object":
        schema = options.schema(asked, "schema") if "schema" in asked else {"type": "object"}
        return (schema if "schema" in asked else None), schema
    return None, None


# -- writing --


def usage_body(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.n_prompt, "completion_tokens": usage.n_generated,
        "total_tokens": usage.n_prompt + usage.n_generated,
        "prompt_tokens_details": {"cached_tokens": usage.n_cached},
        "completion_tokens_details": {
            "reasoning_tokens": usage.n_reasoning, "accepted_prediction_tokens": usage.n_drafts_kept,
            "rejected_prediction_tokens": usage.n_drafted - usage.n_drafts_kept,
        },
        "prompt_cache_hit_tokens": usage.n_cached, "prompt_cache_miss_tokens": usage.n_prompt - usage.n_cached,
    }  # fmt: skip


def timings_body(usage: Usage) -> dict[str, Any]:
    """llama-server's timings: counts of tokens, and milliseconds."""
    n_evaluated = usage.n_prompt - usage.n_cached
    prompt, generate = usage.prompt_seconds, usage.generate_seconds
    drafts = {"draft_n": usage.n_drafted, "draft_n_accepted": usage.n_drafts_kept} if usage.n_drafted else {}
    return {
        **drafts, "cache_n": usage.n_cached, "prompt_n": n_evaluated, "prompt_ms": round(prompt * 1000, 3),
        "prompt_per_second": round(n_evaluated / prompt, 3) if prompt else 0.0,
        "predicted_n": usage.n_generated, "predicted_ms": round(generate * 1000, 3),
        "predicted_per_second": round(usage.n_generated / generate, 3) if generate else 0.0,
    }  # fmt: skip


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    kinds = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error",
             503: "unavailable_error"}  # fmt: skip
    code: Any = None if error.code == "invalid_request" else error.code
    inner: dict[str, Any] = {"message": error.message, "type": kinds.get(error.status, "invalid_request_error"),
                             "param": error.param, "code": code}  # fmt: skip
    if error.n_prompt is not None:  # llama-server's
        inner |= {"n_prompt_tokens": error.n_prompt, "n_ctx": error.n_ctx}
    return {"error": inner}


class Stream:
    """Events to the bytes of a streamed answer. response_id: unique; created: seconds since 1970."""

    content_type = CONTENT_TYPE

    def __init__(self, request: Request, response_id: str, created: int) -> None:
        self._request = request
        self._head = {"id": response_id, "object": "chat.completion.chunk", "created": created, "model": request.model}
        self._free: FreeText | None = None  # the input of the custom tool that is being called

    def feed(self, event: Event) -> bytes:
        """What an event adds."""
        if isinstance(event, Started):
            return self._chunk({"role": "assistant", "content": ""})
        if isinstance(event, Progress):
            return self._chunk({}, prompt_progress=event.body)
        if isinstance(event, Reasoning):
            return self._chunk({"reasoning_content": event.text}) if self._request.show_reasoning else b""
        if isinstance(event, Content):
            return self._chunk({"content": event.text}, logprobs_content(event.tokens))
        if isinstance(event, ToolCallBegin):
            self._free = FreeText() if _is_custom(self._request, event.name) else None
            kind, inner = ("custom", {"name": event.name, "input": ""}) if self._free is not None else (
                "function", {"name": event.name, "arguments": ""})  # fmt: skip
            return self._chunk({"tool_calls": [{"index": event.index, "id": event.call_id, "type": kind, kind: inner}]})
        if isinstance(event, ToolCallArguments):
            if self._free is None:
                return self._chunk({"tool_calls": [{"index": event.index, "function": {"arguments": event.text}}]})
            text = self._free.feed(event.text)
            return self._chunk({"tool_calls": [{"index": event.index, "custom": {"input": text}}]}) if text else b""
        if isinstance(event, Finished):
            return self._end(event)
        return sse(error_body(event.error)) if isinstance(event, Failed) else b""

    def _chunk(self, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head, "choices": [choice], **more})

    def _end(self, event: Finished) -> bytes:
        out = self._chunk({}, finish=_FINISH[event.reason], timings=timings_body(event.usage))
        if self._request.include_usage:
            out += sse({**self._head, "choices": [], "usage": usage_body(event.usage)})
        return out + b"data: [DONE]\n\n"


def _is_custom(request: Request, name: str) -> bool:
    tool = request.tools.get(name)
    return tool is not None and tool.kind == "custom"


def _call_body(request: Request, call: Call) -> dict[str, Any]:
    if _is_custom(request, call.name):
        return {"id": call.call_id, "type": "custom", "custom": {"name": call.name, "input": free_text(call.arguments)}}
    return {"id": call.call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def message_body(request: Request, answer: Answer) -> dict[str, Any]:
    """The message of a whole answer."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.content}
    if answer.reasoning and request.show_reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.calls:
        message["tool_calls"] = [_call_body(request, call) for call in answer.calls]
    return message


def full(request: Request, events: Iterable[Event], response_id: str, created: int) -> dict[str, Any]:
    """The body of an answer in one piece. RequestError where it broke off."""
    answer = collect(events)
    choice = {"index": 0, "message": message_body(request, answer), "finish_reason": _FINISH[answer.reason],
              "logprobs": logprobs_content(answer.tokens)}  # fmt: skip
    return {"id": response_id, "object": "chat.completion", "created": created, "model": request.model,
            "choices": [choice], "usage": usage_body(answer.usage), "timings": timings_body(answer.usage)}  # fmt: skip
