"""Conversations on disk: found again after a restart, shared, bounded, and never wrong."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import Pace, ask, run, serving, submit
from test_engine import LONG, request
from test_replay import TOOLS, Scripted, call, result_of

from pyflash import Model
from pyflash.serve.disk_cache import DiskCache, clear, read_index, units
from pyflash.serve.turns import Turn, TurnStore

PROMPT = LONG * 3  # more than a unit's least tokens


def test_a_conversation_goes_on_after_a_restart(demo_model: Path, tmp_path: Path, pace: Pace) -> None:
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        first = submit(server, request(PROMPT)).wait()
    assert [len(unit.tokens) for unit in units(tmp_path)]
    asked = request(PROMPT, first.text, "Go on.", logprobs=True, top_logprobs=5, max_tokens=6)
    told = []
    for folder in (tmp_path, None):
        with serving(demo_model, context=8192, disk_cache=folder) as server:
            again = submit(server, asked).wait()
            usage = again.end.usage
            assert (usage.n_cached >= first.end.usage.n_prompt + first.end.usage.n_generated - 1) == (folder is not None)
            told.append([event.tokens for event in again.events if getattr(event, "tokens", None)])
    assert told[0] == told[1]  # a hit is a cold run, bit for bit


def test_turns_come_back_too(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch)
    body: dict[str, Any] = {"messages": [{"role": "user", "content": PROMPT}], "tools": TOOLS, "temperature": 0,
                            "reasoning_effort": "high", "max_tokens": 400}
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        script.say(server, "They ask  for rain.", "!</think>", *call("Bern", "1.0"))
        answer = run(ask(server, "POST", "/v1/chat/completions", body)).json()
    message = answer["choices"][0]["message"]
    del message["reasoning_content"]
    message["tool_calls"][0]["function"]["arguments"] = '{"days":1,"city":"Bern"}'
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        script.say(server, "!</think>", "It rains.")
        usage = run(ask(server, "POST", "/v1/chat/completions", {
            **body, "messages": [*body["messages"], message, result_of(message)]})).json()["usage"]
    assert usage["prompt_tokens_details"]["cached_tokens"] >= answer["usage"]["total_tokens"] - 1


def test_a_system_prompt_is_shared(demo_model: Path, tmp_path: Path) -> None:
    """Also by a conversation in another slot while the first one stays where it is."""
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        first = asked_with_system(server, "Hello!")
        second = asked_with_system(server, "What is 1+2?")
        assert second["prompt_tokens_details"]["cached_tokens"] > 0.9 * first["prompt_tokens"]
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        third = asked_with_system(server, "Who are you?")
        assert third["prompt_tokens_details"]["cached_tokens"] > 0.9 * first["prompt_tokens"]


def asked_with_system(server: Any, question: str) -> dict[str, Any]:
    messages = [{"role": "system", "content": PROMPT}, {"role": "user", "content": question}]
    answered = run(ask(server, "POST", "/v1/chat/completions", {"messages": messages, "max_tokens": 4})).json()
    usage: dict[str, Any] = answered["usage"]
    return usage


def test_other_keys_and_models_find_nothing(demo_model: Path, tiny_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        submit(server, request(PROMPT, max_tokens=1), b"a").wait()
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        assert submit(server, request(PROMPT, max_tokens=1), b"b").wait().end.usage.n_cached == 0
        assert submit(server, request(PROMPT, max_tokens=1), b"a").wait().end.usage.n_cached > 1000
    with serving(tiny_model, context=30000, disk_cache=tmp_path) as server:
        assert submit(server, request(PROMPT, max_tokens=1), b"a").wait().end.usage.n_cached == 0


@pytest.fixture(scope="module")
def kept(demo_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept")
    with serving(demo_model, context=8192, disk_cache=folder) as server:
        submit(server, request(PROMPT, max_tokens=1)).wait()
    return folder


def test_damage_is_a_miss(demo_model: Path, kept: Path, tmp_path: Path) -> None:
    """Flipped bits and cut files, of the index, the session and the turns: never an error, never another answer."""
    rng = random.Random(1)
    files = {path.name: path.read_bytes() for path in kept.iterdir() if path.suffix in (".index", ".session", ".turns")}
    index = next(name for name in files if name.endswith(".index"))
    for _ in range(500):
        data = bytearray(files[index])
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (tmp_path / index).write_bytes(data if rng.random() < 0.8 else data[: rng.randrange(len(data))])
        (tmp_path / index).with_suffix(".session").touch()
        assert read_index(tmp_path / index) is None
    clear(tmp_path)
    texts = set()
    for n in range(6):
        for name, whole in files.items():
            data = bytearray(whole)
            if n % 2:
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif name.endswith(".session"):
                data = data[: rng.randrange(len(data))]
            (tmp_path / name).write_bytes(data)
        with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
            texts.add(submit(server, request(PROMPT, max_tokens=8)).wait().text)
        clear(tmp_path)
    assert len(texts) == 1


def test_files_are_the_users_alone(kept: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("files have the folder's access rules there")
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept.iterdir() if path.suffix in (".index", ".session", ".turns"))


def test_a_folder_has_a_limit(demo_model: Path, tmp_path: Path) -> None:
    with Model.open(demo_model, threads=1) as model, model.session(4096) as session:
        cache = DiskCache(tmp_path, 10**12)
        cache.open(model, session, "auto")
        sizes = []
        for n in range(4):
            session.rollback(session.position)
            session.eval([n + 10] * 1100)
            cache.save(session, b"")
            newest = max(units(tmp_path), key=lambda unit: unit.path.stat().st_mtime_ns)
            os.utime(newest.path, (n, n))
            sizes.append(newest.n_bytes)
        small = DiskCache(tmp_path, sum(sizes[-2:]) + 1)
        small.open(model, session, "auto")
        session.eval([5] * 10)
        small.save(session, b"")
        left = [unit.tokens[0] for unit in units(tmp_path)]
        assert len(left) <= 2 and session.tokens[0] in left


def test_a_folder_that_cannot_be_made(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(demo_model, context=8192, disk_cache=tmp_path / "file" / "folder") as server:
        assert submit(server, request(PROMPT, max_tokens=1)).wait().end.reason


def test_restored_turns_are_checked() -> None:
    store, other = TurnStore(b"k" * 32), TurnStore(b"k" * 32)
    for n in range(3):
        store.add(b"", store.new_id(), Turn("", f"{n}", (("f", "{}"),), (1,), (n,)), [f"call_{n}"], b"")
    data = store.dump()
    other.restore(data + b'["00"]\nnothing\n[1, 2, 3, 4, 5, 6, 7]\n' + data, 3)
    assert len(other) == 3 and other.dump() == data
    few = TurnStore(b"k" * 32)
    few.restore(data, 2)  # the last one's token is none of such a model
    assert len(few) == 2


def test_the_command(kept: Path, tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    for path in kept.iterdir():
        if path.is_file():
            (tmp_path / "serve" / path.name).write_bytes(path.read_bytes())

    def cache(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pyflash", "cache", *arguments], capture_output=True, text=True,
                              check=True, env={**os.environ, "PYFLASH_CACHE": str(tmp_path)})  # fmt: skip

    lines = [json.loads(line) for line in cache("list", "--json").stdout.splitlines()]
    assert lines[-1]["done"] and lines[-1]["n"] == len(lines) - 1 > 0 and lines[0]["tokens"] >= 1024
    assert "tokens" in cache("list").stdout
    assert "freed" in cache("clear").stderr and not list(units(tmp_path / "serve"))
    assert cache("list").stdout == ""
