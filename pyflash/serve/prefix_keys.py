"""What a request shares with earlier ones, as short keys: by them it goes to the server that has evaluated its beginning."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from pyflash.serve import page_jobs
from pyflash.serve.endpoints import PAGE_JOBS, generating_api
from pyflash.serve.errors import RequestError
from pyflash.serve.guard import Scope, header
from pyflash.serve.request import Request
from pyflash.serve.turns import chains

_PIECE = 1024  # characters or tokens of a completion's prompt
_MOST = 64  # keys of a request


def keys_of(scope: Scope, body: dict[str, Any] | None) -> list[str]:
    """Keys of a request and of its beginnings, the longest first; of two requests with one key, both have that beginning.

    A conversation has one for its end and for each of its turns but the system's, which many conversations share. A prompt
    without turns has one for each further 1,024 characters. An answer that the page asked for has its name. Requests with
    other API keys, where there are several, have other keys. body: None for a request without. None of this is an error:
    what cannot be read has no keys.
    """
    salt: bytes = scope["state"]["salt"]
    path = scope["path"]
    try:
        if path.startswith(PAGE_JOBS):
            return _named(path.removeprefix(PAGE_JOBS).partition("/")[0], salt)
        api = generating_api(path)
        if api is None or body is None:
            return []
        name = header(scope, page_jobs.HEADER)
        request = api.read(body)
    except RequestError:
        return []
    prefixes = _conversation(request, salt) if request.is_conversation else _pieces(request.prompt or "", salt)
    return prefixes[:_MOST] + ([] if name is None else _named(name, salt))


def _named(name: str, salt: bytes) -> list[str]:
    return [_key(salt, b"job", name.encode("utf-8", "replace"))]


def _key(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=12)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _conversation(request: Request, salt: bytes) -> list[str]:
    ends = chains(salt, request.messages, request.tool_schemas)[1:]
    n_system = next((i for i, message in enumerate(request.messages) if message["role"] != "system"), len(ends))
    return [_key(b"turns", end) for end in reversed(ends[n_system:])]


def _pieces(prompt: str | Sequence[int], salt: bytes) -> list[str]:
    digest = hashlib.blake2b(salt, digest_size=20)
    ends = []
    for begin in range(0, len(prompt), _PIECE):
        piece = prompt[begin : begin + _PIECE]
        digest.update(piece.encode("utf-8", "surrogatepass") if isinstance(piece, str) else repr(list(piece)).encode())
        ends.append(digest.digest())
    return [_key(b"text", end) for end in reversed(ends)]
