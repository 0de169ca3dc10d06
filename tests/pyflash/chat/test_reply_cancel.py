"""Cancelling an answer and no other one, and answers of asyncio programs."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyflash

Say = Callable[..., list[int]]  # the fixture's

QUESTION = [{"role": "user", "content": "What is the weather?"}]
LONG = [{"role": "user", "content": "many words " * 3000}]


@pytest.fixture(scope="module")
def fast_model(tiny_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny_model, threads=1) as opened:
        yield opened


def soon(call: Callable[[], object], seconds: float) -> threading.Thread:
    def later() -> None:
        time.sleep(seconds)
        call()

    thread = threading.Thread(target=later)
    thread.start()
    return thread


def same_as_fresh(session: pyflash.Session) -> None:
    """What the session holds is what evaluating its tokens anew gives."""
    tokens = session.tokens.tolist()
    if not tokens:
        return
    with session.model.session(context=session.capacity, chunk=session.chunk) as fresh:
        np.testing.assert_array_equal(fresh.eval([*tokens, 5]), session.eval([5]))
    session.rollback(1)


# -- Reply.cancel() --


@pytest.mark.parametrize("kind", ["chat", "generate"])
def test_cancel_ends_one_answer_only(session: pyflash.Session, kind: str) -> None:
    def make() -> Any:
        return session.chat(QUESTION, max_tokens=8, seed=1) if kind == "chat" else session.generate([5], 8, seed=1)

    answer = make()
    shown = [next(answer) for _ in range(3)]
    position = session.position
    answer.cancel()
    with pytest.raises(pyflash.CancelledError):
        next(answer)
    assert list(answer) == [] and session.position == position
    if kind == "chat":
        assert answer.message["content"] == "".join(piece.text for piece in shown) and answer.finish is None
    assert len(list(make())) >= 8


def test_cancel_before_the_beginning(session: pyflash.Session) -> None:
    reply = session.chat(LONG)
    reply.cancel()
    with pytest.raises(pyflash.CancelledError):
        next(reply)
    assert session.position == 0 and list(reply) == []


def test_cancel_after_the_end_does_nothing(session: pyflash.Session, say: Say) -> None:
    say(session, "yes")
    reply = session.chat(QUESTION)
    pieces = list(reply)
    reply.cancel()
    assert list(reply) == [] and reply.finish == "stop"
    say(session, "no")
    following = session.chat(QUESTION)
    assert "".join(piece.text for piece in following) == "no" and pieces
    closed = session.chat(QUESTION, max_tokens=5)
    closed.close()
    closed.cancel()
    assert list(closed) == []
    session.eval([5])


def test_cancel_stops_a_long_prompt(fast_model: pyflash.Model) -> None:
    with fast_model.session(context=40_000, chunk=64) as session:
        reply = session.chat(LONG, progress=lambda done, total: threading.Event().wait(0.01))
        thread = soon(reply.cancel, 0.1)
        with pytest.raises(pyflash.CancelledError):
            next(reply)
        thread.join()
        assert 0 < session.position < reply.n_prompt
        assert list(session.chat(QUESTION, max_tokens=2))


def test_cancels_that_come_late_reach_nobody_else(fast_model: pyflash.Model) -> None:
    """At any moment around the end of an answer: the next one, and every other call, is complete."""
    rng = random.Random(5)
    with fast_model.session(context=2000, chunk=64) as session:
        began = time.monotonic()
        list(session.chat(QUESTION, max_tokens=6, seed=1))
        whole = time.monotonic() - began
        n_cancelled = 0
        for turn in range(40):
            reply = session.chat(QUESTION, max_tokens=6, seed=1)
            thread = soon(reply.cancel, rng.uniform(0, 1.5 * whole))
            try:
                list(reply)
            except pyflash.CancelledError:
                n_cancelled += 1
            if turn % 2:
                session.eval([5, 6, 7])
            else:
                assert list(session.chat(QUESTION, max_tokens=3, seed=1))
            thread.join()
            session.eval([5])
        print(f"\n{n_cancelled} of 40 were cancelled")
        assert n_cancelled > 0


def test_cancel_of_the_session_still_reaches_the_next_call(session: pyflash.Session) -> None:
    """As documented: the running call, or else the next one; also after an answer's own cancel came too late."""
    reply = session.chat(QUESTION, max_tokens=2, seed=1)
    list(reply)
    reply.cancel()
    session.cancel()
    with pytest.raises(pyflash.CancelledError):
        session.eval([5])
    session.eval([5])
    session.cancel()
    with pytest.raises(pyflash.CancelledError):
        list(session.chat(QUESTION, max_tokens=2))
    assert list(session.chat(QUESTION, max_tokens=2))


