"""Ctrl-C, cancelling, threads, and what stays behind: nothing."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyflash
import pytest

QUESTION = [{"role": "user", "content": "hello there"}]
PROMPT = [7 + i % 900 for i in range(300)]

needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="signals come as console events there")


def resident_bytes() -> int:
    if not sys.platform.startswith("linux"):
        pytest.skip("needs /proc")
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def wait_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.005)
    return condition()


def own_threads() -> int:
    return sum(thread.name == "pyflash" for thread in threading.enumerate())


# -- Ctrl-C --

INTERRUPTED = """
import random, signal, sys, threading, time
import numpy as np, pyflash

rng, main, hits = random.Random(8), threading.main_thread().ident, 0
with pyflash.Model.open(sys.argv[1]) as model:
    with model.session(context=2000) as session:
        expected = session.eval([5, 6, 7])
    for turn in range(150):
        session = model.session(context=2000)
        go, delay = threading.Event(), rng.random() * 0.02
        def poke():
            go.wait()
            time.sleep(delay)
            signal.pthread_kill(main, signal.SIGINT)
        thread = threading.Thread(target=poke)
        thread.start()
        pieces = session.generate([1, 2, 3], max_tokens=300) if turn % 2 else session.chat(
            [{"role": "user", "content": "x"}], max_tokens=300)
        try:
            go.set()
            for _ in pieces:
                pass
            thread.join()
            time.sleep(0.001)
        except KeyboardInterrupt:
            hits += 1
        thread.join()
        assert len(session.tokens) == session.position
        session.rollback(session.position)
        assert np.array_equal(session.eval([5, 6, 7]), expected), turn
        session.close()
print(hits)
"""


@needs_signals
def test_ctrl_c_at_any_moment(tiny_model: Path) -> None:
    """No call runs on that nobody waits for, nothing is cancelled later, and the session goes on."""
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, tiny_model], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


@needs_signals
def test_ctrl_c_in_a_long_prompt_of_a_chat(model: pyflash.Model) -> None:
    main = threading.main_thread().ident
    assert main is not None
    with model.session(context=40_000, chunk=64) as session:
        reply = session.chat([{"role": "user", "content": "many words " * 10_000}])

        def interrupt() -> None:
            if wait_for(lambda: session.position >= 128):
                signal.pthread_kill(main, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            next(reply)
        thread.join()
        assert reply.message["content"] == "" and reply.n_generated == 0
        assert 128 <= session.position < reply.n_prompt
        short = session.chat(QUESTION, max_tokens=3)
        assert len(list(short)) >= 1


# -- cancelling and closing --


def test_cancelling_an_answer_keeps_what_there_is(session: pyflash.Session) -> None:
    reply = session.chat(QUESTION, max_tokens=400, seed=4)
    with pytest.raises(pyflash.CancelledError):
        for n, _ in enumerate(reply):
            if n == 6:
                session.cancel()  # what a Stop button on another thread does
    assert reply.n_generated == 7 and reply.finish is None and list(reply) == []
    assert session.position == reply.n_prompt + 6
    following = session.chat([*QUESTION, reply.message, *QUESTION], max_tokens=3)
    assert list(following) and following.n_reused > reply.n_prompt - 2


def test_closing_the_session_ends_a_generation_on_another_thread(model: pyflash.Model) -> None:
    session = model.session(context=40_000)
    with ThreadPoolExecutor(1) as pool:
        # A cold model of random weights would do as well; the demo ends its answers, so it reads on instead.
        future = pool.submit(lambda: [session.eval([7 + i % 900]) for i in range(30_000)])
        assert wait_for(lambda: session.position > 20)
        session.close()
        with pytest.raises((pyflash.CancelledError, pyflash.ClosedError)):
            future.result(timeout=60)


def test_error_in_the_loop_leaves_a_usable_session(model: pyflash.Model, session: pyflash.Session) -> None:
    with pytest.raises(ZeroDivisionError):
        for _ in session.generate(PROMPT, temperature=0):
            raise ZeroDivisionError
    with model.session() as other:
        assert np.array_equal(session.eval([9]), other.eval([*PROMPT, 9]))


# -- threads --


def test_threads_share_a_model(model: pyflash.Model) -> None:
    def work(seed: int) -> list[pyflash.ChatPiece]:
        with model.session(context=2000, chunk=32) as session:
            messages = [{"role": "user", "content": f"question {seed}, and some more words " * 8}]
            first = list(session.chat(messages, max_tokens=40, seed=seed, frequency_penalty=0.5, logprobs=3))
            session.reuse(session.tokens[: len(session.tokens) // 2])
            return first + list(session.chat(messages, think="high", max_tokens=40, seed=seed))

    alone = [work(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert list(pool.map(work, range(4))) == alone


# -- what stays behind --


def open_and_close(path: Path, seed: int) -> None:
    with pyflash.Model.open(path, threads=1) as model, model.session(context=256) as session:
        list(session.generate([1, 2, 3], max_tokens=2, seed=seed))
        session.set_tap(lambda *_: None)


def test_a_thousand_models_leave_nothing(tiny_model: Path) -> None:
    for seed in range(100):
        open_and_close(tiny_model, seed)
    before = resident_bytes()
    files = len(os.listdir("/proc/self/fd"))
    for seed in range(1000):
        open_and_close(tiny_model, seed)
    assert resident_bytes() - before < 10 << 20  # 10 KB a turn would be seen
    assert len(os.listdir("/proc/self/fd")) == files
    assert wait_for(lambda: own_threads() == 0)


def test_what_is_not_closed_goes_with_its_last_reference(tiny_model: Path) -> None:
    pytest.importorskip("llguidance")
    grammar = pyflash.Grammar.regex("[a-z]+")

    def leave(seed: int) -> None:
        model = pyflash.Model.open(tiny_model, threads=2)
        session = model.session(context=256)
        session.set_tap(lambda *_: None)
        next(session.chat(QUESTION, max_tokens=5, seed=seed))
        next(session.generate([1], seed=seed, grammar=grammar))

    for seed in range(20):
        leave(seed)
    before = resident_bytes()
    gc.disable()  # reference counts alone are to do it
    try:
        for seed in range(60):
            leave(seed)
        after = resident_bytes()
    finally:
        gc.enable()
    assert after - before < 20 << 20  # of some 4 MB each
    assert wait_for(lambda: own_threads() == 0)


def test_failed_opens_leave_nothing(tiny_model: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny_model.read_bytes()[:-1000])
    with pyflash.Model.open(tiny_model) as model:
        def fail() -> None:
            with pytest.raises(pyflash.Error):
                pyflash.Model.open(cut)
            with pytest.raises(pyflash.Error):
                model.session(cache="f16", context=2**31 - 1)

        for _ in range(20):
            fail()
        before, files = resident_bytes(), len(os.listdir("/proc/self/fd"))
        for _ in range(200):
            fail()
        assert resident_bytes() - before < 5 << 20 and len(os.listdir("/proc/self/fd")) == files
    assert wait_for(lambda: own_threads() == 0)
