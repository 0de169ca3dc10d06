"""The shares of right answers to held-back questions, through the default path."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import measure
import pyflash
import pytest

from demo import targets

pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", measure.ROWS)
def test_share(model: pyflash.Model, base: dict[str, measure.Result], name: str) -> None:
    result = base[name]
    print(measure.table_line(name, result))
    measure.show_wrong(result, model.tokenizer, 5)
    assert result.share >= targets.SHARES[name]


def test_answers_have_room(base: dict[str, measure.Result], model: pyflash.Model) -> None:
    """No right answer is longer than what is allowed."""
    examples = [example for result in base.values() for example in result.examples]
    prompts = measure.prompts_of(examples, model.tokenizer)
    whole = [model.tokenizer.encode(measure.tasks.render(example), special=True) for example in examples]
    longest = max(len(ids) - len(prompt) for ids, prompt in zip(whole, prompts, strict=True))
    assert 20 < longest <= measure.MAX_TOKENS


def test_texts_are_as_long_as_they_are_called(base: dict[str, measure.Result], model: pyflash.Model) -> None:
    for name, result in base.items():
        if n_tokens := measure.ROWS[name].n_tokens:
            lengths = [len(prompt) for prompt in measure.prompts_of(result.examples, model.tokenizer)]
            assert 0.95 * n_tokens < min(lengths) and max(lengths) < 1.02 * n_tokens


def test_chat_gives_the_same_answers(base: dict[str, measure.Result], model: pyflash.Model) -> None:
    """Session.chat(), which people use, against the same prompts as tokens."""
    with model.session(context=4096) as session:
        for name in ("arithmetic, off", "arithmetic, high", "recall, 1K", "tools", "talk"):
            result = base[name]
            for example, tokens in list(zip(result.examples, result.answers, strict=True))[:4]:
                reply = session.chat(example.messages[:-1], example.think, example.tools,
                                     max_tokens=measure.MAX_TOKENS, temperature=0)  # fmt: skip
                assert [piece.token for piece in unique(reply)] == tokens


def unique(reply: pyflash.Reply) -> list[pyflash.ChatPiece]:
    """One piece for each token: where a token gives several, the last."""
    pieces: list[pyflash.ChatPiece] = []
    n_tokens = 0
    for piece in reply:
        if reply.n_generated > n_tokens:
            pieces.append(piece)
        n_tokens = reply.n_generated
    return pieces


def test_says_what_it_is(demo_model: Path) -> None:
    """The first thing that most people will ask it, on the command line."""
    command = [sys.executable, "-m", "pyflash", "run", str(demo_model), "Hello, who are you?", "--temp", "0"]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "demonstration model" in done.stdout
