"""Conversations on disk: found again after a restart, shared, bounded, and never wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from serving import Answer, Pace, ask, run, serving, submit
from test_engine import LONG, request
from test_replay import TOOLS, Scripted, call, result_of

from pyflash.serve import disk_files, disk_folder, keeping
from pyflash.serve.application import Application
from pyflash.serve.events import Content
from pyflash.serve.turns import Turn, TurnStore

PROMPT = LONG * 3  # more than the least tokens that are kept


def sizes(folder: Path) -> dict[Path, int]:
    return {each.path: each.n_bytes for each in disk_folder.stored(folder)}


def tails(folder: Path) -> list[disk_folder.Stored]:
    return sorted((each for each in disk_folder.stored(folder) if each.tail is not None), key=lambda each: each.end)


def flush(server: Application) -> None:
    assert server.disk is not None
    server.disk.flush()


def chances(answer: Answer) -> list[Any]:
    return [event.tokens for event in answer.events if isinstance(event, Content) and event.tokens]


def test_a_conversation_goes_on_after_a_restart(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        first = submit(server, request(PROMPT)).wait()
    assert tails(tmp_path)[-1].end == first.end.usage.n_prompt + first.end.usage.n_generated - 1
    asked = request(PROMPT, first.text, "Go on.", logprobs=True, top_logprobs=5, max_tokens=6)
    told = []
    for folder in (tmp_path, None):
        with serving(demo_model, context=8192, disk_cache=folder) as server:
            again = submit(server, asked).wait()
            usage = again.end.usage
            assert (usage.n_cached >= first.end.usage.n_prompt + first.end.usage.n_generated - 1) == (folder is not None)
            told.append(chances(again))
            assert ('cache_hits_total{how="disk"} 1' in server.engine.metrics.text()) == (folder is not None)
    assert told[0] == told[1]  # a hit is a cold run, bit for bit


def test_a_turn_writes_its_own_rows_and_one_tail(demo_model: Path, tmp_path: Path) -> None:
    """Twenty turns over one conversation, each on a server of its own: each goes on where the last one ended."""
    contents = [PROMPT]
    before = 0
    a_chunk = a_tail = 0
    for turn in range(20):
        with serving(demo_model, context=16384, disk_cache=tmp_path, parallel=1) as server:
            old = sizes(tmp_path)
            answer = submit(server, request(*contents, max_tokens=100)).wait()
            flush(server)
        usage, new = answer.end.usage, sizes(tmp_path)
        written = {path: n for path, n in new.items() if path not in old}
        if turn:
            assert usage.n_cached >= before
            n_new = usage.n_prompt + usage.n_generated - usage.n_cached
            rows = [n for path, n in written.items() if path.suffix == ".rows"]
            assert len(rows) <= n_new // disk_files.CHUNK + 1 and sum(rows) <= a_chunk * (n_new / disk_files.CHUNK + 1)
            assert sum(path.suffix != ".rows" for path in written) == 1, (turn, usage, [path.name for path in written])
            assert sum(written.values()) <= a_chunk * (n_new / disk_files.CHUNK + 1) + a_tail
        else:
            a_chunk = max(n for path, n in new.items() if path.suffix == ".rows")
            a_tail = max(n for path, n in new.items() if path.suffix != ".rows") + a_chunk  # begins anywhere in a chunk
        assert {path: n for path, n in new.items() if path in old}.items() <= old.items()  # nothing is written again
        before = usage.n_prompt + usage.n_generated - 1
        contents += [answer.text, f"{turn}: {LONG[: len(LONG) // 2]}"]
    assert len(tails(tmp_path)) == 8  # the latest ones


def test_reasoning_that_is_dropped_is_no_place_to_go_on_from(demo_model: Path, tmp_path: Path) -> None:
    """Without tools the next prompt has no reasoning of this turn: what is kept is this prompt's end."""
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        first = submit(server, request(PROMPT, thinking={"type": "enabled"}, thinking_token_budget=50)).wait()
    assert [each.end for each in tails(tmp_path)] == [first.end.usage.n_prompt]
    said = "".join(event.text for event in first.events if isinstance(event, Content))
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        again = submit(server, request(PROMPT, said, "Go on.", thinking={"type": "enabled"}, max_tokens=4)).wait()
        assert again.end.usage.n_cached >= first.end.usage.n_prompt - 17


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
    """Also by a conversation in another slot while the first one stays where it is, and after a restart."""
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        first = asked_with_system(server, "Hello!")
        second = asked_with_system(server, "What is 1+2?")
        assert second["prompt_tokens_details"]["cached_tokens"] > 0.9 * first["prompt_tokens"]
    n_rows = sum(path.suffix == ".rows" for path in sizes(tmp_path))
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        third = asked_with_system(server, "Who are you?")
        assert third["prompt_tokens_details"]["cached_tokens"] > 0.9 * first["prompt_tokens"]
    assert sum(path.suffix == ".rows" for path in sizes(tmp_path)) == n_rows  # once for all of them


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
    for opening, options in (({"precision": "exact"}, {}), ({"isa": "scalar"}, {}), ({}, {"cache_type": "f16"})):
        with serving(demo_model, opening, context=8192, disk_cache=tmp_path, **options) as server:
            assert submit(server, request(PROMPT, max_tokens=1), b"a").wait().end.usage.n_cached == 0
    with serving(tiny_model, context=30000, disk_cache=tmp_path) as server:
        assert submit(server, request(PROMPT, max_tokens=1), b"a").wait().end.usage.n_cached == 0


