"""Many users: replicas of the server on Ray Serve, each with the model, behind a front that knows who has which conversation.

    client -> Ray Serve's proxy -> Front: guard, keys of the conversation -> PrefixRouter -> Replica: engine, slots, model

A replica is what `pyflash serve` runs, without a port. Linux only, as the whole of pyflash.cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyflash.cluster import replica_metrics
from pyflash.cluster.prefix_index import Held
from pyflash.cluster.ray_runtime import import_ray
from pyflash.engine.model import Model
from pyflash.native.errors import ArgumentError, UnsupportedError
from pyflash.native.values import StrPath
from pyflash.serve.application import app, without_root
from pyflash.serve.endpoints import refuse
from pyflash.serve.errors import RequestError
from pyflash.serve.exchange import Gone, decode_json, read_body, send_bytes, send_json
from pyflash.serve.guard import MAX_BODY, App, Guard, Message, Policy, Receive, Scope, Send
from pyflash.serve.prefix_keys import keys_of

DRAIN_SECONDS = 3600.0  # that a replica which is to go has for its answers
_KEPT_CONVERSATIONS = 64  # for each place, without a disk cache: rows may be gone by then, but turns come back as sampled
_KEPT_ON_DISK = 4096
_STATS_PERIOD = 5.0
_MEMORY = 12 * _STATS_PERIOD
_PASSED_ON = ("type", "http_version", "method", "scheme", "path", "query_string", "headers", "client", "server")
_EVERY_REPLICA = ("/metrics", "/slots")
_BROADCAST_SECONDS = 30.0
_ATTEMPTS = 3
_OVER: Message = {}

_log = logging.getLogger("pyflash.serve")


@dataclass(frozen=True)
class Call:
    """A request on its way to a replica: what of its scope can travel, and its whole body."""

    scope: dict[str, Any]
    body: bytes

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> Call:
        state = {name: scope["state"][name] for name in ("salt", "request_id")}
        passed = {name: scope[name] for name in _PASSED_ON if name in scope}
        headers = [(bytes(key), bytes(value)) for key, value in scope["headers"]]
        return cls({**passed, "headers": headers, "state": state}, body)


class Replica:
    """The server with its model, in an actor of Ray Serve."""

    def __init__(self, model: StrPath | Callable[[], Model] | None, name: str | None, parallel: int,
                 options: dict[str, Any]) -> None:
        """Returns when the model is open. model, name, options: as of pyflash.serve.app(). parallel: places for
        conversations, all of which are answered at once. Error: what keeps the model from opening."""
        self._application = app(model, name=name, parallel=parallel, **options)
        self._parallel = parallel
        self._tasks: set[asyncio.Future[None]] = set()
        has_disk = options.get("disk_cache") is not None
        self._held = Held(_KEPT_ON_DISK if has_disk else _KEPT_CONVERSATIONS * parallel)
        self._application.start()
        self._application.engine.wait_ready()
        if (failure := self._application.engine.failure) is not None:
            raise failure

    async def answer(self, call: Call, keys: list[str]) -> AsyncIterator[list[Message]]:
        """What the server sends, as ASGI has it: what there is at once, together. When nobody takes it any more the answer
        ends, and what was evaluated stays. keys: of the request, see serve.prefix_keys."""
        self._held.add(keys)
        sent: asyncio.Queue[Message] = asyncio.Queue()
        gone = asyncio.Event()
        task = asyncio.ensure_future(self._run(call, sent, gone))
        self._tasks.add(task)  # the loop itself does not keep it
        task.add_done_callback(self._tasks.discard)
        try:
            is_over = False
            while not is_over:
                messages = [await sent.get()]
                while not sent.empty():
                    messages.append(sent.get_nowait())
                is_over = messages[-1] is _OVER
                if is_over:
                    messages.pop()
                if messages:
                    yield messages
            await task
        finally:
            gone.set()

    async def _run(self, call: Call, sent: asyncio.Queue[Message], gone: asyncio.Event) -> None:
        unread = [call.body]

        async def receive() -> Message:
            if unread:
                return {"type": "http.request", "body": unread.pop(), "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            if gone.is_set():
                raise OSError("the client has gone")
            await sent.put(dict(message))

        try:
            await self._application.endpoints(dict(call.scope), receive, send)
        finally:
            await sent.put(_OVER)

    async def whole(self, call: Call) -> tuple[str, bytes]:
        """This replica's name, and the body that the server sends."""
        from ray import serve

        body = b""
        async for messages in self.answer(call, []):
            body += b"".join(message.get("body", b"") for message in messages)
        return serve.get_replica_context().replica_id.unique_id, body

    def record_routing_stats(self) -> dict[str, Any]:
        """What Ray Serve carries to every PrefixRouter."""
        from pyflash.cluster.prefix_router import HELD, N_PLACES

        return {HELD: self._held.keys(), N_PLACES: self._parallel}

    def check_health(self) -> None:
        """Ray Serve starts another replica in the place of one that raises."""
        if self._application.engine.failure is not None:
            raise self._application.engine.failure

    def __del__(self) -> None:
        """Ray Serve calls it when all is answered."""
        if hasattr(self, "_application"):
            self._application.engine.close(0)


