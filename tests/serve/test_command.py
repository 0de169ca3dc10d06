"""`pyflash serve` as people start it: a process, real sockets, signals."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HELLO = {"messages": [{"role": "user", "content": "Hello!"}], "temperature": 0}
STORY = {"messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "ignore": 1}


class Process:
    def __init__(self, *arguments: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pyflash", "serve", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **variables},
        )  # fmt: skip
        self.lines: list[str] = []
        self._is_told = threading.Event()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))
            if "cache clear" in line:
                self._is_told.set()
        self._is_told.set()

    def port(self) -> int:
        assert self._is_told.wait(120)
        match = re.search(r"answers at https?://127\.0\.0\.1:(\d+)$", "\n".join(self.lines), re.MULTILINE)
        assert match, self.lines
        return int(match[1])

    def end(self) -> int:
        code = self.process.wait(30)
        self._thread.join(10)
        return code


@contextlib.contextmanager
def served(*arguments: str, **variables: str) -> Iterator[Process]:
    running = Process(*arguments, **variables)
    try:
        yield running
    finally:
        running.process.kill()
        running.end()


@pytest.fixture(scope="module")
def running(demo_model: Path) -> Iterator[Process]:
    with served(str(demo_model), "--port", "0", "--ctx", "2048", "--think", "off", "--keepalive", "1") as process:
        yield process


def connection(port: int) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", port, timeout=30)


def post(port: int, path: str, body: Any) -> tuple[int, Any]:
    asking = connection(port)
    asking.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = asking.getresponse()
    return response.status, json.loads(response.read())


def test_it_answers_and_says_where(running: Process) -> None:
    port = running.port()
    status, body = post(port, "/v1/chat/completions", HELLO)
    assert status == 200 and body["choices"][0]["message"]["content"] == "Hello! How can I help you?"
    assert len(running.lines) == 4 and "/v1" in running.lines[1] and "pyflash cache clear" in running.lines[3]
    assert re.search(r"[12] conversations? ha.* 2,048 tokens .* of memory, beside .* of weights", running.lines[2])
    assert re.search(r"kept in .*, \d.* at most; --no-disk-cache keeps none", running.lines[3])


def test_a_stream_over_a_socket(running: Process) -> None:
    asking = connection(running.port())
    asking.request("POST", "/v1/chat/completions", json.dumps({**HELLO, "stream": True}), {"Content-Type": "application/json"})
    response = asking.getresponse()
    data = response.read().decode()
    assert response.getheader("content-type") == "text/event-stream" and data.endswith("data: [DONE]\n\n")
    asking.request("GET", "/health")  # the connection goes on
    assert asking.getresponse().status == 200


def running_now(port: int) -> int:
    asking = connection(port)
    asking.request("GET", "/metrics")
    text = asking.getresponse().read().decode()
    return int(re.findall(r"^pyflash_requests_running (\d+)", text, re.MULTILINE)[0])


def becomes(port: int, n: int) -> bool:
    """Whether so many requests are running soon."""
    for _ in range(40):
        if running_now(port) == n:
            return True
        time.sleep(0.05)
    return False


def test_a_client_that_hangs_up(running: Process, tiny_model: Path) -> None:
    """tiny_model hardly ever ends an answer by itself."""
    with served(str(tiny_model), "--port", "0", "--ctx", "60000") as process:
        port = process.port()
        body = json.dumps({**HELLO, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", port)) as asking:
            asking.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            assert b"200 OK" in asking.recv(4096)
            assert becomes(port, 1)
        assert becomes(port, 0)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_drains(demo_model: Path, name: str) -> None:
    """What runs is answered, and the end is a success: for systemd, which restarts what fails, and for whoever stops it."""
    with served(str(demo_model), "--port", "0", "--ctx", "2048") as process:
        port = process.port()
        asking = connection(port)
        asking.request("POST", "/v1/chat/completions", json.dumps({**STORY, "messages": [
            {"role": "user", "content": "Hello! " * 100}]}), {"Content-Type": "application/json"})  # fmt: skip
        response = asking.getresponse()
        response.readline()
        process.process.send_signal(getattr(signal, name))
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert process.end() == 0
        with pytest.raises(OSError):
            connection(port).request("GET", "/health")
    assert len(process.lines) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_sigterm_ends_what_takes_too_long(tiny_model: Path) -> None:
    """tiny_model hardly ever ends an answer by itself."""
    with served(str(tiny_model), "--port", "0", "--ctx", "60000", "--drain", "1") as process:
        asking = connection(process.port())
        asking.request("POST", "/v1/chat/completions", json.dumps(STORY), {"Content-Type": "application/json"})
        response = asking.getresponse()
        response.readline()
        process.process.send_signal(signal.SIGTERM)
        assert process.end() == 0
    assert not any("Traceback" in line for line in process.lines)


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C goes to the whole console")
def test_ctrl_c_ends_it(demo_model: Path) -> None:
    with served(str(demo_model), "--port", "0", "--ctx", "2048") as process:
        process.port()
        process.process.send_signal(signal.SIGINT)
        assert process.end() == 130
    assert not any(process.lines[4:]) and not any("Traceback" in line for line in process.lines)


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="there are no Unix sockets")
def test_a_unix_socket(demo_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    if len(str(path)) > 100:
        pytest.skip("the path is too long for a socket")
    for _ in range(2):  # the second finds what the first left
        with served(str(demo_model), "--unix-socket", str(path), "--ctx", "512") as process:
            assert process._is_told.wait(120)
            with socket.socket(socket.AF_UNIX) as asking:
                asking.connect(str(path))
                asking.sendall(b"GET /health HTTP/1.1\r\nHost: anything\r\nConnection: close\r\n\r\n")
                assert b'{"status":"ok"}' in b"".join(iter(lambda: asking.recv(4096), b""))
            assert path.stat().st_mode & 0o077 == 0


def test_https(demo_model: Path, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate")
    subprocess.run([openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", tmp_path / "key.pem", "-out",
                    tmp_path / "cert.pem", "-days", "2", "-subj", "/CN=localhost"], check=True, capture_output=True)
    with served(str(demo_model), "--port", "0", "--ctx", "512", "--tls-cert", str(tmp_path / "cert.pem"), "--tls-key",
                str(tmp_path / "key.pem")) as process:  # fmt: skip
        port = process.port()
        asking = http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=ssl._create_unverified_context())
        asking.request("GET", "/health", headers={"Origin": f"https://127.0.0.1:{port}"})
        assert asking.getresponse().status == 200


def failing(*arguments: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "pyflash", "serve", *arguments], capture_output=True, text=True, timeout=60,
                          env={**os.environ, **variables})  # fmt: skip
    assert done.stdout == "" and "Traceback" not in done.stderr
    return done.returncode, done.stderr.rstrip("\n")


def test_what_does_not_start(demo_model: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, told = failing(str(demo_model), "--port", str(taken.getsockname()[1]))
        assert code == 1 and "choose another port" in told and "\n" not in told
    code, told = failing(str(demo_model), "--host", "0.0.0.0", "--port", "0")
    assert code == 2 and "--api-key-file" in told
    code, told = failing(str(demo_model), "--host", "no.such.host.invalid", "--no-auth")
    assert code == 1 and "no host" in told
    code, told = failing(str(demo_model), "--port", "0", "--ctx", "10000000")
    assert code == 1 and "this model takes" in told and "\n" not in told
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    code, told = failing(str(tmp_path / "bad.gguf"), "--port", "0")
    assert code == 1 and "bad.gguf" in told
    (tmp_path / "keys").write_text("# none\n\n")
    code, told = failing(str(demo_model), "--api-key-file", str(tmp_path / "keys"))
    assert code == 2 and "holds no key" in told
    code, told = failing(str(demo_model), "--tls-cert", str(tmp_path / "keys"))
    assert code == 2 and "belong together" in told


def test_without_the_extra(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "uvicorn.py").write_text("raise ImportError('not here')")
    code, told = failing(str(demo_model), "--port", "0", PYTHONPATH=str(tmp_path))
    assert code == 1 and "pip install uvicorn" in told and "\n" not in told


def test_keys_of_a_file_and_of_the_environment(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("# ours\nfirst\n")
    with served(str(demo_model), "--port", "0", "--ctx", "512", "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys"),
                PYFLASH_API_KEY="second") as process:  # fmt: skip
        port = process.port()
        for key, status in (("first", 200), ("second", 200), ("# ours", 401)):
            asking = connection(port)
            asking.request("GET", "/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert asking.getresponse().status == status


def test_the_package_does_without_a_server() -> None:
    code = "import pyflash, pyflash.cli.main, sys; print([m for m in sys.modules if m in ('uvicorn', 'h11', 'asyncio')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "uvicorn" not in done.stdout and "h11" not in done.stdout
