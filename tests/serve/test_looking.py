"""What the server tells of itself: metrics that Prometheus reads and that add up, slots, a trace of what was evaluated anew."""

from __future__ import annotations

import asyncio
import json
import re
import stat
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from serving import Pace, ask, becomes_idle, run, serving, submit
from test_engine import LONG, request
from test_replay import TOOLS, Scripted

from pyflash import FileError
from pyflash.serve import app
from pyflash.serve.events import Usage
from pyflash.serve.trace import difference

CHAT = "/v1/chat/completions"
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\["\\n])*"'
_SAMPLE = re.compile(rf"({_NAME})(?:\{{({_LABEL}(?:,{_LABEL})*)\}})? (\S+)")


def parsed(text: str) -> dict[str, float]:
    """Samples by name and labels; the text format 0.0.4, as strictly as promtool's check."""
    assert text.endswith("\n")
    kinds: dict[str, str] = {}
    samples: dict[str, float] = {}
    order: list[str] = []
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in kinds and kind in ("counter", "gauge", "histogram")
            kinds[name] = kind
            continue
        match = _SAMPLE.fullmatch(line)
        assert match, line
        family = match[1] if match[1] in kinds else re.sub(r"_(bucket|sum|count)$", "", match[1])
        assert kinds[family] != "histogram" or match[1] != family
        assert (kinds[family] == "counter") == family.endswith("_total")
        if not order or order[-1] != family:
            assert family not in order, f"{family} is in two places"
            order.append(family)
        key = f"{match[1]}{{{match[2]}}}" if match[2] else match[1]
        assert key not in samples
        samples[key] = float(match[3])
    for name, kind in kinds.items():
        if kind == "histogram":
            counts = [value for key, value in samples.items() if key.startswith(f"{name}_bucket")]
            assert counts == sorted(counts) and counts[-1] == samples[f"{name}_count"] == samples[f'{name}_bucket{{le="+Inf"}}']
    return samples


def test_metrics(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch)
    with serving(demo_model) as server:
        assert parsed(server.engine.metrics.text())["pyflash_generated_tokens_total"] == 0
        bodies: list[tuple[str, dict[str, Any]]] = [
            (CHAT, {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}),
            ("/v1/messages", {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 5}),
            ("/v1/responses", {"input": "Hello!", "max_output_tokens": 5}),
        ]
        prompt = cached = generated = 0
        for path, body in bodies * 2:
            usage = run(ask(server, "POST", path, body)).json()["usage"]
            if path == CHAT:
                found = usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]
            elif path == "/v1/messages":
                hit = usage["cache_read_input_tokens"]
                found = usage["input_tokens"] + usage["cache_creation_input_tokens"] + hit, hit, usage["output_tokens"]
            else:
                found = usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"]
            prompt, cached, generated = (a + b for a, b in zip((prompt, cached, generated), found, strict=True))
        script.say(server, "\n\n<", "!｜DSML｜", 'tool_calls>\n<', "!｜DSML｜", 'invoke name="rm \\"{x}\n">\n')
        monkeypatch.setattr("pyflash.serve.tool_grammar.ToolGrammars.rules", lambda *_: server_rules())
        run(ask(server, "POST", CHAT, {**bodies[0][1], "tools": TOOLS, "max_tokens": 60}))
        text = run(ask(server, "GET", "/metrics")).body.decode()
        samples = parsed(text)
    rest = {key: value for key, value in samples.items() if key.startswith("pyflash_tool_calls_malformed_total")}
    assert rest and all(len(key) < 200 for key in rest)
    assert samples["pyflash_prompt_tokens_cached_total"] >= cached and samples["pyflash_generated_tokens_total"] >= generated
    assert samples["pyflash_prompt_tokens_total"] + samples["pyflash_prompt_tokens_cached_total"] >= prompt
    assert samples['pyflash_requests_total{api="messages",code="200"}'] == 2
    assert samples["pyflash_requests_running"] == samples["pyflash_engine_stalled_seconds"] == 0


def test_why_prompts_are_read_anew(demo_model: Path) -> None:
    """The role of the message in which a prompt leaves what its slot held; one that only goes on is no miss."""
    name = "pyflash_cache_miss_first_difference_total"

    def said(first: str, answer: str = "Hi!", system: str = "Be brief.") -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": first},
                {"role": "assistant", "content": answer}, {"role": "user", "content": "And now?"}]

    with serving(demo_model, parallel=1) as server:
        found = []
        for messages in (said("Hello"), said("Hello"), said("Hello", "Good day!"), said("Goodbye"),
                         said("Hello", system="Talk.")):
            run(ask(server, "POST", CHAT, {"messages": messages, "max_tokens": 1}))
            samples = parsed(server.engine.metrics.text())
            found.append([samples[f'{name}{{role="{role}"}}'] for role in ("system", "user", "assistant")])
    assert found == [[0, 0, 0], [0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1]]


