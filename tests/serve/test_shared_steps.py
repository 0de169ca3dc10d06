"""Steps that streams share, and runs of tokens that a grammar forces: fewer steps, the same answers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from serving import Answer, Pace, becomes_idle, serving, submit
from test_engine import request
from test_replay import Scripted, call

from pyflash import MemoryLimitError
from pyflash.engine.grammar import Matcher
from pyflash.serve import answer as answers
from pyflash.serve import engine
from pyflash.serve.application import Application
from pyflash.serve.events import Failed

GREEDY = {"temperature": 0}
SAMPLED = {"temperature": 1, "top_p": 0.95, "repetition_penalty": 1.1}
N_TOKENS = 24


def four(**more: Any) -> list[Any]:
    return [request(f"Count to {n}. " * n, max_tokens=N_TOKENS, seed=n, logprobs=True, **more) for n in range(1, 5)]


def said(answer: Answer) -> Any:
    """All of an answer but its names and times, with the tokens' probabilities."""
    tokens = [event.tokens for event in answer.events if getattr(event, "tokens", None)]
    arguments = [event.text for event in answer.events if type(event).__name__ == "ToolCallArguments"]
    usage = answer.end.usage
    return answer.text, arguments, tokens, answer.end.reason, usage.n_generated, usage.n_reasoning


def at_once(server: Application, asked: list[Any]) -> list[Answer]:
    made = [Answer(server.engine.prepare(each)) for each in asked]
    for answer in made:
        server.engine.submit(answer.job, answer.tell)
    return made


def alone(server: Application, asked: list[Any]) -> list[Any]:
    return [said(submit(server, each).wait()) for each in asked]


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_four_together_are_the_same_four_alone(tiny_model: Path, pace: Pace, sampling: dict[str, Any]) -> None:
    with serving(tiny_model, parallel=4) as server:
        expected = alone(server, four(**sampling))
        assert {step.n_together for step in pace.steps} == {1}
        pace.steps.clear()
        pace.seconds = 0.001
        together = at_once(server, four(**sampling))
        assert [said(answer.wait()) for answer in together] == expected
    shared = [step for step in pace.steps if step.n_together == 4]
    assert len(shared) > 2 * N_TOKENS and len(shared) % 4 == 0


def test_one_is_cancelled_in_the_middle(tiny_model: Path, pace: Pace) -> None:
    with serving(tiny_model, parallel=4) as server:
        expected = alone(server, four(**SAMPLED))
        pace.seconds = 0.01
        together = at_once(server, four(**SAMPLED))
        while len(together[1].text_times) < 3:
            time.sleep(0.001)
        server.engine.cancel(together[1].job)
        assert [said(together[n].wait()) for n in (0, 2, 3)] == [expected[n] for n in (0, 2, 3)]
        assert becomes_idle(server) and not together[1].over.is_set()
        assert [step.n_together for step in pace.steps].count(3) > 3
        assert said(submit(server, four(**SAMPLED)[1]).wait()) == expected[1]


def test_one_fails_in_the_middle(tiny_model: Path, pace: Pace) -> None:
    def broken(name: str, layer: int, position: int, data: Any) -> None:
        if position >= fails_at:
            raise RuntimeError("this session is broken")

    with serving(tiny_model, parallel=4) as server:
        asked = four(**SAMPLED)
        expected = alone(server, asked)
        fails_at = max(len(server.engine.prepare(each).tokens) for each in asked) + 5
        slot = server.engine.use().slots[2]
        slot.session.set_tap(broken)
        together = at_once(server, asked)
        for answer in together:
            answer.wait()
        slot.session.set_tap(None)
        (failed,) = (n for n, answer in enumerate(together) if answer.job.slot is slot)
        assert isinstance(together[failed].events[-1], Failed) and len(together[failed].text_times) > 0
        assert [said(answer) for answer in together if answer.job.slot is not slot] == [
            each for n, each in enumerate(expected) if n != failed]
        assert max(step.n_together for step in pace.steps) == 4
        assert alone(server, asked) == expected


