"""`pyflash launch`: a client in the place of real ones, which writes down what it was given."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyflash.cli.agents import PROGRAMS
from pyflash.serve.client_configs import Server

CLIENT = """
import json, os, sys, urllib.request
out = {"arguments": sys.argv[1:], "variables": dict(os.environ), "files": {}}
for name in ("OPENCODE_CONFIG", "CLINE_PROVIDER_SETTINGS_PATH"):
    if name in os.environ:
        out["files"][name] = open(os.environ[name], encoding="utf-8").read()
        out["mode"] = os.stat(os.environ[name]).st_mode & 0o777
for argument in sys.argv[1:]:
    if argument.startswith("model_catalog_json="):
        out["files"]["catalog"] = open(argument.partition("=")[2].strip("'"), encoding="utf-8").read()
address = os.environ["PYFLASH_TEST_ADDRESS"]
out["models"] = json.load(urllib.request.urlopen(address + "/v1/models"))
json.dump(out, open(os.environ["PYFLASH_TEST_OUT"], "w"))
sys.exit(7)
"""


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder of clients."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "client.py").write_text(CLIENT)
    for program in PROGRAMS.values():
        if sys.platform == "win32":
            (folder / f"{program.command}.cmd").write_text(f'@"{sys.executable}" "%~dp0client.py" %*\n')
        else:
            path = folder / program.command
            path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/client.py" "$@"\n')
            path.chmod(0o755)
    return folder


def launched(client: str, port: int, home: Path, programs: Path | None, *arguments: str, **variables: str) -> Any:
    """The process, ended, and what the client wrote down, None where it never ran."""
    out = home.parent / "out.json"
    out.unlink(missing_ok=True)
    path = os.pathsep.join([*([str(programs)] if programs else []), os.environ["PATH"]])
    done = subprocess.run(
        [sys.executable, "-m", "pyflash", "launch", client, "--port", str(port), *arguments], capture_output=True, text=True,
        timeout=300, env={**os.environ, "HOME": str(home), "USERPROFILE": str(home), "PATH": path,
                          "PYFLASH_TEST_OUT": str(out), "PYFLASH_TEST_ADDRESS": f"http://127.0.0.1:{port}",
                          "PYFLASH_STATE": str(home.parent / "state"), **variables})  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    return done, json.loads(out.read_text()) if out.exists() else None


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
            return True
    except (urllib.error.URLError, OSError):
        return False


def test_it_starts_a_server_and_ends_it(demo_model: Path, port: int, home: Path, programs: Path) -> None:
    more = ["--model", str(demo_model), "--ctx", "4096", "--", "exec", "--x", "a b"]
    done, seen = launched("codex", port, home, programs, *more)
    assert done.returncode == 7, done.stderr
    assert done.stderr == f"pyflash: no server answers at port {port}: starting one\n" and done.stdout == ""
    assert seen["arguments"][-3:] == ["exec", "--x", "a b"]
    assert f"model_providers.pyflash.base_url='http://127.0.0.1:{port}/v1'" in seen["arguments"]
    assert seen["models"]["data"][0]["context_length"] == 4096
    catalog = json.loads(seen["files"]["catalog"])["models"][0]
    assert catalog["slug"] == seen["models"]["data"][0]["id"] and catalog["context_window"] == 4096
    assert not answers(port) and not [*home.iterdir()]


@pytest.fixture(scope="module")
def served(demo_model: Path) -> Iterator[int]:
    """A server that is there already, with a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "pyflash", "serve", str(demo_model), "--port", str(port), "--ctx", "2048",
               "--alias", "its name", "--no-disk-cache"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "PYFLASH_API_KEY": "secret"}) as process:
        try:
            until = time.monotonic() + 120
            while not answers(port) and time.monotonic() < until:
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()


def with_key(client: str, served: int, home: Path, programs: Path, *arguments: str) -> Any:
    """What the client wrote down, whose own look at the server needs the key."""
    script = programs / "client.py"
    script.write_text(CLIENT.replace('urlopen(address + "/v1/models")', 'urlopen(urllib.request.Request('
                                     'address + "/v1/models", headers={"Authorization": "Bearer secret"}))'))  # fmt: skip
    done, seen = launched(client, served, home, programs, *arguments, PYFLASH_API_KEY="secret")
    assert done.returncode == 7 and done.stderr == "", done.stderr
    assert answers(served) and not [*home.iterdir()]
    return seen


