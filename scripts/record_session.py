"""Records the session that scripts/bench_serve.py plays: pi, from npm, works for 30 turns on a small project.

    pip install '.[test,serve]' && python scripts/record_session.py

A script says what the model says, above the demo model's sessions, as in tests/serve/test_agents.py; what is recorded is what
the client sends. Paths of this machine become others. It needs node 20, npm and Linux.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "serve")]

import pytest  # noqa: E402
from agents import Agent  # noqa: E402
from playing import REASONING, Call, Played, Says, playing, steps  # noqa: E402
from recorded_session import PATH, call_name  # noqa: E402

from gguf_export.outputs import write_output  # noqa: E402
from pyflash import demo  # noqa: E402
from pyflash.serve import endpoints  # noqa: E402
from pyflash.serve.client_configs import CLIENTS  # noqa: E402

CLIENT = "pi 1.6.0"
TASK = "The modules of this project take texts apart. Give each function a docstring and let each check its text by given()."
MODULES = {
    "words": ("split", "text.split()"),
    "lines": ("cut", "text.splitlines()"),
    "pairs": ("pair", "list(zip(text, text[1:]))"),
    "counts": ("count", "{each: text.count(each) for each in set(text)}"),
    "titles": ("title", "text.strip().title()"),
    "pieces": ("pieces", "[text[n : n + 8] for n in range(0, len(text), 8)]"),
}
SHOWN = ("The words.", "The lines.", "Neighbours.", "Counts of characters.", "As a title.", "Pieces of eight.")  # fmt: skip


def module(name: str) -> str:
    function, value = MODULES[name]
    return f"def {function}(text):\n    return {value}\n"


def says() -> list[Says]:
    """29 answers with a call, and the last one without."""
    out = [Says("Let me see what is there.", [Call("bash", {"command": "ls -1 && cat README.md"})]),
           Says("", [Call("bash", {"command": "grep -c def *.py"})])]
    for (name, (function, _)), shown in zip(MODULES.items(), SHOWN, strict=True):
        file, head = f"{name}.py", f"def {function}(text):\n"
        edits = [{"oldText": head, "newText": f'{head}    """{shown}"""\n'}]
        out += [Says(f"Now {file}.", [Call("read", {"path": file})]),
                Says("", [Call("edit", {"path": file, "edits": edits})]),
                Says("", [Call("bash", {"command": f"sed -i '2a\\    text = given(text)' {file}"})]),
                Says("", [Call("bash", {"command": f"cat {file}"})])]
    out += [Says("All six are done; a last look.", [Call("bash", {"command": "grep -n given *.py"})]),
            Says("", [Call("bash", {"command": "python3 -m compileall -q . && echo fine", "timeout": 20})]),
            Says("", [Call("bash", {"command": "wc -l *.py"})]),
            Says("Each function has a docstring, and checks what it is given.")]
    return out


def record(answers: list[Says]) -> tuple[list[dict[str, Any]], list[str]]:
    """The bodies that the client sent, and paths in them that are this machine's."""
    bodies: list[dict[str, Any]] = []
    read_json = endpoints.read_json

    async def noting(*arguments: Any) -> Any:
        body = await read_json(*arguments)
        if body.get("tools"):
            bodies.append(copy.deepcopy(body))
        return body

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoints, "read_json", noting)
        agent = Agent("pi", Path(folder))
        (agent.work / "notes.txt").unlink()
        (agent.work / "README.md").write_text("Small functions that take texts apart, one a module.\n")
        for name in MODULES:
            (agent.work / f"{name}.py").write_text(module(name))
        with playing(demo.path(), steps(*answers), patch) as played:
            agent.settings(CLIENTS["pi"].file, printed(played))
            agent.run("--provider", "pyflash", "--model", played.name, "-p", TASK)
            played.check(len(answers))
        return bodies, [str(agent.work), str(agent.home), str(agent.commands.parent)]


def printed(played: Played) -> str:
    """The client's settings as a person gets them."""
    command = [sys.executable, "-m", "pyflash", "serve", "--print-config", "pi", "--port", played.address.rpartition(":")[2],
               "--alias", played.name, "--ctx", str(played.n_ctx)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def session(bodies: list[dict[str, Any]], answers: list[Says]) -> dict[str, Any]:
    """The recording, see recorded_session.py."""
    turns: list[dict[str, Any]] = []
    before: list[Any] = []
    ids: dict[str, str] = {}
    for n, (body, said) in enumerate(zip(bodies, answers, strict=True)):
        messages = body["messages"]
        if messages[: len(before)] != before:
            raise SystemExit(f"turn {n + 1} does not go on with the one before")
        asks = copy.deepcopy(messages[len(before) :])
        for message in asks:
            for index, call in enumerate(message.get("tool_calls") or ()):
                ids[call["id"]] = call["id"] = call_name(n - 1, index)
            if message["role"] == "tool":
                message["tool_call_id"] = ids[message["tool_call_id"]]
        calls = [{"name": call.name, "arguments": call.arguments} for call in said.calls]
        turns.append({"asks": asks, "says": {"reasoning": REASONING, "content": said.content, "calls": calls}})
        before = messages
    return {"client": CLIENT, "tools": bodies[0]["tools"], "turns": turns}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=PATH)
    options = parser.parse_args()
    answers = says()
    bodies, paths = record(answers)
    text = json.dumps(session(bodies, answers), ensure_ascii=False, indent=1)
    for path, other in zip(paths, ("/home/user/texts", "/home/user", "/usr/lib"), strict=True):
        text = text.replace(path, other)
    write_output(options.output, f"{text}\n".encode())
    print(f"{options.output}: {len(answers)} turns, {len(text.encode()) / 1000:.0f} KB")


if __name__ == "__main__":
    main()
