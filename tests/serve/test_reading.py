"""Bodies of requests: what each protocol reads of them, and what it refuses, in the error family and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyflash.serve import chat_completions, completions, messages, ollama, responses
from pyflash.serve.errors import STATUS, RequestError
from pyflash.serve.json_body import MAX_DEPTH, decode
from pyflash.serve.rendering import render, render_completion
from pyflash.serve.request import Request

READERS = {"chat": chat_completions.read, "completions": completions.read, "responses": responses.read,
           "messages": messages.read, "ollama chat": ollama.read_chat,
           "ollama generate": ollama.read_generate}  # fmt: skip
ERRORS = {"chat": chat_completions.error_body, "completions": completions.error_body,
          "responses": responses.error_body, "messages": messages.error_body, "ollama chat": ollama.error_body,
          "ollama generate": ollama.error_body}  # fmt: skip
USER = {"role": "user", "content": "hi"}
BASE: dict[str, dict[str, Any]] = {
    "chat": {"messages": [USER]}, "completions": {"prompt": "x"}, "responses": {"input": "hi"},
    "messages": {"messages": [USER]}, "ollama chat": {"messages": [USER]}, "ollama generate": {"prompt": "x"},
}  # fmt: skip


def refused(name: str, body: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        READERS[name](body)
    assert "\n" not in caught.value.message
    return caught.value


# -- what is refused --


@pytest.mark.parametrize(("name", "change", "param"), [
    ("chat", {"messages": None}, "messages"),
    ("chat", {"messages": []}, "messages"),
    ("chat", {"messages": "hi"}, "messages"),
    ("chat", {"messages": ["hi"]}, "messages[0]"),
    ("chat", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
    ("chat", {"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ("chat", {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
     "messages[0].content[0].type"),
    ("chat", {"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}]},
     "messages[1].tool_calls[0].function"),
    ("chat", {"n": 2}, "n"),
    ("chat", {"temperature": "warm"}, "temperature"),
    ("chat", {"temperature": -1}, "temperature"),
    ("chat", {"top_p": 1.5}, "top_p"),
    ("chat", {"max_tokens": 0}, "max_tokens"),
    ("chat", {"max_completion_tokens": True}, "max_completion_tokens"),
    ("chat", {"stream": "yes"}, "stream"),
    ("chat", {"stop": ["x"] * 17}, "stop"),
    ("chat", {"stop": ["é" * 129]}, "stop[0]"),
    ("chat", {"stop": [1]}, "stop[0]"),
    ("chat", {"top_logprobs": 21}, "top_logprobs"),
    ("chat", {"reasoning_effort": "much"}, "reasoning_effort"),
    ("chat", {"thinking": {"type": "perhaps"}}, "thinking.type"),
    ("chat", {"tools": [{"type": "function"}]}, "tools[0].function"),
    ("chat", {"tools": [{"type": "function", "function": {"name": 'a"b'}}]}, "tools[0].function.name"),
    ("chat", {"tools": [{"type": "function", "function": {"name": "a"}}] * 2}, "tools[1].function"),
    ("chat", {"tools": [{"type": "function", "function": {"name": "a"}}],
              "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice.function.name"),
    ("chat", {"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ("chat", {"response_format": {"type": "json_schema", "json_schema": {"schema": {"enum": ["x" * 300_000]}}}},
     "response_format.json_schema.schema"),
    ("completions", {"prompt": None}, "prompt"),
    ("completions", {"prompt": ["a", "b"]}, "prompt[0]"),
    ("completions", {"prompt": [1, -2]}, "prompt[1]"),
    ("completions", {"prompt": [1], "suffix": "x"}, "suffix"),
    ("completions", {"best_of": 3}, "best_of"),
    ("responses", {"input": None}, "input"),
    ("responses", {"input": 5}, "input"),
    ("responses", {"previous_response_id": "resp_1"}, "previous_response_id"),
    ("responses", {"conversation": {"id": "x"}}, "conversation"),
    ("responses", {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}]},
     "input[0].content[0].type"),
    ("responses", {"reasoning": {"effort": 3}}, "reasoning.effort"),
    ("responses", {"tools": [{"type": "custom", "name": "a", "format": {"type": "grammar", "syntax": "bnf"}}]},
     "tools[0].format.syntax"),
    ("messages", {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
     "messages[0].content[0].type"),
    ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
    ("messages", {"tools": [{"name": "a", "input_schema": []}]}, "tools[0].input_schema"),
    ("messages", {"messages": [USER, {"role": "assistant",
                                      "content": [{"type": "tool_use", "name": "a", "input": 1}]}]},
     "messages[1].content[0].input"),
    ("messages", {"system": 3}, "system"),
    ("ollama chat", {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]}, "messages[0].images"),
    ("ollama chat", {"options": {"temperature": "x"}}, "options.temperature"),
    ("ollama generate", {"format": "yaml"}, "format"),
])  # fmt: skip
def test_a_field_that_is_wrong_is_named(name: str, change: dict[str, Any], param: str) -> None:
    error = refused(name, {**BASE[name], **change})
    assert error.param == param and param.split(".")[-1] in error.message and error.status == 400
    assert error.message in str(ERRORS[name](error))


@pytest.mark.parametrize("name", READERS)
def test_what_is_unknown_is_ignored_and_null_is_absent(name: str) -> None:
    plain = READERS[name](BASE[name])
    more = dict.fromkeys(("temperature", "stop", "tools", "stream", "max_tokens", "seed", "model", "thinking"))
    assert READERS[name]({**BASE[name], **more, "frobnicate": [1], "store": True}) == plain


@pytest.mark.parametrize(("data", "words"), [
    (b"{", "not JSON"), (b"[1]", "must be a JSON object"), (b'{"a": NaN}', "no number of JSON"),
    (b'{"a": -Infinity}', "no number of JSON"), (b'{"a": 1e400}', "too large"),
    (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"), (b"\xff{}", "not UTF-8"),
    (b'{"a": ' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}", "in each other"), (b'{"a":' * 100_000, "in each other"),
])  # fmt: skip
def test_bodies_that_are_no_json(data: bytes, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        decode(data)


def test_halves_of_characters_become_whole_ones() -> None:
    assert decode(rb'{"\ud800": ["x\udfff", "\ud83d\ude00"]}') == {"\ufffd": ["x\ufffd", "😀"]}
    assert decode(b'\xef\xbb\xbf{"a": ' + b"[" * (MAX_DEPTH - 1) + b"]" * (MAX_DEPTH - 1) + b"}")


def test_every_code_has_a_status_and_no_5xx_but_two() -> None:
    assert {status for status in STATUS.values() if status >= 500} <= {501, 503}


# -- what is read --


def request_of(name: str, **change: Any) -> Request:
    request: Request = READERS[name]({**BASE[name], **change})
    return request


@pytest.mark.parametrize(("change", "think"), [
    ({}, None), ({"reasoning_effort": "none"}, "off"), ({"reasoning_effort": "minimal"}, "low"),
    ({"reasoning_effort": "xhigh"}, "high"), ({"reasoning_effort": "max"}, "max"),
    ({"thinking": {"type": "disabled"}, "reasoning_effort": "max"}, "off"),
    ({"thinking": {"type": "enabled"}}, "high"), ({"thinking": {"type": "enabled"}, "reasoning_effort": "low"}, "low"),
    ({"chat_template_kwargs": {"enable_thinking": False}}, "off"),
    ({"chat_template_kwargs": {"thinking": True}}, "high"),
    ({"model": "deepseek-chat"}, "off"), ({"model": "deepseek-reasoner"}, "high"),
    ({"model": "deepseek-chat", "reasoning_effort": "low"}, "low"),
])  # fmt: skip
def test_thinking(change: dict[str, Any], think: str | None) -> None:
    assert request_of("chat", **change).think == think


def test_fields_of_chat_completions() -> None:
    request = request_of(
        "chat", model="x", stream=True, stream_options={"include_usage": True}, max_tokens=5, temperature=0.5, top_k=-1,
        seed=7.0, stop="END", prompt_cache_key="k", user_id="u", thinking={"type": "enabled", "budget_tokens": 9},
        return_progress=True, cache_prompt=False, parallel_tool_calls=False, response_format={"type": "json_object"},
    )  # fmt: skip
    assert request.sampling == {"temperature": 0.5, "top_k": 0, "seed": 7} and request.stop == ("END",)
    assert (request.max_tokens, request.thinking_budget, request.hints) == (5, 9, ("k", "u"))
    assert request.include_usage and request.report_progress and not request.reuse and not request.parallel_tool_calls
    assert request.response_format is None and request.response_schema == {"type": "object"}


SHELL = {"type": "function", "function": {"name": "sh", "description": "d", "parameters": {"type": "object"}}}


def test_tools_that_may_not_be_called_are_not_told_of() -> None:
    request = request_of("chat", tools=[SHELL], tool_choice="none")
    assert not request.tool_schemas and not request.tools
    request = request_of("chat", tools=[SHELL], tool_choice={"type": "allowed_tools", "allowed_tools": {
        "mode": "required", "tools": [SHELL]}})  # fmt: skip
    assert (request.tool_choice, request.tool_names) == ("required", ("sh",))


def test_system_messages_in_the_middle_stay_there() -> None:
    turns = [USER, {"role": "assistant", "content": "a"}, {"role": "system", "content": "M"}, USER]
    text = render(request_of("chat", messages=turns, thinking={"type": "disabled"}), "0731").text
    assert text.endswith("a<｜end▁of▁sentence｜>M<｜User｜>hi<｜Assistant｜></think>")
    text = render(request_of("messages", messages=turns, thinking={"type": "disabled"}), "0731").text
    assert text.endswith("<｜User｜><system-reminder>\nM\n</system-reminder>\n\nhi<｜Assistant｜></think>")


def test_a_required_call_is_begun_for_the_model_that_does_not_think() -> None:
    other = {"type": "function", "function": {"name": "other"}}
    for think, begun in (("disabled", True), ("enabled", False)):
        prompt = render(request_of("chat", tools=[SHELL, other], thinking={"type": think},
                                   tool_choice={"type": "function", "function": {"name": "sh"}}), "0731")  # fmt: skip
        assert prompt.text.endswith("</think>\n\n<｜DSML｜tool_calls>\n") is begun and bool(prompt.begun) is begun
        assert ('"name": "other"' in prompt.text) is not begun


@pytest.mark.parametrize(("last", "think", "end", "opens", "given_text"), [
    ({"content": "so", "prefix": True}, "enabled", "<think></think>so", "content", "so"),
    ({"content": "so", "reasoning_content": "r", "prefix": True}, "enabled", "<think>r</think>so", "content", "so"),
    ({"content": "", "reasoning_content": "r", "prefix": True}, "enabled", "<think>r", "reasoning", ""),
    ({"content": "so", "prefix": True}, "disabled", "</think>so", "content", "so"),
])  # fmt: skip
def test_an_answer_that_is_gone_on_with(last: Any, think: str, end: str, opens: str, given_text: str) -> None:
    body = {"messages": [USER, {"role": "assistant", **last}], "thinking": {"type": think}}
    prompt = render(request_of("chat", **body), "0731")
    assert prompt.text.endswith(f"<｜User｜>hi<｜Assistant｜>{end}")
    assert (prompt.opens, prompt.given) == (opens, given_text)
    if not last.get("reasoning_content"):
        prefill = [USER, {"role": "assistant", "content": "so"}]
        assert render(request_of("messages", messages=prefill, thinking={"type": think}), "0731").text == prompt.text


def test_a_conversation_that_ends_with_calls_is_refused() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "sh", "arguments": "{}"}}
    request = request_of("chat", messages=[USER, {"role": "assistant", "content": None, "tool_calls": [call]}])
    with pytest.raises(RequestError, match="send the result of each"):
        render(request, "0731")


def test_turns_are_the_messages_in_order() -> None:
    system = {"role": "system", "content": "S"}
    turns = [system, USER, USER, {"role": "assistant", "content": "a"}, USER]
    prompt = render(request_of("chat", messages=turns), "0731")
    assert [(turn.kind, turn.first, turn.last) for turn in prompt.turns] == [
        ("begin", 0, 0), ("system", 0, 1), ("user", 1, 3), ("opening", 3, 3), ("assistant", 3, 4), ("user", 4, 5),
        ("opening", 5, 5)]  # fmt: skip
    assert "".join(turn.text for turn in prompt.turns) == prompt.text


def test_completions_as_prompts() -> None:
    assert render_completion(request_of("completions", prompt=[[5, 6]])) == [5, 6]
    middle = render_completion(request_of("completions", prompt="a<think>", suffix="b"))
    assert middle == [("<｜begin▁of▁sentence｜>", True), ("<｜fim▁begin｜>", True), ("a<think>", False),
                      ("<｜fim▁hole｜>", True), ("b", False), ("<｜fim▁end｜>", True)]  # fmt: skip


# -- clients' shapes --


def test_a_coding_agents_responses_request() -> None:
    """As Codex sends them: developer messages, custom tools, namespaces, tools of other services, replayed items."""
    items = [
        {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "rules"}]},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "go"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": None, "encrypted_content": "sealed"},
        {"type": "function_call", "id": "fc_1", "name": "open", "namespace": "mcp", "call_id": "c1", "arguments": "{}"},
        {"type": "custom_tool_call", "name": "apply_patch", "call_id": "c2", "input": "*** Begin"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "custom_tool_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"},
                                                                        {"type": "input_image", "image_url": "u"}]},
    ]  # fmt: skip
    tools = [{"type": "namespace", "name": "mcp", "tools": [{"type": "function", "name": "open", "parameters": None}]},
             {"type": "custom", "name": "apply_patch", "format": {"type": "text"}}, {"type": "web_search"},
             {"type": "image_generation"}, {"type": "local_shell"}]  # fmt: skip
    request = request_of("responses", input=items, tools=tools, tool_choice="auto", store=False, prompt_cache_key="k",
                         include=["reasoning.encrypted_content"], reasoning={"summary": "auto"})  # fmt: skip
    assert list(request.tools) == ["mcp__open", "apply_patch"] and len(request.notes) == 3 and request.hints == ("k",)
    answer = request.messages[2]
    assert answer["opaque"] == ["sealed", "rs_1"] and [call["id"] for call in answer["tool_calls"]] == ["c1", "c2"]
    text = render(request, "0731").text
    assert '<｜DSML｜invoke name="mcp__open">' in text and "sealed" not in text and "rs_1" not in text
    assert "<tool_result>one</tool_result>\n\n<tool_result>two\n\n[Unsupported Image]</tool_result>" in text


def test_an_agents_messages_request() -> None:
    """As Claude Code sends them: adaptive thinking, a list of system texts with a header that always changes, betas."""
    def body(billing: str) -> dict[str, Any]:
        return {
            "model": "claude-opus-5[1m]", "max_tokens": 32000, "thinking": {"type": "adaptive"}, "stream": True,
            "output_config": {"effort": "high"}, "metadata": {"user_id": '{"session": 1}'},
            "context_management": {"edits": []},
            "system": [{"type": "text", "text": f"x-anthropic-billing-header: cc_version=2; cch={billing};"},
                       {"type": "text", "text": "You are", "cache_control": {"type": "ephemeral"}}],
            "tools": [{"name": "Bash", "input_schema": {"type": "object"}, "eager_input_streaming": True},
                      {"type": "web_search_20250305", "name": "web_search", "max_uses": 5}],
            "messages": [USER, {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "tool_use", "id": "t1", "name": "Bash", "input": {"command": "ls"}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "is_error": True,
                                              "content": [{"type": "text", "text": "none"}, {"type": "image"}]}]},
                {"role": "system", "content": "reminder"}],
        }  # fmt: skip

    first, second = (render(messages.read(body(each)), "0731").text for each in ("abc", "xyz"))
    assert first == second and "x-anthropic" not in first and "hm</think>" in first
    request = messages.read(body("abc"))
    assert request.model == "claude-opus-5[1m]" and request.think == "high" and request.hints == ('{"session": 1}',)
    assert request.messages[2]["opaque"] == ["sig"] and len(request.notes) == 1


# -- anything --

_KEYS = sorted({
    "model", "messages", "role", "content", "type", "text", "tools", "function", "name", "parameters", "input_schema",
    "tool_choice", "tool_calls", "id", "arguments", "tool_call_id", "stream", "stream_options", "include_usage", "n",
    "stop", "max_tokens", "temperature", "top_p", "top_k", "seed", "logprobs",
    "top_logprobs", "response_format", "json_schema",
    "schema", "reasoning_effort", "thinking", "budget_tokens", "prompt", "suffix", "input", "instructions", "reasoning",
    "effort", "summary", "include", "call_id", "output", "namespace", "format", "syntax", "definition", "system",
    "output_config", "metadata", "user_id", "stop_sequences", "options", "think", "images", "tool_name", "prefix",
    "chat_template_kwargs", "enable_thinking", "encrypted_content", "tool_use_id", "source", "data", "raw",
    "allowed_tools", "mode", "description", "strict", "user", "echo", "display", "reasoning_content", "custom",
})  # fmt: skip
_WORDS = st.sampled_from([
    "user", "assistant", "system", "tool", "developer", "function", "message", "text", "input_text", "tool_use",
    "tool_result", "thinking", "image", "document", "function_call", "function_call_output", "custom_tool_call",
    "reasoning", "custom", "namespace", "grammar", "lark", "auto", "none", "required", "any", "enabled", "disabled",
    "adaptive", "json_schema", "json_object", "json", "high", "low", "f", "", "\ud800", "{}", "[" * 200,
    "allowed_tools",
])  # fmt: skip
_SCALARS = (st.none() | st.booleans() | _WORDS | st.integers(-3, 3) | st.integers() | st.floats() | st.text(max_size=5))
_ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_KEYS), inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@settings(max_examples=100, deadline=None)
@given(change=st.dictionaries(st.sampled_from(_KEYS), _ANYTHING, max_size=6))
def test_anything(name: str, change: dict[str, Any]) -> None:
    """Whatever is sent becomes a request that can be rendered, or an error of the family in the protocol's words."""
    try:
        request = READERS[name]({**BASE[name], **change})
        if request.is_conversation:
            assert render(request, "0731").text.startswith("<｜begin▁of▁sentence｜>")
            assert render(request, "preview").text
        else:
            assert render_completion(request) is not None
    except RequestError as error:
        assert error.message and "\n" not in error.message
        json.dumps(ERRORS[name](error))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40) | st.text(max_size=40).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes(data: bytes) -> None:
    try:
        assert isinstance(decode(data), dict)
    except RequestError as error:
        assert "\n" not in error.message
