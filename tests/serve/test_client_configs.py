"""`pyflash serve --print-config`: the settings parse, and name this server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from pyflash.serve.client_configs import CLIENTS, Server

SERVER = Server("http://127.0.0.1:8123", 'odd "name"\\', 32768)


def parsed(client: str, server: Server = SERVER) -> Any:
    text = CLIENTS[client].render(server)
    if client == "codex":
        return pytest.importorskip("tomllib").loads(text)
    if client == "open-webui":
        return dict(line.split("=", 1) for line in text.splitlines())
    return json.loads(text)


@pytest.mark.parametrize("client", CLIENTS)
def test_settings_name_the_server(client: str) -> None:
    text = json.dumps(parsed(client))
    assert "http://127.0.0.1:8123" in text
    assert json.dumps(SERVER.model)[1:-1] in text or client == "open-webui"


def test_what_each_looks_at() -> None:
    codex = parsed("codex")
    assert codex["model"] == SERVER.model and codex["model_context_window"] == 32768
    assert codex["model_providers"][codex["model_provider"]]["wire_api"] == "responses"
    assert "env_key" not in codex["model_providers"]["pyflash"]
    keyed = parsed("codex", Server("http://x", "m", 100, "YOUR-KEY"))
    assert keyed["model_providers"]["pyflash"]["env_key"] == "PYFLASH_API_KEY"
    assert all(isinstance(value, str) for value in parsed("claude")["env"].values())
    assert "/v1" not in parsed("claude")["env"]["ANTHROPIC_BASE_URL"]
    opencode = parsed("opencode")
    assert opencode["provider"]["pyflash"]["models"][SERVER.model]["limit"] == {"context": 32768, "output": 16384}


def test_the_command_prints_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyflash", "serve", "--print-config", "zed", "--port", "99", "--alias", "mine", "-c", "1000"],
        capture_output=True, text=True, check=True)  # fmt: skip
    there = json.loads(done.stdout)["language_models"]["openai_compatible"]["pyflash"]
    assert there["api_url"] == "http://127.0.0.1:99/v1" and there["available_models"][0]["name"] == "mine"
    assert done.stderr == "pyflash: for Zed's settings.json\n"