def test_cancel_from_within(session: pyflash.Session) -> None:
    """From a progress function, and close() too."""
    for method in ("cancel", "close"):
        reply = session.chat(LONG, progress=lambda *_: getattr(reply, method)())
        with pytest.raises(pyflash.CancelledError):
            next(reply)
        assert session.position == 64 and list(reply) == []
        session.rollback(session.position)


def test_close_from_another_thread(fast_model: pyflash.Model) -> None:
    with fast_model.session(context=40_000, chunk=64) as session:
        reply = session.chat(LONG)
        thread = soon(reply.close, 0.1)
        with pytest.raises(pyflash.CancelledError):
            list(reply)
        thread.join()
        assert session.position < reply.n_prompt and list(reply) == []


def test_one_step_at_a_time(fast_model: pyflash.Model) -> None:
    with fast_model.session(context=40_000, chunk=64) as session:
        started = threading.Event()
        reply = session.chat(LONG, progress=lambda *_: started.set())
        thread = threading.Thread(target=lambda: next(reply))
        thread.start()
        started.wait()
        with pytest.raises(pyflash.BusyError):
            next(reply)
        thread.join()
        assert reply.n_generated == 1


# -- asyncio --


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 120))


async def collected(answer: Any) -> list[Any]:
    return [piece async for piece in answer]


def test_async_gives_the_same_pieces(session: pyflash.Session) -> None:
    pieces = list(session.chat(QUESTION, max_tokens=12, seed=3, logprobs=1))
    session.rollback(session.position)
    reply = session.chat(QUESTION, max_tokens=12, seed=3, logprobs=1)
    assert run(collected(reply)) == pieces and reply.finish is not None and run(collected(reply)) == []
    tokens = [piece.token for piece in session.generate([5, 6], 5, seed=1)]
    session.rollback(6)
    assert [piece.token for piece in run(collected(session.generate([5, 6], 5, seed=1)))] == tokens


def test_the_event_loop_goes_on(fast_model: pyflash.Model) -> None:
    """While a long prompt is read, in one native call."""
    async def work() -> tuple[float, float]:
        with fast_model.session(context=40_000, chunk=4096) as session:
            reply = session.chat(LONG, max_tokens=1)
            reading = asyncio.ensure_future(collected(reply))
            longest, last, began = 0.0, time.monotonic(), time.monotonic()
            while not reading.done():
                await asyncio.sleep(0.001)
                now = time.monotonic()
                longest, last = max(longest, now - last), now
            assert len(reading.result()) == 1
            return longest, time.monotonic() - began

    longest, whole = run(work())
    print(f"\nlongest pause {longest:.3f} s of {whole:.3f} s")
    assert longest < whole / 2


def test_answers_of_two_sessions_interleave(fast_model: pyflash.Model) -> None:
    order: list[int] = []

    async def one(session: pyflash.Session, name: int) -> list[int]:
        out = []
        async for piece in session.chat(QUESTION, max_tokens=20, seed=name):
            order.append(name)
            out.append(piece.token)
        return out

    async def both() -> list[list[int]]:
        with fast_model.session(context=500) as first, fast_model.session(context=500) as second:
            return await asyncio.gather(one(first, 1), one(second, 2))

    answers = run(both())
    changes = sum(a != b for a, b in zip(order, order[1:]))
    assert changes > 2
    with fast_model.session(context=500) as session:
        assert [[piece.token for piece in session.chat(QUESTION, max_tokens=20, seed=name)] for name in (1, 2)] == answers


def test_cancelling_the_task_leaves_the_session_usable(session: pyflash.Session) -> None:
    async def work() -> None:
        reply = session.chat(LONG)
        task = asyncio.ensure_future(collected(reply))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        print(f"\ncancelled within {time.monotonic() - began:.3f} s")
        assert 0 < session.position < reply.n_prompt  # and no step runs any more
        same_as_fresh(session)
        assert await collected(reply) == []
        assert await collected(session.chat(QUESTION, max_tokens=2))

    run(work())


def test_a_time_limit(session: pyflash.Session) -> None:
    async def work() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(collected(session.chat(LONG)), 0.1)
        assert await collected(session.chat(QUESTION, max_tokens=2))

    run(work())


