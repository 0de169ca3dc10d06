"""The one form that requests of all protocols are read into."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Protocol = Literal["chat_completions", "completions", "responses", "messages", "ollama_chat", "ollama_generate"]
ToolChoice = Literal["auto", "none", "required"]


@dataclass(frozen=True)
class Tool:
    """A tool as the client names it, kept under the name that the model knows it by.

    kind "custom": its one argument, "input", is a free text, which goes to the client as such. namespace, local_name:
    the group that the client keeps it in, and its name there; "" for none. schema: its parameters' JSON schema.
    syntax: for kind "custom" the grammar that its input should match, ("lark" or "regex", text), or None. strict: the
    client asks for arguments of exactly the schema."""

    name: str
    kind: Literal["function", "custom"] = "function"
    namespace: str = ""
    local_name: str = ""
    schema: Mapping[str, Any] = field(default_factory=dict)
    syntax: tuple[str, str] | None = None
    strict: bool = False


@dataclass(frozen=True)
class Request:
    """What is asked for.

    model: the name that the client sent, which the answer repeats. stream: whether the answer comes in pieces.

    A conversation has messages, in pyflash.chat's form, the tools not among them. Each was made new and belongs to
    this request. Where a message of the assistant came with opaque texts of an earlier answer (a signature, encrypted
    content, ids of items), they are in its "opaque", a list of strings; they are a client's word and never reach the
    prompt. The ids of tool calls are in "tool_calls". A last message with "prefix" is gone on with.

    A completion has prompt, text or token ids, instead, and perhaps the suffix that is to follow it (None: none).

    tool_schemas: the tools that the model is told of, [{"type": "function", "function": {...}}], [] for none. tools:
    all of them by the name that the model writes. tool_choice "required": some tool must be called, one of tool_names
    where that names any. parallel_tool_calls: whether an answer may have more than one call.

    think: "off", "low", "high" or "max", as in Session.chat(); None: the client does not say. thinking_budget: the most
    tokens of reasoning, or None. show_reasoning: whether the client wants to see it.

    max_tokens: None where the client does not say. sampling: those of SamplingOptions that the client chose. stop:
    texts that end the answer. logprobs: None for none, else how many likely tokens are told beside each token.

    response_format: in pyflash.chat's form, or None for text. response_schema: the JSON schema that the answer must
    match, or None.

    draft: what proposes tokens that are checked several at once, as in Session.generate(); None: the client does not say.
    prediction: a text that much of the answer may be a copy of, "" for none.

    include_usage, report_progress: whether a streamed answer tells the tokens' counts at its end, and the prompt's
    progress. hints: what the client calls its session, each a text of any bytes; only hints about where the cache is.
    reuse: whether tokens evaluated before may be used. echo: fields that the answer repeats, as the protocol has
    them. notes: what was left out of the request, each a short text for a log."""

    protocol: Protocol
    model: str
    stream: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    prompt: str | list[int] | None = None
    suffix: str | None = None
    tool_schemas: list[dict[str, Any]] = field(default_factory=list)
    tools: dict[str, Tool] = field(default_factory=dict)
    tool_choice: ToolChoice = "auto"
    tool_names: tuple[str, ...] = ()
    parallel_tool_calls: bool = True
    think: str | None = None
    thinking_budget: int | None = None
    show_reasoning: bool = True
    max_tokens: int | None = None
    sampling: dict[str, Any] = field(default_factory=dict)
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    response_schema: dict[str, Any] | None = None
    include_usage: bool = True
    report_progress: bool = False
    draft: str | None = None
    prediction: str = ""
    hints: tuple[str, ...] = ()
    reuse: bool = True
    echo: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_conversation(self) -> bool:
        return self.prompt is None
