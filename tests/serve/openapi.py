"""The server's routes as an OpenAPI document, from which requests are made up: what each body may have, loosely."""

from __future__ import annotations

from typing import Any

S: dict[str, Any] = {"type": "string"}
N: dict[str, Any] = {"type": "number"}
I: dict[str, Any] = {"type": "integer"}
B: dict[str, Any] = {"type": "boolean"}
FREE: dict[str, Any] = {"type": "object"}


def words(*each: str) -> dict[str, Any]:
    return {"type": "string", "enum": list(each)}


def items(inner: Any, **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": inner, "maxItems": 3, **more}


def record(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def either(*each: Any) -> dict[str, Any]:
    return {"anyOf": list(each)}


PART = record("type", type=words("text", "input_text", "output_text", "image_url", "refusal"), text=S)
CONTENT = either(S, {"type": "null"}, items(PART))
FUNCTION = record("name", name=words("f", "g", "odd.name"), description=S, parameters=FREE, strict=B)
CUSTOM = record("name", name=words("c", "d"), description=S, format=record("type", type=words("text", "grammar"),
    grammar=record(
    syntax=words("lark", "regex"), definition=S)))  # fmt: skip
CALL = record("id", id=S, type=words("function"), function=record("name", name=words("f", "g"), arguments=either(S, FREE)))
CHAT_TOOL = either(record("type function", type=words("function"), function=FUNCTION), record("type custom",
    type=words("custom"), custom=CUSTOM))
SAMPLING = {
    "temperature": {**N, "minimum": 0, "maximum": 3}, "top_p": {**N, "minimum": 0, "maximum": 1}, "min_p": N, "top_k": I,
    "seed": I,
    "presence_penalty": N, "frequency_penalty": N, "repetition_penalty": N, "stop": either(S, items(S)),
}  # fmt: skip
MESSAGE = record("role", role=words("system", "developer", "user", "assistant", "tool", "latest_reminder"), content=CONTENT,
                 reasoning_content=S, tool_calls=items(CALL), tool_call_id=S, prefix=B)  # fmt: skip
FORMAT = record("type", type=words("text", "json_object", "json_schema"), json_schema=record(name=S, schema=FREE))
CHAT = record(
    "messages", model=words("m", "deepseek-chat"), messages=items(MESSAGE, minItems=1), tools=items(CHAT_TOOL), stream=B,
    tool_choice=either(words("auto", "none", "required"), FREE), parallel_tool_calls=B, max_tokens={**I, "minimum": 1,
    "maximum": 8},
    n=I, logprobs=B, top_logprobs=I, response_format=FORMAT, reasoning_effort=words("none", "low", "high", "max"),
    thinking=record(type=words("enabled", "disabled"), budget_tokens=I), stream_options=record(include_usage=B),
    chat_template_kwargs=FREE, prompt_cache_key=S, return_progress=B, continue_final_message=B, **SAMPLING,
)  # fmt: skip
ITEM = either(
    record("role content", type=words("message"), role=words("user", "assistant", "system", "developer"), content=CONTENT,
    id=S),
    record("type", type=words("reasoning"), id=S, summary=items(PART), content=either(items(PART), {"type": "null"}),
    encrypted_content=S),
    record("type name call_id", type=words("function_call", "custom_tool_call"), name=words("f", "c"), call_id=S, arguments=S,
    input=S),
    record("type call_id", type=words("function_call_output", "custom_tool_call_output"), call_id=S, output=CONTENT),
)
RESPONSES = record(
    "input", model=S, input=either(S, items(ITEM)), instructions=S, stream=B, max_output_tokens={**I, "minimum": 1,
    "maximum": 8},
    tools=items(record("type name", type=words("function", "custom", "web_search", "namespace"), name=words("f", "c"),
    parameters=FREE,
                       tools=items(FREE), format=FREE)), tool_choice=either(words("auto", "none", "required"), FREE),
    reasoning=record(effort=words("none", "low", "high"), summary=words("auto", "none")), text=record(format=FORMAT), store=B,
    previous_response_id=either(S, {"type": "null"}), include=items(words("reasoning.encrypted_content",
    "message.output_text.logprobs")),
    top_logprobs=I, metadata=FREE, **SAMPLING,
)  # fmt: skip
BLOCK = record("type", type=words("text", "thinking", "tool_use", "tool_result", "image", "document", "redacted_thinking"),
    text=S,
               thinking=S, signature=S, id=S, name=words("f"), input=FREE, tool_use_id=S, content=CONTENT,
               source=FREE)  # fmt: skip
MESSAGES = record(
    "messages max_tokens", model=S, max_tokens={**I, "minimum": 1, "maximum": 8}, system=either(S, items(PART)), stream=B,
    messages=items(record("role content", role=words("user", "assistant", "system"), content=either(S, items(BLOCK))),
    minItems=1),
    tools=items(record("name", name=words("f", "g"), type=S, input_schema=FREE)), tool_choice=record(type=words("auto", "any",
    "tool", "none"), name=S),
    thinking=record(type=words("enabled", "disabled", "adaptive"), budget_tokens=I, display=words("omitted")),
    stop_sequences=items(S),
    output_config=record(effort=words("low", "high"), format=FREE), metadata=record(user_id=S), **SAMPLING,
)  # fmt: skip
COMPLETIONS = record(
    "prompt", model=S, prompt=either(S, items({**I, "minimum": 0, "maximum": 1100})), suffix=S, stream=B, logprobs=I, echo=B,
    best_of=I,
    max_tokens={**I, "minimum": 1, "maximum": 8}, **SAMPLING,
)  # fmt: skip
OPTIONS = record("num_predict", num_predict={**I, "minimum": 1, "maximum": 8}, **SAMPLING)
OLLAMA = record(
    "options", model=S, messages=items(record("role", role=words("system", "user", "assistant", "tool"), content=S,
    thinking=S, images=items(S),
                                    tool_calls=items(FREE), tool_name=S)), tools=items(CHAT_TOOL), think=either(B,
                                    words("low", "high")),
    stream=B, format=either(words("json"), FREE), options=OPTIONS, keep_alive=either(I, S),
)  # fmt: skip
GENERATE = record("options", model=S, prompt=S, suffix=S, system=S, raw=B, stream=B, think=B, format=FREE, images=items(S),
    options=OPTIONS)

POST: dict[str, Any] = {
    "/v1/chat/completions": CHAT, "/v1/responses": RESPONSES, "/v1/messages": MESSAGES, "/v1/messages/count_tokens": MESSAGES,
    "/v1/completions": COMPLETIONS, "/v1/fim/completions": COMPLETIONS, "/api/chat": OLLAMA, "/api/generate": GENERATE,
    "/api/show": record(model=S, verbose=B), "/tokenize": record("content", content=S),
    "/detokenize": record("tokens", tokens=items(I)), "/apply-template": CHAT, "/v1/embeddings": FREE,
    "/page/jobs/00000000-0000-0000-0000-000000000000/stop": FREE,
}  # fmt: skip
GET = ("/", "/health", "/metrics", "/slots", "/props", "/v1/models", "/api/tags", "/api/ps", "/api/version", "/page/info")
_ANSWERS = {"default": {"description": "an answer, or the protocol's own error"}}
_NAME = {"name": "name", "in": "path", "required": True, "schema": S}

DOCUMENT: dict[str, Any] = {
    "openapi": "3.1.0", "info": {"title": "pyflash serve", "version": "1"},
    "paths": {
        **{path: {"post": {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
                           "responses": _ANSWERS}} for path, schema in POST.items()},
        **{path: {"get": {"responses": _ANSWERS}} for path in GET},
        "/v1/models/{name}": {"get": {"parameters": [_NAME], "responses": _ANSWERS}},
        "/page/jobs/{name}": {"get": {"parameters": [_NAME], "responses": _ANSWERS}},
    },
}  # fmt: skip
