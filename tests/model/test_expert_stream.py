"""Experts read ahead from disk under a budget: the same bits, and as few reads as the budget allows."""

from __future__ import annotations

import threading

import numpy as np
import pyflash
import pytest
from tiny_models import TinyModel, make_tiny_model

LAYERS = 5
EXPERTS = 8


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(
        tmp_path_factory.mktemp("stream"), seed=41, mtp=True, hidden_size=256, moe_intermediate_size=128,
        n_routed_experts=EXPERTS, num_experts_per_tok=2, vocab_size=512,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expert_bytes(tiny: TinyModel) -> int:
    """Of one expert; the matrices hold 17 bytes for 32 values."""
    with pyflash.Model.open(tiny.path, mtp=tiny.mtp_path) as model:
        reads = model.expert_reads
        assert (reads.n_wanted, reads.n_read, reads.bytes_read) == (0, 0, 0)
        one = 3 * 256 * 128 * 17 // 32
        assert reads.expert_bytes == one * EXPERTS * (model.info.n_layer + 1)
        return one


@pytest.mark.parametrize("precision", ["fast", "exact"])
@pytest.mark.parametrize("n_kept", [0, 3, 10, 1000])
def test_the_logits_are_the_same_bits(tiny: TinyModel, expert_bytes: int, precision: str, n_kept: int) -> None:
    tokens = tiny.tokens(150, seed=1)
    results = []
    for budget in (0, max(1, n_kept * expert_bytes)):
        with (
            pyflash.Model.open(tiny.path, mtp=tiny.mtp_path, precision=precision, expert_budget=budget) as model,
            model.session(context=200, chunk=64) as session,
        ):
            logits = session.eval(tokens, all_logits=True)
            drafts = session.draft(3)
            results.append((logits, drafts, session.eval([7])))
            reads = model.expert_reads
        assert (reads.n_wanted > 0) == (budget > 0)
    for plain, streamed in zip(*results):
        assert np.array_equal(plain, streamed)


def test_what_fits_is_read_once(tiny: TinyModel, expert_bytes: int) -> None:
    with (
        pyflash.Model.open(tiny.path, expert_budget=1000 * expert_bytes) as model,
        model.session(context=900) as session,
    ):
        for seed in range(4):
            session.eval(tiny.tokens(200, seed=seed))
        first = model.expert_reads
        assert 0 < first.n_read <= EXPERTS * model.info.n_layer < first.n_wanted
        assert first.bytes_read == first.n_read * expert_bytes
        session.rollback(session.position)
        session.eval(tiny.tokens(200, seed=0))
        again = model.expert_reads
        assert again.n_read == first.n_read and again.n_wanted > first.n_wanted


def test_the_longest_unused_go_first(tiny: TinyModel, expert_bytes: int) -> None:
    """The same token again and again chooses the same experts on hash layers and mostly on the others."""
    with pyflash.Model.open(tiny.path, expert_budget=1) as model, model.session(context=400) as session:
        session.eval([5])
        n_layer = model.info.n_layer
        wanted = model.expert_reads.n_wanted
        assert wanted == 2 * n_layer == model.expert_reads.n_read
    with (
        pyflash.Model.open(tiny.path, expert_budget=2 * n_layer * expert_bytes) as model,
        model.session(context=400) as session,
    ):
        for _ in range(2):  # from nothing, so the same experts
            session.eval([5])
            session.rollback(1)
        assert model.expert_reads.n_read == wanted
        assert model.expert_reads.n_wanted == 2 * wanted


def test_sessions_on_threads_share_the_budget(tiny: TinyModel, expert_bytes: int) -> None:
    tokens = [tiny.tokens(100, seed=seed) for seed in range(3)]
    with pyflash.Model.open(tiny.path) as model, model.session(context=200) as session:
        alone = []
        for each in tokens:
            alone.append(session.eval(each, all_logits=True))
            session.rollback(session.position)
    with pyflash.Model.open(tiny.path, expert_budget=5 * expert_bytes) as model:
        together: dict[int, np.ndarray] = {}

        def work(i: int) -> None:
            with model.session(context=200, chunk=16) as session:
                together[i] = session.eval(tokens[i], all_logits=True)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for i, logits in enumerate(alone):
        assert np.array_equal(logits, together[i])
