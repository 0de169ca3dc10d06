"""Stages that are killed or silent, and stages that wait."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from cluster_logits import CONTEXT

pytestmark = pytest.mark.cluster

N_TOKENS = 60


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def three(ray_here: Any, demo_model: Path, told: list[str]) -> Iterator[Any]:
    with pyflash.cluster.Model.open(demo_model, 3, threads=1, stage_timeout=20, tell=told.append) as model:
        yield model


def process_of(model: Any, stage: int) -> int:
    return int(model.pipeline.stages[stage].facts.process)


@pytest.fixture(scope="module")
def prompt(tokens: np.ndarray) -> list[int]:
    return [int(token) for token in tokens[:300]]


@pytest.fixture(scope="module")
def wanted(whole: pyflash.Model, prompt: list[int]) -> list[tuple[int, float]]:
    with whole.session(context=CONTEXT) as session:
        return [(piece.token, piece.logprob) for piece in session.generate(prompt, N_TOKENS, temperature=0.8, seed=3)]


@pytest.mark.parametrize("seed", range(5))
def test_a_killed_stage_changes_no_token(three: Any, told: list[str], prompt: list[int], wanted: list[tuple[int, float]],
                                         seed: int) -> None:
    """At any moment: between two tokens, while a prompt goes through, or while a token does."""
    chance = random.Random(seed)
    stage, after, n_told = chance.randrange(3), chance.choice([0, 1, 30]), len(told)

    def kill(seconds: float) -> None:
        time.sleep(seconds)
        os.kill(process_of(three, stage), signal.SIGKILL)

    thread = threading.Thread(target=kill, args=(chance.random() * 0.05,))
    with three.session(context=CONTEXT, chunk=64) as session:
        if after == 0:
            thread.start()
        found = []
        for piece in session.generate(prompt, N_TOKENS, temperature=0.8, seed=3):
            found.append((piece.token, piece.logprob))
            if len(found) == after:
                thread.start()
        thread.join()
        session.eval([1])  # where the answer was quicker than the signal
        assert found == wanted and session.position == len(prompt) + N_TOKENS
    assert any(f"stage {stage + 1} of 3" in line and "started again" in line for line in told[n_told:]), told
    assert any("all 3 stages are there again" in line for line in told[n_told:])


def test_all_sessions_go_on(three: Any, told: list[str], tokens: np.ndarray, reference: np.ndarray) -> None:
    """Each is evaluated again when it goes on, and what was rolled back meanwhile is not."""
    sessions = [three.session(context=CONTEXT) for _ in range(3)]
    for i, session in enumerate(sessions):
        session.eval(tokens[: 200 + 100 * i])
    os.kill(process_of(three, 1), signal.SIGKILL)
    results: dict[int, np.ndarray] = {}

    def go_on(i: int) -> None:
        results[i] = sessions[i].eval(tokens[sessions[i].position : 700])

    n_told = len(told)
    sessions[2].eval(tokens[400:402])
    sessions[0].rollback(200)
    threads = [threading.Thread(target=go_on, args=(i,)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(3):
        np.testing.assert_array_equal(results[i].view(np.uint32), reference[699].view(np.uint32))
        sessions[i].close()
    again = [line for line in told[n_told:] if "is evaluated again" in line]
    assert sum("of 300 tokens" in line for line in again) == 1 and len(again) == 2, told[n_told:]


def test_what_was_evaluated_ahead_is_lost_alone(three: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with three.session(context=CONTEXT) as session:
        session.eval(tokens[:50])
        session.eval_ahead(tokens[50:56])
        os.kill(process_of(three, 2), signal.SIGKILL)
        session.checkpoint()
        assert session.position == 51
        while session.advance():
            pass
        at = session.position
        np.testing.assert_array_equal(session.eval(tokens[at:60]), reference[59])


def test_a_silent_stage_is_lost(ray_here: Any, demo_model: Path, tokens: np.ndarray, reference: np.ndarray) -> None:
    """It is stopped, and answers nothing: as behind a cut link."""
    told: list[str] = []
    heard: list[float] = []

    def tell(line: str) -> None:
        told.append(line)
        heard.append(time.monotonic())

    with pyflash.cluster.Model.open(demo_model, 2, threads=1, stage_timeout=6, tell=tell) as model:
        with model.session(context=CONTEXT) as session:
            session.eval(tokens[:100])
            os.kill(process_of(model, 1), signal.SIGSTOP)
            began = time.monotonic()
            np.testing.assert_array_equal(session.eval(tokens[100:120]), reference[119])
    assert "stage 2 of 2" in told[0] and re.search(r"silent for \d s", told[0])
    assert heard[0] - began < 7.5  # it is stage_timeout, and a little for a busy machine


def test_a_head_that_is_gone_is_an_error(ray_here: Any, demo_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pyflash.cluster.Model.open(demo_model, 2, threads=1, stage_timeout=3, tell=lambda line: None) as model:
        with model.session(context=CONTEXT) as session:
            session.eval([1, 2])
            monkeypatch.setattr(model.pipeline._connection, "head_problem", lambda seconds: "cut off")
            os.kill(process_of(model, 0), signal.SIGSTOP)
            for _ in range(2):
                with pytest.raises(pyflash.DeviceError, match="head at .* is gone"):
                    session.eval([3])
            os.kill(process_of(model, 0), signal.SIGKILL)


def test_a_file_that_is_gone_is_told(ray_here: Any, demo_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(demo_model.read_bytes())
    with pyflash.cluster.Model.open(copy, 2, threads=1, tell=lambda line: None) as model:
        with model.session(context=CONTEXT) as session:
            session.eval([1, 2])
            copy.unlink()
            os.kill(process_of(model, 0), signal.SIGKILL)
            with pytest.raises(pyflash.FileError, match="copy.gguf") as error:
                session.eval([3])
            assert "\n" not in str(error.value)


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_stages_that_wait_use_no_processor(three: Any, tokens: np.ndarray) -> None:
    """Also while the driver waits for another stage, which is stopped meanwhile."""
    with three.session(context=CONTEXT) as session:
        session.eval(tokens[:20])
        for stopped in (None, 1):
            others = [process_of(three, i) for i in range(3) if i != stopped]
            if stopped is not None:
                os.kill(process_of(three, stopped), signal.SIGSTOP)
                waiting = threading.Thread(target=session.eval, args=(tokens[20:21],))
                waiting.start()
            time.sleep(1)
            before, own = [cpu_seconds(each) for each in others], time.process_time()
            time.sleep(2.5)
            used = [cpu_seconds(each) - past for each, past in zip(others, before, strict=True)]
            assert max(used) < 0.25 and time.process_time() - own < 0.25, (stopped, used)
            if stopped is not None:
                os.kill(process_of(three, stopped), signal.SIGCONT)
                waiting.join()
        assert session.position == 21
