"""The small copy of the head that an MTP block drafts with: its logits are nearly the head's, its drafts tokens of its rows,
and no answer is changed by it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyflash
import pytest
from pyflash.engine.draft_lengths import DrafterRecord
from tiny_models import TinyModel, make_tiny_model

ROWS = 64


@pytest.fixture(scope="module", params=["compat", "native"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("draft_head"), seed=47, profile=request.param, mtp=True)


def opened(tiny: TinyModel, rows: int, **more: Any) -> Any:
    return pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, draft_head=rows, **more)


def drafts(model: Any, tokens: np.ndarray) -> list[tuple[list[int], list[float], np.ndarray]]:
    """What is drafted at each of some places, with the whole head's logits there."""
    found = []
    with model.session(context=len(tokens) + 8) as session:
        for at in range(1, len(tokens) - 1):
            session.eval(tokens[at - 1 : at])
            found.append((*session.draft_tokens(int(tokens[at]), 2), session.draft(int(tokens[at]))))
    return found


def test_drafts_are_the_likeliest_of_its_rows(tiny: TinyModel) -> None:
    """In nearly all places: 4 bits move logits a little. Rows are the first ones, and the last quarter of them the last."""
    tokens = tiny.tokens(60, 3)
    with opened(tiny, ROWS) as model:
        n_vocab = model.info.n_vocab
        assert n_vocab >= 2 * ROWS and model.draft_head_bytes == ROWS * model.info.n_embd // 32 * 17
        before = drafts(model, tokens)
        model.prepare_drafts()
        model.prepare_drafts()  # once is enough
        after = drafts(model, tokens)
    listed = np.r_[0 : ROWS * 3 // 4, n_vocab - ROWS // 4 : n_vocab]
    same = 0
    for (whole, _, logits), (small, chances, again) in zip(before, after, strict=True):
        assert np.array_equal(logits, again)  # those that are asked for as logits stay the head's
        assert whole[0] == int(np.argmax(logits))
        assert set(small) <= set(listed.tolist()) and all(0 < chance <= 1 for chance in chances)
        order = listed[np.argsort(-logits[listed])]
        same += small[0] == order[0]
        assert small[0] in order[:8]
    assert same > len(after) * 0.6
    assert any(whole[0] not in listed for whole, _, _ in before)  # else nothing was left out


def test_answers_are_those_without_it(tiny: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = tiny.tokens(20, 5)
    monkeypatch.setattr(DrafterRecord, "worth_asking", lambda self, times, most: most)
    monkeypatch.setattr(DrafterRecord, "best_length", lambda self, sureness, times, n_rows, expected: (len(sureness), 1.0))

    def answer(rows: int, draft: str) -> list[tuple[int, float]]:
        with opened(tiny, rows) as model, model.session(context=128) as session:
            pieces = session.generate(prompt, max_tokens=60, seed=2, draft=draft)
            found = [(piece.token, piece.logprob) for piece in pieces]
            assert pieces.drafts.n_drafted > 20 or draft == "off"
            return found

    expected = answer(ROWS, "off")
    assert answer(ROWS, "mtp") == answer(0, "mtp") == expected


def test_none_is_made_where_it_gains_nothing(tiny: TinyModel) -> None:
    for rows in (0, 32768):
        with opened(tiny, rows) as model:
            assert model.draft_head_bytes == 0
            model.prepare_drafts()
    with pyflash.Model.open(tiny.path, draft_head=ROWS) as model:
        assert bool(model.draft_head_bytes) == model.info.has_mtp
    with pytest.raises(pyflash.ArgumentError, match="draft_head"):
        opened(tiny, -1)
