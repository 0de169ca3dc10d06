"""`pyflash serve`: the protocols that clients speak, each read into one form of request and written from one form of
event.

request: what is asked. events: what an answer consists of. errors: what is refused, and how. rendering: a request as
the model's prompt. chat_completions, completions, responses, messages, ollama: a protocol each, with

- read(body): a decoded JSON body to a Request; RequestError, and nothing else, for what it refuses.
- Stream(request, response_id, created): events to the bytes of a streamed answer.
- full(request, events, response_id, created): events to the body of an answer in one piece.
- error_body(error): a RequestError as the protocol's JSON.

None of them does input or output, or knows a web framework. On them stand

- prompts, turns: a request as tokens, with turns that were sampled here as they were sampled.
- answer, job, slots, engine: the thread that owns the model, and how requests share it.
- guard, exchange, endpoints, application, server: HTTP.

app() makes the whole of it, for any ASGI server.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyflash.serve.application import Application as Application
    from pyflash.serve.application import app as app

__all__ = ["Application", "app"]  # noqa: F822


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'pyflash.serve' has no attribute {name!r}")
    from pyflash.serve import application

    return getattr(application, name)
