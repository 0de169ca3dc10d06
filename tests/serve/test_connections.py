"""Connections over real sockets: slow ones, many, broken ones; and silence that a client's clock would end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import Pace, serving

from pyflash.serve.application import Application
from pyflash.serve.connections import limited_protocol

uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"
SILENT = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1},
    "/v1/responses": {"input": "Hello!", "max_output_tokens": 1},
    "/v1/messages": {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 1},
    "/v1/completions": {"prompt": "Hello! Who are you, and what is it that you can do?", "max_tokens": 1},
    "/api/chat": {"messages": [{"role": "user", "content": "Hello!"}], "options": {"num_predict": 1}},
}  # fmt: skip


@contextlib.contextmanager
def listening(application: Application, **limits: Any) -> Iterator[int]:
    """A server of sockets; its port."""
    place = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(application, loop="asyncio", http=limited_protocol(**limits), ws="none", lifespan="off",
                            log_config=None, timeout_keep_alive=30)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[place])))
    thread.start()
    try:
        yield place.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(30)
        place.close()


def said(connection: socket.socket) -> bytes:
    """All until the server closes."""
    return b"".join(iter(lambda: connection.recv(4096), b""))


def heard(connection: socket.socket, text: bytes) -> bool:
    """Whether a text comes."""
    data = b""
    while text not in data:
        more = connection.recv(4096)
        if not more:
            return False
        data += more
    return True


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=60)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local", b"POST"])
def test_a_head_that_does_not_come(demo_model: Path, sent: bytes) -> None:
    with serving(demo_model) as made, listening(made, head_seconds=0.3) as port, connected(port) as slow:
        slow.sendall(sent)
        assert said(slow).startswith(b"HTTP/1.1 408 ")


def test_a_second_head_that_does_not_come(demo_model: Path) -> None:
    """On a connection that goes on; one that says nothing may wait for longer."""
    with serving(demo_model) as made, listening(made, head_seconds=0.3) as port, connected(port) as slow:
        slow.sendall(GET)
        assert heard(slow, b'{"status":"ok"}')
        time.sleep(0.6)
        slow.sendall(GET)
        assert heard(slow, b'{"status":"ok"}')
        slow.sendall(GET[:-3])
        assert said(slow).startswith(b"HTTP/1.1 408 ")


def test_an_answer_may_take_longer_than_a_head(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.1
    body = json.dumps(SILENT["/v1/chat/completions"]).encode()
    with serving(demo_model) as made, listening(made, head_seconds=0.3) as port, connected(port) as asking:
        asking.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json"
                       b"\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        assert said(asking).startswith(b"HTTP/1.1 200 ")


def test_too_many_connections(demo_model: Path) -> None:
    with serving(demo_model) as made, listening(made, most_connections=3) as port:
        held = [connected(port) for _ in range(3)]
        for each in held:
            each.sendall(GET)
            assert heard(each, b'{"status":"ok"}')
        with connected(port) as fourth:
            assert b"503 " in said(fourth) or b"retry-after" in said(fourth)
        held.pop().close()
        for _ in range(100):
            with connected(port) as again:
                again.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
                answer = b""
                with contextlib.suppress(ConnectionError):
                    answer = said(again)
                if b"200 OK" in answer:
                    break
            time.sleep(0.05)
        else:
            raise AssertionError("a place that became free is not given away")
        for each in held:
            each.close()


@pytest.mark.parametrize("data", [
    b"\x16\x03\x01\x02\x00\x01\x00", b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    b"POST /v1/messages HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
    b"GET /health HTTP/1.1\r\n\r\n", b"GET /health HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET \xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
])  # fmt: skip
def test_what_is_no_request(demo_model: Path, data: bytes) -> None:
    with serving(demo_model) as made, listening(made) as port:
        with connected(port) as odd:
            with contextlib.suppress(ConnectionError):
                odd.sendall(data)
                odd.shutdown(socket.SHUT_WR)
                answer = said(odd)
                assert answer == b"" or answer.split(b" ")[1][:1] == b"4", answer[:200]
        with connected(port) as after:
            after.sendall(GET)
            assert heard(after, b'{"status":"ok"}')


@pytest.mark.parametrize("path", SILENT)
def test_silence_is_filled(demo_model: Path, pace: Pace, path: str) -> None:
    """While a prompt is read for seconds: the first byte at once, then something with data, never a bare comment, until the
    answer begins. The limits are wide, for slow machines; a tenth of the silence."""
    pace.seconds = 2.0  # a token's, so that the first piece of the prompt takes ten seconds
    body = json.dumps({**SILENT[path], "stream": True}).encode()
    with serving(demo_model, keepalive=0.1) as made, listening(made) as port, connected(port) as asking:
        began = time.monotonic()
        asking.sendall(b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
                       % (path.encode(), len(body), body))
        times, text = [], b""
        while time.monotonic() - began < 4:
            text += (data := asking.recv(65536))
            if b"{" in data:
                times.append(time.monotonic())
        n_steps = len(pace.steps)
        asking.close()
        gaps = [after - before for before, after in zip([began, *times], times, strict=False)]
        assert n_steps == 0 and len(times) > 8 and max(gaps) < 3
        assert not any(line.startswith(b":") for line in text.split(b"\n"))
