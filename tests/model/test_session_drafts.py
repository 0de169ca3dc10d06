"""Session files with what drafting keeps, and without, go into sessions of either kind, and change no logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from spark_models import make_spark_model
from tiny_models import make_tiny_model

SIZES: dict[str, Any] = dict(
    hidden_size=64, num_attention_heads=2, o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8,
    num_experts_per_tok=2, moe_intermediate_size=32, sliding_window=48, index_topk=20, index_n_heads=2,
)  # fmt: skip
N = 200

Open = Callable[[bool], pyflash.Model]


@pytest.fixture(scope="module", params=["mtp", "dspark"])
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[pyflash.Model, pyflash.Model]]:
    """The same model without a drafter and with one."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "mtp":
        tiny = make_tiny_model(folder, seed=71, dense="q8_0", mtp=True, **SIZES)
        path, draft = tiny.path, tiny.mtp_path
    else:
        spark = make_spark_model(folder, seed=72, dense="q8_0", n_stages=2, **SIZES)
        path, draft = spark.path, spark.draft
    with pyflash.Model.open(path, threads=1) as plain, pyflash.Model.open(path, threads=1, mtp=draft) as drafting:
        assert plain.info.drafts == "none" and drafting.info.drafts == request.param
        assert drafting.info.draft_file_bytes == drafting.info.draft_bytes > 0
        yield plain, drafting


def text(n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 512, n).astype(np.int32)


def filled(model: pyflash.Model, path: Path) -> None:
    """A file of N tokens, with a checkpoint at 120."""
    with model.session(context=600, poison=True) as session:
        session.eval(text(120, 1))
        session.checkpoint()
        session.eval(text(N - 120, 2))
        session.save(path)


def draft(session: pyflash.Session) -> tuple[list[int], list[float]]:
    return session.draft_tokens(7, 2)


@pytest.mark.parametrize("saved_with", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("loaded_with", [False, True], ids=["into without", "into with"])
def test_files_go_either_way(opened: Any, saved_with: bool, loaded_with: bool, tmp_path: Path) -> None:
    filled(opened[saved_with], tmp_path / "state")
    more = text(300, 3)
    with opened[loaded_with].session(context=600, poison=True) as whole:
        whole.eval(text(120, 1))
        whole.eval(text(N - 120, 2))
        expected = whole.eval(more, all_logits=True)
        drafts = draft(whole) if loaded_with else None
    with opened[loaded_with].session(context=600, poison=True) as session:
        session.load(tmp_path / "state")
        if loaded_with and not saved_with:
            with pytest.raises(pyflash.ArgumentError, match="evaluate tokens first"):
                draft(session)
        assert np.array_equal(session.eval(more, all_logits=True), expected)
        if loaded_with:
            assert draft(session) == drafts  # by then its windows are full
        session.rollback(session.position - 120)  # the file's checkpoint
        if loaded_with and saved_with:
            draft(session)
        assert np.array_equal(session.eval(np.concatenate([text(N - 120, 2), more]), all_logits=True)[-1], expected[-1])
        if loaded_with:
            assert draft(session) == drafts


def test_what_is_there_in_part_stays_so(opened: Any, tmp_path: Path) -> None:
    """A file that came without, went on with drafts, and is saved again; and its tail."""
    plain, drafting = opened
    filled(plain, tmp_path / "state")
    with drafting.session(context=600, poison=True) as session:
        session.load(tmp_path / "state")
        session.eval(text(10, 4))
        first = draft(session)
        session.save(tmp_path / "again")
        session.checkpoint()
        session.eval(text(300, 5))
        session.rollback(300)
        assert draft(session) == first
        session.rollback(15)  # before what is there
        with pytest.raises(pyflash.ArgumentError, match="evaluate tokens first"):
            draft(session)
        session.eval(text(1, 6))
        draft(session)
    with drafting.session(context=600, poison=True) as session:
        session.load(tmp_path / "again")
        assert draft(session) == first
        rows, tail = session.export_rows(0, session.position), session.export_tail(session.position)
        tokens = session.tokens
        session.save(tmp_path / "thrice")
    assert (tmp_path / "thrice").read_bytes() == (tmp_path / "again").read_bytes()
    with drafting.session(context=600, poison=True) as session:
        session.import_rows(0, len(tokens), rows)
        session.import_tail(tokens, tail)
        assert draft(session) == first


def test_answers_go_on_in_either(opened: Any, tmp_path: Path) -> None:
    """A generation with drafts behind a file that has none: the tokens of one without."""
    plain, drafting = opened
    filled(plain, tmp_path / "state")
    answers = []
    for model, name in ((plain, "off"), (drafting, drafting.info.drafts)):
        with model.session(context=600, poison=True) as session:
            session.load(tmp_path / "state")
            pieces = session.generate([3], max_tokens=60, draft=name, temperature=1.0, seed=5)
            answers.append([piece.token for piece in pieces])
    assert answers[0] == answers[1]
