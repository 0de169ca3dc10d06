"""pyflash.serve.app(): the server as an ASGI application."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from pyflash.engine.model import Model
from pyflash.machine import memory_plan
from pyflash.machine.places import state_dir
from pyflash.native.errors import FileError
from pyflash.native.values import StrPath
from pyflash.serve.disk_cache import DiskCache
from pyflash.serve.disk_writer import MOST_WAITING
from pyflash.serve.endpoints import Endpoints, refuse
from pyflash.serve.engine import Engine, EngineOptions
from pyflash.serve.guard import MAX_BODY, Guard, Policy, Receive, Scope, Send
from pyflash.serve.trace import Trace
from pyflash.serve.turns import TurnStore

_KEY_BYTES = 32
DRAIN_SECONDS = 30.0


class Application:
    """An ASGI application, made by app(). Its engine starts with the server's lifespan, or else at the first request."""

    def __init__(self, engine: Engine, name: str, policy: Policy, keepalive: float, drain: float = DRAIN_SECONDS,
                 disk: DiskCache | None = None) -> None:
        """Not for callers: use app()."""
        self.engine, self.disk = engine, disk
        self._drain = drain
        self._started = False
        self.endpoints = Endpoints(engine, name, policy.max_body, keepalive)  # for requests that another's guard let in
        self._guarded = Guard(self.endpoints, policy, refuse)

    def start(self) -> None:
        """Opens the model, on a thread of its own."""
        if not self._started:
            self._started = True
            self.engine.start()

    async def close(self) -> None:
        """Answers what has been asked, for a while, and lets go of the model."""
        await asyncio.to_thread(self.engine.close, self._drain)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        self.start()
        await self._guarded(without_root(scope), receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                self.start()
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return


def without_root(scope: Scope) -> Scope:
    """The scope with this application's own path, where it is mounted in another."""
    root = scope.get("root_path") or ""
    if root and scope.get("path", "").startswith(root):
        return {**scope, "path": scope["path"][len(root) :] or "/"}
    return scope


def app(
    model: StrPath | Callable[[], Model] | None = None, *, name: str | None = None, context: int | None = None,
    cache_type: str = "auto", parallel: int | None = None, think: str = "high", queue_limit: int = 32,
    idle_unload: float | None = None, keys: Iterable[str] = (), hosts: Iterable[str] | None = (),
    origins: Iterable[str] = (), max_body: int = MAX_BODY, keepalive: float = 5.0, disk_cache: StrPath | None = None,
    disk_cache_size: int | None = None, draft: str = "auto", draft_max: int | None = None, trace: StrPath | None = None,
    **open_options: Any,
) -> Application:
    """The server, to be run by any ASGI server or mounted in an application.

    model: a GGUF file, or a function that opens one; None: the demo model. name: what clients see it called, None for the
    file's. context, cache_type: of each session. parallel: how many conversations have a place in memory and are answered
    at once; None: two where memory has room for them. think: "off", "low", "high" or "max", for requests that say nothing.
    queue_limit: requests that may wait. idle_unload: seconds without a request after which the model is let go. keys: one
    of which requests must bring. hosts: names that the server may be called by, beside this machine's own; None: any.
    origins: web pages of others that may use it. max_body: bytes of a request. keepalive: seconds of silence in a stream.
    disk_cache: a folder where conversations are kept for the next start; disk_cache_size: its most bytes, None for 16 GiB or
    a tenth of what the disk has free. draft, draft_max: what proposes tokens, as in Session.generate(). trace: a folder for a
    file that tells of each request, with words of it, where it differs from what had been evaluated; FileError where it
    cannot be written. open_options: of Model.open().
    """
    opener: Callable[[], Model]
    if callable(model):
        opener, shown = model, name or "pyflash"
    else:
        path = os.fspath(model) if model is not None else None
        opener = partial(Model.open, path, **open_options) if path is not None else partial(_open_demo, draft, **open_options)
        shown = name or (Path(os.fsdecode(path)).stem if path is not None else "pyflash-demo")
    options = EngineOptions(context, cache_type, parallel, queue_limit=queue_limit, think=think, idle_unload=idle_unload,
                            draft=draft, draft_max=draft_max)
    disk = None if disk_cache is None else DiskCache(Path(os.fsdecode(disk_cache)), disk_cache_size)
    fitting = partial(memory_plan.sessions_that_fit, other_bytes=0 if disk is None else MOST_WAITING)
    engine = Engine(opener, options, TurnStore(signing_key()), fitting, disk,
                    None if trace is None else Trace(Path(os.fsdecode(trace))))
    policy = Policy(None if hosts is None else frozenset(hosts), frozenset(origins), tuple(keys), max_body)
    return Application(engine, shown, policy, keepalive, disk=disk)


def _open_demo(draft: str, **options: Any) -> Model:
    """With what drafts for it."""
    from pyflash import demo

    return Model.open(demo.path(), **{"mtp": demo.draft_path(draft), **options})


def signing_key() -> bytes:
    """The key of this user's signatures, made at the first use; a new one each time where there is no home for it."""
    folder = state_dir()
    if folder is None:
        return secrets.token_bytes(_KEY_BYTES)
    path = folder / "serve.key"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            key = path.read_bytes()
            if len(key) != _KEY_BYTES:
                raise FileError(f"{path} is no key of {_KEY_BYTES} bytes: delete it, and another one is made") from None
            return key
        key = secrets.token_bytes(_KEY_BYTES)
        with os.fdopen(handle, "wb") as file:
            file.write(key)
    except OSError:
        return secrets.token_bytes(_KEY_BYTES)  # signatures then last as long as this process
    return key
