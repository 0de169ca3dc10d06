"""Requests as prompts, byte for byte as DeepSeek's own converters (the package deepseek-recipe) render them."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from conversations import Conversation, Turn, conversations
from hypothesis import given, settings

from pyflash.serve import chat_completions, messages, responses
from pyflash.serve.rendering import render
from pyflash.serve.request import Request

recipe = pytest.importorskip("deepseek_recipe", reason="deepseek-recipe is not installed")

MODEL = "DeepSeek-V4-Pro"  # its converters' name of the V4 encoding
RELEASE = "0731"


def theirs(kind: Any, body: dict[str, Any]) -> tuple[str, list[str]]:
    """The prompt, and the special tokens in it; what a text spells is none."""
    options = recipe.ConversionOptions().with_messages_web_search(recipe.WebSearchBehavior.Drop)
    request = kind(copy.deepcopy(body)).convert(options)
    rendered = recipe.DeepseekV4Encoding().render_conversation(request.conversation)
    return rendered.prompt, [rendered.prompt[start:end] for start, end in rendered.special_ranges]


def ours(read: Any, body: dict[str, Any]) -> tuple[str, list[str]]:
    request: Request = read(copy.deepcopy(body))
    prompt = render(request, RELEASE)
    return prompt.text, [text for text, special in prompt.segments if special]


def without_none(value: dict[str, Any]) -> dict[str, Any]:
    return {key: each for key, each in value.items() if each is not None}


# -- the same conversation as a body of each protocol --


def chat_body(conversation: Conversation) -> dict[str, Any]:
    out = [] if conversation.system is None else [{"role": "system", "content": conversation.system}]
    for n, turn in enumerate(conversation.turns):
        if turn.question is not None:
            out.append({"role": "user", "content": turn.question})
        made = without_none({"role": "assistant", "content": turn.content, "reasoning_content": turn.reasoning})
        if turn.calls:
            made["tool_calls"] = [
                {"id": call.call_id, "type": "function",
                 "function": {"name": call.name, "arguments": json.dumps(call.arguments)}}
                for call in turn.calls
            ]  # fmt: skip
        out.append(made)
        out += [{"role": "tool", "tool_call_id": turn.calls[i].call_id, "content": turn.calls[i].result}
                for i in turn.order]  # fmt: skip
    if conversation.last is not None:
        out.append({"role": "user", "content": conversation.last})
    body: dict[str, Any] = {"model": MODEL, "messages": out, "thinking": {"type": "disabled"}}
    if conversation.effort:
        body |= {"thinking": {"type": "enabled"}, "reasoning_effort": conversation.effort}
    if conversation.tools:
        body["tools"] = [{"type": "function", "function": without_none(each)} for each in conversation.tools]
    return body


def results_block(turn: Turn) -> list[dict[str, Any]]:
    return [{"type": "tool_result", "tool_use_id": turn.calls[i].call_id, "content": turn.calls[i].result}
            for i in turn.order]  # fmt: skip


def messages_body(conversation: Conversation) -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for turn in conversation.turns:
        question = [] if turn.question is None else [{"type": "text", "text": turn.question}]
        out.append({"role": "user", "content": results + question})
        blocks = [] if turn.reasoning is None else [{"type": "thinking", "thinking": turn.reasoning, "signature": "s"}]
        blocks.append({"type": "text", "text": turn.content})
        blocks += [{"type": "tool_use", "id": call.call_id, "name": call.name, "input": call.arguments}
                   for call in turn.calls]  # fmt: skip
        out.append({"role": "assistant", "content": blocks})
        results = results_block(turn)
    question = [] if conversation.last is None else [{"type": "text", "text": conversation.last}]
    out.append({"role": "user", "content": results + question})
    body: dict[str, Any] = {"model": MODEL, "max_tokens": 9, "messages": out, "thinking": {"type": "disabled"}}
    if conversation.effort:
        body |= {"thinking": {"type": "adaptive"}, "output_config": {"effort": conversation.effort}}
    if conversation.system is not None:
        body["system"] = conversation.system
    if conversation.tools:
        body["tools"] = [without_none({"name": each["name"], "description": each["description"],
                                       "input_schema": each["parameters"]}) for each in conversation.tools]  # fmt: skip
    return body


def responses_body(conversation: Conversation) -> dict[str, Any]:
    out: list[dict[str, Any]] = []
    for turn in conversation.turns:
        if turn.question is not None:
            out.append({"role": "user", "content": [{"type": "input_text", "text": turn.question}]})
        if turn.reasoning is not None:
            out.append({"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e",
                        "content": [{"type": "reasoning_text", "text": turn.reasoning}]})  # fmt: skip
        out.append({"type": "message", "role": "assistant", "id": "msg_1",
                    "content": [{"type": "output_text", "text": turn.content, "annotations": []}]})  # fmt: skip
        out += [{"type": "function_call", "call_id": call.call_id, "name": call.name,
                 "arguments": json.dumps(call.arguments)} for call in turn.calls]  # fmt: skip
        out += [{"type": "function_call_output", "call_id": turn.calls[i].call_id, "output": turn.calls[i].result}
                for i in turn.order]  # fmt: skip
    if conversation.last is not None:
        out.append({"role": "user", "content": conversation.last})
    body: dict[str, Any] = {"model": MODEL, "input": out, "reasoning": {"effort": conversation.effort or "none"}}
    if conversation.system is not None:
        body["instructions"] = conversation.system
    if conversation.tools:
        body["tools"] = [{"type": "function", **without_none(each)} for each in conversation.tools]
    return body


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_chat_completions(conversation: Conversation) -> None:
    body = chat_body(conversation)
    assert ours(chat_completions.read, body) == theirs(recipe.ChatCompletionRequest, body)


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_messages(conversation: Conversation) -> None:
    body = messages_body(conversation)
    assert ours(messages.read, body) == theirs(recipe.MessagesRequest, body)


@settings(max_examples=60, deadline=None)
@given(conversations())
def test_responses(conversation: Conversation) -> None:
    body = responses_body(conversation)
    assert ours(responses.read, body) == theirs(recipe.ResponsesRequest, body)