def test_two_servers_share_a_folder(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflash.serve.disk_cache._RESCAN", 0.0)
    with serving(demo_model, context=8192, disk_cache=tmp_path) as one, \
            serving(demo_model, context=8192, disk_cache=tmp_path) as other:  # fmt: skip
        first = submit(one, request(PROMPT)).wait()
        flush(one)
        again = submit(other, request(PROMPT, first.text, "Go on.", max_tokens=40)).wait()
        assert again.end.usage.n_cached >= first.end.usage.n_prompt + first.end.usage.n_generated - 1
        disk_folder.clear(tmp_path)  # while both run: they go on, and keep what comes
        for server in (one, other):
            submit(server, request("Something else. " + PROMPT, max_tokens=2)).wait()
            flush(server)
            later = submit(server, request("Something else. " + PROMPT, max_tokens=3)).wait()
            assert later.end.usage.n_cached > 1000
        assert tails(tmp_path)


def test_another_conversation_takes_the_slot_and_gives_it_back(demo_model: Path, tmp_path: Path, pace: Pace) -> None:
    """Three conversations in one slot: each goes on from disk, while nothing is read twice."""
    with serving(demo_model, context=8192, disk_cache=tmp_path, parallel=1) as server:
        answers = [submit(server, request(f"{name}: {PROMPT}", max_tokens=20)).wait() for name in "abc"]
        for name, answer in zip("abc", answers, strict=True):
            again = submit(server, request(f"{name}: {PROMPT}", answer.text, "Go on.", max_tokens=2)).wait()
            assert again.end.usage.n_cached >= answer.end.usage.n_prompt + answer.end.usage.n_generated - 1


def test_who_gives_up_while_it_is_restored(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        first = submit(server, request(PROMPT)).wait()
    asked = request(PROMPT, first.text, "Go on.", logprobs=True, top_logprobs=3, max_tokens=4)
    restoring = keeping.Keeping.restoring
    with serving(demo_model, context=8192, disk_cache=tmp_path, parallel=1) as server:

        def cancelling(self: Any, job: Any) -> Any:
            for n, piece in enumerate(restoring(self, job)):
                if n == 2:
                    server.engine.cancel(job)
                yield piece

        monkeypatch.setattr(keeping.Keeping, "restoring", cancelling)
        monkeypatch.setattr("pyflash.serve.engine.PATIENCE", 0.0)
        left = submit(server, asked)
        while server.engine.waiting_and_running() != (0, 0) or not left.job.is_cancelled:
            pass
        monkeypatch.undo()
        again = submit(server, asked).wait()
        assert again.end.usage.n_cached >= first.end.usage.n_prompt + first.end.usage.n_generated - 1
    with serving(demo_model, context=8192) as server:
        assert chances(submit(server, asked).wait()) == chances(again)


def test_nothing_is_kept_of_completions_while_somebody_types(demo_model: Path, tmp_path: Path) -> None:
    from pyflash.serve import completions

    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        for n in range(4):
            asked = completions.read({"prompt": PROMPT + "x" * n, "max_tokens": 2})
            submit(server, asked).wait()
    assert len(tails(tmp_path)) == 1  # the first one, which was cold


def test_files_are_the_users_alone(demo_model: Path, tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("files have the folder's access rules there")
    with serving(demo_model, context=8192, disk_cache=tmp_path / "new" / "folder") as server:
        submit(server, request(PROMPT, max_tokens=1)).wait()
    every = [*(tmp_path / "new" / "folder").rglob("*"), tmp_path / "new" / "folder"]
    assert len(every) > 5 and all(path.stat().st_mode & 0o077 == 0 for path in every)


def test_a_folder_that_cannot_be_made(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with serving(demo_model, context=8192, disk_cache=tmp_path / "file" / "folder") as server:
        assert submit(server, request(PROMPT, max_tokens=1)).wait().end.reason


def test_a_disk_that_is_full(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers go on; nothing half written is left."""
    write = disk_files.write_private

    def full(path: Path, pieces: Any) -> None:
        if path.suffix != ".json":
            raise OSError(28, "No space left on device")
        write(path, pieces)

    monkeypatch.setattr(disk_files, "write_private", full)
    with serving(demo_model, context=8192, disk_cache=tmp_path) as server:
        for n in range(2):
            assert submit(server, request(PROMPT + "!" * n, max_tokens=1)).wait().end.reason
    assert not sizes(tmp_path) and not list(tmp_path.rglob("*.part"))


def test_restored_turns_are_checked(tmp_path: Path) -> None:
    store, other = TurnStore(b"k" * 32), TurnStore(b"k" * 32)
    ids = [store.new_id() for _ in range(3)]
    for n, turn_id in enumerate(ids):
        store.add(b"", turn_id, Turn("", f"{n}", (("f", "{}"),), (1,), (n,)), [f"call_{n}"], b"")
    data = store.dump()
    assert b"\n".join(map(store.line, ids)) + b"\n" == data and store.line(b"another") == b""
    other.restore(data + b'["00"]\nnothing\n[1, 2, 3, 4, 5, 6, 7]\n' + data, 3)
    assert len(other) == 3 and other.dump() == data
    few = TurnStore(b"k" * 32)
    few.restore(data, 2)  # the last one's token is none of such a model
    assert len(few) == 2


def test_the_command(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, context=8192, disk_cache=tmp_path / "serve") as server:
        submit(server, request(PROMPT, max_tokens=1)).wait()
    (tmp_path / "serve" / "0123.session").write_bytes(b"of another version")

    def cache(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "pyflash", "cache", *arguments], capture_output=True, text=True,
                              check=True, env={**os.environ, "PYFLASH_CACHE": str(tmp_path)})  # fmt: skip

    lines = [json.loads(line) for line in cache("list", "--json").stdout.splitlines()]
    assert lines[-1]["done"] and lines[-1]["n"] == len(lines) - 1 > 0 and lines[0]["tokens"] >= 1024
    assert lines[-1]["bytes"] == sum(sizes(tmp_path / "serve").values()) and lines[-1]["row_bytes"] > 0
    assert Path(lines[0]["file"]).stat().st_size == lines[0]["bytes"] and lines[0]["model"]
    shown = cache("list")
    assert "tokens" in shown.stdout and "rows" in shown.stderr
    assert "freed" in cache("clear").stderr and not list((tmp_path / "serve").iterdir())
    assert cache("list").stdout == ""


def test_the_log_of_turns_stays_as_large_as_they_are(demo_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store keeps few of many turns, and after a while the log does, too."""
    monkeypatch.setattr(keeping, "_MOST_LOGGED", 4000)
    with serving(demo_model, disk_cache=tmp_path) as server:
        server.engine.turns._most_turns = 3
        for n in range(30):
            submit(server, request(f"What is {n}+1?", max_tokens=200)).wait()
        flush(server)
        (log,) = tmp_path.rglob("turns.log")
        lines = disk_files.unsealed(log.read_bytes())
        assert len(server.engine.turns) == 3 <= len(lines) < 30
        assert b"\n".join(lines).endswith(server.engine.turns.dump().rstrip(b"\n"))
