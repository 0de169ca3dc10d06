"""Who may ask: checks of Host, Origin, key and body before a request is looked at. An ASGI middleware without a framework."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from pyflash.serve.errors import RequestError
from pyflash.serve.page import page_files

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY = 32 << 20
_HEALTH = ("/health", "/v1/health")  # are told however busy it is
_PUBLIC = ("/", *_HEALTH)  # need no key
_HOST = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_CORS_HEADERS = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, x-api-key, anthropic-version, anthropic-beta"),
    (b"access-control-max-age", b"600"),
)
_HARDENING = ((b"x-content-type-options", b"nosniff"), (b"referrer-policy", b"no-referrer"))


@dataclass(frozen=True)
class Policy:
    """Who may ask.

    hosts: names that the server may be called by, beside this machine's own; None: any, where the network cannot reach it,
    as with a Unix socket. origins: web pages of others that may use it, each scheme://host[:port]. keys: of which a request
    must bring one; none: nobody needs one. max_body: bytes of a body. max_requests: that are looked at at once.
    """

    hosts: frozenset[str] | None = frozenset()
    origins: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()
    max_body: int = MAX_BODY
    max_requests: int = 64


def host_of(value: str) -> str | None:
    """The name or address that a Host header has, in one form; None where it is not well formed."""
    match = _HOST.fullmatch(value)
    if match is None or int(match[3] or 0) > 65535:
        return None
    if match[1] is None:
        return match[2].lower().removesuffix(".") or None
    try:
        return str(ipaddress.IPv6Address(match[1]))
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's for itself."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def header(scope: Scope, name: bytes) -> str | None:
    """A header's value; None where there is none. RequestError where there are several."""
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise RequestError(f"there are {len(values)} headers {name.decode()}: send one")
    return values[0].decode("latin-1") if values else None


class Guard:
    """Passes on what may be asked. A request's scope then has "state": salt (of its key) and request_id."""

    def __init__(self, app: App, policy: Policy, refuse: Callable[[Scope, Send, RequestError], Awaitable[None]]) -> None:
        """refuse: answers with an error, in the words of the path's protocol."""
        self._app = app
        self._policy = policy
        self._refuse = refuse
        self._digests = [hashlib.sha256(key.encode()).digest() for key in policy.keys]
        self._n_open = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope["state"] = dict(scope.get("state") or {})
        state["request_id"] = f"req_{secrets.token_hex(12)}"
        state["salt"] = b""
        request_id = state["request_id"].encode()
        more = [(b"x-request-id", request_id), (b"request-id", request_id), *_HARDENING]  # OpenAI's name, and Anthropic's

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        self._n_open += 1
        try:
            if self._n_open > self._policy.max_requests and scope["path"] not in _HEALTH:
                raise RequestError(f"{self._policy.max_requests} connections are being answered: try again later",
                                   code="queue_full", retry_after=2)
            self._check_host(scope)
            origin = self._check_origin(scope)
            if origin is not None:
                more += [(b"access-control-allow-origin", origin.encode()), (b"vary", b"origin")]
            if scope["method"] == "OPTIONS":
                await self._preflight(origin, with_headers)
                return
            state["salt"] = self._check_key(scope)
            self._check_body(scope)
            await self._app(scope, receive, with_headers)
        except RequestError as error:
            await self._refuse(scope, with_headers, error)
        finally:
            self._n_open -= 1

    def _check_host(self, scope: Scope) -> None:
        if self._policy.hosts is None:
            return
        value = header(scope, b"host")
        host = host_of(value) if value is not None else None
        own = scope.get("server") or ("",)
        if host is None or not (is_loopback(host) or host in self._policy.hosts or host == own[0]):
            raise RequestError(f"the host {(value or '')[:100]!r} is not this server's: ask it by its address, or let the "
                               "server's owner allow this name", code="misdirected")

    def _check_origin(self, scope: Scope) -> str | None:
        """The origin that is to be let in by CORS; None for none. RequestError for pages of others."""
        origin, site = header(scope, b"origin"), header(scope, b"sec-fetch-site")
        if origin is not None:
            if origin in self._policy.origins:
                return origin
            if origin != f"{scope.get('scheme', 'http')}://{header(scope, b'host')}":
                raise RequestError(f"the web page {origin[:100]!r} may not use this server: let its owner allow this origin",
                                   code="forbidden")
        is_visit = scope["method"] in ("GET", "HEAD") and header(scope, b"sec-fetch-mode") == "navigate"
        if site == "cross-site" and not (is_visit and scope["path"] == "/"):
            raise RequestError("another web page may not use this server: open it by its address", code="forbidden")
        return None

    async def _preflight(self, origin: str | None, send: Send) -> None:
        if origin is None:
            raise RequestError("this server takes no requests from other web pages", code="forbidden")
        await send({"type": "http.response.start", "status": 204, "headers": list(_CORS_HEADERS)})
        await send({"type": "http.response.body", "body": b""})

    def _check_key(self, scope: Scope) -> bytes:
        """What separates the caches of several keys."""
        is_public = scope["path"] in _PUBLIC or scope["path"][1:] in page_files()
        if not self._digests or (is_public and scope["method"] in ("GET", "HEAD")):
            return b""
        bearer, key = header(scope, b"authorization"), header(scope, b"x-api-key")
        if bearer is not None and bearer[:7].lower() == "bearer ":
            key = bearer[7:].strip()
        given = hashlib.sha256((key or "").encode("utf-8", "replace")).digest()
        known = [hmac.compare_digest(given, digest) for digest in self._digests]  # all of them, so that time tells nothing
        if key is None or not any(known):
            raise RequestError("a key is needed: send one of this server's as 'Authorization: Bearer KEY'" if key is None
                               else "the key is not one of this server's", code="unauthorized")
        return given[:16] if len(self._digests) > 1 else b""

    def _check_body(self, scope: Scope) -> None:
        if scope["method"] != "POST":
            return
        kind = (header(scope, b"content-type") or "").split(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError("send the body as JSON, with the header 'Content-Type: application/json'",
                               code="unsupported_media_type")
        if (header(scope, b"content-encoding") or "identity").lower() != "identity":
            raise RequestError("send the body as it is, without Content-Encoding", code="unsupported_media_type")
        length = header(scope, b"content-length")
        if length is not None and length.isdecimal() and int(length[:20]) > self._policy.max_body:
            raise too_large(self._policy.max_body)


def too_large(most: int) -> RequestError:
    return RequestError(f"the body is larger than {most >> 20} MiB: send less, or start the server with a larger limit",
                        code="too_large")


def key_file_lines(text: str) -> Iterable[str]:
    """The keys of a file, one a line; empty lines and those that begin with # are none."""
    return (line for each in text.splitlines() if (line := each.strip()) and not line.startswith("#"))
