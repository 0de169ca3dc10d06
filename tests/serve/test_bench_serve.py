"""scripts/bench_serve.py: the recorded session is whole, its figures are counted right, and pyflash serve plays it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pyflash

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script's module."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import recorded_session

    return recorded_session


def test_the_recording(recorded: Any, demo_model: Path) -> None:
    """Each turn goes on with the client's copy of the answer before, and the results of its calls."""
    session = recorded.Session.load()
    assert len(session.turns) == 30 and session.tools
    assert recorded.PATH.stat().st_size < 200_000
    with pyflash.Model.open(demo_model, threads=1) as model:
        for n, turn in enumerate(session.turns):
            says, names = turn["says"], [recorded.call_name(n, index) for index in range(len(turn["says"]["calls"]))]
            assert bool(names) == (n < 29)
            if n < 29:
                copied, *results = session.turns[n + 1]["asks"]
                assert copied["role"] == "assistant" and [call["id"] for call in copied["tool_calls"]] == names
                assert [json.loads(call["function"]["arguments"]) for call in copied["tool_calls"]] == [
                    call["arguments"] for call in says["calls"]]
                assert [each["tool_call_id"] for each in results] == names
            tokens = session.tokens(n, model.tokenizer)
            text = model.tokenizer.decode(tokens, special=True)
            assert text.startswith(f"{says['reasoning']}</think>{says['content']}") and tokens[-1] == model.info.eos_token
            assert all(f'invoke name="{call["name"]}"' in text for call in says["calls"])


def test_a_servers_own_names_of_calls(recorded: Any) -> None:
    session = recorded.Session.load()
    messages = session.messages(1, {"call_0_0": "mine"})
    assert [call["id"] for message in messages for call in message.get("tool_calls") or ()] == ["mine"]
    assert messages[-1]["tool_call_id"] == "mine"
    assert session.messages(1)[-1]["tool_call_id"] == "call_0_0"  # the recording is as it was


def test_the_arithmetic(recorded: Any) -> None:
    def turn(n_prompt: int, n_evaluated: int, n_generated: int) -> Any:
        return recorded.Measured(n_prompt, n_evaluated, n_generated, 1.0, 1.0, 1.0)

    turns = [turn(100, 100, 20), turn(150, 31, 10), turn(180, 180, 5), turn(200, 48, 5)]
    # New: 150 - 100 - 19 = 31, 180 - 150 - 9 = 21, 200 - 180 - 4 = 16.
    assert [after.n_new(before) for before, after in zip(turns, turns[1:], strict=False)] == [31, 21, 16]
    assert recorded.reuse_ratio(turns) == (31 + 180 + 48) / (31 + 21 + 16)
    assert recorded.reuse_ratio(turns, cold=(2,)) == (31 + 48) / (31 + 16)


def test_it_plays(demo_model: Path, tmp_path: Path) -> None:
    """Four turns, with a restart: nothing but what is new is evaluated."""
    command = [sys.executable, str(SCRIPTS / "bench_serve.py"), "run", str(demo_model), str(tmp_path), "--server", "pyflash",
               "--part", "session", "--turns", "4", "--restart", "4", "--threads", "1", "--keep", str(tmp_path / "kept.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, *turns = json.loads((tmp_path / "kept.json").read_text())["turns"]["pyflash"]
    assert first["n_evaluated"] == first["n_prompt"] and len(turns) == 3
    for before, after in zip([first, *turns], turns, strict=False):
        assert after["n_evaluated"] == after["n_prompt"] - before["n_prompt"] - (before["n_generated"] - 1)
    assert "| pyflash serve |" in done.stdout and "1.00 x" in done.stdout
