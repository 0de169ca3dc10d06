"""Choices of experts and of compressed rows that are noted, and held."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyflash
import pytest
from pyflash.engine.choices import Choices
from tiny_models import TinyModel, make_tiny_model

from oracle.compare import kl_divergence

T = 300  # twice as many rows as the indexer keeps
SPLITS = ([T], [1] * 7 + [50, 143, 1, T - 201])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("choices"), seed=51)


def evaluate(session: pyflash.Session, tokens: np.ndarray, split: list[int]) -> np.ndarray:
    session.rollback(session.position)
    pieces = np.split(tokens, np.cumsum(split)[:-1])
    return np.concatenate([session.eval(piece, all_logits=True) for piece in pieces])


@pytest.mark.parametrize("precision", ["fast", "exact"])
def test_own_choices_change_no_bit(tiny: TinyModel, precision: str) -> None:
    tokens = tiny.tokens(T, 52)
    with pyflash.Model.open(tiny.path, precision=precision) as model, model.session(context=T, chunk=T) as session:
        plain = evaluate(session, tokens, [T])
        noted = [Choices.of(model.info, T) for _ in SPLITS]
        for choices, split in zip(noted, SPLITS, strict=True):
            session.note_choices(choices)
            assert np.array_equal(evaluate(session, tokens, split), plain)
        assert np.array_equal(noted[0].experts, noted[1].experts) and np.array_equal(noted[0].rows, noted[1].rows)
        session.hold_choices(noted[0])
        assert all(np.array_equal(evaluate(session, tokens, split), plain) for split in SPLITS)
        session.hold_choices(None)
        assert np.array_equal(evaluate(session, tokens, [T]), plain)


def test_what_is_noted_is_what_taps_show(tiny: TinyModel) -> None:
    tokens = tiny.tokens(T, 53)
    taps: list[tuple[str, int, int, np.ndarray]] = []
    with pyflash.Model.open(tiny.path) as model, model.session(context=T) as session:
        choices = Choices.of(model.info, T)
        session.note_choices(choices)
        session.set_tap(lambda *tap: taps.append(tap) if tap[0] in ("experts", "topk") else None)
        session.eval(tokens)
        sparse = [layer for layer, ratio in enumerate(model.info.layer_ratios) if ratio == 4]
    assert len(taps) == T * (model.info.n_layer + len(sparse))
    for name, layer, position, data in taps:
        noted = choices.experts[layer, position] if name == "experts" else choices.rows[sparse.index(layer), position]
        assert np.array_equal(noted[: len(data)], data) and (noted[len(data) :] == -1).all()


def test_held_choices_leave_what_weights_change(tiny: TinyModel, tmp_path: Path) -> None:
    """Flipped choices are most of what a random model's roundings do, and all of the outliers."""
    rounded = make_tiny_model(tmp_path, seed=51, dense="q8_0")
    tokens = tiny.tokens(T, 54)
    with pyflash.Model.open(tiny.path) as model, model.session(context=T) as session:
        choices = Choices.of(model.info, T)
        session.note_choices(choices)
        base = session.eval(tokens, all_logits=True)
    with pyflash.Model.open(rounded.path) as model, model.session(context=T) as session:
        free = kl_divergence(base, session.eval(tokens, all_logits=True))
        session.hold_choices(choices)
        session.rollback(T)
        held = kl_divergence(base, session.eval(tokens, all_logits=True))
    print(f"\nfree {free.mean():.5f}, std {free.std():.5f}; held {held.mean():.5f}, std {held.std():.5f}")
    assert 0 < held.mean() < 0.5 * free.mean() and held.std() < 0.5 * free.std()


def test_what_cannot_be_is_refused(tiny: TinyModel) -> None:
    tokens = tiny.tokens(T, 55)
    with pyflash.Model.open(tiny.path) as model, model.session(context=T) as session:
        choices = Choices.of(model.info, T)
        session.note_choices(choices)
        plain = session.eval(tokens, all_logits=True)
        hash_layers, sparse = model.info.n_hash_layer, choices.rows.shape[0]
        assert hash_layers and sparse
        damages = [("experts", (hash_layers, 9, 1), model.info.n_expert), ("experts", (hash_layers, 9, 1), -1),
                   ("experts", (hash_layers, 9, 1), choices.experts[hash_layers, 9, 0]),
                   ("rows", (sparse - 1, 299, 31), 75), ("rows", (sparse - 1, 299, 1), choices.rows[sparse - 1, 299, 0])]
        session.rollback(T)
        for name, place, value in damages:
            wrong = Choices(choices.experts.copy(), choices.rows.copy())
            getattr(wrong, name)[place] = value
            session.hold_choices(wrong)
            with pytest.raises(pyflash.ArgumentError, match=f"the {name} held for layer .* cannot be this model's"):
                session.eval(tokens, all_logits=True)
            assert session.position == 0
        session.hold_choices(Choices.of(model.info, T - 1))
        with pytest.raises(pyflash.ArgumentError, match="choices of 299 positions, and the step ends at 300"):
            session.eval(tokens)
        smaller = dataclasses.replace(model.info, n_expert_used=model.info.n_expert_used - 1)
        with pytest.raises(pyflash.ArgumentError, match="another model's sizes"):
            session.hold_choices(Choices.of(smaller, T))
        session.hold_choices(choices)
        assert np.array_equal(session.eval(tokens, all_logits=True), plain)
