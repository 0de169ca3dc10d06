"""Going back further than the rings remember: checkpoints, the reuse of prefixes, and both in session files."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from staged_models import open_stages
from tiny_models import TinyModel, make_tiny_model

ROLLBACK = 256  # what the rings remember
SLACK = 16      # how far before itself a checkpoint leads
T = 900
CONTEXT = T + 20


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Windows of both kinds close many times between a checkpoint and the end."""
    return make_tiny_model(
        tmp_path_factory.mktemp("checkpoint"), seed=31, mtp=True, dense="q8_0", hidden_size=64, num_attention_heads=2,
        o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, vocab_size=512, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip


@pytest.fixture(scope="module", params=["exact-1", "fast-1", "fast-2", "exact-3"])
def model(request: pytest.FixtureRequest, tiny: TinyModel) -> Any:
    """Whole, and in two and three stages."""
    precision, n_stages = request.param.split("-")
    with open_stages(tiny.path, int(n_stages), precision=precision, mtp=tiny.mtp_path, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def tokens(tiny: TinyModel) -> np.ndarray:
    return tiny.tokens(T, seed=32)


@pytest.fixture(scope="module")
def reference(model: Any, tiny: TinyModel, tokens: np.ndarray) -> np.ndarray:
    """Of the whole model."""
    with pyflash.Model.open(tiny.path, precision=model.info.precision, mtp=tiny.mtp_path, threads=2) as whole:
        with whole.session(context=CONTEXT, chunk=T) as session:
            return session.eval(tokens, all_logits=True)


@pytest.mark.parametrize("back", [0, 1, SLACK])
@pytest.mark.parametrize("at", [20, 131, 300])
def test_returns_to_a_checkpoint_and_goes_on_with_the_same_bits(
    model: Any, tokens: np.ndarray, reference: np.ndarray, at: int, back: int
) -> None:
    with model.session(context=CONTEXT, chunk=100, poison=True) as session:
        session.eval(tokens[:at])
        session.checkpoint()
        session.eval(tokens[at:])
        session.rollback(T - at + back)
        assert session.position == at - back
        assert np.array_equal(session.eval(tokens[at - back :], all_logits=True), reference[at - back :])


def test_drafts_are_the_same_after_returning(model: Any, tokens: np.ndarray) -> None:
    with model.session(context=CONTEXT, poison=True) as session:
        session.eval(tokens[:200])
        before = session.draft(5)
        session.checkpoint()
        session.eval(tokens[200:])
        session.rollback(T - 200)
        assert np.array_equal(session.draft(5), before)


def test_other_positions_need_a_rebuild_and_nothing_changes(
    model: Any, tokens: np.ndarray, reference: np.ndarray
) -> None:
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[:300])
        session.checkpoint()
        session.eval(tokens[300:-1])
        for target in (300 - SLACK - 1, 301, T - 2 - ROLLBACK):
            with pytest.raises(pyflash.RebuildError, match="checkpoint"):
                session.rollback(session.position - target)
        assert session.position == T - 1
        assert np.array_equal(session.eval(tokens[-1:]), reference[-1])


def test_one_goes_for_another_and_what_is_rolled_back_over_goes(model: Any, tokens: np.ndarray) -> None:
    with model.session(context=CONTEXT, checkpoints=2) as session:
        for begin, end in ((0, 100), (100, 200), (200, 300)):
            session.eval(tokens[begin:end])
            session.checkpoint()
        session.eval(tokens[300:])
        with pytest.raises(pyflash.RebuildError):
            session.rollback(T - 100)
        session.rollback(T - 200)
        session.eval(tokens[200:])
        with pytest.raises(pyflash.RebuildError):
            session.rollback(T - 300)
        session.rollback(T - 200)
        assert session.position == 200


def test_those_that_stay_lie_closer_together_the_later_they_are(
    model: Any, tokens: np.ndarray, tmp_path: Path
) -> None:
    """A change anywhere in a conversation finds one (or the start) hardly further before it than the end is after."""
    with model.session(context=CONTEXT, chunk=64, checkpoints=6) as session:
        for begin in range(0, T, 30):
            session.eval(tokens[begin : begin + 30])
            session.checkpoint()
        session.save(tmp_path / "session")
        kept = {}
        for change in range(100, T - ROLLBACK, 20):
            session.load(tmp_path / "session")
            wanted = tokens.copy()
            wanted[change] = (wanted[change] + 1) % 512
            kept[change] = session.reuse(wanted)
    assert len(set(kept.values())) >= 2
    for change, position in kept.items():
        assert change - position <= 1.25 * (T - change), kept


def test_a_session_without_checkpoints_says_so(model: Any, tokens: np.ndarray) -> None:
    with model.session(context=CONTEXT, checkpoints=0) as session:
        assert session.memory.checkpoint_bytes == 0
        session.eval(tokens[:5])
        with pytest.raises(pyflash.UnsupportedError, match="checkpoint"):
            session.checkpoint()


def test_reuse_keeps_as_much_of_a_prefix_as_can_be_kept(model: Any, tokens: np.ndarray) -> None:
    def changed(at: int, length: int) -> np.ndarray:
        other = tokens[:length].copy()
        other[at] = (other[at] + 1) % 512
        return other

    with model.session(context=CONTEXT) as session:
        assert session.reuse(tokens[:10]) == 0
        session.eval(tokens[:300])
        session.checkpoint()
        session.eval(tokens[300:])
        assert session.reuse(tokens) == T - 1  # one is left for its logits
        assert session.reuse(changed(T - 100, T)) == T - 100  # within the rings
        assert session.reuse(changed(400, T)) == 300  # the checkpoint
        session.eval(tokens[300:])
        session.checkpoint()
        session.eval(tokens[300:310])
        assert session.reuse(changed(295, T)) == 295  # just before it
        session.eval(tokens[295:])
        assert session.reuse(changed(280, T)) == 0  # too far before it
        assert session.position == 0


def test_what_can_be_reused_is_told_beforehand(model: Any, tokens: np.ndarray) -> None:
    with model.session(CONTEXT) as session:
        session.eval(tokens[:400])
        session.checkpoint()
        session.eval(tokens[400:])
        assert session.reusable([]) == 0
        with pytest.raises(pyflash.ArgumentError):
            session.reusable([-1])
        for n in (T, T - 10, T - ROLLBACK, 500, 405, 400, 390, 300, 1):
            changed = np.append(tokens[:n], (tokens[n % T] + 1) % 512)
            told, moves = session.reusable(changed), session.n_moves
            assert session.position == T and session.n_moves == moves
            with model.session(CONTEXT) as other:
                other.eval(tokens[:400])
                other.checkpoint()
                other.eval(tokens[400:])
                assert other.reuse(changed) == told, n


def test_after_a_cancelled_long_step_a_checkpoint_still_leads_back(
    model: Any, tokens: np.ndarray, reference: np.ndarray
) -> None:
    with model.session(context=CONTEXT, chunk=T) as session:
        session.eval(tokens[:300])
        session.checkpoint()
        session.eval(tokens[300:310])
        layers = []

        def cancel_late(name: str, layer: int, _position: int, _data: Any) -> None:
            layers.append(layer)
            if len(layers) == 4000:
                session.cancel()

        session.set_tap(cancel_late)
        with pytest.raises(pyflash.CancelledError):
            session.eval(tokens[310:])
        session.set_tap(None)
        assert session.rollback_limit == 0
        session.rollback(10)
        assert np.array_equal(session.eval(tokens[300:], all_logits=True), reference[300:])


def test_a_second_checkpoint_at_a_position_leads_back_as_far_as_the_first(
    model: Any, tokens: np.ndarray, reference: np.ndarray
) -> None:
    """After a long step was cancelled, the rings lead back to nothing, and a copy of them to no more."""
    with model.session(context=CONTEXT, chunk=T) as session:
        session.eval(tokens[:300])
        session.checkpoint()
        session.set_tap(lambda *_: session.cancel())
        with pytest.raises(pyflash.CancelledError):
            session.eval(tokens[300:])
        session.set_tap(None)
        assert session.rollback_limit == 0
        session.checkpoint()
        session.eval(tokens[300:])
        session.rollback(T - 300 + SLACK)
        assert np.array_equal(session.eval(tokens[300 - SLACK :], all_logits=True), reference[300 - SLACK :])


def test_files_carry_checkpoints_and_note(
    model: Any, tokens: np.ndarray, reference: np.ndarray, tmp_path: Path
) -> None:
    file = tmp_path / "session"
    with model.session(context=CONTEXT, chunk=64) as session:
        session.eval(tokens[:300])
        session.checkpoint()
        session.eval(tokens[300:700])
        session.checkpoint()
        session.eval(tokens[700:])
        session.note = "a conversation, ünd more".encode()
        session.save(file)
    for checkpoints, target in ((8, 300), (1, 700)):
        with model.session(context=CONTEXT + 100, chunk=200, checkpoints=checkpoints, poison=True) as session:
            session.eval(tokens[50:90])
            session.checkpoint()
            session.load(file)
            assert session.note.decode() == "a conversation, ünd more"
            assert np.array_equal(session.tokens, tokens)
            session.rollback(T - target)
            assert np.array_equal(session.eval(tokens[target:], all_logits=True), reference[target:])


@pytest.mark.parametrize("damage", ["shorter", "longer", "checkpoint", "note", "count"])
def test_damaged_files_change_nothing(model: Any, tokens: np.ndarray, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "session"
    with model.session(context=CONTEXT) as session:
        session.eval(tokens[:50])
        session.checkpoint()
        session.note = b"note"
        session.save(file)
        data = bytearray(file.read_bytes())
        if damage == "shorter":
            del data[-9:]
        elif damage == "longer":
            data += b"1234567"
        elif damage == "checkpoint":
            data[-200] ^= 1
        elif damage == "note":
            data[-10] ^= 1
        else:
            assert data[48:56] == (1).to_bytes(8, "little")  # the number of checkpoints
            data[48:56] = (2**61).to_bytes(8, "little")
        file.write_bytes(data)
        session.note = b"mine"
        session.eval(tokens[50:60])
        with pytest.raises(pyflash.FormatError, match="damaged"):
            session.load(file)
        assert session.position == 60 and session.note == b"mine"


@pytest.mark.parametrize("seed", range(4))
def test_any_history_gives_the_same_logits(model: Any, tmp_path: Path, seed: int) -> None:
    """Random evaluations, rollbacks, checkpoints, reuses, saves and loads against an evaluation from nothing."""
    rng = random.Random(seed)
    with model.session(context=CONTEXT, chunk=150, checkpoints=3, poison=True) as session:
        for step in range(60):
            action = rng.choice(["eval", "eval", "eval", "rollback", "checkpoint", "reuse", "file"])
            room = session.capacity - session.position
            if action == "eval" and room > 0:
                session.eval([rng.randrange(512) for _ in range(rng.randint(1, min(room, rng.choice([5, 400]))))])
            elif action == "rollback" and session.position:
                try:
                    session.rollback(rng.randint(0, session.position))
                except pyflash.RebuildError:
                    pass
            elif action == "checkpoint":
                session.checkpoint()
            elif action == "reuse" and session.position:
                wanted = session.tokens[: rng.randint(1, session.position)].tolist() + [rng.randrange(512)]
                kept = session.reuse(wanted)
                assert kept == session.position < len(wanted)
                assert session.tokens.tolist() == wanted[:kept]
            elif action == "file":
                session.save(tmp_path / "session")
                session.load(tmp_path / "session")
            if step % 10 == 9 and session.position < session.capacity:
                history = session.tokens.tolist()
                got = session.eval([7])
                with model.session(context=CONTEXT, chunk=CONTEXT) as fresh:
                    assert np.array_equal(got, fresh.eval([*history, 7]))
