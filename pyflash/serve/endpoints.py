"""What is found at which path, and the answers that need no generation."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from pyflash import demo
from pyflash.native.library import __version__
from pyflash.serve import chat_completions, completions, messages, ollama, page_jobs, responses
from pyflash.serve.engine import Engine, Loaded
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Failed, Started
from pyflash.serve.exchange import Exchange, Gone, read_json, send_bytes, send_error, send_json
from pyflash.serve.guard import Receive, Scope, Send, header
from pyflash.serve.page import SECURITY_POLICY, page_files
from pyflash.serve.pdf_text import PdfReader
from pyflash.serve.request import Request

_log = logging.getLogger("pyflash.serve")

Handler = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(frozen=True)
class Api:
    """A protocol. prefix: what the ids of its answers begin with."""

    name: str
    read: Callable[[Any], Request]
    module: ModuleType
    prefix: str


CHAT = Api("chat_completions", chat_completions.read, chat_completions, "chatcmpl-")
COMPLETIONS = Api("completions", completions.read, completions, "cmpl-")
RESPONSES = Api("responses", responses.read, responses, "resp_")
MESSAGES = Api("messages", messages.read, messages, "msg_")
OLLAMA_CHAT = Api("ollama_chat", ollama.read_chat, ollama, "")
OLLAMA_GENERATE = Api("ollama_generate", ollama.read_generate, ollama, "")

_GENERATING = {
    "/v1/chat/completions": CHAT, "/chat/completions": CHAT, "/beta/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS, "/completions": COMPLETIONS, "/beta/completions": COMPLETIONS,
    "/v1/fim/completions": COMPLETIONS, "/fim/completions": COMPLETIONS, "/v1/beta/completions": COMPLETIONS,
    "/v1/responses": RESPONSES, "/responses": RESPONSES,
    "/v1/messages": MESSAGES, "/anthropic/v1/messages": MESSAGES,
    "/api/chat": OLLAMA_CHAT, "/api/generate": OLLAMA_GENERATE,
}  # fmt: skip
_COUNTING = ("/v1/messages/count_tokens", "/anthropic/v1/messages/count_tokens")
_LISTING = ("/v1/models", "/models", "/anthropic/v1/models")
_NOT_HERE = ("/v1/embeddings", "/embeddings", "/api/embed", "/api/embeddings", "/v1/audio/speech",
             "/v1/images/generations")  # fmt: skip
PAGE_JOBS = "/page/jobs/"
_HINT_HEADERS = (b"session-id", b"x-session-id", b"x-session-affinity", b"thread-id")


def generating_api(path: str) -> Api | None:
    """The protocol of a path where answers are generated; None for other paths."""
    return _GENERATING.get(path.rstrip("/"))


def api_of(scope: Scope) -> Api:
    """The protocol in whose words a path's errors are written."""
    path = scope["path"]
    if path in _GENERATING:
        return _GENERATING[path]
    if path.startswith("/api/"):
        return OLLAMA_CHAT
    is_anthropic = path.startswith("/anthropic/") or path in _COUNTING
    return MESSAGES if is_anthropic or any(key == b"anthropic-version" for key, _ in scope["headers"]) else CHAT


async def refuse(scope: Scope, send: Send, error: RequestError) -> None:
    """Answers with an error in the protocol's own form."""
    api = api_of(scope)
    body = api.module.error_body(error)
    if api is MESSAGES:
        body["request_id"] = scope["state"]["request_id"]
    await send_error(send, error, body)


