"""Answers for the page: they go on while it is reloaded or its connection fails, and can be listened to again."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator

from pyflash.serve.engine import Engine
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Failed, Finished
from pyflash.serve.exchange import Exchange, Gone, Writer
from pyflash.serve.guard import Message
from pyflash.serve.job import Job

_log = logging.getLogger("pyflash.serve")

HEADER = b"x-pyflash-job"
_NAME = re.compile(r"[0-9a-f-]{36}")
_ALONE_SECONDS = 300.0  # that an answer is made, and kept afterwards, though nobody listens
_MOST_BYTES = 4 << 20  # of one answer on the wire: some 30,000 tokens
_MOST_JOBS = 64


class PageJob:
    """An answer as it went over the wire so far. Lives on the event loop."""

    def __init__(self, job: Job, writer: Writer, salt: bytes) -> None:
        self.job, self.salt = job, salt
        self.left = time.monotonic()  # when the last listener went, or the answer ended
        self._writer = writer
        self._parts: list[bytes] = []
        self._size = 0
        self._is_over = False
        self._changed = asyncio.Event()
        self._leave = asyncio.Event()
        self._listeners = 0

    @property
    def content_type(self) -> str:
        return self._writer.content_type

    @property
    def is_abandoned(self) -> bool:
        return self._listeners == 0 and time.monotonic() - self.left > _ALONE_SECONDS

    def stop(self) -> None:
        """Ends it with what there is."""
        self.job.why_cancelled = "stopped"
        self._leave.set()

    async def run(self, engine: Engine, keepalive: float) -> None:
        """Has the engine answer. RequestError where it takes no more."""
        try:
            async with Exchange(engine, self.job, self._receive, self._send, keepalive) as exchange:
                self._started.set_result(None)
                await exchange.stream(self._writer)
        except Gone:
            self._add(self._writer.feed(Finished("stop", self.job.usage)))
        except Exception as error:
            if not self._started.done():
                self._started.set_exception(error)
                return
            _log.exception("an answer for the page broke off")
            what = "the answer broke off, which nobody foresaw; the server's log shows where"
            failed = error if isinstance(error, RequestError) else RequestError(what, code="generation_failed")
            self._add(self._writer.feed(Failed(failed)))
        finally:
            self._is_over = True
            self.left = time.monotonic()
            self._changed.set()

    async def begin(self, engine: Engine, keepalive: float) -> None:
        self._started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = asyncio.ensure_future(self.run(engine, keepalive))
        await self._started

    async def _receive(self) -> Message:
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            return
        self._add(message.get("body", b""))
        if self._size > _MOST_BYTES or self.is_abandoned:
            self.job.why_cancelled = "abandoned"
            self._leave.set()

    def _add(self, data: bytes) -> None:
        self._parts.append(data)
        self._size += len(data)
        self._changed.set()
        self._changed = asyncio.Event()

    async def listen(self) -> AsyncIterator[bytes]:
        """All of it from the beginning, then what comes."""
        self._listeners += 1
        at = 0
        try:
            while True:
                changed = self._changed
                if at < len(self._parts):
                    data = b"".join(self._parts[at:])
                    at = len(self._parts)
                    yield data
                elif self._is_over:
                    return
                else:
                    await changed.wait()
        finally:
            self._listeners -= 1
            self.left = time.monotonic()


class PageJobs:
    """The page's answers by the name that the page gave each."""

    def __init__(self, engine: Engine, keepalive: float) -> None:
        self._engine, self._keepalive = engine, keepalive
        self._jobs: dict[str, PageJob] = {}
        self._unborn: dict[tuple[str, bytes], None] = {}  # stopped before they were started: what asks came first

    async def start(self, name: str, job: Job, writer: Writer, salt: bytes) -> PageJob:
        """RequestError for a name that is none or taken, and where the engine has no place."""
        if not _NAME.fullmatch(name):
            raise RequestError("the job's name must be a UUID in lower case", param="X-Pyflash-Job")
        for known in [each for each, found in self._jobs.items() if found.is_abandoned]:
            del self._jobs[known]
        if name in self._jobs:
            raise RequestError("a job of this name has been started already: listen to it", param="X-Pyflash-Job")
        while len(self._jobs) >= _MOST_JOBS:
            self._jobs.pop(next(iter(self._jobs))).stop()
        made = self._jobs[name] = PageJob(job, writer, salt)
        try:
            await made.begin(self._engine, self._keepalive)
        except BaseException:
            del self._jobs[name]
            raise
        if (name, salt) in self._unborn:
            del self._unborn[name, salt]
            made.stop()
        return made

    def stop(self, name: str, salt: bytes) -> None:
        """Ends one, also one whose request is still on its way."""
        found = self._jobs.get(name)
        if found is not None and found.salt == salt:
            found.stop()
        elif _NAME.fullmatch(name):
            while len(self._unborn) >= _MOST_JOBS:
                del self._unborn[next(iter(self._unborn))]
            self._unborn[name, salt] = None

    def find(self, name: str, salt: bytes) -> PageJob:
        """RequestError where there is none, also for one that came with another key."""
        found = self._jobs.get(name)
        if found is None or found.salt != salt:
            raise RequestError("there is no such answer any more: ask again", code="not_found")
        return found
