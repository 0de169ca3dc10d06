"""Stages that are processes of their own give the bits of the whole model, for every state of a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from pyflash.cluster.chain import piece_length

pytestmark = pytest.mark.cluster

CONTEXT = 1024


def same(logits: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(logits.view(np.uint32), expected.view(np.uint32))


def test_any_split(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT) as session:
        begin = 0
        for n in (1, 2, 130, 1, 400, 7):
            same(session.eval(tokens[begin : begin + n], all_logits=True), reference[begin : begin + n])
            begin += n
            assert session.position == begin and session.tokens.tolist() == tokens[:begin].tolist()
        same(session.eval(tokens[begin:]), reference[-1])
        assert [session.ahead, session.waiting] == [0, 0]


def test_a_long_prompt_goes_through_in_pieces(two: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    told: list[tuple[int, int]] = []
    with two.session(context=CONTEXT) as session:
        assert len(tokens) > piece_length(len(tokens), 2, session.chunk)
        same(session.eval(tokens, progress=lambda done, total: told.append((done, total))), reference[-1])
    assert len(told) > 2 and told[-1] == (900, 900)


@pytest.mark.parametrize("draft", ["off", "ngram", "known"])
def test_generation(whole: Any, model: Any, draft: str) -> None:
    prompt = whole.tokenizer.encode("The cat sat on the mat. The cat sat on") * 6
    with whole.session(context=CONTEXT) as session:
        wanted = [piece.token for piece in session.generate(prompt, 40, draft="off", temperature=0)]

    def known(so_far: Any, most: int) -> list[int]:
        at = len(so_far) - len(prompt)
        return [*wanted[at : at + 3], 7][:most]

    with model.session(context=CONTEXT) as session:
        pieces = session.generate(prompt, 40, draft=known if draft == "known" else draft, temperature=0)
        assert [piece.token for piece in pieces] == wanted
        assert draft != "known" or pieces.drafts.n_kept > 0
