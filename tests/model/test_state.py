"""Gate 2: however a sequence is split into calls, rolled back, or saved and loaded, the logits are the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from staged_models import open_stages
from tiny_models import TinyModel, make_tiny_model

T = 420
CONTEXT = T + 40
PRECISIONS = ("exact", "fast", "int8")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """All layer kinds at a size where thousands of tokens take seconds."""
    return make_tiny_model(
        tmp_path_factory.mktemp("state"), seed=21, dense="q8_0", hidden_size=64, num_attention_heads=2,
        o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, vocab_size=512, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip


class CachedModel:
    """A model whose sessions keep their cache in one of the precisions there are."""

    def __init__(self, model: Any, cache: str) -> None:
        self.precision = model.info.precision
        self._model = model
        self.cache = cache

    def session(self, **options: Any) -> Any:
        return self._model.session(cache=self.cache, **options)


@pytest.fixture(scope="module", params=["exact-auto-1", "fast-f16-1", "fast-reference-1", "int8-f16-1",
                                        "fast-reference-2", "exact-auto-3"])
def model(request: pytest.FixtureRequest, tiny: TinyModel) -> Any:
    """Whole, and in two and three stages."""
    precision, cache, n_stages = request.param.split("-")
    with open_stages(tiny.path, int(n_stages), precision=precision, threads=2) as opened:
        yield CachedModel(opened, cache)


@pytest.fixture(scope="module")
def tokens(tiny: TinyModel) -> np.ndarray:
    return tiny.tokens(T, seed=22)


@pytest.fixture(scope="module")
def reference(model: CachedModel, tiny: TinyModel, tokens: np.ndarray) -> np.ndarray:
    """One call, one chunk, all layers."""
    with pyflash.Model.open(tiny.path, precision=model.precision, threads=2) as whole:
        with whole.session(context=CONTEXT, chunk=T, cache=model.cache) as session:
            logits = session.eval(tokens, all_logits=True)
    assert np.isfinite(logits).all() and logits.std() > 0.1
    return logits


def same(logits: np.ndarray, reference: np.ndarray, start: int = 0) -> None:
    """Bit for bit; names the first position that differs."""
    expected = reference[start : start + len(logits)]
    wrong = np.flatnonzero((logits.view(np.uint32) != expected.view(np.uint32)).any(-1))
    if len(wrong):
        t = wrong[0]
        apart = np.abs(logits[t] - expected[t]).max()
        pytest.fail(f"{len(wrong)} of {len(logits)} positions differ, the first is {start + t}, by up to {apart:.3g}")


def window_end(position: int) -> int:
    """A position by which everything cached before `position` has mattered: past the end of its 128-window."""
    return min((position // 128 + 1) * 128 + 3, T)


@pytest.mark.parametrize("chunk", [1, 3, 4, 5, 64, 127, 128, 129, 200, T])
def test_chunk_size(model: Any, tokens: np.ndarray, reference: np.ndarray, chunk: int) -> None:
    with model.session(context=CONTEXT, chunk=chunk, poison=True) as session:
        same(session.eval(tokens, all_logits=True), reference)


@pytest.mark.parametrize("seed", range(6))
def test_random_splits(model: Any, tokens: np.ndarray, reference: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cuts = np.unique(rng.integers(1, T, rng.integers(1, 60)))
    with model.session(context=CONTEXT, chunk=int(rng.integers(1, 300)), poison=True) as session:
        same(np.concatenate([session.eval(part, all_logits=True) for part in np.split(tokens, cuts)]), reference)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_thread_count(tiny: TinyModel, tokens: np.ndarray, precision: str) -> None:
    logits = []
    for threads in (1, 2, 3):
        with pyflash.Model.open(tiny.path, precision=precision, threads=threads) as opened:
            with opened.session(context=CONTEXT, chunk=100, poison=True) as session:
                logits.append(session.eval(tokens, all_logits=True))
    same(logits[1], logits[0])
    same(logits[2], logits[0])


def test_poison_changes_nothing(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT, chunk=100, poison=True) as session:
        same(session.eval(tokens, all_logits=True), reference)


def test_last_logits_are_those_of_all(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT, chunk=64, poison=True) as session:
        for start, stop in ((0, 1), (1, 130), (130, 131), (131, T)):
            same(session.eval(tokens[start:stop])[None], reference, stop - 1)


def test_rollback_to_every_residue(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    """To every position of a 128-window, with other tokens written there first, then the true ones again."""
    rng = np.random.default_rng(23)
    with model.session(context=CONTEXT, chunk=100, poison=True) as session:
        session.eval(tokens[:384])
        for position in rng.permutation(np.arange(256, 384)):
            session.rollback(session.position - int(position))
            wrong = rng.integers(0, 512, int(rng.integers(1, 150))).astype(np.int32)[: CONTEXT - position]
            session.eval(wrong)
            session.rollback(len(wrong))
            assert session.position == position
            end = window_end(int(position))
            same(session.eval(tokens[position:end], all_logits=True), reference, int(position))
            if end < 384:
                session.eval(tokens[end:384])


def test_deepest_rollback(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT, chunk=90, poison=True) as session:
        session.eval(tokens)
        limit = session.rollback_limit
        assert limit >= 256
        session.rollback(limit)
        same(session.eval(tokens[T - limit :], all_logits=True), reference, T - limit)
        for n in (1, 0, 255):
            session.rollback(n)
            if n:
                same(session.eval(tokens[T - n :], all_logits=True), reference, T - n)


def test_rollback_beyond_the_limit_changes_nothing(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT, chunk=90, poison=True) as session:
        session.eval(tokens[:400])
        too_many = session.rollback_limit + 1
        if too_many < 400:
            with pytest.raises(pyflash.RebuildError):
                session.rollback(too_many)
        with pytest.raises(pyflash.Error):
            session.rollback(401)
        assert session.position == 400
        same(session.eval(tokens[400:], all_logits=True), reference, 400)


def test_rollback_of_everything(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=CONTEXT, chunk=90, poison=True) as session:
        session.eval(tokens[::-1].copy())
        session.rollback(T)
        assert session.position == 0
        same(session.eval(tokens, all_logits=True), reference)


def test_rollback_bit_by_bit(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    """Many small steps back never add up to more than the cache remembers unnoticed."""
    rng = np.random.default_rng(24)
    with model.session(context=CONTEXT, chunk=50, poison=True) as session:
        session.eval(tokens[:300])
        for _ in range(60):
            n = int(rng.integers(1, 40))
            if n <= session.rollback_limit:
                session.rollback(n)
            start = session.position
            stop = min(start + int(rng.integers(1, 42)), T)
            if stop > start:
                same(session.eval(tokens[start:stop], all_logits=True), reference, start)


def test_save_and_load_at_every_residue(
    model: Any, tokens: np.ndarray, reference: np.ndarray, tmp_path: Path
) -> None:
    """At every position of a 128-window (so every residue modulo 4 too), into a session of another chunk size."""
    file = tmp_path / "state"
    with model.session(context=CONTEXT, chunk=100, poison=True) as writer:
        with model.session(context=CONTEXT + 64, chunk=37, poison=True) as reader:
            writer.eval(tokens[:128])
            for position in range(128, 257):
                writer.save(file)
                reader.load(file)
                assert reader.position == position
                end = window_end(position)
                same(reader.eval(tokens[position:end], all_logits=True), reference, position)
                same(writer.eval(tokens[position : position + 1], all_logits=True), reference, position)


def test_loaded_session_rolls_back(model: Any, tokens: np.ndarray, reference: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "state"
    with model.session(context=CONTEXT, chunk=100, poison=True) as writer:
        writer.eval(tokens[:401])
        writer.save(file)
    for n in (1, 130, 256):
        with model.session(context=CONTEXT, chunk=100, poison=True) as reader:
            reader.load(file)
            assert reader.rollback_limit >= 256
            reader.rollback(n)
            same(reader.eval(tokens[401 - n :], all_logits=True), reference, 401 - n)


def test_save_of_an_empty_session(model: Any, tokens: np.ndarray, reference: np.ndarray, tmp_path: Path) -> None:
    file = tmp_path / "state"
    with model.session(context=CONTEXT, poison=True) as writer:
        writer.save(file)
    with model.session(context=CONTEXT, poison=True) as reader:
        reader.eval(tokens[:9])
        reader.load(file)
        assert reader.position == 0
        same(reader.eval(tokens[:200], all_logits=True), reference)


def test_damaged_state_files_change_nothing(
    model: Any, tokens: np.ndarray, reference: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    with model.session(context=CONTEXT, poison=True) as session:
        session.eval(tokens[:150])
        session.save(file)
        good = file.read_bytes()
        for bad in (b"", good[:7], good[:100], good[:-1], good + b"x", b"X" + good[1:], bytes(len(good))):
            file.write_bytes(bad)
            with pytest.raises(pyflash.Error):
                session.load(file)
        with pytest.raises(pyflash.Error):
            session.load(tmp_path / "absent")
        assert session.position == 150
        same(session.eval(tokens[150:], all_logits=True), reference, 150)


def test_state_needs_room_and_the_same_precision(
    tiny: TinyModel, model: Any, tokens: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "state"
    with model.session(context=CONTEXT, poison=True) as session:
        session.eval(tokens[:150])
        session.save(file)
    with model.session(context=140) as small, pytest.raises(pyflash.Error):
        small.load(file)
    other = next(p for p in PRECISIONS if p != model.precision)
    with pyflash.Model.open(tiny.path, precision=other) as opened, opened.session(context=CONTEXT) as session:
        with pytest.raises(pyflash.Error):
            session.load(file)


class Interrupted(Exception):
    """Raised from a tap to break off an evaluation."""


@pytest.mark.parametrize("chunk", [50, 210, 500])
def test_interrupted_steps_leave_no_trace(
    model: Any, tokens: np.ndarray, reference: np.ndarray, chunk: int
) -> None:
    """A step broken off in the middle of any layer has written part of the cache; the position before still holds."""
    rng = np.random.default_rng(25)
    with model.session(context=700, chunk=chunk, poison=True) as session:
        session.eval(tokens[:130])
        for position in range(130, 190, 3):
            stop = (str(rng.choice(["attn_in", "kv", "attn_out", "ffn_out"])), int(rng.integers(0, 6)))

            def interrupt(name: str, layer: int, _position: int, _value: np.ndarray, stop: Any = stop) -> None:
                if (name, layer) == stop:
                    raise Interrupted

            session.set_tap(interrupt)
            with pytest.raises(Interrupted):
                session.eval(rng.integers(0, 512, chunk).astype(np.int32))
            session.set_tap(None)
            assert session.position == position
            back = min(session.rollback_limit, int(rng.integers(0, 100)))
            session.rollback(back)
            again = tokens[position - back : position + 3]
            same(session.eval(again, all_logits=True), reference, position - back)
        end = session.position
        same(session.eval(tokens[end:], all_logits=True), reference, end)
        session.rollback(200)
        same(session.eval(tokens[T - 200 :], all_logits=True), reference, T - 200)


def test_a_full_context_evaluates_nothing(model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    with model.session(context=200, chunk=64, poison=True) as session:
        session.eval(tokens[:190])
        with pytest.raises(pyflash.ContextFullError):
            session.eval(tokens[190:201])
        assert session.position == 190
        same(session.eval(tokens[190:200], all_logits=True), reference, 190)
