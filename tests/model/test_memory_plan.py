"""What a session says its buffers take is what they take, whatever it evaluates: pf_session_memory.buffer_bytes."""

from __future__ import annotations

import random
from typing import Any

import pyflash
import pytest
from spark_models import SparkModel, make_spark_model
from tiny_models import TinyModel, make_tiny_model

VOCAB = 512


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(
        tmp_path_factory.mktemp("plan"), seed=51, mtp=True, dense="q8_0", hidden_size=64, num_attention_heads=2,
        o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, vocab_size=VOCAB, sliding_window=48, index_topk=4, index_n_heads=1,
        num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], num_hash_layers=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> SparkModel:
    return make_spark_model(
        tmp_path_factory.mktemp("spark"), seed=52, dense="q8_0", hidden_size=64, num_attention_heads=2, o_groups=1,
        o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=32,
        vocab_size=VOCAB, sliding_window=48, index_topk=4, index_n_heads=1, num_hidden_layers=3, num_hash_layers=1,
    )  # fmt: skip


KINDS = ["exact", "fast", "int8", "one thread", "few experts", "no drafts", "dspark", "dspark, few experts"]


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tiny: TinyModel, spark: SparkModel) -> Any:
    kind = request.param
    if kind.startswith("dspark"):
        with spark.open(threads=2, expert_budget=1 if "few" in kind else 0) as opened:
            yield opened
        return
    with pyflash.Model.open(
        tiny.path, mtp=None if kind == "no drafts" else tiny.mtp_path, threads=1 if kind == "one thread" else 3,
        precision=kind if kind in ("exact", "int8") else "fast", expert_budget=1 if kind == "few experts" else 0,
    ) as opened:  # fmt: skip
        yield opened


@pytest.mark.parametrize(
    ("context", "chunk"),
    [(1, 1), (2, 1), (5, 4), (65, 1), (130, 2), (200, 64), (257, 129), (300, 300), (40, 512), (391, 130)],
)
def test_no_step_takes_more_than_was_planned(model: Any, context: int, chunk: int) -> None:
    rng = random.Random(context)
    with model.session(context=context, chunk=chunk) as session:
        planned = session.memory
        session.set_tap(lambda *_: None)
        steps = 0
        while session.position < context or steps < 12:
            if session.position == context:
                session.rollback(rng.choice([n for n in (1, min(context, 20), context) if n <= session.rollback_limit]))
            n = rng.choice([1, 2, chunk, chunk, rng.randint(1, context)])
            session.eval([rng.randrange(VOCAB) for _ in range(min(n, context - session.position))])
            if model.info.drafts != "none":
                session.draft_tokens(rng.randrange(VOCAB), min(chunk, model.info.draft_most or 2))
            assert session.memory == planned
            steps += 1


def test_the_tiles_of_the_indexer_take_no_more_at_shorter_contexts(tiny: TinyModel) -> None:
    """Here a tile of scores is as large as it may be after 8192 tokens, but not quite at the end of the context."""
    with pyflash.Model.open(tiny.path) as model, model.session(context=12000, chunk=8192) as session:
        planned = session.memory
        session.eval(tiny.tokens(8192, seed=1))
        assert session.memory == planned
