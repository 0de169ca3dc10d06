"""A server that is ended, by a signal or without a word, and started again: what was complete is not evaluated again."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_command import Process, connection, post, served
from test_engine import LONG

from pyflash.serve import disk_folder

PROMPT = LONG * 2


def options(model: Path) -> tuple[str, ...]:
    return (str(model), "--port", "0", "--ctx", "8192", "--parallel", "1", "--think", "off", "--threads", "1")


def body(contents: list[str], **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"messages": messages, "temperature": 0, "max_tokens": 24, **more}


def asked(process: Process, contents: list[str]) -> tuple[str, int, int]:
    """The answer to a conversation, its tokens with it, and how many of them had been evaluated."""
    status, answer = post(process.port(), "/v1/chat/completions", body(contents))
    assert status == 200, answer
    usage = answer["usage"]
    return answer["choices"][0]["message"]["content"], usage["total_tokens"], usage["prompt_tokens_details"]["cached_tokens"]


def is_kept(folder: Path, position: int) -> bool:
    """Whether a tail of the position is on disk soon."""
    for _ in range(600):
        if any(each.tail is not None and each.end >= position for each in disk_folder.stored(folder)):
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PYFLASH_CACHE", str(tmp_path))
    return tmp_path / "serve"


def test_a_session_goes_on_after_sigterm(demo_model: Path, cache: Path) -> None:
    contents, total = [PROMPT], 0
    for _ in range(3):
        with served(*options(demo_model)) as process:
            text, n, n_cached = asked(process, contents)
            assert n_cached >= total - 1
            total = n
            if sys.platform == "win32":
                assert is_kept(cache, total - 1)
            else:
                process.process.send_signal(signal.SIGTERM)
                assert process.end() == 0
        contents += [text, "Go on."]


def test_killed_at_any_moment_it_loses_the_turn_under_way_at_most(demo_model: Path, cache: Path) -> None:
    """While it reads, writes an answer, or writes files: what had been complete is there, and nothing is another text."""
    rng, contents, total, texts = random.Random(5), [PROMPT], 0, []
    for n_round in range(6):
        with served(*options(demo_model)) as process:
            text, n, n_cached = asked(process, contents)
            assert n_cached >= total - 1, (n_round, n_cached, total)
            total = n
            texts.append(text)
            contents += [text, f"And then? {LONG[: rng.randrange(200, len(LONG))]}"]
            if n_round % 3 == 0:  # as soon as the answer's end has been heard
                process.process.kill()
                continue
            asking = connection(process.port())
            asking.request("POST", "/v1/chat/completions", json.dumps(body(contents, stream=True, max_tokens=200)),
                           {"Content-Type": "application/json"})
            time.sleep(rng.random() * 0.8)
            process.process.kill()
    with served(*options(demo_model), PYFLASH_CACHE=str(cache.parent / "cold")) as process:
        for n, text in enumerate(texts):
            assert asked(process, contents[: 2 * n + 1])[0] == text
