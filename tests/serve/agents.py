"""Coding agents from npm, at the versions that are tested, each in a folder of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from npm_packages import installed, require_node

_LEAST_NODE = 20  # to install them: pi has one of its own
_SECONDS = 400  # for an agent's session; most take less than ten
# dsh's own dependencies name its packages' predecessors and leave out what they need beside: at later versions of these it
# does not start. 0.1.5-rc.2 cannot be installed at all, as its packages are not published.
_DSH = {
    "@deepseek-ai/cordis": "4.0.1", "@deepseek-ai/cordis-plugin-group": "1.0.1", "@deepseek-ai/cordis-plugin-hmr": "1.0.16",
    "@deepseek-ai/cordis-plugin-include": "1.0.6", "@deepseek-ai/cordis-plugin-loader": "1.0.2",
    "@deepseek-ai/cordis-plugin-timer": "1.1.3",
    **{f"@deepseek-ai/dsh{name}": "0.1.0-rc.8" for name in (
        "", "-anonymous-user-id", "-atomic-write", "-bash-local", "-code-runtime", "-compaction", "-fs", "-invariants",
        "-output-retention", "-sandbox", "-scope", "-session-telemetry", "-session-title-llm", "-shell", "-spill",
        "-subagent-in-process-driver", "-timeout", "-workflow")},
}  # fmt: skip
_PACKAGES = {
    "cline": {"cline": "3.0.65"},
    "codex": {"@openai/codex": "0.171.0"},
    "dsh": _DSH,
    "node": {"node": "22.23.3"},
    "opencode": {"opencode-ai": "1.18.33"},
    "pi": {"@earendil-works/pi-coding-agent": "1.6.0"},
}
_ON_NODE_22 = ("dsh", "pi")


def _commands(name: str) -> Path:
    """The folder of a package's commands."""
    if sys.platform != "linux":
        pytest.skip("the agents' sessions use a Linux shell")
    require_node(_LEAST_NODE, f"{name} comes")
    package = json.dumps({"private": True, "dependencies": _PACKAGES[name]}).encode()
    arguments = ["--legacy-peer-deps"] if name == "dsh" else []  # else npm looks for them for minutes
    return installed(f"client-{name}", package, arguments, seconds=_SECONDS) / "node_modules" / ".bin"


def end_left(home: Path) -> None:
    """Ends what an agent has left running: processes whose home is this one."""
    mark = f"HOME={home}".encode()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (folder / "environ").read_bytes().split(b"\0"):
                os.kill(int(folder.name), signal.SIGTERM)
        except OSError:
            pass  # it is over, or another user's


class Agent:
    """An agent with a home and a folder to work in of its own, and nothing of the environment of who runs the tests."""

    def __init__(self, name: str, folder: Path) -> None:
        self.commands = _commands(name)
        self._node = [_commands("node")] if name in _ON_NODE_22 else []
        self.name, self.home, self.work = name, folder / "home", folder / "work"
        for each in (self.home, self.work):
            each.mkdir()
        (self.work / "notes.txt").write_text("first line\nsecond line\n")

    @property
    def environment(self) -> dict[str, str]:
        path = [*map(str, self._node), str(self.commands), os.environ["PATH"]]
        return {"PATH": os.pathsep.join(path), "HOME": str(self.home), "LANG": "C.UTF-8", "PI_OFFLINE": "1",
                "OPENCODE_DISABLE_MODELS_FETCH": "1", "OPENCODE_DISABLE_AUTOUPDATE": "1"}  # fmt: skip

    def settings(self, place: str, text: str) -> None:
        """Puts a file of settings where it belongs: place begins with ~/ for the home, else it is in the folder."""
        path = self.home / place[2:] if place.startswith("~/") else self.work / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs it with nobody at the keyboard."""
        done = subprocess.run([str(self.commands / self.name), *arguments], cwd=self.work, capture_output=True, text=True,
                              env={**self.environment, **variables}, stdin=subprocess.DEVNULL, timeout=_SECONDS)  # fmt: skip
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done
