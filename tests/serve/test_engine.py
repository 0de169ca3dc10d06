"""The engine: what is evaluated, for whom, in which order, and what is left when somebody gives up."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from serving import Answer, Pace, becomes_idle, serving, submit

from pyflash import Model
from pyflash.serve import chat_completions
from pyflash.serve.errors import RequestError
from pyflash.serve.events import Progress
from pyflash.serve.request import Request

LONG = "The library counts its tokens and keeps what it has counted. " * 40


def request(*contents: str, **more: Any) -> Request:
    """A chat whose messages are a user's and the assistant's in turn."""
    roles = itertools.cycle(("user", "assistant"))
    messages = [{"role": role, "content": content} for role, content in zip(roles, contents)]  # noqa: B905
    return chat_completions.read({"messages": messages, "temperature": 0, **more})


def test_a_second_turn_evaluates_the_new_tokens_only(demo_model: Path, pace: Pace) -> None:
    with serving(demo_model) as server:
        contents = ["Hello, who are you?"]
        before = None
        for question in ("What is 12+30?", "And 2+2?", "Thanks!"):
            answer = submit(server, request(*contents)).wait()
            usage = answer.end.usage
            if before is not None:
                assert usage.n_cached >= before.n_prompt + before.n_generated - 1
            assert pace.n_tokens == usage.n_prompt - usage.n_cached + usage.n_generated - 1
            pace.steps.clear()
            before = usage
            contents += [answer.text, question]


def test_answers_are_those_of_a_session_by_itself(demo_model: Path) -> None:
    """Whatever else the engine does meanwhile, and however it cuts the prompt."""
    with serving(demo_model, parallel=3) as server:
        asked = [request(f"What is {n}+{n + 5}?", thinking={"type": "enabled"}) for n in range(10, 16)]
        answers = [submit(server, each) for each in asked]
        texts = [answer.wait().text for answer in answers]
    with Model.open(demo_model, threads=1) as model:
        for each, text in zip(asked, texts, strict=True):
            with model.session(2048) as session:
                reply = session.chat(each.messages, "high", temperature=0)
                assert "".join(piece.text for piece in reply) == text


def test_a_hit_is_a_cold_run_bit_for_bit(demo_model: Path, pace: Pace) -> None:
    logprobs = []
    for warm in (False, True):
        with serving(demo_model) as server:
            if warm:
                submit(server, request("Hello!")).wait()
                submit(server, request(LONG, max_tokens=2)).wait()
                left = submit(server, request("Hello!", "Hello! How can I help you?", LONG, max_tokens=20))
                server.engine.cancel(left.job)
            answer = submit(server, request("Hello!", "Hello! How can I help you?", "What is 3+4?", logprobs=True,
                                            top_logprobs=5, max_tokens=8)).wait()
            assert (answer.end.usage.n_cached > 0) == warm
            logprobs.append([event.tokens for event in answer.events if getattr(event, "tokens", None)])
    assert logprobs[0] == logprobs[1]


def test_two_streams_take_turns(demo_model: Path, pace: Pace) -> None:
    """Where a step of both would gain nothing."""
    pace.seconds = 0.005
    with serving(demo_model, {"expert_budget": 1 << 20}) as server:
        answers = [submit(server, request(f"Count: {n}", max_tokens=12)) for n in range(2)]
        for answer in answers:
            answer.wait()
        sessions = [step.session for step in pace.steps if step.n == 1]
        changes = sum(a is not b for a, b in itertools.pairwise(sessions))
        assert changes > len(sessions) // 3  # alternating but for the ends
        first, second = (answer.text_times for answer in answers)
        assert second[0] < first[-1]


def test_a_stream_does_not_wait_for_a_long_prompt(demo_model: Path, pace: Pace) -> None:
    """A prompt of 1.6 s comes while an answer is under way: between its tokens half a second of that is read at most."""
    with serving(demo_model) as server:
        submit(server, request("Hello!")).wait()
        pace.seconds = 0.003
        stream = submit(server, request("Tell me a story.", max_tokens=200, thinking={"type": "enabled"}))
        while not stream.text_times:
            time.sleep(0.005)
        long = submit(server, request(LONG, max_tokens=1))
        long.wait()
        server.engine.cancel(stream.job)
        assert long.job.slot is not None
        read, most, n_between = 0, 0, 0
        for step in pace.steps:
            if step.session is long.job.slot.session:
                read += step.n
                most = max(most, read)
            elif read:
                n_between += 1
                read = 0
        assert most * pace.seconds < 0.6 and n_between > 2
        assert max(step.n for step in pace.steps) > 8  # the pieces grow to what fits


def test_a_short_prompt_passes_a_long_one(demo_model: Path, pace: Pace) -> None:
    with serving(demo_model, context=4096) as server:
        pace.seconds = 0.005
        long = submit(server, request(LONG * 4, max_tokens=1))
        while server.engine.waiting_and_running() != (0, 1):
            time.sleep(0.01)
        short = submit(server, request("A title, please.", max_tokens=2))
        short.wait()
        assert not long.over.is_set()
        assert pace.n_tokens < len(long.job.tokens) // 4
        server.engine.cancel(long.job)


def test_a_side_request_leaves_the_main_conversation_its_cache(demo_model: Path) -> None:
    with serving(demo_model, context=4096) as server:
        first = submit(server, request(LONG)).wait()
        for n in range(5):
            submit(server, request(f"Make a title, number {n}.", max_tokens=4)).wait()
        again = submit(server, request(LONG, first.text, "Go on.", max_tokens=2)).wait()
        assert again.end.usage.n_cached >= first.end.usage.n_prompt + first.end.usage.n_generated - 1


def test_a_retry_goes_on_where_the_client_gave_up(demo_model: Path, pace: Pace) -> None:
    with serving(demo_model) as server:
        pace.seconds = 0.001
        asked = request(LONG, max_tokens=1)
        left = submit(server, asked)
        while sum(step.n for step in pace.steps) < 300:
            time.sleep(0.001)
        server.engine.cancel(left.job)
        done = pace.n_tokens
        again = submit(server, asked).wait()
        assert again.end.usage.n_cached >= 300
        chunk = server.engine.use().pacing.most
        assert pace.n_tokens <= len(left.job.tokens) + chunk
        assert done > 0 and not left.over.is_set()


def test_a_cancelled_answer_ends_after_its_step(demo_model: Path, pace: Pace) -> None:
    with serving(demo_model) as server:
        pace.seconds = 0.01
        left = submit(server, request("Tell me a story.", max_tokens=500, thinking={"type": "enabled"}))
        while len(left.text_times) < 3:
            time.sleep(0.005)
        server.engine.cancel(left.job)
        time.sleep(0.1)
        n = len(pace.steps)
        time.sleep(0.2)
        assert len(pace.steps) == n
        assert submit(server, request("Hello!", max_tokens=2)).wait().end.reason == "length"
        assert becomes_idle(server)


def test_a_full_queue_refuses(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.02
    with serving(demo_model, parallel=1, queue_limit=1) as server:
        answers = [submit(server, request(f"Hello {n}!", max_tokens=3)) for n in range(2)]
        with pytest.raises(RequestError) as refused:
            submit(server, request("Hello!"))
        assert refused.value.status == 429 and refused.value.retry_after
        assert any(isinstance(event, Progress) and event.queue_position == 0 for event in answers[1].wait().events)
        answers[0].wait()


def test_draining_answers_what_has_been_asked(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.01
    with serving(demo_model) as server:
        answer = submit(server, request("Hello!", max_tokens=10))
        server.engine.drain()
        with pytest.raises(RequestError) as refused:
            submit(server, request("Hello!"))
        assert refused.value.status == 503
        assert server.engine.close(30)
        assert answer.over.is_set() and answer.end.usage.n_generated > 0


def test_an_engine_that_is_closed_early_tells_everybody(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.02
    with serving(demo_model) as server:
        answer = submit(server, request("Tell me a story.", max_tokens=500, thinking={"type": "enabled"}))
        assert server.engine.close(0.1)
        assert answer.job.is_cancelled


def soon(is_so: Callable[[], bool]) -> bool:
    """Whether it becomes so within 20 seconds."""
    end = time.monotonic() + 20
    while not is_so():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_an_idle_model_is_let_go_and_opened_again(demo_model: Path, tmp_path: Path) -> None:
    """Its memory too; a conversation goes on from disk, and requests that come at once wait instead of being refused."""
    own = tmp_path / "own.gguf"
    own.write_bytes(demo_model.read_bytes())
    with serving(own, idle_unload=0.3, context=8192, disk_cache=tmp_path / "cache") as server:
        first = submit(server, request(LONG * 3)).wait()
        assert soon(lambda: server.engine.state == "idle")
        assert server.engine.is_healthy and server.engine.loaded is None
        if sys.platform == "linux":
            assert soon(lambda: not mapped(own))  # the state is told first
        found: list[Answer] = []
        asking = [threading.Thread(target=lambda: found.append(submit(server, request(LONG * 3, first.text, "Go on."))))
                  for _ in range(3)]  # fmt: skip
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join(60)
        n_before = first.end.usage.n_prompt + first.end.usage.n_generated - 1
        assert [answer.wait().end.usage.n_cached >= n_before for answer in found] == [True] * 3
        if sys.platform == "linux":
            assert mapped(own)


def test_a_model_that_does_not_open(tmp_path: Path) -> None:
    from pyflash.serve import app

    (tmp_path / "model.gguf").write_bytes(b"nothing")
    made = app(tmp_path / "model.gguf")
    made.start()
    assert not made.engine.wait_ready(30)
    with pytest.raises(RequestError, match="cannot be opened") as refused:
        made.engine.prepare(request("Hello!"))
    assert refused.value.status == 503
    assert made.engine.close(5)


def test_too_long_a_prompt(demo_model: Path) -> None:
    with serving(demo_model, context=256) as server:
        with pytest.raises(RequestError) as refused:
            submit(server, request(LONG))
        assert refused.value.code == "context_length_exceeded" and refused.value.n_ctx == 256
        cut = submit(server, request("Tell me. " * 60, max_tokens=5000, min_p=0.9)).wait()
        assert cut.end.reason in ("stop", "context_full")


def test_other_keys_get_no_hits(demo_model: Path) -> None:
    with serving(demo_model) as server:
        asked = request(LONG, max_tokens=2)
        submit(server, asked, b"a").wait()
        assert submit(server, asked, b"b").wait().end.usage.n_cached == 0
        assert submit(server, asked, b"a").wait().end.usage.n_cached > 0


def test_reasoning_has_a_budget(tiny_model: Path) -> None:
    with serving(tiny_model) as server:
        asked = request("Think.", thinking={"type": "enabled"}, thinking_token_budget=20, max_tokens=60)
        answer = submit(server, asked).wait()
        assert answer.end.usage.n_reasoning == 21  # with the token that ends it
        assert answer.end.usage.n_generated > 20
