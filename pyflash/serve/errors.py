"""What a server refuses: one error with a protocol-independent code, which each protocol writes in its own way."""

from __future__ import annotations

import logging
from typing import Literal

from pyflash.native.errors import AnswerError, ArgumentError, Error, MemoryLimitError

_log = logging.getLogger("pyflash.serve")

Code = Literal[
    "invalid_request",  # the body, or a field of it
    "context_length_exceeded",
    "unauthorized",
    "forbidden",
    "misdirected",  # a Host that is not this server's
    "not_found",
    "method_not_allowed",
    "too_large",
    "too_slow",
    "unsupported_media_type",
    "queue_full",
    "loading",
    "out_of_memory",
    "shutting_down",
    "not_implemented",
    "grammar_failed",  # while an answer was under way: what the request demands cannot be met
    "generation_failed",  # while an answer was under way
]

STATUS: dict[Code, int] = {
    "invalid_request": 400,
    "context_length_exceeded": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "misdirected": 421,
    "not_found": 404,
    "method_not_allowed": 405,
    "too_large": 413,
    "too_slow": 408,
    "unsupported_media_type": 415,
    "queue_full": 429,
    "loading": 503,
    "out_of_memory": 503,
    "shutting_down": 503,
    "not_implemented": 501,
    "grammar_failed": 400,
    "generation_failed": 503,
}


class RequestError(Error):
    """A request that is not answered, or an answer that broke off. The message is one sentence that says what to do.

    code: what it is about, whatever the protocol. status: of HTTP. param: the path of the field at fault, such as
    "messages[2].content", or None. retry_after: seconds after which the same request may succeed, or None.
    n_prompt, n_ctx: tokens, where the code is "context_length_exceeded".
    """

    def __init__(
        self, message: str, *, code: Code = "invalid_request", param: str | None = None,
        retry_after: float | None = None, n_prompt: int | None = None, n_ctx: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code: Code = code
        self.status = STATUS[code]
        self.param = param
        self.retry_after = retry_after
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx

    @property
    def is_worth_retrying(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in ("queue_full", "loading", "out_of_memory", "shutting_down")

    @classmethod
    def context_length(cls, n_prompt: int, n_ctx: int) -> RequestError:
        """A prompt of n_prompt tokens for a context of n_ctx."""
        return cls(
            f"prompt is too long: {n_prompt} tokens > {n_ctx} maximum; shorten the conversation, or start the server "
            "with a larger context", code="context_length_exceeded", n_prompt=n_prompt, n_ctx=n_ctx,
        )  # fmt: skip


def loading() -> RequestError:
    return RequestError("Loading model: send the request again in a moment", code="loading", retry_after=2)


def shutting_down() -> RequestError:
    return RequestError("the server is shutting down: send the request to another one", code="shutting_down", retry_after=10)


def as_request_error(error: Exception) -> RequestError:
    """What a client is told of any failure of the engine."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, (MemoryLimitError, MemoryError)):
        return RequestError(f"{error or 'out of memory'}; start the server with a smaller context or fewer slots",
                            code="out_of_memory", retry_after=10)
    if isinstance(error, AnswerError):
        return RequestError(f"the answer broke off: {error}; simplify the schema or grammar", code="grammar_failed")
    if isinstance(error, ArgumentError):
        return RequestError(str(error))
    if not isinstance(error, Error):
        _log.exception("unforeseen")
    return RequestError(f"the answer broke off: {error}", code="generation_failed")
