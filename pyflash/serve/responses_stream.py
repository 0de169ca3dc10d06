"""Writing OpenAI's Responses: items that are opened, filled and closed one after the other."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pyflash.serve import chat_completions
from pyflash.serve.chances import logprobs_entries
from pyflash.serve.errors import RequestError
from pyflash.serve.events import (
    Content,
    Event,
    Failed,
    Finished,
    FinishReason,
    Progress,
    Reasoning,
    Started,
    TokenChance,
    ToolCallArguments,
    ToolCallBegin,
    ToolCallEnd,
    Usage,
)
from pyflash.serve.free_text import FreeText, free_text
from pyflash.serve.json_body import sse
from pyflash.serve.request import Request, Tool

_CODES = {"generation_failed": "server_error", "grammar_failed": "invalid_prompt", "queue_full": "rate_limit_exceeded",
          "context_length_exceeded": "context_length_exceeded"}  # fmt: skip


def error_body(error: RequestError) -> dict[str, Any]:
    """An error as OpenAI writes it."""
    return chat_completions.error_body(error)


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.n_prompt,
        "input_tokens_details": {"cached_tokens": usage.n_cached, "cache_write_tokens": 0},
        "output_tokens": usage.n_generated, "output_tokens_details": {"reasoning_tokens": usage.n_reasoning},
        "total_tokens": usage.n_prompt + usage.n_generated,
    }  # fmt: skip


class _Item:
    """An item of the output while it is open. value: the item as it stands."""

    def __init__(self, index: int, value: dict[str, Any]) -> None:
        self.index = index
        self.value = value
        self.pieces: list[str] = []
        self.tokens: list[TokenChance] = []
        self.is_whole = not self.kind.endswith("_call")  # calls are once their arguments are
        self.free = FreeText()

    @property
    def kind(self) -> str:
        return str(self.value["type"])

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class Writer:
    """Events of an answer to events of the protocol, each a (name, members) pair, without their numbers."""

    def __init__(self, request: Request, response_id: str, created: int) -> None:
        self._request = request
        self._id = response_id
        self._created = created
        self._signature = ""
        self._output: list[dict[str, Any]] = []
        self._item: _Item | None = None
        reasoning = request.echo.get("reasoning")
        self._summarises = isinstance(reasoning, dict) and reasoning.get("summary") not in (None, "none")

    def feed(self, event: Event) -> list[tuple[str, dict[str, Any]]]:
        """What an event adds."""
        if isinstance(event, Started):
            self._signature = event.signature
            begun = {"response": self.response("in_progress")}
            return [("response.created", begun), ("response.in_progress", begun)]
        if isinstance(event, Progress):
            return [("response.in_progress", {"response": self.response("in_progress"), "prompt_progress": event.body})]
        if isinstance(event, Reasoning):
            return self._reasoning(event.text)
        if isinstance(event, Content):
            return self._content(event) if event.text or event.tokens else []
        if isinstance(event, ToolCallBegin):
            return self._close() + self._call(event)
        if isinstance(event, ToolCallArguments):
            return self._arguments(event.text)
        if isinstance(event, ToolCallEnd):
            if self._item is not None:
                self._item.pieces = [event.arguments]
                self._item.is_whole = True
            return self._close()
        if isinstance(event, Finished):
            return self._end(event)
        return [("response.failed", {"response": self.response("failed", error=event.error)})]

    def response(self, status: str, usage: Usage | None = None, reason: FinishReason | None = None,
                 error: RequestError | None = None) -> dict[str, Any]:  # fmt: skip
        """The response as it stands."""
        request, echo = self._request, self._request.echo
        incomplete = {"reason": "max_output_tokens"} if reason in ("length", "context_full") else None
        failure = None
        if error is not None:
            failure = {"code": _CODES.get(error.code, "server_error"), "message": error.message}
        return {
            "id": self._id, "object": "response", "created_at": self._created, "status": status, "error": failure,
            "incomplete_details": incomplete, "model": request.model, "output": list(self._output),
            "instructions": None, "max_output_tokens": None, "metadata": {}, "parallel_tool_calls": True,
            "temperature": 1.0, "text": {"format": {"type": "text"}}, "tool_choice": "auto", "tools": [],
            "top_p": 1.0, "truncation": "disabled", **{key: echo[key] for key in echo if key != "encrypted"},
            "background": False, "previous_response_id": None, "store": False,
            "completed_at": self._created + round(usage.prompt_seconds + usage.generate_seconds) if usage else None,
            "usage": _usage(usage) if usage else None,
        }  # fmt: skip

    def _place(self) -> dict[str, Any]:
        """Which item an event is of."""
        assert self._item is not None
        return {"item_id": self._item.value["id"], "output_index": self._item.index}

    def _open(self, prefix: str, value: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
        index = len(self._output)
        item = {"id": f"{prefix}_{self._id.removeprefix('resp_')}_{index}", **value}
        self._item = _Item(index, item)
        return [("response.output_item.added", {"output_index": index, "item": dict(item)})]

    def _reasoning(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        out: list[tuple[str, dict[str, Any]]] = []
        if self._item is None or self._item.kind != "reasoning":
            out += self._close()
            out += self._open("rs", {"type": "reasoning", "status": "in_progress", "summary": [], "content": []})
            if self._summarises:
                part = {"type": "summary_text", "text": ""}
                out.append(("response.reasoning_summary_part.added",
                            {**self._place(), "summary_index": 0, "part": part}))  # fmt: skip
        assert self._item is not None
        self._item.pieces.append(text)
        out.append(("response.reasoning_text.delta", {**self._place(), "content_index": 0, "delta": text}))
        if self._summarises:
            out.append(("response.reasoning_summary_text.delta",
                        {**self._place(), "summary_index": 0, "delta": text}))  # fmt: skip
        return out

    def _content(self, event: Content) -> list[tuple[str, dict[str, Any]]]:
        out: list[tuple[str, dict[str, Any]]] = []
        if self._item is None or self._item.kind != "message":
            out += self._close()
            out += self._open("msg", {"type": "message", "status": "in_progress", "role": "assistant", "content": []})
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            out.append(("response.content_part.added", {**self._place(), "content_index": 0, "part": part}))
        assert self._item is not None
        self._item.pieces.append(event.text)
        self._item.tokens += event.tokens
        delta = {**self._place(), "content_index": 0, "delta": event.text, "logprobs": logprobs_entries(event.tokens)}
        return [*out, ("response.output_text.delta", delta)]

    def _call(self, event: ToolCallBegin) -> list[tuple[str, dict[str, Any]]]:
        tool = self._request.tools.get(event.name) or Tool(event.name)
        value: dict[str, Any] = {"status": "in_progress", "call_id": event.call_id,
                                 "name": tool.local_name or event.name}  # fmt: skip
        if tool.namespace:
            value["namespace"] = tool.namespace
        if tool.kind == "custom":
            return self._open("ctc", {"type": "custom_tool_call", **value, "input": ""})
        return self._open("fc", {"type": "function_call", **value, "arguments": ""})

    def _arguments(self, text: str) -> list[tuple[str, dict[str, Any]]]:
        item = self._item
        if item is None:
            return []
        item.pieces.append(text)
        if item.kind == "custom_tool_call":
            delta = item.free.feed(text)
            return [("response.custom_tool_call_input.delta", {**self._place(), "delta": delta})] if delta else []
        return [("response.function_call_arguments.delta", {**self._place(), "delta": text})]

    def _close(self, status: str = "completed") -> list[tuple[str, dict[str, Any]]]:
        """Ends the open item, if there is one."""
        item = self._item
        if item is None:
            return []
        ends = {"reasoning": self._end_reasoning, "message": self._end_message, "function_call": self._end_call,
                "custom_tool_call": self._end_custom}  # fmt: skip
        out = ends[item.kind](item)
        item.value["status"] = status if item.is_whole else "incomplete"
        self._output.append(item.value)
        self._item = None
        return [*out, ("response.output_item.done", {"output_index": item.index, "item": item.value})]

    def _end_reasoning(self, item: _Item) -> list[tuple[str, dict[str, Any]]]:
        item.value["content"] = [{"type": "reasoning_text", "text": item.text}]
        if self._request.echo.get("encrypted") and self._signature:
            item.value["encrypted_content"] = self._signature
        out = [("response.reasoning_text.done", {**self._place(), "content_index": 0, "text": item.text})]
        if self._summarises:
            part = {"type": "summary_text", "text": item.text}
            item.value["summary"] = [part]
            place = {**self._place(), "summary_index": 0}
            out += [("response.reasoning_summary_text.done", {**place, "text": item.text}),
                    ("response.reasoning_summary_part.done", {**place, "part": part})]  # fmt: skip
        return out

    def _end_message(self, item: _Item) -> list[tuple[str, dict[str, Any]]]:
        chances = logprobs_entries(item.tokens)
        part = {"type": "output_text", "text": item.text, "annotations": [], "logprobs": chances}
        item.value["content"] = [part]
        place = {**self._place(), "content_index": 0}
        return [("response.output_text.done", {**place, "text": item.text, "logprobs": chances}),
                ("response.content_part.done", {**place, "part": part})]  # fmt: skip

    def _end_call(self, item: _Item) -> list[tuple[str, dict[str, Any]]]:
        item.value["arguments"] = item.text
        return [("response.function_call_arguments.done",
                 {**self._place(), "name": item.value["name"], "arguments": item.text})]  # fmt: skip

    def _end_custom(self, item: _Item) -> list[tuple[str, dict[str, Any]]]:
        item.value["input"] = free_text(item.text)
        return [("response.custom_tool_call_input.done", {**self._place(), "input": item.value["input"]})]

    def _end(self, event: Finished) -> list[tuple[str, dict[str, Any]]]:
        is_cut = event.reason in ("length", "context_full")
        out = self._close("incomplete" if is_cut else "completed")
        status = "incomplete" if is_cut else "completed"
        return [*out, (f"response.{status}", {"response": self.response(status, event.usage, event.reason)})]


class Stream:
    """Events to the bytes of a streamed answer. response_id: unique, begins with "resp_"; created: seconds since
    1970."""

    content_type = "text/event-stream"

    def __init__(self, request: Request, response_id: str, created: int) -> None:
        self._writer = Writer(request, response_id, created)
        self._n = 0

    def feed(self, event: Event) -> bytes:
        """What an event adds."""
        out = b""
        for name, members in self._writer.feed(event):
            out += sse({"type": name, "sequence_number": self._n, **members}, name)
            self._n += 1
        return out


def full(request: Request, events: Iterable[Event], response_id: str, created: int) -> dict[str, Any]:
    """The body of an answer in one piece. RequestError where it broke off."""
    writer = Writer(request, response_id, created)
    for event in events:
        if isinstance(event, Failed):
            raise event.error
        written = writer.feed(event)
        if isinstance(event, Finished):
            response: dict[str, Any] = written[-1][1]["response"]
            return response
    raise RequestError("the answer broke off: send the request again", code="generation_failed")