def test_why_answers_are_given_up(demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyflash.serve.engine.evaluate", Pace(seconds=0.01))
    with serving(demo_model) as server:
        body = {"messages": [{"role": "user", "content": "Hello!"}], "max_tokens": 900, "stream": True, "temperature": 5}

        async def go(stop: bool) -> None:
            name, begun = str(uuid.uuid4()), asyncio.Event()
            headers = {"x-pyflash-job": name} if stop else {}
            asking = asyncio.ensure_future(ask(server, "POST", CHAT, body, headers=headers, leave=None if stop else begun,
                                               on_chunk=lambda _: begun.set()))
            await begun.wait()
            if stop:
                await ask(server, "POST", f"/page/jobs/{name}/stop", {})
            await asking

        run(go(False))
        run(go(True))
        assert becomes_idle(server)
        samples = parsed(server.engine.metrics.text())
    assert {key: value for key, value in samples.items() if "cancelled_total" in key and value} == {
        'pyflash_cancelled_total{why="gone"}': 1, 'pyflash_cancelled_total{why="stopped"}': 1}


def server_rules() -> Any:
    from pyflash.chat.answer import AnswerRules

    return AnswerRules()


def test_sums_of_usages(demo_model: Path) -> None:
    """Exactly, over the protocols."""
    with serving(demo_model) as server:
        total = [0, 0]
        for n in range(4):
            usage = run(ask(server, "POST", CHAT, {"messages": [{"role": "user", "content": f"Hello {n % 2}!"}], "max_tokens": 5})).json()["usage"]
            total[0] += usage["prompt_tokens"]
            total[1] += usage["completion_tokens"]
        samples = parsed(server.engine.metrics.text())
    assert samples["pyflash_prompt_tokens_total"] + samples["pyflash_prompt_tokens_cached_total"] == total[0]
    assert samples["pyflash_generated_tokens_total"] == total[1]


def test_labels_are_bounded() -> None:
    from pyflash.serve.metrics import _MOST_KINDS, Metrics, _kind

    assert _kind("the tool call 'a\\'b' has \"x\"\n") == "the tool call ... has ... "
    assert len(_kind("x" * 500)) == 80
    metrics = Metrics()
    job = type("Job", (), {"usage": Usage(), "began": 0.0, "first_difference": None})()
    for n in range(3 * _MOST_KINDS):
        job.answer = type("A", (), {"call_ids": (), "problems": [f"kind {n}"]})
        metrics.ended(job, "stop")
    kinds = [key for key in parsed(metrics.text()) if "malformed" in key]
    assert len(kinds) == _MOST_KINDS + 1 and any("other" in key for key in kinds)


def test_slots(demo_model: Path) -> None:
    with serving(demo_model) as server:
        submit(server, request("Hello!")).wait()
        slots = run(ask(server, "GET", "/slots")).json()
        assert sorted(slot["n_past"] > 0 for slot in slots) == [False, True]
        assert not any(isinstance(value, str) for slot in slots for value in slot.values())  # no texts


def test_a_stall_is_told(demo_model: Path, pace: Pace) -> None:
    import time

    pace.seconds = 0.2
    with serving(demo_model) as server:
        answer = submit(server, request("Hello, who are you?", max_tokens=1))
        time.sleep(0.6)
        assert server.engine.stalled_seconds > 0.3
        pace.seconds = 0.0
        answer.wait()
        assert server.engine.stalled_seconds == 0.0


def test_the_trace_names_the_first_difference(demo_model: Path, tmp_path: Path) -> None:
    with serving(demo_model, parallel=1, trace=tmp_path / "traces") as server:
        submit(server, request(LONG + "It is noon. What now?", max_tokens=2)).wait()
        submit(server, request(LONG + "It is midnight. What now?", max_tokens=2)).wait()
    (path,) = (tmp_path / "traces").iterdir()
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first["n_held"] == first["n_cached"] == 0 and first["difference"]["held"] == ""
    told = second["difference"]
    assert told["before"].endswith("It is ") or "It is" in told["before"][-10:]
    assert "noon" in told["before"] + told["held"] and "midnight" in told["before"] + told["asked"]
    assert second["n_cached"] <= told["at"] < second["n_prompt"] and len(told["before"]) <= 60
    if sys.platform != "win32":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_no_trace_where_it_cannot_be_written(demo_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="choose another folder"):
        app(demo_model, trace=tmp_path / "file" / "traces")


def test_differences() -> None:
    class Letters:
        def decode(self, tokens: list[int], special: bool = False) -> str:
            return "".join(map(chr, tokens))

    def of(held: str, asked: str) -> dict[str, Any]:
        return difference(list(map(ord, held)), list(map(ord, asked)), Letters())  # type: ignore[arg-type]

    assert of("abc", "abd") == {"at": 2, "before": "ab", "held": "c", "asked": "d"}
    assert of("ab", "abd") == {"at": 2, "before": "ab", "held": "", "asked": "d"}
    assert of("", "") == {"at": 0, "before": "", "held": "", "asked": ""}
    assert of("x" * 500, "x" * 400 + "y")["before"] == "x" * 60
