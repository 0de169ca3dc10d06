"""The demo model's files, and its answers through the default path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pyflash
import pytest

TRAINING = Path(__file__).resolve().parents[2] / "examples" / "train_demo"
sys.path.append(str(TRAINING))

import measure  # noqa: E402

from demo import targets  # noqa: E402


@pytest.fixture(scope="session")
def model(demo_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(demo_model) as opened:
        yield opened


@pytest.fixture(scope="session")
def base(model: pyflash.Model) -> dict[str, measure.Result]:
    """Every row, answered by the default file, precision and cache."""
    results = {}
    with model.session(context=measure.CONTEXT) as session:
        for name, count in targets.COUNTS.items():
            examples = measure.questions(name, count, model.tokenizer)
            results[name] = measure.measure(examples, model.tokenizer, lambda prompts: measure.answer(session, prompts))
            print(measure.table_line(name, results[name]))
    return results