class Front:
    """Lets requests in and sends each to the replica that has its beginning. replicas: a handle of Replica."""

    def __init__(self, replicas: Any, policy: Policy) -> None:
        self._replicas, self._max_body = replicas, policy.max_body
        self._guarded = Guard(self._pass_on, policy, refuse)

    def __serve_build_asgi_app__(self) -> App:
        async def asgi(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "lifespan":
                await _lifespan(receive, send)
                return
            await self._guarded(without_root(scope), receive, send)

        return asgi

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        with contextlib.suppress(Gone):
            body = await read_body(receive, self._max_body) if scope["method"] == "POST" else b""
            call = Call.of(scope, body)
            if scope["path"] in _EVERY_REPLICA and scope["method"] == "GET":
                await self._every(call, send)
                return
            await self._one(call, await _keys(scope, body), receive, send)

    async def _one(self, call: Call, keys: list[str], receive: Receive, send: Send) -> None:
        """An answer. A replica that ends before anything of it was sent is lost to nobody: another one answers."""
        from ray.exceptions import RayActorError

        has_begun = False

        async def noted(message: Message) -> None:
            nonlocal has_begun
            has_begun = True
            await send(message)

        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            for _ in range(_ATTEMPTS):
                try:
                    await self._from_one(call, keys, gone, noted)
                    return
                except RayActorError as error:
                    _log.warning("a replica failed: %s", error)
                    if has_begun:
                        raise
            raise RequestError("the replicas end before they answer: their logs tell why", code="shutting_down", retry_after=5)
        finally:
            gone.cancel()

    async def _from_one(self, call: Call, keys: list[str], gone: asyncio.Future[None], send: Send) -> None:
        response = self._replicas.options(method_name="answer", stream=True).remote(call, keys=keys)
        is_sent = False

        async def forward() -> None:
            nonlocal is_sent
            last: list[Message] = []  # waits until the replica is done: who hears of the end finds its place free
            async for messages in response:
                for message in [*last, *messages[:-1]]:
                    await send(message)
                last = messages[-1:]
                if last[0]["type"] != "http.response.body" or last[0].get("more_body"):
                    await send(last.pop())
            is_sent = True
            for message in last:
                await send(message)

        answering = asyncio.ensure_future(forward())
        try:
            await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() or is_sent:  # else the client has gone
                await answering
        finally:
            if not answering.done():
                answering.cancel()
                response.cancel()
                await asyncio.gather(answering, return_exceptions=True)

    async def _every(self, call: Call, send: Send) -> None:
        """The metrics or slots of all replicas."""
        found = await self._replicas.broadcast("whole", call).results_async(
            timeout_s=_BROADCAST_SECONDS, return_exceptions=True)
        bodies: dict[str, bytes] = dict(sorted(each for each in found if isinstance(each, tuple)))
        if call.scope["path"] == "/metrics":
            text = replica_metrics.merged({name: body.decode() for name, body in bodies.items()})
            await send_bytes(send, 200, b"text/plain; version=0.0.4; charset=utf-8", text.encode())
            return
        slots = [{"replica": name, **slot} for name, body in bodies.items() for slot in json.loads(body)]
        await send_json(send, 200, slots)


async def _keys(scope: Scope, body: bytes) -> list[str]:
    values = None
    if body:
        with contextlib.suppress(RequestError):
            values = await decode_json(body)
    return keys_of(scope, values)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _lifespan(receive: Receive, send: Send) -> None:
    while (message := await receive())["type"] != "lifespan.shutdown":
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
    await send({"type": "lifespan.shutdown.complete"})


def application(
    model: StrPath | Callable[[], Model] | None = None, *, name: str | None = None, replicas: int | tuple[int, int] = 1,
    parallel: int = 2, cpus: float | None = None, fronts: int = 1, stages: int | str | None = None,
    keys: Iterable[str] = (), hosts: Iterable[str] | None = (), origins: Iterable[str] = (), max_body: int = MAX_BODY,
    queue_limit: int = 32, drain: float = DRAIN_SECONDS, **options: Any,
) -> Any:
    """An application for `serve run` or ray.serve.run(). ArgumentError; UnsupportedError where Ray Serve is not installed.

    model: a GGUF file by a path that every node has, a function that opens one, or None: the demo model. replicas: how many,
    or the least and the most, between which Ray Serve chooses by what there is to do. parallel: conversations that have a
    place in each, all answered at once; queue_limit: requests that may wait beside them. cpus: of Ray's processors that one
    takes, None for its threads, or else all of this machine's: one on each node. fronts: processes that let requests in.
    stages: the model of each replica in so many stages on nodes of this cluster, "auto" or a number; cpus is then what the
    replica itself takes, beside its stages. keys, hosts, origins, max_body and further options: of pyflash.serve.app(), and
    those of Model.open(). drain: seconds that a replica which is to go has for its answers.
    """
    least, most = (replicas, replicas) if isinstance(replicas, int) else replicas
    if not 1 <= least <= most:
        raise ArgumentError(f"replicas is {replicas!r}: give a number from 1 on, or the least and the most")
    if parallel < 1 or fronts < 1 or queue_limit < 0:
        raise ArgumentError("parallel and fronts must be 1 or more, and queue_limit 0 or more")
    serve = _ray_serve()
    from ray.serve.config import AutoscalingConfig, RequestRouterConfig

    name = name or (None if model is None or callable(model) else Path(os.fsdecode(model)).stem)
    if stages is not None:
        if callable(model):
            raise ArgumentError("stages go with the path of a file: a function opens the model as it likes")
        opening = {option: options.pop(option) for option in set(options) - set(inspect.signature(app).parameters)}
        model, cpus = partial(_open_in_stages, model, stages, opening), 1 if cpus is None else cpus
    n_at_once = parallel + queue_limit
    count: dict[str, Any] = {"num_replicas": least} if least == most else {
        "autoscaling_config": AutoscalingConfig(min_replicas=least, max_replicas=most, target_ongoing_requests=parallel)}
    replica = serve.deployment(
        Replica, name="Replica", **count, max_ongoing_requests=n_at_once, graceful_shutdown_timeout_s=drain,
        ray_actor_options={"num_cpus": cpus if cpus is not None else options.get("threads") or os.cpu_count() or 1},
        request_router_config=RequestRouterConfig(
            request_router_class="pyflash.cluster.prefix_router.PrefixRouter",
            request_router_kwargs={"memory": _MEMORY, "n_places": parallel}, request_routing_stats_period_s=_STATS_PERIOD),
    )
    front = serve.deployment(
        serve.ingress()(Front), name="Front", num_replicas=fronts, max_ongoing_requests=most * n_at_once,
        graceful_shutdown_timeout_s=drain, ray_actor_options={"num_cpus": 0},
    )
    policy = Policy(None if hosts is None else frozenset(hosts), frozenset(origins), tuple(keys), max_body, most * n_at_once)
    options |= {"queue_limit": queue_limit, "max_body": max_body}
    return front.bind(replica.bind(model, name, parallel, options), policy)


def _open_in_stages(path: StrPath | None, stages: int | str, options: dict[str, Any]) -> Any:
    from pyflash import cluster, demo

    return cluster.Model.open(demo.path() if path is None else path, stages, **options)


def _ray_serve() -> Any:
    import_ray()
    try:
        from ray import serve
    except ImportError as error:
        raise UnsupportedError("replicas need Ray Serve: pip install 'ray[serve]'") from error
    return serve
