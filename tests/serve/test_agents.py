"""Coding agents as people install them, with the settings that `pyflash serve --print-config` prints: a session of several
turns with tools, played by a script above real sessions and their cache."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, end_left
from playing import Call, Played, Says, playing, steps

from pyflash.serve.client_configs import CLIENTS

pytestmark = pytest.mark.clients

TASK = "List the files, read notes.txt and write out.txt."
TEXT = 'a "b" \\n\n\tc: é 😀\n'
END = "Done,  all of it."
UNASKED = ["exec", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"]


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """Cline leaves a process that waits for its next session."""
    yield
    end_left(tmp_path / "home")


@pytest.fixture
def served(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    with playing(demo_model, steps(Says(END)), monkeypatch) as played:
        yield played


def printed(client: str, served: Played) -> str:
    """What a person gets to paste."""
    command = [sys.executable, "-m", "pyflash", "serve", "--print-config", client, "--port", served.address.rpartition(":")[2],
               "--alias", served.name, "--ctx", str(served.n_ctx)]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def prepared(name: str, served: Played, folder: Path) -> Agent:
    """An agent with the printed settings in their place."""
    agent = Agent(name, folder)
    agent.settings(CLIENTS[name].file, printed(name, served))
    return agent


def check(agent: Agent, served: Played, done: subprocess.CompletedProcess[str], least_turns: int = 4) -> None:
    served.check(least_turns)
    assert (agent.work / "out.txt").read_text(encoding="utf-8") == TEXT
    assert END in done.stdout and "DSML" not in done.stdout + done.stderr
    texts = [each["content"] for each in served.work[-1].request.messages if each["role"] == "tool"]
    assert any("notes.txt" in text for text in texts) and any("second line" in text for text in texts), texts


def test_codex(served: Played, tmp_path: Path) -> None:
    """With apply_patch, whose input is a free text and no JSON; and tools in namespaces."""
    added = "".join(f"+{line}\n" for line in TEXT.splitlines())
    patch = f"*** Begin Patch\n*** Add File: out.txt\n{added}*** End Patch"
    served.script = steps(
        Says("Let me see.", [Call("exec_command", {"cmd": "ls", "yield_time_ms": 1000})]),
        Says(calls=[Call("exec_command", {"cmd": "cat notes.txt"}), Call("exec_command", {"login": False, "cmd": "pwd"})]),
        Says("Now  writing.", [Call("apply_patch", {"input": patch})]), Says(END))
    agent = prepared("codex", served, tmp_path)
    agent.settings(CLIENTS["codex-models"].file, printed("codex-models", served))
    done = agent.run(*UNASKED, "--profile", "pyflash", TASK)
    check(agent, served, done)
    tools = served.work[0].request.tools
    assert tools["apply_patch"].kind == "custom" and tools["apply_patch"].syntax is not None
    assert any(tool.namespace for tool in tools.values())
    assert "Model metadata" not in done.stderr


def test_codex_outlasts_a_long_silence(served: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own patience is with events: 3 s, while the prompt takes longer, and something comes each second."""
    import time

    from pyflash.serve import engine

    evaluate = engine.evaluate

    def slow(work: Any, logits: Any, cancellation: Any = None) -> Any:
        time.sleep(7 if served.n_read == 0 and logits == "last" else 0)
        return evaluate(work, logits, cancellation)

    monkeypatch.setattr(engine, "evaluate", slow)
    agent = prepared("codex", served, tmp_path)
    agent.settings(CLIENTS["codex-models"].file, printed("codex-models", served))
    done = agent.run("exec", "--profile", "pyflash", "-c", "model_providers.pyflash.stream_idle_timeout_ms=3000",
                     "--skip-git-repo-check", TASK)  # fmt: skip
    assert END in done.stdout and len(served.jobs) == 1


def test_opencode(served: Played, tmp_path: Path) -> None:
    work = tmp_path / "work"
    todos = [{"content": "Look", "status": "completed", "priority": "high"}]
    served.script = steps(
        Says("Let me see.", [Call("bash", {"command": "ls", "timeout": 20000}), Call("todowrite", {"todos": todos})]),
        Says(calls=[Call("read", {"filePath": str(work / "notes.txt"), "limit": 20})]),
        Says("Now  writing.", [Call("write", {"content": TEXT, "filePath": str(work / "out.txt")})]), Says(END))
    agent = prepared("opencode", served, tmp_path)
    check(agent, served, agent.run("run", "--auto", TASK))
    assert any(not job.request.tools for job in served.jobs)  # its title, asked for at the same time


