"""Runs the application with uvicorn: the sockets, TLS, the end by a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyflash.native.errors import ArgumentError, FileError, UnsupportedError
from pyflash.serve.application import DRAIN_SECONDS, Application
from pyflash.serve.connections import limited_protocol

_LOOK = 0.05  # seconds between looks at whether the model is open, and whether a signal came


@dataclass(frozen=True)
class Place:
    """Where a server listens. port 0: any that is free. unix_socket: a path instead of both."""

    host: str = "127.0.0.1"
    port: int = 8080
    unix_socket: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None

    def address(self, listening: socket.socket) -> str:
        """What clients are to be told."""
        if self.unix_socket is not None:
            return f"unix:{self.unix_socket}"
        host, port = listening.getsockname()[:2]
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
        return f"{'https' if self.tls_cert else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _uvicorn() -> Any:
    try:
        import uvicorn
    except ImportError as error:
        raise UnsupportedError("serving needs one more package: pip install uvicorn") from error
    return uvicorn


def listen(place: Place) -> socket.socket:
    """A socket that listens there. FileError where that cannot be, ArgumentError for a host that is none."""
    if place.unix_socket is not None:
        return _listen_unix(place.unix_socket)
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ArgumentError(f"{place.host!r} is no host of this machine: {error}") from error
    family, kind, protocol, _, address = found[0]
    listening = socket.socket(family, kind, protocol)
    try:
        if sys.platform != "win32":  # there it would let two servers share a port
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise FileError(f"cannot listen at {place.host} port {place.port}: {error.strerror}; choose another port") from error
    return listening


def _listen_unix(path: str) -> socket.socket:
    if not hasattr(socket, "AF_UNIX"):
        raise UnsupportedError("this system has no Unix sockets here: listen at a port")
    with contextlib.suppress(OSError):
        if stat.S_ISSOCK(os.stat(path).st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                if probe.connect_ex(path) == 0:
                    raise FileError(f"another server listens at {path}: choose another path")
            os.unlink(path)  # one that ended without tidying up left it
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listening.bind(path)
        listening.listen(128)
    except OSError as error:
        listening.close()
        raise FileError(f"cannot listen at {path}: {error.strerror}; choose another path") from error
    finally:
        os.umask(before)
    return listening


def run(application: Application, place: Place, ready: Callable[[str], None], drain: float = DRAIN_SECONDS) -> None:
    """Serves until a signal ends it: then no new requests are taken, and those under way are answered, for drain seconds
    at most. ready: is called with the address once the model is open. Raises what keeps the model from opening."""
    uvicorn = _uvicorn()
    for what in (place.tls_cert, place.tls_key):
        if what is not None and not Path(what).is_file():
            raise FileError(f"{what} is no file: give the PEM files of the certificate and of its key")
    listening = listen(place)
    config = uvicorn.Config(
        application, loop="asyncio", http=limited_protocol(), ws="none", lifespan="on", log_config=None, access_log=False,
        log_level="warning", server_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=max(1, int(drain)), ssl_certfile=place.tls_cert, ssl_keyfile=place.tls_key,
    )
    try:
        asyncio.run(_serve(uvicorn.Server(config), listening, application, lambda: ready(place.address(listening))))
    finally:
        listening.close()
        if place.unix_socket is not None:
            with contextlib.suppress(OSError):
                os.unlink(place.unix_socket)
    if application.engine.failure is not None:
        raise application.engine.failure


def _end_with_the_terminal(server: Any) -> None:
    """A terminal that is closed ends the server as SIGTERM does, which uvicorn sees to. Not under nohup."""
    number = getattr(signal, "SIGHUP", None)
    if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
        with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not the main thread
            asyncio.get_running_loop().add_signal_handler(number, lambda: setattr(server, "should_exit", True))


async def _serve(server: Any, listening: socket.socket, application: Application, ready: Callable[[], None]) -> None:
    _end_with_the_terminal(server)
    watching = asyncio.ensure_future(_watch(server, application, ready))
    try:
        await server.serve(sockets=[listening])
    finally:
        watching.cancel()


async def _watch(server: Any, application: Application, ready: Callable[[], None]) -> None:
    """Tells when the model is open, ends a server whose model cannot be, and has a server that is to end drain."""
    engine, told = application.engine, False
    while not server.should_exit:
        if engine.state == "ready" and not told:
            told = True
            ready()
        if engine.failure is not None:
            server.should_exit = True
        await asyncio.sleep(_LOOK)
    engine.drain()