class Endpoints:
    """The ASGI application behind the guard."""

    def __init__(self, engine: Engine, model_name: str, max_body: int, keepalive: float) -> None:
        self._engine = engine
        self._name = model_name
        self._max_body, self._keepalive = max_body, keepalive
        self._created = int(time.time())
        self._page_jobs = page_jobs.PageJobs(engine, keepalive)
        self._pdfs = PdfReader()
        get: dict[str, Handler] = {
            "/": self._page, "/page/info": self._page_info, "/health": self._health, "/v1/health": self._health,
            "/metrics": self._metrics, "/slots": self._slots, "/props": self._props,
            "/api/version": self._ollama(lambda _: ollama.version_body()),
            "/api/tags": self._ollama(ollama.tags_body),
            "/api/ps": self._ollama(lambda facts: ollama.ps_body(facts, int(time.time()) + 3600)),
            **dict.fromkeys(_LISTING, self._models),
        }  # fmt: skip
        post: dict[str, Handler] = {
            **dict.fromkeys(_GENERATING, self._generate), **dict.fromkeys(_COUNTING, self._count),
            "/tokenize": self._tokenize, "/detokenize": self._detokenize, "/apply-template": self._apply_template,
            "/api/show": self._ollama(ollama.show_body), "/page/pdf": self._page_pdf,
        }  # fmt: skip
        self._handlers = {"GET": get, "HEAD": get, "POST": post}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD":
            send = _without_body(send)
        status = 200

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._handler(scope)(scope, receive, watched)
        except Gone:
            status = 499
        except RequestError as error:
            await refuse(scope, watched, error)
        except Exception as error:
            _log.exception("unforeseen")
            failed = RequestError(f"{type(error).__name__}, which nobody foresaw; the server's log shows where",
                                  code="generation_failed")
            await refuse(scope, watched, failed)
        self._engine.metrics.request(api_of(scope).name, status)

    def _handler(self, scope: Scope) -> Handler:
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        scope["path"] = path
        known = self._handlers.get(method, {}).get(path)
        if known is not None:
            return known
        if method in ("GET", "HEAD") and path.rpartition("/")[0] in _LISTING:
            return self._model
        if method in ("GET", "HEAD") and path[1:] in page_files():
            return self._page_file
        if path.startswith(PAGE_JOBS):
            return self._page_job
        if path in _NOT_HERE:
            raise RequestError(f"{path} is not supported: this server answers with text only", code="not_implemented")
        if any(path in each for each in self._handlers.values()):
            raise RequestError(f"{path} is not for {method[:20]}: see docs/serve.md", code="method_not_allowed")
        raise RequestError(f"there is no {path[:100]} here: the APIs are under /v1 and /api", code="not_found")

    # -- answers that are generated --

    async def _generate(self, scope: Scope, receive: Receive, send: Send) -> None:
        api = api_of(scope)
        body = await read_json(receive, self._max_body)
        if api.module is ollama and ollama.is_load(body):
            await send_json(send, 200, ollama.load_body(body, int(time.time()), chat=api is OLLAMA_CHAT))
            return
        request = self._completed(api.read(body), scope)
        created, response_id = int(time.time()), f"{api.prefix}{secrets.token_hex(16)}"
        try:
            job = await asyncio.to_thread(self._engine.prepare, request, scope["state"]["salt"])
        except RequestError as error:
            if error.code == "context_length_exceeded" and api is RESPONSES and request.stream:
                await self._failed_stream(request, error, send, response_id, created)
                return
            raise
        page_name = header(scope, page_jobs.HEADER)
        if page_name is not None and request.stream:
            writer = api.module.Stream(request, response_id, created)
            started = await self._page_jobs.start(page_name, job, writer, scope["state"]["salt"])
            await self._listen(started, receive, send)
            return
        async with Exchange(self._engine, job, receive, send, self._keepalive) as exchange:
            if request.stream:
                await exchange.stream(api.module.Stream(request, response_id, created))
            else:
                await exchange.whole(api.module.full, api.module.error_body, response_id, created)

    async def _failed_stream(self, request: Request, error: RequestError, send: Send, response_id: str, created: int) -> None:
        """An error as the stream that it ends, where clients look for it in there: agents compact by that of a full context."""
        writer = responses.Stream(request, response_id, created)
        data = writer.feed(Started(n_prompt=error.n_prompt or 0)) + writer.feed(Failed(error))
        await send_bytes(send, 200, writer.content_type.encode(), data)

    def _completed(self, request: Request, scope: Scope) -> Request:
        """The request with what its headers call the session, and the model's name where it has none."""
        found = (value.decode("latin-1")[:512] for key, value in scope["headers"] if key in _HINT_HEADERS)
        return replace(request, model=request.model or self._name, hints=(*request.hints, *found))

    # -- answers that are not --

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive, self._max_body)
        request = messages.read({"max_tokens": 1, **body})
        n = await asyncio.to_thread(self._engine.count, request, scope["state"]["salt"])
        await send_json(send, 200, messages.count_body(n))

    async def _health(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._engine.is_healthy:
            await self._loaded()
        await send_json(send, 200, {"status": "ok"})

    async def _loaded(self) -> Loaded:
        """The model, which takes a while where it has been let go. RequestError."""
        return await asyncio.to_thread(self._engine.use)

    async def _metrics(self, scope: Scope, receive: Receive, send: Send) -> None:
        waiting, running = self._engine.waiting_and_running()
        text = self._engine.metrics.text(requests_waiting=waiting, requests_running=running, slots_busy=running,
                                         engine_stalled_seconds=self._engine.stalled_seconds,
                                         **{'cache_bytes{tier="turns"}': self._engine.turns.n_bytes})
        await send_bytes(send, 200, b"text/plain; version=0.0.4; charset=utf-8", text.encode())

    async def _slots(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send_json(send, 200, [
            {"id": slot.index, "is_processing": slot.is_busy, "n_ctx": slot.session.capacity, "n_past": slot.session.position}
            for slot in (await self._loaded()).slots
        ])  # fmt: skip

    async def _props(self, scope: Scope, receive: Receive, send: Send) -> None:
        loaded = await self._loaded()
        await send_json(send, 200, {
            "model_path": self._name, "total_slots": len(loaded.slots), "build_info": f"pyflash {__version__}",
            "default_generation_settings": {"n_ctx": loaded.n_ctx}})

    # -- the page --

    async def _page(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] == "HEAD" or "html" not in (header(scope, b"accept") or ""):
            await send_bytes(send, 200, b"text/plain; charset=utf-8", b"Ollama is running")  # what Ollama's clients look for
            return
        scope["path"] = "/index.html"
        await self._page_file(scope, receive, send)

    async def _page_file(self, scope: Scope, receive: Receive, send: Send) -> None:
        file = page_files()[scope["path"][1:]]
        etag = file.etag.encode()
        keep = b"public, max-age=31536000, immutable" if file.immutable else b"no-cache"
        headers = [(b"etag", etag), (b"cache-control", keep), (b"vary", b"accept-encoding"),
                   (b"content-security-policy", SECURITY_POLICY.encode()), (b"cross-origin-resource-policy", b"same-origin"),
                   (b"cross-origin-opener-policy", b"same-origin")]
        if header(scope, b"if-none-match") == file.etag:
            await send({"type": "http.response.start", "status": 304, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return
        content = file.content
        if "gzip" in (header(scope, b"accept-encoding") or ""):
            content = file.compressed
            headers.append((b"content-encoding", b"gzip"))
        await send_bytes(send, 200, file.content_type.encode(), content, headers)

    async def _page_info(self, scope: Scope, receive: Receive, send: Send) -> None:
        """What the page shows of the model; also while that is being loaded."""
        body: dict[str, Any] = {"name": self._name, "version": __version__, "state": "loading", "context": 0, "release": "",
                                "demo": False}  # fmt: skip
        with contextlib.suppress(RequestError):
            loaded = await self._loaded()
            body |= {"state": "ready", "context": loaded.n_ctx, "release": loaded.model.release,
                     "demo": loaded.model.info.name == demo.NAME}  # fmt: skip
        await send_json(send, 200, body)

    async def _page_pdf(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The text of an attached PDF."""
        body = await read_json(receive, self._max_body)
        try:
            data = base64.b64decode(body.get("data", ""), validate=True)
        except (TypeError, ValueError):
            raise RequestError("data must be a PDF in base64", param="data") from None
        await send_json(send, 200, {"text": await self._pdfs.text_of(data)})

    async def _page_job(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An answer from its beginning; POST .../stop ends it, .../answer ends its thinking."""
        name, _, what = scope["path"].removeprefix(PAGE_JOBS).partition("/")
        salt = scope["state"]["salt"]
        if scope["method"] == "GET" and not what:
            await self._listen(self._page_jobs.find(name, salt), receive, send)
            return
        if scope["method"] != "POST" or what not in ("stop", "answer"):
            raise RequestError("a page's answer can be listened to, stopped, or told to answer", code="method_not_allowed")
        await read_json(receive, self._max_body)
        if what == "stop":
            self._page_jobs.stop(name, salt)
        elif (answer := self._page_jobs.find(name, salt).job.answer) is not None:
            answer.is_hurried = True
        await send_json(send, 200, {})

    async def _listen(self, job: page_jobs.PageJob, receive: Receive, send: Send) -> None:
        """Sends an answer as it grows. A client that goes leaves it running."""
        await send({"type": "http.response.start", "status": 200, "headers": [
            (b"content-type", job.content_type.encode()), (b"cache-control", b"no-store")]})

        async def pass_on() -> None:
            async for data in job.listen():
                await send({"type": "http.response.body", "body": data, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

        async def wait_gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        tasks = {asyncio.ensure_future(pass_on()), asyncio.ensure_future(wait_gone())}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _facts(self, loaded: Loaded) -> ollama.ModelFacts:
        info = loaded.model.info
        name = self._name if ":" in self._name else f"{self._name}:latest"
        digest = hashlib.sha256(f"{info.name} {info.file_bytes}".encode()).hexdigest()
        return ollama.ModelFacts(name, digest, info.file_bytes, loaded.n_ctx, f"{info.weight_bytes / 1e9:.1f}GB",
                                 info.profile, self._created)

    def _ollama(self, body: Callable[[ollama.ModelFacts], dict[str, Any]]) -> Handler:
        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "POST":
                await read_json(receive, self._max_body)
            await send_json(send, 200, body(self._facts(await self._loaded())))

        return answer

    def _entry(self, name: str, anthropic: bool, loaded: Loaded) -> dict[str, Any]:
        if anthropic:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._created))
            return {"type": "model", "id": name, "display_name": name, "created_at": when}
        info = loaded.model.info
        return {"id": name, "object": "model", "created": self._created, "owned_by": "pyflash",
                "context_length": loaded.n_ctx, "max_model_len": loaded.n_ctx,
                "meta": {"n_ctx": loaded.n_ctx, "n_vocab": info.n_vocab, "size": info.file_bytes}}

    async def _models(self, scope: Scope, receive: Receive, send: Send) -> None:
        if api_of(scope) is MESSAGES:
            entries = [self._entry(self._name, True, await self._loaded())]
            await send_json(send, 200, {"data": entries, "has_more": False, "first_id": self._name, "last_id": self._name})
            return
        await send_json(send, 200, {"object": "list", "data": [self._entry(self._name, False, await self._loaded())]})

    async def _model(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Any name is the model's, as in requests."""
        name = unquote(scope["path"].rpartition("/")[2])
        await send_json(send, 200, self._entry(name, api_of(scope) is MESSAGES, await self._loaded()))

    async def _tokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive, self._max_body)
        text = body.get("content")
        if not isinstance(text, str):
            raise RequestError("content must be a string", param="content")
        tokenizer = (await self._loaded()).model.tokenizer
        await send_json(send, 200, {"tokens": await asyncio.to_thread(tokenizer.encode, text)})

    async def _detokenize(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_json(receive, self._max_body)
        tokens, model = body.get("tokens"), (await self._loaded()).model
        if not isinstance(tokens, list) or not all(type(each) is int and 0 <= each < model.info.n_vocab for each in tokens):
            raise RequestError(f"tokens must be a list of token ids below {model.info.n_vocab}", param="tokens")
        await send_json(send, 200, {"content": await asyncio.to_thread(model.tokenizer.decode, tokens, True)})

    async def _apply_template(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = chat_completions.read({"model": "", **await read_json(receive, self._max_body)})
        prompts = (await self._loaded()).prompts
        await send_json(send, 200, {"prompt": await asyncio.to_thread(prompts.text, request)})


def _without_body(send: Send) -> Send:
    async def only_headers(message: Any) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return only_headers
