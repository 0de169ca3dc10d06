"""A model and a session for the tests of the Python API, and a way to make the model say something."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest

Say = Callable[..., list[int]]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Iterator[pyflash.Model]:
    with pyflash.Model.open(tiny_model, precision="exact", threads=1) as opened:
        yield opened


@pytest.fixture
def session(model: pyflash.Model) -> Iterator[pyflash.Session]:
    with model.session(context=40_000, chunk=64) as opened:
        yield opened


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """say(session, text, end=True): whatever is asked, the model answers text, in which special tokens count as such.

    Everything is evaluated as usual; only the logits are replaced, and when the text is over, no more.
    """
    def script(session: pyflash.Session, text: str | list[int], end: bool = True) -> list[int]:
        ids = session.model.tokenizer.encode(text, special=True) if isinstance(text, str) else list(text)
        ids += [session.model.info.eos_token] if end else []
        left = list(ids)
        evaluate = session.eval

        def scripted(tokens: Any, **options: Any) -> Any:
            logits = evaluate(tokens, **options)
            if left:
                logits = np.zeros_like(logits)
                logits[left.pop(0)] = 50
            return logits

        monkeypatch.setattr(session, "eval", scripted)
        return ids

    return script
