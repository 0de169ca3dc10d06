"""`pyflash bench --draft`: what it counts and prints, and that it measures what really happened. Never speed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import pyflash
from pyflash.bench.drafting import Asking, DraftPlan, measure, step_times, timed_answer
from pyflash.cli.main import cli
from pyflash.engine.drafts import Draft


def bench(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["bench", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


class Says:
    """A drafter that knows what comes, but for every third token."""

    name, is_free, is_whole, longest, priors = "says", True, False, 31, (0.5,)

    def __init__(self, known: Sequence[int]) -> None:
        self._said = [token ^ 1 if at % 3 == 2 else token for at, token in enumerate(known)]

    def begin(self, tokens: Any) -> None:
        self._at = 0

    def feed(self, token: int) -> None:
        self._at += 1

    def propose(self, most: int) -> Draft:
        tokens = self._said[self._at : self._at + most]
        return Draft(tokens, [0] * len(tokens))


def test_what_is_counted_by_place(tiny_model: Path) -> None:
    """At each place the share that is right behind right ones: here known beforehand."""
    with pyflash.Model.open(tiny_model) as model, model.session(context=128) as session:
        prompt = list(range(5, 25))
        known, _, _ = timed_answer(session, prompt, 31, None, 31)
        asking = Asking([Says(known)], 4)
        again, _, _ = timed_answer(session, prompt, 31, asking, 31)
        assert again == known and len(known) == 31
    count = asking.counts[0]
    wrong = sum(1 for at in range(1, 30) if at % 3 == 2)  # of those that a draft began with; the last token ends it all
    assert count.compared[0] == count.n_proposed == len(count.seconds) == 29 and count.right[0] == 29 - wrong
    assert count.compared[3] == 0 == count.right[2]  # no three right ones in a row
    assert count.right[1] < count.compared[1] <= count.right[0]
    assert count.acceptance == pytest.approx([1 - wrong / 29, count.right[1] / count.compared[1], 0.0])


def test_steps_leave_nothing_behind(tiny_model: Path) -> None:
    with pyflash.Model.open(tiny_model) as model, model.session(context=128) as session:
        prompt = list(range(5, 25))
        known, _, _ = timed_answer(session, prompt, 30, None, 31)
        assert list(step_times(session, prompt, known, (1, 2, 8, 31))) == [1, 2, 8]
        assert list(session.tokens[: len(prompt)]) == prompt
        assert timed_answer(session, prompt, 30, None, 31)[0] == known


def test_json_and_table(tiny_model: Path, tmp_path: Path) -> None:
    text = tmp_path / "question.txt"
    text.write_text("Say it again and again. " * 8, encoding="utf-8")
    asked = (tiny_model, "--draft", "ngram", "--text", text, "--text", text, "--gen", 24, "--repeat", 2)
    first, second, end = map(json.loads, bench(*asked, "--json").splitlines())
    assert end["done"] and end["draft"] == "ngram" and end["texts"] == 2
    assert first["text"] == "question.txt" and first["test"] == "draft" and len(first["seconds"]) == 2
    assert first["tokens"] == 23 and first["steps"] + first["kept"] == 23
    assert first["drafters"][0]["name"] == "ngram" and set(first["v"]) == {"1", "2", "3", "4", "6", "8"}
    assert first["v"]["1"] == 1.0 and second["tokens"] == first["tokens"]
    table = bench(*asked)
    assert "times plain" in table and "V(T)     1: 1.00, 2:" in table and "ngram    has a draft behind" in table


def test_the_texts_that_ship(tiny_model: Path) -> None:
    lines = [json.loads(line) for line in bench(tiny_model, "--draft", "--gen", 16, "--repeat", 1, "--json").splitlines()]
    assert [line["text"] for line in lines[:-1]] == ["rewrite", "code", "calculation", "story"]


@pytest.mark.parametrize(("arguments", "said"), [
    (("--draft", "mtp"), "this model has no MTP block"),
    (("--draft", "off"), "Invalid value for '--draft'"),
    (("--draft", "--depth", "4K"), "leave --depth out"),
    (("--draft", "--csv"), "leave --csv out"),
    (("--draft", "--gen", "4"), "answers of 16 tokens and more"),
    (("--text", __file__), "are for --draft"),
])
def test_what_cannot_be_measured(tiny_model: Path, arguments: tuple[str, ...], said: str) -> None:
    done = CliRunner().invoke(cli, ["bench", str(tiny_model), *arguments])
    assert done.exit_code in (1, 2) and (said in done.output or said in str(done.exception)), (done.output, done.exception)


def test_a_drafter_that_proposes_nothing(tiny_model: Path) -> None:
    with pyflash.Model.open(tiny_model) as model, model.session(context=128) as session:
        plan = DraftPlan([("random", list(range(5, 40)))], "ngram", 31, 12, 1)
        found, = measure(session, plan, lambda what, done, total: None)
        assert found.n_steps + found.n_kept == found.n_tokens and len(found.plain) == len(found.drafted) == 1
