"""Who gets how much of the model, counted in steps and tokens and not by a clock; and a queue that is full."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from serving import Answer, Pace, ask, becomes_idle, run, serving, submit
from test_engine import LONG, request

from pyflash.serve.application import Application

HELLO = [{"role": "user", "content": "Hello!"}]


def jain(shares: list[int]) -> float:
    """Jain's index of fairness: 1 where all have the same, 1/n where one has all."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


def while_all_stream(pace: Pace, answers: list[Answer]) -> list[int]:
    """Tokens that each of them was given between the time when the last one had begun and that when the first one ended."""
    sessions = [answer.job.slot.session for answer in answers if answer.job.slot is not None]
    begun = max(answer.text_times[0] for answer in answers)
    ended = min(answer.times[-1] for answer in answers)
    counts = Counter({id(session): 0 for session in sessions})
    counts.update(id(step.session) for step in pace.steps if begun < step.ended < ended)
    return list(counts.values())


@pytest.mark.parametrize("shares", [True, False], ids=["together", "taking turns"])
def test_streams_have_the_same_share(tiny_model: Path, pace: Pace, shares: bool) -> None:
    """Of prompts of very different lengths, and while new ones come. tiny_model hardly ever ends an answer by itself."""
    pace.seconds = 0.002
    opening = {} if shares else {"expert_budget": 1 << 20}
    with serving(tiny_model, opening, parallel=4, context=30000) as server:
        answers = [submit(server, request("Tell me. " * 10**n, max_tokens=120)) for n in range(4)]
        for answer in answers:
            answer.wait()
        given = while_all_stream(pace, answers)
        assert min(given) > 20 and jain(given) >= 0.95, given


def test_a_short_prompt_passes_a_long_one_within_two_chunks(demo_model: Path, pace: Pace) -> None:
    """300 tokens, while 25,000 are being read, and by themselves so far, in the longest chunks."""
    with serving(demo_model, context=26000) as server:
        long = submit(server, request((LONG * 40)[:65_500], max_tokens=1))
        assert len(long.job.tokens) > 24_000
        while pace.n_tokens < 2000:
            time.sleep(0.001)
        pace.seconds = 0.002
        short = submit(server, request((LONG * 40)[:800], max_tokens=1))
        assert 250 < len(short.job.tokens) < 400
        at = len(pace.steps)
        short.wait()
        assert long.job.slot is not None and short.job.slot is not None
        own = [n for n, step in enumerate(pace.steps) if step.session is short.job.slot.session]
        others = [step for step in pace.steps[at : own[-1]] if step.session is long.job.slot.session]
        # One may be under way when it comes. Each piece of its own prompt lets the other one have none in between.
        assert sum(step.n for step in others) <= 2 * server.engine.use().pacing.most, [step.n for step in pace.steps[at:]]
        assert not long.over.is_set()
        server.engine.cancel(long.job)


def test_a_prompt_that_is_passed_again_and_again_is_read_all_the_same(demo_model: Path, pace: Pace) -> None:
    """Who waits grows older: short ones that keep coming do not starve a long one."""
    pace.seconds = 0.0005
    with serving(demo_model, context=8192, queue_limit=100) as server:
        long = submit(server, request(LONG * 4, max_tokens=1))
        done = 0
        while not long.over.is_set() and done < 400:
            submit(server, request(f"Number {done}, please. " * 10, max_tokens=1)).wait()
            done += 1
        assert long.over.is_set()


def test_cancelling_frees_the_slot_within_a_step(demo_model: Path, pace: Pace) -> None:
    """While a prompt is read, an answer is written, or it waits: what has been asked next is the next to be evaluated."""
    with serving(demo_model, context=8192, parallel=1) as server:
        submit(server, request("Hello!", max_tokens=1)).wait()
        for when in ("reading", "writing", "waiting"):
            pace.seconds = 0.002
            left = submit(server, request(f"{when}: {LONG}", max_tokens=500, thinking={"type": "enabled"}))
            waiting = submit(server, request("Wait.", max_tokens=1)) if when == "waiting" else None
            at = len(pace.steps)
            while len(pace.steps) < at + 2 or (when == "writing" and len(left.text_times) < 3):
                time.sleep(0.001)
            server.engine.cancel(left.job)
            at = len(pace.steps)
            following = waiting or submit(server, request("Hello again!", max_tokens=1))
            following.wait()
            assert left.job.slot is not None and not left.over.is_set()
            evaluated = [step.n for step in pace.steps[at:]]
            n_own = len(following.job.tokens) - following.end.usage.n_cached
            assert sum(evaluated) <= n_own + server.engine.use().pacing.most and len(evaluated) <= 4, (when, evaluated)


