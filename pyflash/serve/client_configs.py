"""What programs must be told to use this server: their own files of settings, as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_HOUR_MS = 3_600_000  # a long prompt takes longer than the programs' own patience
CODEX_CATALOG = "pyflash-models.json"  # beside Codex's settings

_INSTRUCTIONS = """\
You are a coding agent that works in a terminal, in the folder of the user's project. Work on what you are asked until it is
done, and do no more than that.

- Look before you change anything: list and read the files that matter.
- Change files with apply_patch. Run commands to build and to test.
- Keep to the style of the code around a change. Leave what others changed as it is.
- Say briefly what you are about to do before you call tools, and at the end what you did and what is left.
"""


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


def codex_settings(server: Server, catalog: str) -> dict[str, str]:
    """Codex's settings by their dotted names, each a value of TOML. catalog: the file of the models that it knows, a relative
    path from where the settings are."""
    provider = "model_providers.pyflash"
    settings = {
        "model": _toml_string(server.model), "model_provider": _toml_string("pyflash"),
        "model_catalog_json": _toml_string(catalog), "model_context_window": str(server.n_ctx),
        "model_auto_compact_token_limit": str(server.n_ctx * 3 // 4), "model_reasoning_effort": _toml_string("high"),
        "model_reasoning_summary": _toml_string("auto"), "web_search": _toml_string("disabled"),
        f"{provider}.name": _toml_string("pyflash"), f"{provider}.base_url": _toml_string(server.base),
        f"{provider}.wire_api": _toml_string("responses"), f"{provider}.stream_idle_timeout_ms": str(_HOUR_MS),
    }  # fmt: skip
    if server.key != "none":
        settings[f"{provider}.env_key"] = _toml_string("PYFLASH_API_KEY")
    return settings


def _codex(server: Server) -> str:
    lines, table = [], ""
    for name, value in codex_settings(server, CODEX_CATALOG).items():
        inside, _, key = name.rpartition(".")
        if inside != table:
            lines.append(f"\n[{inside}]")
            table = inside
        lines.append(f"{key} = {value}")
    return "\n".join(lines) + "\n"


def _codex_models(server: Server) -> str:
    """What Codex is to know of the model: without it, it takes it for one with another context and without apply_patch."""
    efforts = {"low": "Thinks little", "high": "Thinks as long as it takes", "max": "Thinks longest"}
    return _json({"models": [{
        "slug": server.model, "display_name": server.model, "description": "A model that pyflash runs on this machine",
        "base_instructions": _INSTRUCTIONS, "context_window": server.n_ctx, "max_context_window": server.n_ctx,
        "auto_compact_token_limit": server.n_ctx * 3 // 4, "effective_context_window_percent": 95,
        "default_reasoning_level": "high", "supports_reasoning_summaries": True, "default_reasoning_summary": "auto",
        "supported_reasoning_levels": [{"effort": name, "description": what} for name, what in efforts.items()],
        "apply_patch_tool_type": "freeform", "shell_type": "unified_exec", "supports_parallel_tool_calls": True,
        "truncation_policy": {"mode": "tokens", "limit": min(10_000, max(1, server.n_ctx // 8))},
        "support_verbosity": False, "default_verbosity": None, "visibility": "list", "supported_in_api": True, "priority": 1,
        "upgrade": None, "availability_nux": None, "experimental_supported_tools": [], "input_modalities": ["text"],
    }]})  # fmt: skip


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
    name = "openai-compatible"
    settings = {"provider": name, "apiKey": server.key, "model": server.model, "baseUrl": server.base,
                "contextWindow": server.n_ctx, "maxTokens": server.most_answer, "timeout": _HOUR_MS}  # fmt: skip
    return _json({"version": 1, "lastUsedProvider": name, "modes": {}, "providers": {name: {
        "settings": settings, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}}})  # fmt: skip


def _dsh(server: Server) -> str:
    model = {"id": server.model, "name": server.model, "contextWindow": server.n_ctx, "maxTokens": server.most_answer}
    return _json({
        "llm-deepseek": {"baseURL": server.base, "maxTokens": server.most_answer, "defaultContextWindow": server.n_ctx,
                         "streamIdleTimeoutMs": _HOUR_MS, "models": [model]},
        "agent-default-model": {"provider": "deepseek-official", "model": server.model},
    })  # fmt: skip


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
    "cline": Client("~/.cline/data/settings/providers.json", _cline),
    "codex": Client("~/.codex/pyflash.config.toml", _codex),
    "codex-models": Client(f"~/.codex/{CODEX_CATALOG}", _codex_models),
    "continue": Client("~/.continue/config.yaml", _continue),  # JSON is YAML
    "dsh": Client("~/.dsh/settings.yaml", _dsh),
    "open-webui": Client("Open WebUI's environment", _open_webui),
    "opencode": Client("opencode.json", _opencode),
    "pi": Client("~/.pi/agent/models.json", _pi),
    "zed": Client("Zed's settings.json", _zed),
}
