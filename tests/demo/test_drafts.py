"""What drafts for the demo model: its MTP block and its DSpark stage are trained, and the command uses them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import measure
import pyflash
import pytest

ROWS = ("arithmetic, high", "tools", "talk")


@pytest.mark.parametrize(("drafter", "n", "gain"), [("mtp", 1, 1.6), ("dspark", 5, 2.0)])
def test_it_is_trained(demo_model: Path, drafter: str, n: int, gain: float) -> None:
    """More than a token a step, and the same answers."""
    n_steps = n_tokens = 0
    with pyflash.Model.open(demo_model, mtp=pyflash.demo.draft_path(drafter), threads=1) as model, \
            model.session(context=2048) as session:
        assert model.info.drafts == drafter
        for row in ROWS:
            for prompt in measure.prompts_of(measure.questions(row, 2, model.tokenizer), model.tokenizer):
                answers = []
                for draft in ("off", lambda tokens, most: session.draft_tokens(tokens[-1], min(most, n))[0]):
                    session.rollback(session.position)
                    generation = session.generate(prompt, measure.MAX_TOKENS, temperature=0, draft=draft)
                    answers.append([piece.token for piece in generation])
                assert answers[0] == answers[1]
                n_steps += generation.drafts.n_steps
                n_tokens += len(answers[1]) - 1
    assert n_tokens > gain * n_steps


@pytest.mark.parametrize("drafter", ["mtp", "dspark"])
def test_the_command_drafts_with_it(demo_model: Path, drafter: str) -> None:
    question = ["run", "What is 12 + 30 + 47?", "--think", "--temp", "0", "--json"]
    found = {}
    for draft in ("off", drafter):
        done = subprocess.run([sys.executable, "-m", "pyflash", *question, "--draft", draft],
                              capture_output=True, encoding="utf-8", timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        found[draft] = lines[-1], [line.get("text") for line in lines[:-1]]
    assert found["off"][1] == found[drafter][1]
    assert found["off"][0]["n_steps"] == found["off"][0]["n_generated"] - 1 >= found[drafter][0]["n_steps"]