def test_autocompletion_is_given_up_with_every_key(tiny_model: Path, pace: Pace) -> None:
    """As Continue asks for it: the model goes on for a step at most, the one that is accepted comes, and the main
    conversation keeps its slot."""
    path = "/v1/fim/completions"

    async def type_on(server: Application, text: str) -> None:
        leave = asyncio.Event()
        body = {"prompt": text, "suffix": "\n    return result\n", "max_tokens": 200, "stream": True}
        pieces = []

        def on_chunk(chunk: bytes) -> None:
            pieces.append(chunk)
            if len(pieces) == 3:
                leave.set()

        await ask(server, "POST", path, body, leave=leave, on_chunk=on_chunk)
        at = len(pace.steps)
        while server.engine.waiting_and_running() != (0, 0):
            await asyncio.sleep(0.001)
        assert len(pace.steps) <= at + 2  # the step under way, and one that had begun before the next look at orders

    with serving(tiny_model, context=2048) as server:
        main = submit(server, request(LONG, max_tokens=4)).wait()
        pace.seconds = 0.01
        text = "def merge(intervals):\n    result = sorted"
        for n in range(len(text) - 20, len(text)):
            run(type_on(server, text[:n]))
        pace.seconds = 0
        accepted = run(ask(server, "POST", path, {"prompt": text, "suffix": "\n    return result\n", "max_tokens": 5}))
        assert accepted.status == 200 and accepted.json()["choices"][0]["finish_reason"] in ("length", "stop")
        again = submit(server, request(LONG, main.text, "Go on.", max_tokens=2)).wait()
        assert again.end.usage.n_cached >= main.end.usage.n_prompt


def test_a_prompt_in_hand_comes_back_where_it_was(demo_model: Path, pace: Pace, tmp_path: Path) -> None:
    """Given up at 60 %, asked again: at most a chunk twice. Also when another conversation has had the only slot since."""
    asked = request(LONG * 4, max_tokens=1)
    with serving(demo_model, context=8192, parallel=1, disk_cache=tmp_path) as server:
        for between in (False, True):
            pace.steps.clear()
            pace.seconds = 0.0005
            left = submit(server, request(f"{between} {LONG * 4}", max_tokens=1))
            n = len(left.job.tokens)
            while pace.n_tokens < 0.6 * n:
                time.sleep(0.001)
            server.engine.cancel(left.job)
            assert becomes_idle(server)
            pace.seconds = 0.0
            if between:
                done = pace.n_tokens
                submit(server, request("Other things: " + LONG * 2, max_tokens=1)).wait()
                del pace.steps[:]
            else:
                done = 0
            again = submit(server, request(f"{between} {LONG * 4}", max_tokens=1)).wait()
            assert again.end.usage.n_cached >= 0.6 * n - server.engine.use().pacing.most
            assert done + pace.n_tokens <= n + server.engine.use().pacing.most
        assert asked.max_tokens == 1


# -- a queue that is full --


class Bridge:
    """A server's application behind a real socket, for clients that want one."""

    def __init__(self, server: Application) -> None:
        self.statuses: list[int] = []
        bridge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                answer = run(ask(server, "POST", self.path, body))
                bridge.statuses.append(answer.status)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                if "content-length" not in answer.headers:
                    self.send_header("content-length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_arguments: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


def test_a_full_queue_says_when_to_come_again(demo_model: Path, pace: Pace) -> None:
    pace.seconds = 0.02
    with serving(demo_model, parallel=1, queue_limit=0) as server:
        left = submit(server, request("Tell me a story.", max_tokens=400, thinking={"type": "enabled"}))
        for path, body in (("/v1/chat/completions", {}), ("/v1/responses", {"input": "Hi"}),
                           ("/v1/messages", {"max_tokens": 5}), ("/api/chat", {})):
            whole = {"model": "any", "messages": [{"role": "user", "content": "Hi"}], **body}
            answer = run(ask(server, "POST", path, whole))
            assert answer.status == 429 and 1 <= int(answer.headers["retry-after"]) <= 60, path
            assert "queue" in json.dumps(answer.json())
        server.engine.cancel(left.job)


@pytest.mark.parametrize("package", ["openai", "anthropic"])
def test_clients_try_again_and_succeed(demo_model: Path, pace: Pace, package: str) -> None:
    """Their own packages, as they are: six requests at once for one place and a queue of one."""
    module = pytest.importorskip(package, reason=f"{package} is not installed")
    pace.seconds = 0.005
    with serving(demo_model, parallel=1, queue_limit=1) as server:
        bridge, texts = Bridge(server), []

        def request_by_openai() -> None:
            with module.OpenAI(api_key="k", base_url=bridge.url + "/v1", max_retries=30) as client:
                done = client.chat.completions.create(model="any", messages=HELLO, temperature=0)
                texts.append(done.choices[0].message.content)

        def request_by_anthropic() -> None:
            with module.Anthropic(api_key="k", base_url=bridge.url, max_retries=30) as client:
                done = client.messages.create(model="any", max_tokens=50, messages=HELLO)
                texts.append(done.content[0].text)

        work = request_by_openai if package == "openai" else request_by_anthropic
        threads = [threading.Thread(target=work) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        bridge.close()
        assert len(texts) == 6 and all(texts)
        assert 429 in bridge.statuses and bridge.statuses.count(200) == 6
