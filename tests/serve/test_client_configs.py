"""`pyflash serve --print-config`: the settings parse, and name this server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
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
    assert "http://127.0.0.1:8123" in text or client == "codex-models"
    assert json.dumps(SERVER.model)[1:-1] in text or client == "open-webui"
    assert "32768" in text or client in ("open-webui",)
    keyed = json.dumps(parsed(client, Server("http://x", "m", 100, "YOUR-KEY")))
    assert ("YOUR-KEY" in keyed) == (client not in ("codex", "codex-models", "dsh", "zed"))  # those have it in a variable


def test_codex() -> None:
    codex = parsed("codex")
    assert codex["model"] == SERVER.model and codex["model_context_window"] == 32768
    assert codex["model_catalog_json"] == "pyflash-models.json" == Path(CLIENTS["codex-models"].file).name
    provider = codex["model_providers"][codex["model_provider"]]
    assert provider == {"name": "pyflash", "base_url": "http://127.0.0.1:8123/v1", "wire_api": "responses",
                        "stream_idle_timeout_ms": 3600000}
    keyed = parsed("codex", Server("http://x", "m", 100, "YOUR-KEY"))
    assert keyed["model_providers"]["pyflash"]["env_key"] == "PYFLASH_API_KEY"
    (model,) = parsed("codex-models")["models"]
    assert model["slug"] == SERVER.model and model["context_window"] == 32768 and model["visibility"] == "list"
    assert model["apply_patch_tool_type"] == "freeform" and model["supports_parallel_tool_calls"] is True
    assert [each["effort"] for each in model["supported_reasoning_levels"]] == ["low", "high", "max"]
    assert set(model["truncation_policy"]) == {"mode", "limit"} and "apply_patch" in model["base_instructions"]


def test_claude() -> None:
    name, hour = SERVER.model, "3600000"
    assert parsed("claude") == {"env": {
        "ANTHROPIC_BASE_URL": "http://127.0.0.1:8123", "ANTHROPIC_AUTH_TOKEN": "none", "ANTHROPIC_MODEL": name,
        "ANTHROPIC_DEFAULT_OPUS_MODEL": name, "ANTHROPIC_DEFAULT_SONNET_MODEL": name, "ANTHROPIC_DEFAULT_HAIKU_MODEL": name,
        "CLAUDE_CODE_SUBAGENT_MODEL": name, "CLAUDE_CODE_AUTO_COMPACT_WINDOW": "32768", "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1", "CLAUDE_STREAM_IDLE_TIMEOUT_MS": hour, "API_TIMEOUT_MS": hour,
        "API_FORCE_IDLE_TIMEOUT": "false"}}


def test_what_the_others_look_at() -> None:
    provider = parsed("opencode")["provider"]["pyflash"]
    assert provider["npm"] == "@ai-sdk/openai-compatible" and provider["options"]["timeout"] is False
    model = provider["models"][SERVER.model]
    assert model["limit"] == {"context": 32768, "output": 16384} and model["reasoning"] and model["tool_call"]
    assert model["interleaved"] == {"field": "reasoning_content"}
    cline = parsed("cline")
    settings = cline["providers"][cline["lastUsedProvider"]]["settings"]
    assert (settings["contextWindow"], settings["maxTokens"], settings["timeout"]) == (32768, 16384, 3600000)
    dsh = parsed("dsh")
    assert dsh["llm-deepseek"]["streamIdleTimeoutMs"] == 3600000 and dsh["llm-deepseek"]["maxTokens"] == 16384
    assert dsh["agent-default-model"] == {"provider": "deepseek-official", "model": SERVER.model}
    (model,) = parsed("pi")["providers"]["pyflash"]["models"]
    assert model["contextWindow"] == 32768 and model["reasoning"] is True
    (model,) = parsed("zed")["language_models"]["openai_compatible"]["pyflash"]["available_models"]
    assert (model["max_tokens"], model["max_output_tokens"]) == (32768, 16384)
    chat, complete = parsed("continue")["models"]
    assert chat["provider"] == "openai" and chat["apiBase"].endswith("/v1") and chat["roles"] == ["chat", "edit", "apply"]
    assert complete["provider"] == "deepseek" and complete["roles"] == ["autocomplete"]
    webui = parsed("open-webui")
    assert webui["OPENAI_API_BASE_URL"].endswith("/v1") and webui["ENABLE_TAGS_GENERATION"] == "false"


def test_the_command_prints_them() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pyflash", "serve", "--print-config", "zed", "--port", "99", "--alias", "mine", "-c", "1000"],
        capture_output=True, text=True, check=True)  # fmt: skip
    there = json.loads(done.stdout)["language_models"]["openai_compatible"]["pyflash"]
    assert there["api_url"] == "http://127.0.0.1:99/v1" and there["available_models"][0]["name"] == "mine"
    assert done.stderr == "pyflash: for Zed's settings.json\n"
