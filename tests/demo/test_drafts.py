"""What drafts for the demo model: the blocks that come with it are trained, and the command uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import measure
import pyflash
import pytest

ROWS = ("arithmetic, high", "tools", "talk")


@pytest.fixture(scope="module")
def drafting(demo_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(demo_model, mtp=pyflash.demo.draft_path(), threads=1) as opened:
        yield opened


def test_its_mtp_block_is_trained(drafting: pyflash.Model) -> None:
    """A token more in most steps, and the same answers."""
    n_steps = n_tokens = 0
    with drafting.session(context=2048) as session:
        for row in ROWS:
            for prompt in measure.prompts_of(measure.questions(row, 2, drafting.tokenizer), drafting.tokenizer):
                answers = []
                for draft in ("off", lambda tokens, most: session.draft_tokens(tokens[-1], min(most, 1))[0]):
                    session.rollback(session.position)
                    generation = session.generate(prompt, measure.MAX_TOKENS, temperature=0, draft=draft)
                    answers.append([piece.token for piece in generation])
                assert answers[0] == answers[1]
                n_steps += generation.drafts.n_steps
                n_tokens += len(answers[1]) - 1
    assert n_tokens > 1.6 * n_steps


def test_the_command_drafts_with_it(demo_model: Path) -> None:
    question = ["run", "What is 12 + 30 + 47?", "--think", "--temp", "0", "--json"]
    found = {}
    for draft in ("off", "mtp"):
        done = subprocess.run([sys.executable, "-m", "pyflash", *question, "--draft", draft],
                              capture_output=True, encoding="utf-8", timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found[draft] = lines[-1], [line.get("text") for line in lines[:-1]]
    assert found["off"][1] == found["mtp"][1]
    assert found["off"][0]["n_steps"] == found["off"][0]["n_generated"] - 1 >= found["mtp"][0]["n_steps"]