@pytest.mark.parametrize("api", ["openai-completions", "openai-responses", "anthropic-messages"])
def test_pi(served: Played, tmp_path: Path, api: str) -> None:
    served.script = steps(
        Says("Let me see.", [Call("bash", {"command": "ls", "timeout": 20.0})]),
        Says(calls=[Call("read", {"limit": 20.0, "path": "notes.txt"}), Call("bash", {"command": "pwd"})]),
        Says("Now  writing.", [Call("write", {"path": "out.txt", "content": TEXT})]), Says(END))
    agent = prepared("pi", served, tmp_path)
    settings = json.loads(printed("pi", served))
    provider = settings["providers"]["pyflash"]
    assert provider["api"] == "openai-completions"
    provider["api"] = api
    provider["baseUrl"] = served.address if api == "anthropic-messages" else provider["baseUrl"]
    agent.settings(CLIENTS["pi"].file, json.dumps(settings))
    check(agent, served, agent.run("--provider", "pyflash", "--model", served.name, "-p", TASK))
    assert served.jobs[0].request.protocol == {"openai-completions": "chat_completions", "openai-responses": "responses",
                                               "anthropic-messages": "messages"}[api]  # fmt: skip


def test_cline(served: Played, tmp_path: Path) -> None:
    work = tmp_path / "work"
    served.script = steps(
        Says("Let me see.", [Call("run_commands", {"commands": ["ls"]})]),
        Says(calls=[Call("read_files", {"files": [{"path": str(work / "notes.txt")}]})]),
        Says("Now  writing.", [Call("editor", {"path": str(work / "out.txt"), "new_text": TEXT})]), Says(END))
    agent = prepared("cline", served, tmp_path)
    check(agent, served, agent.run(TASK))


def test_dsh(served: Played, tmp_path: Path) -> None:
    work = tmp_path / "work"
    served.script = steps(
        Says("Let me see.", [Call("bash", {"command": "ls", "description": "Lists the files"})]),
        Says(calls=[Call("read", {"file_path": str(work / "notes.txt"), "limit": 20.0})]),
        Says("Now  writing.", [Call("write", {"file_path": str(work / "out.txt"), "content": TEXT})]), Says(END))
    agent = prepared("dsh", served, tmp_path)
    done = agent.run("--profile", "headless", TASK, DEEPSEEK_API_KEY="none", DSH_PERMISSION_MODE="danger-full-access")
    check(agent, served, done)


# -- by pyflash launch --

LAUNCHED: dict[str, tuple[list[str], Call]] = {
    "cline": ([], Call("editor", {"path": "FOLDER/out.txt", "new_text": TEXT})),
    "codex": (UNASKED,
              Call("exec_command", {"cmd": f"cat > out.txt <<'E'\n{TEXT}E"})),
    "dsh": (["--profile", "headless"], Call("write", {"file_path": "FOLDER/out.txt", "content": TEXT})),
    "opencode": (["run", "--auto"], Call("write", {"filePath": "FOLDER/out.txt", "content": TEXT})),
    "pi": (["-p"], Call("write", {"path": "out.txt", "content": TEXT})),
}


@pytest.mark.parametrize("name", LAUNCHED)
def test_launch(served: Played, tmp_path: Path, name: str) -> None:
    """With no settings in the agent's home but those that it makes itself."""
    agent = Agent(name, tmp_path)
    arguments, call = LAUNCHED[name]
    filled = {key: value.replace("FOLDER", str(agent.work)) for key, value in call.arguments.items()}
    served.script = steps(Says("Now.", [Call(call.name, filled)]), Says(END))
    port = served.address.rpartition(":")[2]
    command = [sys.executable, "-m", "pyflash", "launch", name, "--port", port, "--", *arguments, TASK]
    done = subprocess.run(command, cwd=agent.work, capture_output=True, text=True, timeout=400, stdin=subprocess.DEVNULL, env={
        **agent.environment, "PYFLASH_STATE": str(tmp_path / "state"), "DSH_PERMISSION_MODE": "danger-full-access"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert END in done.stdout and (agent.work / "out.txt").read_text(encoding="utf-8") == TEXT
    served.check(2)
    for client in CLIENTS.values():
        assert not (agent.home / client.file.removeprefix("~/")).exists()


# -- Python --


def _weather(arguments: dict[str, Any]) -> str:
    return f"{arguments['city']}: rain for {arguments['days']} days"


def test_litellm(served: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop with tools, streamed and in one piece."""
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it asks for a list of prices
    litellm: Any = pytest.importorskip("litellm", reason="pip install '.[test,clients]'")
    tool = {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {
        "type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}, "required": ["city"]}}}
    served.script = steps(*(Says("Let me  see.", [Call("weather", {"days": n, "city": "Bern"})]) for n in range(3)), Says(END))
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Rain in Bern?"}]
    cached: list[int] = []
    ask: Callable[..., Any] = litellm.completion
    for n in range(4):
        stream = n % 2 == 0
        answer = ask(model=f"openai/{served.name}", api_base=f"{served.address}/v1", api_key="none", messages=messages,
                     tools=[tool], stream=stream, **({"stream_options": {"include_usage": True}} if stream else {}))
        if stream:
            answer = litellm.stream_chunk_builder(list(answer), messages=messages)
        message = answer.choices[0].message
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        messages.append(message.model_dump(exclude_none=True))
        for call in message.tool_calls or ():
            result = _weather(json.loads(call.function.arguments))
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
    served.check(4)
    assert messages[-1]["content"] == END and "Bern: rain for 2 days" in messages[-2]["content"]
    assert cached == [job.n_cached for job in served.work] and 0 == cached[0] < cached[1] < cached[2] < cached[3]
