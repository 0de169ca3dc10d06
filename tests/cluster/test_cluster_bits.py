"""Stages that are processes of their own give the bits of the whole model, for every state of a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from cluster_logits import CONTEXT, same
from pyflash.cluster.chain import piece_length
from pyflash.cluster.streams import from_bfloat16, to_bfloat16

pytestmark = pytest.mark.cluster


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


@pytest.mark.parametrize(("kind", "n"), [("mtp", 2), ("dspark", 5)])
def test_the_last_stage_drafts(kind: str, n: int, ray_here: Any, demo_model: Path, whole: pyflash.Model) -> None:
    mtp = pyflash.demo.draft_path(kind)
    prompt = whole.tokenizer.encode("Hello, what is 2 + 3? I would like to know.")
    with pyflash.Model.open(demo_model, device="cpu", threads=1, mtp=mtp) as alone, alone.session(context=CONTEXT) as session:
        wanted = [piece.token for piece in session.generate(prompt, 30, draft="off", temperature=0)]
        drafted = session.draft_tokens(wanted[-1], n)
    with pyflash.cluster.Model.open(demo_model, 2, threads=1, mtp=mtp) as model, model.session(context=CONTEXT) as session:
        assert model.info.drafts == kind
        pieces = session.generate(prompt, 30, draft=kind, temperature=0)
        assert [piece.token for piece in pieces] == wanted
        assert session.draft_tokens(wanted[-1], n) == drafted


def test_several_sessions_in_steps(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    sessions = [model.session(context=CONTEXT) for _ in range(5)]
    starts = [3, 40, 200, 300, 7]
    found = pyflash.eval_many([(session, tokens[:n]) for session, n in zip(sessions, starts)])
    for n, each in zip(starts, found):
        same(each, reference[n - 1])
    for k in (1, 4):
        work = [(session, tokens[session.position : session.position + k]) for session in sessions]
        for session, each in zip(sessions, pyflash.eval_many(work, "all", keep=False)):
            at = session.position
            same(each, reference[at : at + k])
            session.keep(1)
            assert session.ahead == k - 1 and (k == 1 or session.advance())
            assert session.position == at + min(k, 2)
    sessions[1].cancel()
    work = [(session, tokens[session.position : session.position + 2]) for session in sessions]
    results = pyflash.eval_many(work, "all", return_errors=True)
    assert isinstance(results[1], pyflash.CancelledError) and sessions[1].position == starts[1] + 3
    for i in (0, 2, 3, 4):
        same(results[i], reference[starts[i] + 3 : starts[i] + 5])
    for session, n in zip(sessions, starts):
        same(session.eval(tokens[session.position : n + 9]), reference[n + 8])
        session.close()


def test_a_model_whole_in_one_step_with_another_is_refused(whole: Any, two: Any) -> None:
    with two.session(context=CONTEXT) as one, whole.session(context=CONTEXT) as other:
        with pytest.raises(pyflash.ArgumentError):
            pyflash.eval_many([(one, [1]), (other, [1])])
        with pytest.raises(pyflash.ArgumentError):
            pyflash.eval_many([(one, [1]), (one, [1])])


def test_narrow_streams(ray_here: Any, demo_model: Path, tokens: np.ndarray, reference: np.ndarray) -> None:
    """Half the bytes: near the whole model's logits, the same however tokens are split, and not the same bits."""
    values = np.array([1.0, -1.00390625, 1.01171875, 3.0e38, np.inf, 1e-40, np.nan], dtype=np.float32)
    back = from_bfloat16(to_bfloat16(values))
    np.testing.assert_array_equal(back[:3], [1.0, -1.0, 1.015625])  # halfway goes to even
    assert np.isinf(back[4]) and np.isnan(back[6]) and abs(back[3] / 3e38 - 1) < 0.004
    with pyflash.cluster.Model.open(demo_model, 2, threads=1, streams="bfloat16") as model, model.session() as session:
        logits = session.eval(tokens[:150], all_logits=True)
        assert not np.array_equal(logits, reference[:150])
        assert np.abs(logits - reference[:150]).mean() < 0.05 * np.abs(reference[:150]).mean()
        session.rollback(150)
        session.eval(tokens[:140])
        same(session.eval(tokens[140:150], all_logits=True), logits[140:])
    with pytest.raises(pyflash.ArgumentError, match="precision of streams"):
        pyflash.cluster.Model.open(demo_model, 2, streams="int4")