def test_cancelled_again_and_again(fast_model: pyflash.Model) -> None:
    """A task that is cancelled once more while it waits for the step to end."""
    async def work() -> None:
        with fast_model.session(context=40_000, chunk=4096) as session:
            task = asyncio.ensure_future(collected(session.chat(LONG)))
            await asyncio.sleep(0.05)
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            assert task.cancelled()
            assert await collected(session.chat(QUESTION, max_tokens=2))

    run(work())


def test_reply_cancel_in_asyncio(session: pyflash.Session) -> None:
    async def work() -> None:
        reply = session.chat(LONG)
        task = asyncio.ensure_future(collected(reply))
        await asyncio.sleep(0.05)
        reply.cancel()
        with pytest.raises(pyflash.CancelledError):
            await task
        assert await collected(reply) == []
        assert await collected(session.chat(QUESTION, max_tokens=2))

    run(work())


def test_async_with_ends_the_answer(session: pyflash.Session) -> None:
    async def work() -> None:
        async with session.chat(QUESTION, max_tokens=50, seed=1) as reply:
            assert await anext_of(reply)
        assert await collected(reply) == [] and reply.n_generated == 1
        async with session.chat(LONG) as reply:
            task = asyncio.ensure_future(collected(reply))
            await asyncio.sleep(0.05)
        with pytest.raises(pyflash.CancelledError):
            await task
        session.eval([5])

    run(work())


async def anext_of(answer: Any) -> Any:
    return await answer.__anext__()


def test_both_ways_on_one_answer(session: pyflash.Session) -> None:
    """One after the other they work; at the same time the second is refused."""
    async def work() -> None:
        whole = [piece.token for piece in session.chat(QUESTION, max_tokens=6, seed=2)]
        reply = session.chat(QUESTION, max_tokens=6, seed=2)
        first = next(reply)
        second = await anext_of(reply)
        assert [first.token, second.token, *(piece.token for piece in reply)] == whole
        reply = session.chat(LONG)
        task = asyncio.ensure_future(anext_of(reply))
        await asyncio.sleep(0.05)
        with pytest.raises(pyflash.BusyError):
            next(reply)
        with pytest.raises(pyflash.BusyError):
            session.eval([5])
        await reply.aclose()
        with pytest.raises(pyflash.CancelledError):
            await task

    run(work())


def test_errors_come_out(session: pyflash.Session) -> None:
    async def work() -> None:
        reply = session.chat(QUESTION, max_tokens=9)
        await anext_of(reply)
        session.eval([5])
        with pytest.raises(pyflash.BusyError):
            await collected(reply)
        reply = session.chat(LONG, progress=lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await collected(reply)

    run(work())


def test_context_variables_reach_the_progress_function(session: pyflash.Session) -> None:
    name = contextvars.ContextVar("name", default="nobody")
    seen: list[str] = []

    async def work() -> None:
        name.set("me")
        await collected(session.chat(QUESTION, max_tokens=1, progress=lambda *_: seen.append(name.get())))

    run(work())
    assert seen == ["me"]


def test_threads_go_with_their_answers(session: pyflash.Session) -> None:
    async def work() -> None:
        for turn in range(5):
            reply = session.chat(QUESTION, max_tokens=3 + turn, seed=turn)
            async for _piece in reply:
                if turn % 2:
                    break

    def beside_the_loop() -> int:
        return sum(thread.name.startswith("pyflash_") for thread in threading.enumerate())

    run(work())
    gc.collect()
    until = time.monotonic() + 60
    while beside_the_loop() and time.monotonic() < until:
        time.sleep(0.02)
    assert beside_the_loop() == 0


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal")
def test_ctrl_c_in_an_asyncio_program(tiny_model: Path) -> None:
    program = """
import asyncio, sys, pyflash
async def work(session):
    try:
        async for piece in session.chat([{"role": "user", "content": "many words " * 12000}],
                                        progress=lambda done, total: done == 64 and print("reading", flush=True)):
            pass
    finally:
        await asyncio.sleep(0)
        assert 0 < session.position < 30_000, session.position
        assert len([piece async for piece in session.chat([{"role": "user", "content": "x"}], max_tokens=2)]) >= 2
        print("usable", flush=True)
with pyflash.Model.open(sys.argv[1], threads=1, precision="exact") as model, model.session(context=40_000, chunk=64) as s:
    print("ready", flush=True)
    try:
        asyncio.run(work(s))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tiny_model)], stdout=subprocess.PIPE, text=True,
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler))
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=120)
    assert out.splitlines() == ["usable", "interrupted"] and process.returncode == 0
