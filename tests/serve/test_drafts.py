"""Drafts of streams: the same answers in fewer steps, alone and together; what clients predict, and what they are told."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from pyflash.engine import draft_lengths
from pyflash.engine.drafts import GAP, NgramDrafter
from pyflash.engine.session import Session
from pyflash.native.errors import MemoryLimitError
from pyflash.serve.application import Application
from pyflash.serve.earlier import EarlierOutputs
from serving import Pace, ask, becomes_idle, run, serving, submit
from test_engine import request
from test_shared_steps import alone, at_once, said, with_tools

KEY = {"authorization": "Bearer secret"}
REPEATING = {"temperature": 0.7, "frequency_penalty": -2.0}  # so that there is something to draft


def four(**more: Any) -> list[Any]:
    return [request(f"Count to {n}. " * n, max_tokens=40, seed=n, logprobs=True, **{**REPEATING, **more}) for n in range(1, 5)]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is drafted is checked, whatever it takes."""
    monkeypatch.setattr(draft_lengths.DrafterRecord, "best_length",
                        lambda self, sureness, times, n_rows, expected: (len(sureness), 1.0))


def drafted(answers: list[Any]) -> tuple[int, int]:
    usages = [answer.end.usage for answer in answers]
    return sum(each.n_drafted for each in usages), sum(each.n_drafts_kept for each in usages)


def contents(server: Application) -> list[bytes]:
    return [slot.session.tokens.tobytes() for slot in server.engine.use().slots]


@pytest.mark.parametrize("parallel", [1, 4])
def test_answers_are_those_without_drafts(tiny_model: Path, pace: Pace, eager: None, parallel: int) -> None:
    with serving(tiny_model, parallel=parallel, draft="off") as server:
        expected = alone(server, four())
        held = contents(server)
        assert max(step.n for step in pace.steps if step.n < 8) == 1
    n_plain = len(pace.steps)
    pace.steps.clear()
    with serving(tiny_model, parallel=parallel, draft="ngram") as server:
        answers = [submit(server, each).wait() for each in four()]
        assert [said(answer) for answer in answers] == expected and contents(server) == held
        n, n_kept = drafted(answers)
        assert n_kept > 10 and n - n_kept > 10 and len(pace.steps) <= n_plain - n_kept
        if parallel > 1:
            pace.steps.clear()
            pace.seconds = 0.001
            together = [answer.wait() for answer in at_once(server, four())]
            assert [said(answer) for answer in together] == expected
            assert drafted(together)[1] > 10 and max(step.n_together for step in pace.steps) == 4
        told = server.engine.metrics.text()
        assert f"pyflash_drafted_tokens_kept_total {drafted(answers)[1] + (drafted(together)[1] if parallel > 1 else 0)}" in told


def test_by_measured_cost(tiny_model: Path) -> None:
    """As it is by default: whatever it decides, the answers are the same."""
    with serving(tiny_model, parallel=4, draft="off") as server:
        expected = alone(server, four())
    with serving(tiny_model, parallel=4, draft="auto") as server:
        assert alone(server, four()) == expected
        assert [said(answer.wait()) for answer in at_once(server, four())] == expected
        assert alone(server, four(draft="off")) == expected


def test_beside_a_grammar(tiny_model: Path, eager: None) -> None:
    asked = with_tools(tool_choice="required", **REPEATING, seed=3)
    with serving(tiny_model, draft="off") as server:
        expected = said(submit(server, asked).wait())
    with serving(tiny_model, draft="ngram") as server:
        assert said(submit(server, asked).wait()) == expected


