"""A request's way over HTTP: its body in, its answer out while it is generated, and noticing that the client has gone."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Protocol

from pyflash.serve import json_body
from pyflash.serve.engine import Engine
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Event, Failed, Finished, Progress, Started
from pyflash.serve.guard import Receive, Send, too_large
from pyflash.serve.job import Job

_LARGE_BODY = 256 << 10  # is parsed on a thread of its own
_BODY_SECONDS = 60.0  # without a byte of it
_WHOLE_BODY_SECONDS = 600.0  # for all of it
_SEND_SECONDS = 60.0  # without the client reading
_WHOLE_SECONDS = 30.0  # after which an answer in one piece begins with blanks, so that nobody gives it up


_reading = ThreadPoolExecutor(1, "pyflash large bodies")  # one at a time: as objects they take many times their size


class Writer(Protocol):
    """A protocol's streamed answer."""

    content_type: str

    def feed(self, event: Event) -> bytes: ...


class Gone(Exception):
    """The client has gone, or does not read."""


async def read_body(receive: Receive, max_body: int) -> bytes:
    """The body that is sent. RequestError, Gone."""
    parts: list[bytes] = []
    size, more = 0, True
    end = time.monotonic() + _WHOLE_BODY_SECONDS
    while more:
        try:
            message = await asyncio.wait_for(receive(), min(_BODY_SECONDS, end - time.monotonic()))
        except asyncio.TimeoutError:
            raise RequestError("the body came too slowly, or not at all: send it at once", code="too_slow") from None
        if message["type"] == "http.disconnect":
            raise Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > max_body:
            raise too_large(max_body)
        more = message.get("more_body", False)
    return b"".join(parts)


async def read_json(receive: Receive, max_body: int) -> dict[str, Any]:
    """The JSON object that is sent. RequestError, Gone."""
    return await decode_json(await read_body(receive, max_body))


async def decode_json(data: bytes) -> dict[str, Any]:
    """The JSON object in a body; others are answered meanwhile. RequestError."""
    if len(data) <= _LARGE_BODY:
        return json_body.decode(data)
    return await asyncio.get_running_loop().run_in_executor(_reading, json_body.decode, data)


async def send_json(send: Send, status: int, body: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    await send_bytes(send, status, b"application/json", json_body.encode(body), headers)


async def send_bytes(send: Send, status: int, kind: bytes, data: bytes,
                     headers: list[tuple[bytes, bytes]] | None = None) -> None:
    length = str(len(data)).encode()
    await send({"type": "http.response.start", "status": status,
                "headers": [(b"content-type", kind), (b"content-length", length), *(headers or ())]})
    await send({"type": "http.response.body", "body": data})


async def send_error(send: Send, error: RequestError, body: dict[str, Any]) -> None:
    """An error, with what tells clients whether to try again."""
    headers = [(b"x-should-retry", b"true" if error.is_worth_retrying else b"false")]
    if error.retry_after is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    if error.code == "unauthorized":
        headers.append((b"www-authenticate", b"Bearer"))
    await send_json(send, error.status, body, headers)


class Exchange:
    """One job and the client that waits for it."""

    def __init__(self, engine: Engine, job: Job, receive: Receive, send: Send, keepalive: float) -> None:
        """keepalive: seconds after which something is sent though there is nothing to show."""
        self._engine, self._job = engine, job
        self._receive, self._send = receive, send
        self._keepalive = keepalive
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._is_over = False
        self._progress = Progress(len(job.tokens))
        self._began = time.monotonic()

    async def __aenter__(self) -> Exchange:
        loop = asyncio.get_running_loop()

        def tell(event: Event) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(self._events.put_nowait, event)

        self._engine.submit(self._job, tell)
        self._gone = asyncio.ensure_future(self._wait_gone())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._gone.cancel()
        if not self._is_over:
            self._engine.cancel(self._job)

    async def _wait_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _next(self, timeout: float) -> list[Event]:
        """The events that there are, at least one; none where timeout seconds went by. Gone."""
        events: list[Event] = []
        if self._events.empty():
            getting = asyncio.ensure_future(self._events.get())
            try:
                await asyncio.wait({getting, self._gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            finally:
                if getting.done():
                    events.append(getting.result())
                else:
                    getting.cancel()
        while not self._events.empty():
            events.append(self._events.get_nowait())
        if self._gone.done():
            raise Gone
        for event in events:
            if isinstance(event, Progress):
                self._progress = event
            self._is_over |= isinstance(event, (Finished, Failed))
        return events

    def _still(self) -> Progress:
        """What is told when there is nothing new."""
        last = self._progress
        return replace(last, seconds=time.monotonic() - self._began)

    async def _write(self, data: bytes, more: bool = True) -> None:
        try:
            await asyncio.wait_for(self._send({"type": "http.response.body", "body": data, "more_body": more}), _SEND_SECONDS)
        except asyncio.TimeoutError:
            self._job.why_cancelled = "slow"
            raise Gone from None
        except OSError:
            raise Gone from None

    def _started(self) -> Started:
        opening = self._job.prompt.opening
        return Started(self._job.signature, opening is not None and opening.kind == "reasoning", len(self._job.tokens))

    async def stream(self, writer: Writer) -> None:
        """The answer, piece by piece, beginning at once. Gone."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", writer.content_type.encode()), (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no")]})
        await self._write(writer.feed(self._started()))
        sent = time.monotonic()
        while not self._is_over:
            events = await self._next(max(0.0, sent + self._keepalive - time.monotonic()))
            if not self._job.request.report_progress:
                events = [event for event in events if not isinstance(event, Progress)]
            data = b"".join(map(writer.feed, events))
            if not data and time.monotonic() - sent >= self._keepalive:
                data = writer.feed(self._still())
            if data or self._is_over:
                await self._write(data, not self._is_over)
                sent = time.monotonic()

    async def whole(self, full: Any, error_body: Any, response_id: str, created: int) -> None:
        """The answer in one piece. full, error_body: of the protocol. Gone, RequestError."""
        events: list[Event] = [self._started()]
        begun = False
        while not self._is_over:
            wait = self._keepalive if begun else max(0.0, self._began + _WHOLE_SECONDS - time.monotonic())
            new = await self._next(wait)
            events += (event for event in new if not isinstance(event, Progress))
            if not new:
                if not begun:
                    await self._send({"type": "http.response.start", "status": 200,
                                      "headers": [(b"content-type", b"application/json")]})
                    begun = True
                await self._write(b"\n")
        try:
            body = full(self._job.request, events, response_id, created)
        except RequestError as error:
            if not begun:
                raise
            body = error_body(error)
        if begun:
            await self._write(json_body.encode(body), False)
        else:
            await send_json(self._send, 200, body)
