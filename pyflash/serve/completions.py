"""OpenAI's Completions, with the suffix that makes them fill the middle of a text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pyflash.serve import options
from pyflash.serve.chat_completions import error_body, timings_body, usage_body
from pyflash.serve.collecting import collect
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Content, Event, Failed, Finished, Progress, TokenChance
from pyflash.serve.fields import Fields, wrong
from pyflash.serve.json_body import sse
from pyflash.serve.request import Request

__all__ = ["Stream", "error_body", "full", "read"]

_FINISH = {"stop": "stop", "length": "length", "tool_calls": "stop", "context_full": "length"}
_MAX_TOKEN = 2**31 - 1


def read(body: Any) -> Request:
    """A request. RequestError for what is refused."""
    fields = Fields(body)
    for key in ("n", "best_of"):
        if (fields.integer(key, 1) or 1) > 1:
            raise RequestError(f"{key} must be 1: ask for one answer at a time", param=key)
    if fields.boolean("echo"):
        raise RequestError("echo is not supported: put the prompt before the text yourself", param="echo")
    stream_options = fields.inner("stream_options")
    prompt = _prompt(fields)
    suffix = fields.string("suffix") if "suffix" in fields else None
    if suffix is not None and not isinstance(prompt, str):
        raise RequestError("suffix needs a prompt of text: send prompt as a string", param="suffix")
    return Request(
        "completions", options.model_name(fields), stream=fields.boolean("stream"), prompt=prompt, suffix=suffix,
        think="off", max_tokens=options.max_tokens(fields, "max_tokens"), sampling=options.sampling(fields),
        stop=options.stops(fields, "stop"), logprobs=fields.integer("logprobs", 0, options.MAX_LOGPROBS),
        include_usage=bool(stream_options and stream_options.boolean("include_usage")),
        report_progress=fields.boolean("return_progress"), reuse=fields.boolean("cache_prompt", True),
        hints=options.hints(fields, "prompt_cache_key", "user_id", "user"),
    )  # fmt: skip


def _prompt(fields: Fields) -> str | list[int]:
    given = fields.require("prompt")
    if isinstance(given, list) and len(given) == 1 and isinstance(given[0], (str, list)):
        given = given[0]
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise wrong("prompt", "a string or a list of token ids", given)
    if len(given) > options.MAX_TOKENS:
        raise RequestError(f"prompt has more than {options.MAX_TOKENS} tokens: shorten it", param="prompt")
    for n, token in enumerate(given):
        if not isinstance(token, int) or isinstance(token, bool):
            raise wrong(f"prompt[{n}]", "a token id; send several prompts one by one", token)
        if not 0 <= token <= _MAX_TOKEN:
            raise RequestError(f"prompt[{n}] is no token id: they are from 0 up", param=f"prompt[{n}]")
    return given


def _logprobs(tokens: Sequence[TokenChance], offset: int) -> dict[str, Any] | None:
    """Lists that have an entry for each token. offset: of the first one in the text, in characters."""
    if not tokens:
        return None
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.text)
    return {"tokens": [token.text for token in tokens], "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [{top.text: top.logprob for top in token.top} for token in tokens],
            "text_offset": offsets}  # fmt: skip


class Stream:
    """Events to the bytes of a streamed answer. response_id: unique; created: seconds since 1970."""

    content_type = "text/event-stream"

    def __init__(self, request: Request, response_id: str, created: int) -> None:
        self._request = request
        self._head = {"id": response_id, "object": "text_completion", "created": created, "model": request.model}
        self._offset = 0

    def feed(self, event: Event) -> bytes:
        """What an event adds."""
        if isinstance(event, Content):
            logprobs = _logprobs(event.tokens, self._offset)
            self._offset += sum(len(token.text) for token in event.tokens)
            return self._chunk(event.text, logprobs)
        if isinstance(event, Progress):
            return self._chunk("", prompt_progress=event.body)
        if isinstance(event, Finished):
            out = self._chunk("", finish=_FINISH[event.reason], timings=timings_body(event.usage))
            if self._request.include_usage:
                out += sse({**self._head, "choices": [], "usage": usage_body(event.usage)})
            return out + b"data: [DONE]\n\n"
        return sse(error_body(event.error)) if isinstance(event, Failed) else b""

    def _chunk(self, text: str, logprobs: Any = None, finish: str | None = None, **more: Any) -> bytes:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish}
        return sse({**self._head, "choices": [choice], **more})


def full(request: Request, events: Iterable[Event], response_id: str, created: int) -> dict[str, Any]:
    """The body of an answer in one piece. RequestError where it broke off."""
    answer = collect(events)
    choice = {"index": 0, "text": answer.content, "logprobs": _logprobs(answer.tokens, 0),
              "finish_reason": _FINISH[answer.reason]}  # fmt: skip
    return {"id": response_id, "object": "text_completion", "created": created, "model": request.model,
            "choices": [choice], "usage": usage_body(answer.usage), "timings": timings_body(answer.usage)}  # fmt: skip
