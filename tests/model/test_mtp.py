"""The MTP block's drafts against the oracle's mtp_forward, and their independence from the session's history."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from tiny_models import TinyModel, make_tiny_model

from oracle.compare import relative_l2
from oracle.core import choices_of, eval_with_taps
from oracle.layer_weights import LayerWeights
from oracle.model import Oracle, rms_norm

T = 200
POSITIONS = (1, 2, 63, 64, 65, 66, 128, 129, T)  # the window is 64 tokens
NEAR_TIE = 1e-4


@pytest.fixture(scope="module", params=["compat", "native"])
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("mtp"), seed=41, profile=request.param, mtp=True)


def open_model(tiny: TinyModel, precision: str = "exact") -> Any:
    return pyflash.Model.open(tiny.path, precision=precision, mtp=tiny.mtp_path)


def test_drafts_agree_with_the_oracle(tiny: TinyModel) -> None:
    tokens = tiny.tokens(T + 1, 42)
    with open_model(tiny) as model, model.session(context=T + 1, chunk=50, poison=True) as session:
        assert model.info.has_mtp
        _, taps = eval_with_taps(session, tokens[:T])
        session.rollback(T)
        oracle = Oracle(tiny.config, tiny.weights)
        forced = choices_of(taps, tiny.config, T)
        expected = oracle.mtp_forward(tokens[:T], tokens[1:], forced=forced)
        (mtp_choice,) = [c for c in oracle.choices if c.layer == tiny.config.num_hidden_layers]
        margin = mtp_choice.margin / mtp_choice.scale
        done = 0
        for position in POSITIONS:
            session.eval(tokens[done:position])
            done = position
            error = relative_l2(session.draft(int(tokens[position])), expected[position - 1])
            tie = margin[position - 1] < NEAR_TIE
            print(f"position {position}: relative error {error:.2e}{', a near-tied expert' if tie else ''}")
            assert error < 2e-5 or tie


def chain_of(oracle: Oracle, tokens: np.ndarray, first: int, n: int) -> tuple[list[int], list[float], float]:
    """n tokens that the block drafts behind `first`, which stands behind tokens: their probabilities, and how near a choice
    of experts was to another. From the second on it goes on from its own streams."""
    config, w = oracle.config, LayerWeights(oracle.weights, "mtp.0.", oracle.numerics)
    layer, eps = config.num_hidden_layers, config.rms_norm_eps
    streams = oracle._streams(tokens, None, None)
    following = [*tokens[1:].tolist(), first]
    drafted, chances, margin = [], [], np.inf
    for _ in range(n):
        e = w.linear(rms_norm(oracle.weights["embed.weight"][following], eps) * w["enorm.weight"], "e_proj")
        h = w.linear(rms_norm(streams, eps) * w["hnorm.weight"], "h_proj")
        oracle.choices = []
        own = oracle._block("mtp.0.", layer, e[:, None, :] + h, np.asarray(following), None, None)
        margin = min([margin, *(float((choice.margin / choice.scale)[-1]) for choice in oracle.choices)])
        logits = oracle._head("mtp.0.", own, layer, None)[-1]
        drafted.append(int(np.argmax(logits)))
        chances.append(float(1 / np.exp(logits - logits.max()).sum()))
        streams = np.concatenate([streams, own[-1:]])
        following.append(drafted[-1])
    return drafted, chances, margin


def test_a_chain_agrees_with_the_oracle(tiny: TinyModel) -> None:
    """Three tokens, the later ones from the block's own streams, on both sides of the window's end."""
    oracle = Oracle(tiny.config, tiny.weights)
    compared = 0
    with open_model(tiny) as model, model.session(context=200, chunk=50, poison=True) as session:
        for position in (1, 2, 62, 63, 64, 65, 100):
            tokens = tiny.tokens(position + 1, 50 + position)
            session.rollback(session.position)
            session.eval(tokens[:position])
            drafted, chances, margin = chain_of(oracle, tokens[:position], int(tokens[position]), 3)
            if margin < NEAR_TIE:
                continue  # another expert, within rounding
            got, got_chances = session.draft_tokens(int(tokens[position]), 3)
            assert got == drafted
            np.testing.assert_allclose(got_chances, chances, rtol=1e-4)
            compared += 1
    assert compared >= 4


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_drafting_leaves_the_session_alone(tiny: TinyModel, precision: str) -> None:
    tokens = tiny.tokens(T + 1, 43)
    with open_model(tiny, precision) as model, model.session(context=T + 1, chunk=50, poison=True) as session:
        plain = session.eval(tokens, all_logits=True)
        session.rollback(T + 1)
        drafted = []
        for start in range(0, T, 20):
            drafted.append(session.eval(tokens[start : start + 20], all_logits=True))
            session.draft(int(tokens[3]))
            assert session.position == start + 20
        assert np.array_equal(np.concatenate(drafted), plain[:T])


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_drafts_do_not_depend_on_history(tiny: TinyModel, precision: str, tmp_path: Path) -> None:
    """The same bits after one call, after many, after rollback and replay, and after save and load."""
    tokens = tiny.tokens(T + 1, 44)
    following = int(tokens[T])
    with open_model(tiny, precision) as model:
        with model.session(context=300, chunk=T, poison=True) as session:
            session.eval(tokens[:T])
            expected = session.draft(following)
            assert not np.array_equal(session.draft((following + 1) % 512), expected)
            assert np.array_equal(session.draft(following), expected)
            session.save(tmp_path / "state")
            session.eval(tiny.tokens(90, 45))
            session.rollback(90)
            assert np.array_equal(session.draft(following), expected)
            session.rollback(77)
            session.draft(5)
            session.eval(tokens[T - 77 : T])
            assert np.array_equal(session.draft(following), expected)
        with model.session(context=300, chunk=7, poison=True) as session:
            earlier = {}
            for token in tokens[:T]:
                session.eval([token])
                if session.position in (T - 150, T - 1):
                    earlier[session.position] = session.draft(following)
            assert np.array_equal(session.draft(following), expected)
            session.rollback(1)
            assert np.array_equal(session.draft(following), earlier[T - 1])
            session.rollback(149)
            assert np.array_equal(session.draft(following), earlier[T - 150])
            session.eval(tokens[T - 150 : T])
            assert np.array_equal(session.draft(following), expected)
        with model.session(context=400, chunk=7, poison=True) as session:
            session.load(tmp_path / "state")
            assert np.array_equal(session.draft(following), expected)


def test_drafting_needs_tokens(tiny: TinyModel) -> None:
    with open_model(tiny) as model, model.session(context=16) as session:
        with pytest.raises(pyflash.ArgumentError):
            session.draft(1)
        session.eval([1])
        with pytest.raises(pyflash.ArgumentError):
            session.draft(512)


def test_drafting_needs_a_block(tmp_path: Path) -> None:
    plain = make_tiny_model(tmp_path, seed=46, num_hidden_layers=2, compress_ratios=[0, 4, 0], hidden_size=64)
    with open_model(plain) as model, model.session(context=16) as session:
        assert not model.info.has_mtp
        session.eval([1])
        with pytest.raises(pyflash.UnsupportedError):
            session.draft(1)


@pytest.mark.parametrize(
    "changes",
    [
        dict(num_attention_heads=64), dict(q_lora_rank=128), dict(o_groups=4), dict(o_lora_rank=128),
        dict(n_routed_experts=32), dict(num_experts_per_tok=2), dict(moe_intermediate_size=256), dict(sliding_window=128),
    ],
    ids=str,
)  # fmt: skip
def test_block_of_another_model_is_refused(tmp_path: Path, changes: dict[str, int]) -> None:
    """The block runs with the main file's sizes: one of other sizes would read and write past its buffers."""
    main = make_tiny_model(tmp_path / "main", seed=1)
    other = make_tiny_model(tmp_path / "other", seed=1, mtp=True, **changes)
    with pytest.raises(pyflash.Error, match="does not belong to this model"):
        pyflash.Model.open(main.path, mtp=other.mtp_path)
