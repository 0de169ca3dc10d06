"""`pyflash launch`: a coding agent on a local model, in one command."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

import pyflash
from pyflash.cli.agents import PROGRAMS, Program
from pyflash.cli.commands.completion import GGUFFile
from pyflash.cli.options import option
from pyflash.cli.signals import leaving_on_signals
from pyflash.cli.streams import say
from pyflash.machine.places import state_dir
from pyflash.serve.client_configs import Server

_HOST = "127.0.0.1"
_LOOK = 0.1  # seconds between looks at a server that starts
_LEAVE_SECONDS = 10  # for a client that is told to end
_END_SECONDS = 45  # for a server to answer what is under way, and to save


@click.command()
@click.argument("client", type=click.Choice(list(PROGRAMS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]")
@option("--model", type=GGUFFile(), help="The GGUF file, or a name as for run, to be served if no server answers.  "
        "[default: the demo model]")
@option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Where a server of this machine "
        "answers, or is to be started.")
@option("--ctx", "-c", "context", type=click.IntRange(1), metavar="N", help="Context in tokens of a server that is started.")
@option("--keep-server", is_flag=True, help="Leave a server that was started running when the client has ended.")
def launch(client: str, arguments: Sequence[str], **options: Any) -> int:
    """Run a coding agent on a model of this machine: `pyflash launch codex -- exec "fix the tests"`.

    Where no server answers at the port, one is started, and ended with the client. The client gets its settings by
    variables, arguments and files of pyflash's own; yours are not touched. PYFLASH_API_KEY holds the key of a server that
    wants one. What the client returns is returned.
    """
    from pyflash.serve.disk_files import write_private

    program = PROGRAMS[client]
    path = shutil.which(program.command)
    if path is None:
        raise pyflash.Error(f"{program.command} is not installed, or not in PATH: npm install -g {program.package}")
    with leaving_on_signals(), _server(options) as server, _folder(client, program) as folder:
        start = program.start(server, folder)
        for name, text in start.files.items():
            write_private(folder / name, [text.encode()])
        return _run([path, *start.arguments, *arguments], {**os.environ, **_past_proxies(), **start.variables})


def _past_proxies() -> dict[str, str]:
    """Variables that keep clients from asking a proxy for this machine."""
    return {name: ",".join(filter(None, (os.environ.get(name, ""), _HOST))) for name in ("NO_PROXY", "no_proxy")}


def _run(command: list[str], variables: dict[str, str]) -> int:
    """Runs a program that has the terminal, and Ctrl-C, to itself. The exit code as a shell has it."""
    try:
        process = subprocess.Popen(command, env=variables)
    except OSError as error:
        raise pyflash.Error(f"{command[0]} cannot be started: {error.strerror or error}") from error
    try:
        while True:
            with contextlib.suppress(KeyboardInterrupt):  # is the program's, too, which decides what it means
                code = process.wait()
                return code if code >= 0 else 128 - code
    finally:
        if process.poll() is None:
            process.terminate()
            _wait_or_kill(process, _LEAVE_SECONDS)


@contextlib.contextmanager
def _folder(client: str, program: Program) -> Iterator[Path]:
    """Where the program's settings are: the same each time for one that keeps its sessions there."""
    state = state_dir() if program.keeps else None
    if state is not None:
        folder = state / "clients" / client
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=f"pyflash-{client}-", ignore_cleanup_errors=True) as made:
        yield Path(made)


# -- the server --


def _ask(port: int, path: str) -> tuple[int, Any] | None:
    """The status and the JSON of an answer; None where nothing answers. What is no JSON is None."""
    headers = {"Authorization": f"Bearer {key}"} if (key := os.environ.get("PYFLASH_API_KEY", "").strip()) else {}
    connection = http.client.HTTPConnection(_HOST, port, timeout=30)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        data = response.read()
        try:
            return response.status, json.loads(data)
        except ValueError:
            return response.status, None
    except http.client.HTTPException:
        return 0, None  # something that does not speak HTTP
    except OSError:
        return None
    finally:
        connection.close()


def _found(port: int) -> Server:
    """The server that answers, as clients are to know it."""
    answered = _ask(port, "/v1/models")
    status: int = answered[0] if answered else 0
    body: Any = answered[1] if answered else None
    if status == 401:
        raise pyflash.Error(f"the server at port {port} wants a key: set PYFLASH_API_KEY to one of its keys")
    try:
        (entry,) = body["data"]
        if status != 200 or entry["owned_by"] != "pyflash":
            raise ValueError
        key = os.environ.get("PYFLASH_API_KEY", "").strip() or "none"
        return Server(f"http://{_HOST}:{port}", entry["id"], int(entry["context_length"]), key)
    except (TypeError, KeyError, ValueError):
        raise pyflash.Error(f"what answers at port {port} is no pyflash serve: choose another --port") from None


@contextlib.contextmanager
def _server(options: dict[str, Any]) -> Iterator[Server]:
    """The server that answers at the port, else one that is started, and ended at the end."""
    port = options["port"]
    if _ask(port, "/health") is not None:
        _wait_loaded(port, None, "")
        yield _found(port)
        return
    with tempfile.TemporaryDirectory(prefix="pyflash-serve-", ignore_cleanup_errors=True) as folder:
        log = Path(folder) / "log"
        process = _start(options, log)
        try:
            say(f"pyflash: no server answers at port {port}: starting one")
            _wait_loaded(port, process, str(log))
            yield _found(port)
        except BaseException:
            _end(process)
            raise
        if options["keep_server"]:
            say(f"pyflash: the server goes on at http://{_HOST}:{port} as process {process.pid}")
        else:
            _end(process)


def _start(options: dict[str, Any], log: Path) -> subprocess.Popen[bytes]:
    """A server that the terminal's Ctrl-C does not reach."""
    more = [options["model"]] if options["model"] else []
    more += ["--ctx", str(options["context"])] if options["context"] else []
    command = [sys.executable, "-m", "pyflash", "serve", *more, "--host", _HOST, "--port", str(options["port"])]
    elsewhere = ("PYFLASH_PRINT_CONFIG", "PYFLASH_UNIX_SOCKET", "PYFLASH_TLS_CERT", "PYFLASH_TLS_KEY")
    variables = {name: value for name, value in os.environ.items() if name not in elsewhere}
    apart: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    with open(log, "wb") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=variables, **apart)


def _wait_loaded(port: int, process: subprocess.Popen[bytes] | None, log: str) -> None:
    """Waits until the server's model is open. process, log: of a server that was started."""
    while True:
        if process is not None and process.poll() is not None:
            lines = Path(log).read_text("utf-8", "replace").strip().splitlines()
            raise pyflash.Error(lines[-1].removeprefix("pyflash: ").removeprefix("error: ") if lines
                                else f"the server ended with code {process.returncode}: try pyflash serve")
        answered = _ask(port, "/health")
        if answered is not None and answered[0] != 503:
            return
        if answered is None and process is None:
            raise pyflash.Error(f"the server at port {port} has gone: start this again")
        time.sleep(_LOOK)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a server as Ctrl-C would; by force where that does not help."""
    if process.poll() is not None:
        return
    if sys.platform == "win32":
        process.send_signal(signal.CTRL_BREAK_EVENT)
    else:
        process.terminate()
    _wait_or_kill(process, _END_SECONDS)


def _wait_or_kill(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
