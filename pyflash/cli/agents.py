"""The coding agents that `pyflash launch` starts: their commands, and how each is told of a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyflash.serve.client_configs import CLIENTS, CODEX_CATALOG, Server, codex_settings


@dataclass(frozen=True)
class Start:
    """A program to be started with settings in a folder of its own. arguments: before those of the user. variables: more of
    its environment. files: what the folder must hold, by name."""

    arguments: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Program:
    """A program that can be started so. command: its name. package: what npm installs it by. start: how, for a server and a
    folder, which is to be kept for the next time where keeps is true."""

    command: str
    package: str
    start: Callable[[Server, Path], Start]
    keeps: bool = False


def _literal(value: str) -> str:
    """A value of TOML without double quotes where that can be: Windows' batch files lose those."""
    text = json.loads(value) if value.startswith('"') else None
    return value if text is None or "'" in text or not text.isprintable() else f"'{text}'"


def _start_codex(server: Server, folder: Path) -> Start:
    settings = codex_settings(server, str(folder / CODEX_CATALOG))
    pairs = [f"{name}={_literal(value)}" for name, value in settings.items()]
    key = {} if server.key == "none" else {"PYFLASH_API_KEY": server.key}
    arguments = [part for pair in pairs for part in ("-c", pair)]
    return Start(arguments, key, {CODEX_CATALOG: CLIENTS["codex-models"].render(server)})


def _start_claude(server: Server, folder: Path) -> Start:
    return Start(variables=json.loads(CLIENTS["claude"].render(server))["env"])


def _start_opencode(server: Server, folder: Path) -> Start:
    return Start([], {"OPENCODE_CONFIG": str(folder / "opencode.json")}, {"opencode.json": CLIENTS["opencode"].render(server)})


def _start_cline(server: Server, folder: Path) -> Start:
    name = "providers.json"
    return Start([], {"CLINE_PROVIDER_SETTINGS_PATH": str(folder / name)}, {name: CLIENTS["cline"].render(server)})


def _start_pi(server: Server, folder: Path) -> Start:
    return Start(["--provider", "pyflash", "--model", server.model], {"PI_CODING_AGENT_DIR": str(folder)},
                 {"models.json": CLIENTS["pi"].render(server)})  # fmt: skip


def _start_dsh(server: Server, folder: Path) -> Start:
    return Start([], {"DSH_HOME": str(folder), "DEEPSEEK_API_KEY": server.key},
                 {"settings.yaml": CLIENTS["dsh"].render(server)})  # fmt: skip


PROGRAMS = {
    "claude": Program("claude", "@anthropic-ai/claude-code", _start_claude),
    "cline": Program("cline", "cline", _start_cline),
    "codex": Program("codex", "@openai/codex", _start_codex),
    "dsh": Program("dsh", "@deepseek-ai/dsh", _start_dsh, keeps=True),
    "opencode": Program("opencode", "opencode-ai", _start_opencode),
    "pi": Program("pi", "@earendil-works/pi-coding-agent", _start_pi, keeps=True),
}
