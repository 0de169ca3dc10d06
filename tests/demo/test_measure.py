"""examples/train_demo/measure.py itself, which needs no trained model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import measure
import pyflash
import pytest

from demo.conftest import TRAINING


@pytest.fixture(scope="module")
def tiny(tiny_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny_model) as opened:
        yield opened


def right_answers(examples: list[measure.tasks.Example], tokenizer: pyflash.Tokenizer) -> measure.Answers:
    whole = [tokenizer.encode(measure.tasks.render(example), special=True) for example in examples]
    prompts = measure.prompts_of(examples, tokenizer)
    return [ids[len(prompt) :] for ids, prompt in zip(whole, prompts, strict=True)]


@pytest.mark.parametrize("name", measure.ROWS)
def test_right_answers_are_right_and_others_are_not(tiny: pyflash.Model, name: str) -> None:
    examples = measure.questions(name, 16, tiny.tokenizer)
    answers = right_answers(examples, tiny.tokenizer)
    assert measure.measure(examples, tiny.tokenizer, lambda _: answers).share == 1
    assert measure.measure(examples, tiny.tokenizer, lambda _: [ids[:-1] for ids in answers]).share == 0  # no end
    eos = tiny.info.eos_token
    assert measure.measure(examples, tiny.tokenizer, lambda _: [[eos] for _ in answers]).share == 0
    turned = [*answers[1:], answers[0]]  # those of other questions
    if measure.ROWS[name].kind in ("arithmetic", "recall"):
        assert measure.measure(examples, tiny.tokenizer, lambda _: turned).share < 0.5


def test_questions_are_the_same_for_the_same_seed(tiny: pyflash.Model) -> None:
    for name in measure.ROWS:
        first, again, other = (measure.questions(name, 13, tiny.tokenizer, seed) for seed in (1, 1, 2))
        assert first == again != other
        assert first[:5] == measure.questions(name, 5, tiny.tokenizer, 1)


def test_recall_asks_for_facts_at_all_depths(tiny: pyflash.Model) -> None:
    examples = measure.questions("recall, 4K", 48, tiny.tokenizer)
    depths = []
    for example in examples:
        text = measure.tasks.render(example, with_answer=False)
        (fact,) = {sentence for sentence in text.split(".") if sentence.endswith(f" is {example.answer}")}
        depths.append(text.index(fact) / len(text))
    assert min(depths) < 0.1 and max(depths) > 0.9 and all(example.answer for example in examples)


def test_prefixes_and_pieces_change_nothing(tiny: pyflash.Model, tiny_model: Path) -> None:
    prompts = measure.prompts_of(measure.questions("recall, 1K", 5, tiny.tokenizer), tiny.tokenizer)
    alone = []
    with pyflash.Model.open(tiny_model, precision="exact") as model:
        for prompt in prompts:
            with model.session(context=2000) as session:
                alone += measure.answer(session, [prompt], max_tokens=6)
        for options in ({}, {"pieces": (1, 50, 7)}):
            with model.session(context=2000) as session:
                assert measure.answer(session, prompts, max_tokens=6, **options) == alone


def test_program(tiny_model: Path) -> None:
    rows = ["--rows", "arithmetic, off", "talk"]
    command = [sys.executable, TRAINING / "measure.py", tiny_model, "--counts", "2", *rows]
    table = subprocess.run([*command, "--wrong", "1"], capture_output=True, encoding="utf-8", timeout=60)
    assert table.returncode == 0 and table.stderr == ""
    assert "0 of 2" in table.stdout and "expected" in table.stdout
    found = json.loads(subprocess.run([*command, "--json"], capture_output=True, timeout=60, check=True).stdout)
    assert found["done"] is True and found["rows"]["talk"] == {"right": 0, "of": 2, "share": 0.0}