def test_it_uses_a_server_that_answers(served: int, home: Path, programs: Path) -> None:
    """Each program gets the address, the name, the context and the key, and nothing of the user's is touched."""
    address = f"http://127.0.0.1:{served}"
    seen = with_key("claude", served, home, programs, "--", "-p", "hi")
    assert seen["arguments"] == ["-p", "hi"]
    variables = seen["variables"]
    assert variables["NO_PROXY"].split(",")[-1] == "127.0.0.1"
    assert (variables["ANTHROPIC_BASE_URL"], variables["ANTHROPIC_AUTH_TOKEN"]) == (address, "secret")
    assert variables["ANTHROPIC_MODEL"] == "its name" and variables["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "2048"
    seen = with_key("opencode", served, home, programs)
    settings = json.loads(seen["files"]["OPENCODE_CONFIG"])["provider"]["pyflash"]
    assert settings["options"] == {"baseURL": f"{address}/v1", "apiKey": "secret", "timeout": False}
    assert settings["models"]["its name"]["limit"]["context"] == 2048
    if sys.platform != "win32":
        assert seen["mode"] == 0o600
    assert not Path(seen["variables"]["OPENCODE_CONFIG"]).parent.exists()
    seen = with_key("cline", served, home, programs)
    (settings,) = json.loads(seen["files"]["CLINE_PROVIDER_SETTINGS_PATH"])["providers"].values()
    assert settings["settings"]["apiKey"] == "secret" and settings["settings"]["contextWindow"] == 2048
    seen = with_key("pi", served, home, programs, "--", "--print")
    assert seen["arguments"] == ["--provider", "pyflash", "--model", "its name", "--print"]
    kept = home.parent / "state" / "clients"
    assert json.loads((kept / "pi" / "models.json").read_text())["providers"]["pyflash"]["baseUrl"] == f"{address}/v1"
    seen = with_key("dsh", served, home, programs)
    assert seen["variables"]["DEEPSEEK_API_KEY"] == "secret" and seen["variables"]["DSH_HOME"] == str(kept / "dsh")
    assert json.loads((kept / "dsh" / "settings.yaml").read_text())["llm-deepseek"]["baseURL"] == f"{address}/v1"
    if sys.platform != "win32":
        assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in (kept / "pi", kept / "pi" / "models.json"))
    seen = with_key("codex", served, home, programs)
    assert seen["variables"]["PYFLASH_API_KEY"] == "secret" and "model='its name'" in seen["arguments"]


def test_what_it_says_when_it_cannot(demo_model: Path, served: int, port: int, home: Path, programs: Path, tmp_path: Path
                                     ) -> None:  # fmt: skip
    def told(*arguments: Any, **variables: str) -> str:
        done, seen = launched(*arguments, **variables)
        assert done.returncode == 1 and seen is None
        line: str = done.stderr.rstrip("\n").splitlines()[-1]
        return line

    nothing = tmp_path / "nothing"
    nothing.mkdir()
    assert told("claude", port, home, None, PATH=str(nothing)).endswith("npm install -g @anthropic-ai/claude-code")
    assert "set PYFLASH_API_KEY" in told("codex", served, home, programs)
    with socket.socket() as mute:  # takes connections and says what is no HTTP
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        import threading

        def speak() -> None:
            for _ in range(3):
                try:
                    taken, _ = mute.accept()
                except OSError:
                    return
                taken.sendall(b"220 mail\r\n\r\n")
                taken.close()

        speaking = threading.Thread(target=speak, daemon=True)
        speaking.start()
        assert "choose another --port" in told("codex", mute.getsockname()[1], home, programs)
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    line = told("codex", port, home, programs, "--model", str(tmp_path / "bad.gguf"))
    assert line.startswith("pyflash: error: ") and "bad.gguf" in line and not answers(port)


def test_a_server_that_is_kept(demo_model: Path, port: int, home: Path, programs: Path) -> None:
    done, _ = launched("codex", port, home, programs, "--model", str(demo_model), "--ctx", "2048", "--keep-server")
    try:
        assert done.returncode == 7 and "as process" in done.stderr and answers(port)
    finally:
        os.kill(int(done.stderr.split()[-1]), 15)


PATIENT = """
import os, signal, sys, time, urllib.request
def leave(*_):
    with urllib.request.urlopen(os.environ["PYFLASH_TEST_ADDRESS"] + "/health", timeout=20):
        os._exit(5)
signal.signal(signal.SIGINT, leave)
print("here", flush=True)
time.sleep(120)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C goes to the whole console")
def test_ctrl_c_is_the_clients(demo_model: Path, port: int, home: Path, programs: Path) -> None:
    """The terminal gives it to both: the client decides, its server is still there then, and ends after it."""
    (programs / "client.py").write_text(PATIENT)
    command = [sys.executable, "-m", "pyflash", "launch", "codex", "--port", str(port), "--model", str(demo_model), "-c", "1024"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env={
            **os.environ, "HOME": str(home), "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
            "PYFLASH_TEST_ADDRESS": f"http://127.0.0.1:{port}"}) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "here\n"
            os.killpg(process.pid, signal.SIGINT)
            _, told = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == 5 and "Traceback" not in told, told
    assert not answers(port)


@pytest.mark.parametrize("name", PROGRAMS)
def test_arguments_survive_batch_files(name: str, tmp_path: Path) -> None:
    """Windows' npm starts its programs by batch files, which lose double quotes."""
    start = PROGRAMS[name].start(Server("http://127.0.0.1:1", "a model", 5000, "key"), tmp_path)
    assert not any('"' in argument for argument in start.arguments)
    assert all(isinstance(value, str) for value in start.variables.values())
