"""A model and a session for the tests of the Python API, and a way to make the model say something."""

from __future__ import annotations

import json
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


RECOMMENDED = {"temperature": 2.0, "top_k": 30, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.25}


@pytest.fixture(scope="session")
def recommending_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_model's weights in a file that recommends RECOMMENDED. Not to be written to."""
    from gguf_export.convert import ConvertOptions, convert
    from gguf_export.synthetic import make_config, write_checkpoint

    folder = tmp_path_factory.mktemp("recommending")
    checkpoint = write_checkpoint(folder / "checkpoint", make_config("tiny"), seed=4)
    (checkpoint / "generation_config.json").write_text(json.dumps(RECOMMENDED))
    return convert(checkpoint, folder / "model.gguf", ConvertOptions()).files[0]


@pytest.fixture
def recommended() -> dict[str, Any]:
    """What recommending_model recommends."""
    return dict(RECOMMENDED)


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

        def unscripted(*_arguments: Any, **_options: Any) -> Any:
            raise pyflash.MemoryLimitError("steps of several tokens have no script")

        monkeypatch.setattr(session, "eval", scripted)
        monkeypatch.setattr(session, "eval_ahead", unscripted)
        return ids

    return script
