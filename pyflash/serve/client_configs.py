"""What programs must be told to use this server: their own files of settings, as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HOUR_MS = 3_600_000  # a long prompt takes longer than the programs' own patience


@dataclass(frozen=True)
class Server:
    """address: such as http://127.0.0.1:8080. model: its name for clients. n_ctx: tokens. key: what stands for the API key in
    the settings."""

    address: str
    model: str
    n_ctx: int
    key: str = "none"

    @property
    def base(self) -> str:
        return f"{self.address}/v1"

    @property
    def most_answer(self) -> int:
        """Tokens of an answer that leave room for a conversation."""
        return max(1, min(32768, self.n_ctx // 2))


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _toml_string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's, but for this one


def _codex(server: Server) -> str:
    return (
        f"model = {_toml_string(server.model)}\n"
        'model_provider = "pyflash"\n'
        f"model_context_window = {server.n_ctx}\n"
        f"model_auto_compact_token_limit = {server.n_ctx * 3 // 4}\n\n"
        "[model_providers.pyflash]\n"
        'name = "pyflash"\n'
        f"base_url = {_toml_string(server.base)}\n"
        'wire_api = "responses"\n'
        f"stream_idle_timeout_ms = {_HOUR_MS}\n"
        + ("" if server.key == "none" else 'env_key = "PYFLASH_API_KEY"\n')
    )


def _claude(server: Server) -> str:
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_DEFAULT_OPUS_MODEL", "ANTHROPIC_DEFAULT_SONNET_MODEL",
             "ANTHROPIC_DEFAULT_HAIKU_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL")  # fmt: skip
    hour = str(_HOUR_MS)
    return _json({"env": {
        "ANTHROPIC_BASE_URL": server.address, "ANTHROPIC_AUTH_TOKEN": server.key, **dict.fromkeys(names, server.model),
        "CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(server.n_ctx), "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_NONSTREAMING_FALLBACK": "1", "CLAUDE_STREAM_IDLE_TIMEOUT_MS": hour, "API_TIMEOUT_MS": hour,
        "API_FORCE_IDLE_TIMEOUT": "false",
    }})  # fmt: skip


def _opencode(server: Server) -> str:
    return _json({
        "$schema": "https://opencode.ai/config.json",
        "provider": {"pyflash": {
            "npm": "@ai-sdk/openai-compatible", "name": "pyflash", "options": {
                "baseURL": server.base, "apiKey": server.key, "timeout": False},
            "models": {server.model: {
                "name": server.model, "reasoning": True, "tool_call": True, "interleaved": {"field": "reasoning_content"},
                "limit": {"context": server.n_ctx, "output": server.most_answer}}},
        }},
        "model": f"pyflash/{server.model}",
    })  # fmt: skip


def _cline(server: Server) -> str:
    return _json({
        "apiProvider": "openai", "openAiBaseUrl": server.base, "openAiApiKey": server.key, "openAiModelId": server.model,
        "openAiModelInfo": {"contextWindow": server.n_ctx, "maxTokens": server.most_answer, "supportsImages": False},
        "requestTimeoutMs": _HOUR_MS,
    })


def _pi(server: Server) -> str:
    return _json({"providers": {"pyflash": {
        "baseUrl": server.base, "api": "openai-completions", "apiKey": server.key, "models": [{
            "id": server.model, "name": server.model, "reasoning": True, "input": ["text"], "contextWindow": server.n_ctx,
            "maxTokens": server.most_answer, "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}],
    }}})  # fmt: skip


def _continue(server: Server) -> str:
    common = {"model": server.model, "apiBase": server.base, "apiKey": server.key}
    return _json({"name": "pyflash", "version": "1.0.0", "schema": "v1", "models": [
        {"name": server.model, "provider": "openai", **common, "roles": ["chat", "edit", "apply"],
         "capabilities": ["tool_use"], "defaultCompletionOptions": {"contextLength": server.n_ctx}},
        {"name": f"{server.model} autocomplete", "provider": "deepseek", **common, "apiBase": f"{server.address}/",
         "roles": ["autocomplete"]},
    ]})  # fmt: skip


def _zed(server: Server) -> str:
    return _json({"language_models": {"openai_compatible": {"pyflash": {
        "api_url": server.base, "available_models": [{
            "name": server.model, "display_name": server.model, "max_tokens": server.n_ctx,
            "max_output_tokens": server.most_answer, "capabilities": {
                "tools": True, "images": False, "parallel_tool_calls": True, "prompt_cache_key": True}}],
    }}}})  # fmt: skip


def _open_webui(server: Server) -> str:
    return (f"OPENAI_API_BASE_URL={server.base}\nOPENAI_API_KEY={server.key}\nENABLE_OLLAMA_API=false\n"
            "ENABLE_FOLLOW_UP_GENERATION=false\nENABLE_TAGS_GENERATION=false\n")  # fmt: skip


@dataclass(frozen=True)
class Client:
    """A program. file: where its settings belong, as a person is told. render: the settings."""

    file: str
    render: Callable[[Server], str]


CLIENTS = {
    "claude": Client("~/.claude/settings.json", _claude),
    "cline": Client("Cline's settings: provider OpenAI Compatible", _cline),
    "codex": Client("~/.codex/config.toml", _codex),
    "continue": Client("~/.continue/config.yaml", _continue),  # JSON is YAML
    "open-webui": Client("Open WebUI's environment", _open_webui),
    "opencode": Client("opencode.json", _opencode),
    "pi": Client("~/.pi/agent/models.json", _pi),
    "zed": Client("Zed's settings.json", _zed),
}