def test_a_step_that_drafts_make_fail(tiny_model: Path, eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stream goes on without them."""
    ahead = Session.eval_ahead

    def refusing(self: Session, tokens: Any, **rest: Any) -> Any:
        if len(tokens) > 1:
            raise MemoryLimitError("no memory for so many rows")
        return ahead(self, tokens, **rest)

    with serving(tiny_model, draft="off") as server:
        expected = alone(server, four())
    monkeypatch.setattr(Session, "eval_ahead", refusing)
    with serving(tiny_model, draft="ngram") as server:
        assert alone(server, four()) == expected


def test_one_is_cancelled(tiny_model: Path, pace: Pace, eager: None) -> None:
    with serving(tiny_model, parallel=4, draft="ngram") as server:
        expected = alone(server, four())
        pace.seconds = 0.005
        together = at_once(server, four())
        while len(together[1].text_times) < 3:
            time.sleep(0.001)
        server.engine.cancel(together[1].job)
        assert [said(together[n].wait()) for n in (0, 2, 3)] == [expected[n] for n in (0, 2, 3)]
        assert becomes_idle(server)
        assert said(submit(server, four()[1]).wait()) == expected[1]


def test_what_a_client_predicts(demo_model: Path, eager: None) -> None:
    """An answer that comes as it was predicted takes few steps; one that does not is the same."""
    body = {"model": "test", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 40, "temperature": 0,
            "thinking": {"type": "disabled"}}

    def answered(server: Application, key: str, **more: Any) -> Any:
        response = run(ask(server, "POST", "/v1/chat/completions", {**body, **more}, headers={"authorization": f"Bearer {key}"}))
        assert response.status == 200, response.body
        return response.json()

    with serving(demo_model, keys=["secret", "first", "second", "third"], draft="ngram") as server:
        plain = answered(server, "secret", draft="off")
        text = plain["choices"][0]["message"]["content"]
        assert plain["usage"]["completion_tokens_details"]["accepted_prediction_tokens"] == 0
        predicted = {"first": text, "second": [{"type": "text", "text": text}], "third": "something else"}
        for key, given in predicted.items():  # what was generated for one key is not drafted for another
            told = answered(server, key, prediction={"type": "content", "content": given})
            assert told["choices"][0]["message"]["content"] == text
            details = told["usage"]["completion_tokens_details"]
            assert told["usage"]["completion_tokens"] == plain["usage"]["completion_tokens"]
            assert (details["accepted_prediction_tokens"] > 5) == (given != "something else")
            assert details["rejected_prediction_tokens"] >= 0
        wrong = run(ask(server, "POST", "/v1/chat/completions", {**body, "draft": "medusa"}, headers=KEY))
        assert wrong.status == 400 and "auto, off, ngram, mtp, dspark" in wrong.json()["error"]["message"]
        wrong = run(ask(server, "POST", "/v1/chat/completions", {**body, "draft": "mtp"}, headers=KEY))
        assert wrong.status == 400 and "no MTP block" in wrong.json()["error"]["message"]


def test_earlier_outputs_of_the_same_key(tiny_model: Path, eager: None) -> None:
    """What was generated before is drafted again, for the key that it was generated for: the answers are the same."""
    asked = request("Say something new.", max_tokens=60, seed=5, temperature=0.8)
    other = request("Something else altogether?", max_tokens=60, seed=6, temperature=0.8)

    def kept(server: Application, salt: bytes) -> tuple[Any, int]:
        """An answer, and how many of its drafted tokens counted."""
        answer = submit(server, asked, salt).wait()
        assert submit(server, other, salt).wait()  # so that the session does not hold the answer any more
        return said(answer), answer.end.usage.n_drafts_kept

    with serving(tiny_model, parallel=1, draft="off") as server:
        expected = said(submit(server, asked).wait())
    with serving(tiny_model, parallel=1, draft="ngram") as server:
        first, again, elsewhere, there_again = (kept(server, salt) for salt in (b"one", b"one", b"two", b"two"))
        assert [first[0], again[0], elsewhere[0], there_again[0]] == [expected] * 4
        assert first[1] == elsewhere[1] and again[1] == there_again[1]  # the second key gains nothing by the first one's
        assert again[1] > first[1] + 10  # not more: nothing is drafted behind the many tokens of no text that chance gives


def test_earlier_outputs_are_bounded() -> None:
    earlier = EarlierOutputs(most_tokens=100, most_keys=3)
    for n in range(40):
        for salt in (b"a", b"b", b"c"):
            earlier.add(salt, list(range(n, n + 30)))
            assert earlier.n_tokens <= 300
    assert list(earlier.of(b"c")) == [*range(37, 67), GAP, *range(38, 68), GAP, *range(39, 69), GAP]
    earlier.add(b"d", list(range(20)))
    assert [len(earlier.of(salt)) for salt in (b"a", b"b", b"c", b"d")] == [0, 93, 93, 21]
    earlier.add(b"d", list(range(500)))
    assert list(earlier.of(b"d")) == [*range(401, 500), GAP]
    earlier.add(b"new", [1, 2])
    assert len(earlier.of(b"new")) == 0


def test_what_is_drafted_from_earlier_texts() -> None:
    """Nothing reaches from one text into the next, and the conversation itself comes first."""
    earlier = [10, 11, 12, 13, 14, GAP, 20, 21, 22, 23, GAP]
    drafter = NgramDrafter(earlier=earlier)
    drafter.begin([1, 20, 21])
    drafter.feed(22)
    assert list(drafter.propose(5).tokens) == [23]
    drafter.begin([12, 13, 14])
    drafter.feed(20)
    assert list(drafter.propose(5).tokens) == []
    drafter.begin([20, 21, 22, 30, 31, 20, 21])
    drafter.feed(22)
    assert list(drafter.propose(2).tokens) == [30, 31]
    drafter = NgramDrafter([7, 8, 9], earlier)
    drafter.begin([1])
    assert list(drafter.propose(5).tokens) == [7, 8, 9]