@pytest.mark.parametrize("error", [MemoryLimitError("no memory for the logits"), RuntimeError("unforeseen")])
def test_a_step_that_is_refused_as_a_whole(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Each stream then goes on by itself, but where nobody knows what was evaluated."""
    def refused(*_args: object, **_more: object) -> None:
        raise error

    with serving(tiny_model, parallel=4) as server:
        expected = alone(server, four(**GREEDY))
        monkeypatch.setattr(engine, "eval_many", refused)
        together = at_once(server, four(**GREEDY))
        for answer in together:
            answer.wait()
        if isinstance(error, MemoryLimitError):
            assert [said(answer) for answer in together] == expected
        else:
            assert any(isinstance(answer.events[-1], Failed) for answer in together)
        assert alone(server, four(**GREEDY)) == expected


def test_experts_from_a_disk_are_not_shared(tiny_model: Path, pace: Pace) -> None:
    with serving(tiny_model, parallel=4) as server:
        expected = alone(server, four(**SAMPLED))
    with serving(tiny_model, {"expert_budget": 1 << 20}, parallel=4) as server:
        together = at_once(server, four(**SAMPLED))
        assert [said(answer.wait()) for answer in together] == expected
    assert {step.n_together for step in pace.steps} == {1}


# -- forced runs --

TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {
    "city": {"type": "string"}, "days": {"type": "number"}}, "required": ["city", "days"]}}}]


def with_tools(**more: Any) -> Any:
    return request("Rain in Bern?", tools=TOOLS, logprobs=True, top_logprobs=2, **{"max_tokens": 60, **more})


def ends(server: Application, asked: Any) -> Any:
    """What is said, and what the session holds then."""
    answer = submit(server, asked).wait()
    assert becomes_idle(server) and answer.job.slot is not None
    return said(answer), answer.job.slot.session.tokens.tolist()


def test_forced_tokens_take_no_steps(demo_model: Path, pace: Pace, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("llguidance")
    script = Scripted(monkeypatch)
    with serving(demo_model) as server:
        for limit in (100, 20, 21, 25):  # also within a run
            n_steps, results = [], []
            for longest in (16, 0):
                monkeypatch.setattr(answers, "_LONGEST_RUN", longest)
                script.tokens.clear()
                script.say(server, *call("Bern", "1.0"))
                pace.steps.clear()
                results.append(ends(server, with_tools(max_tokens=limit)))
                n_steps.append(len(pace.steps))
            assert results[0] == results[1]
            assert n_steps[0] * 2 < n_steps[1] + 2, n_steps


@pytest.mark.parametrize("model", ["demo_model", "tiny_model"])
def test_forced_runs_change_nothing(model: str, pace: Pace, monkeypatch: pytest.MonkeyPatch,
                                    request: pytest.FixtureRequest) -> None:
    """Sampled answers with runs, without, and with runs that are partly wrong."""
    pytest.importorskip("llguidance")
    forced = Matcher.forced
    asked = [with_tools(tool_choice="required", temperature=1, seed=seed, stop=["e"] if seed % 2 else None,
                        parallel_tool_calls=seed % 3 > 0) for seed in range(6)]
    n_steps: list[int] = []
    results: list[list[Any]] = []
    with serving(request.getfixturevalue(model)) as server:
        for longest, is_wrong in ((16, False), (0, False), (16, True)):
            monkeypatch.setattr(answers, "_LONGEST_RUN", longest)
            if is_wrong:
                monkeypatch.setattr(Matcher, "forced", lambda matcher: [*forced(matcher)[:2], 7, 8, 9])
            pace.steps.clear()
            results.append([ends(server, each) for each in asked])
            n_steps.append(len(pace.steps))
    assert results[0] == results[1] == results[2]
    assert 2 * n_steps[0] < n_steps[1], n_steps
    assert n_steps[0] < n_steps[2], n_steps
