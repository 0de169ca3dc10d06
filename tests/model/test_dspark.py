"""DSpark drafts against the oracle, and their independence of the session's history."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf import GGUFReader, GGUFWriter
from spark_models import SparkModel, make_spark_model

from oracle.compare import relative_l2
from oracle.core import choices_of, eval_with_taps
from oracle.taps import Taps
from oracle.weights import read_checkpoint

POSITIONS = (0, 1, 4, *range(126, 131), 200, 383, 384, 600)  # of the last token that is evaluated
WINDOW = 128
T = 602
NEAR_TIE = 1e-4


@pytest.fixture(scope="module", params=["compat", "native"])
def spark(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SparkModel:
    return make_spark_model(tmp_path_factory.mktemp("dspark"), seed=61, profile=request.param, sliding_window=WINDOW)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SparkModel:
    """Where only bits are compared."""
    return make_spark_model(
        tmp_path_factory.mktemp("small"), seed=62, dense="q8_0", n_stages=2, hidden_size=64, num_attention_heads=2,
        o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8, num_experts_per_tok=2,
        moe_intermediate_size=32, sliding_window=48, index_topk=20, index_n_heads=2,
    )  # fmt: skip


def drafted(session: pyflash.Session, following: int, n: int = 5) -> tuple[list[int], bytes]:
    tokens, chances = session.draft_tokens(following, n)
    return tokens, np.float32(chances).tobytes()


def tapped(session: pyflash.Session, following: int) -> tuple[list[int], list[float], Taps]:
    taps = Taps()
    session.set_tap(lambda name, layer, position, value: taps.record(name, layer, [value], [position]))
    tokens, chances = session.draft_tokens(following, 5)
    session.set_tap(None)
    return tokens, chances, taps


def test_drafts_agree_with_the_oracle(spark: SparkModel) -> None:
    """Context rows, hidden rows, logits before and after the correction, and confidences, on both sides of the ends of the
    window and of the rings."""
    tokens, layers = spark.tokens(T, 63), spark.config["num_hidden_layers"]
    oracle = spark.oracle()
    n_compared = 0
    with spark.open(precision="exact") as model, model.session(context=T + 8, chunk=50, poison=True) as session:
        assert model.info.drafts == "dspark" and model.info.draft_most == 5 and not model.info.has_mtp
        _, taps = eval_with_taps(session, tokens)
        features = oracle.features(tokens, choices_of(taps, oracle.oracle.config, T))
        session.rollback(T)
        for f in POSITIONS:
            session.eval(tokens[session.position : f + 1])
            expected = oracle.draft(features[: f + 1], int(tokens[f + 1]))
            for stage, rows in enumerate(expected.context):
                got = [taps.get("kv", layers + stage, expected.context_begin + i) for i in range(len(rows))]
                assert relative_l2(np.stack(got), rows).max() < 2e-5
            got_tokens, got_chances, drafts = tapped(session, int(tokens[f + 1]))
            if expected.margin < NEAR_TIE:
                continue  # another expert, within rounding
            for name, rows in (("draft_hidden", expected.hidden), ("draft_logits", expected.logits),
                               ("draft_corrected", expected.corrected)):
                got = np.stack([drafts.get(name, -1, f + 1 + row) for row in range(5)])
                error = relative_l2(got, rows)
                assert error.max() < 2e-5, f"{name} at {f}: {error}"
            assert got_tokens == expected.tokens
            error = np.linalg.norm(got_chances - expected.confidence) / np.linalg.norm(expected.confidence)
            assert error < 2e-5
            n_compared += 1
    assert n_compared >= len(POSITIONS) - 4


def test_a_shorter_draft_is_the_beginning_of_a_longer_one(small: SparkModel) -> None:
    tokens = small.tokens(71, 64)
    with small.open() as model, model.session(context=100, poison=True) as session:
        session.eval(tokens[:70])
        all_tokens, _ = drafted(session, int(tokens[70]))
        whole = session.draft_tokens(int(tokens[70]), 5)
        for n in range(1, 6):
            assert session.draft_tokens(int(tokens[70]), n) == (whole[0][:n], whole[1][:n])
        assert int(np.argmax(session.draft(int(tokens[70])))) == all_tokens[0]
        for wrong in (0, 6):
            with pytest.raises(pyflash.ArgumentError):
                session.draft_tokens(int(tokens[70]), wrong)


def test_a_small_head_is_corrected_in_its_rows_alone(small: SparkModel) -> None:
    """Drafts are tokens that have a row, and each is the likeliest of these with the correction by the token before it."""
    rows, tokens, n_vocab = 64, small.tokens(40, 71), small.config["vocab_size"]
    assert n_vocab >= 2 * rows
    listed = np.r_[0 : rows * 3 // 4, n_vocab - rows // 4 : n_vocab]
    w1, w2 = (read_checkpoint(small.checkpoint)[f"mtp.1.markov_head.markov_{name}.weight"] for name in ("w1", "w2"))
    late = 0
    with small.open(draft_head=rows) as model, model.session(context=64) as session:
        model.prepare_drafts()
        for token, following in pairwise(tokens.tolist()):
            session.eval([token])
            got, chances, taps = tapped(session, following)
            assert all(0 < chance < 1 for chance in chances)
            for row, (previous, drafted_token) in enumerate(pairwise([following, *got])):
                before, after = (taps.get(name, -1, session.position + row) for name in ("draft_logits", "draft_corrected"))
                assert np.isneginf(np.delete(after, listed)).all() and np.isfinite(after[listed]).all()
                assert np.allclose(after[listed] - before[listed], (w2 @ w1[previous])[listed], rtol=0.02, atol=0.02)
                assert drafted_token == listed[np.argmax(after[listed])]
                late += drafted_token >= rows
    assert late > 5


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_drafting_leaves_the_session_alone(small: SparkModel, precision: str) -> None:
    tokens = small.tokens(401, 65)
    with small.open(precision=precision) as model, model.session(context=401, chunk=30, poison=True) as session:
        plain = session.eval(tokens, all_logits=True)
        session.rollback(401)
        found = []
        for start in range(0, 400, 20):
            found.append(session.eval(tokens[start : start + 20], all_logits=True))
            session.draft_tokens(int(tokens[3]), 5)
            assert session.position == start + 20
        assert np.array_equal(np.concatenate(found), plain[:400])


@pytest.mark.parametrize("options", [{"precision": "exact"}, {}, {"threads": 1}, {"isa": "scalar"}], ids=str)
def test_drafts_do_not_depend_on_history(small: SparkModel, options: dict[str, Any], tmp_path: Path) -> None:
    """The same bits after one call, after many of one token, after rollback and replay, from a checkpoint, and after save
    and load."""
    n = 300
    tokens = small.tokens(n + 1, 66)
    following = int(tokens[n])
    with small.open(**options) as model:
        with model.session(context=700, chunk=n, poison=True) as session:
            session.eval(tokens[:n])
            expected = drafted(session, following)
            assert drafted(session, (following + 1) % 512) != expected
            assert drafted(session, following) == expected
            session.save(tmp_path / "state")
            session.eval(small.tokens(90, 67))
            session.rollback(90)
            assert drafted(session, following) == expected
            session.rollback(77)
            session.draft_tokens(5, 5)
            session.eval(tokens[n - 77 : n])
            assert drafted(session, following) == expected
            session.checkpoint()
            session.eval(small.tokens(350, 68))
            session.rollback(350)  # by the checkpoint
            assert drafted(session, following) == expected
        with model.session(context=320, chunk=3, poison=True) as session:
            earlier = {}
            for token in tokens[:n]:
                session.eval([token])
                if session.position in (n - 250, n - 1):
                    earlier[session.position] = drafted(session, following)
            assert drafted(session, following) == expected
            session.rollback(1)
            assert drafted(session, following) == earlier[n - 1]
            session.rollback(249)
            assert drafted(session, following) == earlier[n - 250]
            session.eval(tokens[n - 250 : n])
            assert drafted(session, following) == expected
        with model.session(context=400, chunk=7, poison=True) as session:
            session.load(tmp_path / "state")
            assert drafted(session, following) == expected


def test_sessions_of_a_step_keep_their_own_rows(small: SparkModel) -> None:
    """Several sessions in one step, of which one is cancelled, and rows that are computed ahead and dropped."""
    texts = [small.tokens(120 + 7 * i, 70 + i) for i in range(3)]
    with small.open() as model:
        alone = []
        for text in texts:
            with model.session(context=200, poison=True) as session:
                session.eval(text)
                alone.append(drafted(session, 9))
        sessions = [model.session(context=200, poison=True) for _ in texts]
        for begin in range(0, 160, 40):
            pyflash.eval_many([(s, t[begin : begin + 40]) for s, t in zip(sessions, texts, strict=True) if len(t) > begin])
        assert [drafted(session, 9) for session in sessions] == alone
        sessions[1].rollback(20)
        ahead = sessions[1].eval_ahead([int(texts[1][-20]), 3, 4, 5])
        assert len(ahead) == 4
        sessions[1].eval(texts[1][-19:])
        assert drafted(sessions[1], 9) == alone[1]
        for session in sessions:
            session.close()


def test_drafting_needs_tokens_and_stages(small: SparkModel) -> None:
    with small.open() as model, model.session(context=16) as session:
        with pytest.raises(pyflash.ArgumentError, match="evaluate tokens first"):
            session.draft_tokens(1, 2)
    with pyflash.Model.open(small.path) as model, model.session(context=16) as session:
        assert model.info.drafts == "none" and model.info.draft_bytes == 0
        session.eval([1])
        with pytest.raises(pyflash.UnsupportedError):
            session.draft(1)


@pytest.mark.parametrize(
    "changes",
    [dict(num_attention_heads=4), dict(q_lora_rank=64), dict(n_routed_experts=32), dict(moe_intermediate_size=64),
     dict(hidden_size=128), dict(num_hidden_layers=3), dict(vocab_size=1024)],
    ids=str,
)  # fmt: skip
def test_stages_of_another_model_are_refused(small: SparkModel, tmp_path: Path, changes: dict[str, int]) -> None:
    """They run with the model's sizes: those of other sizes would be read and written past their ends."""
    usual = dict(
        hidden_size=64, num_attention_heads=2, o_groups=1, o_lora_rank=32, q_lora_rank=32, n_routed_experts=8,
        num_experts_per_tok=2, moe_intermediate_size=32, sliding_window=48, index_topk=20, index_n_heads=2,
    )
    if "num_hidden_layers" in changes:  # fewer layers have the model, whose drafter is another's
        other = make_spark_model(tmp_path, seed=1, n_stages=2, **usual | changes)
        with pytest.raises(pyflash.Error, match="belongs to another model"):
            pyflash.Model.open(other.path, mtp=small.draft)
        return
    other = make_spark_model(tmp_path, seed=1, n_stages=2, **usual | changes)
    with pytest.raises(pyflash.Error, match="does not belong to this model|outside the supported range"):
        pyflash.Model.open(small.path, mtp=other.draft)


def test_a_file_of_its_own_in_each_dialect(small: SparkModel, tmp_path: Path) -> None:
    """llama.cpp's words, ds4's, and ds4's earlier ones: the same drafts."""
    tokens = small.tokens(60, 80)
    assert small.draft is not None
    found = []
    for words in ("llama.cpp", "ds4", "ds4 earlier"):
        path = small.draft if words == "llama.cpp" else in_words_of(words, small, tmp_path / f"{words}.gguf")
        with pyflash.Model.open(small.path, mtp=path) as model, model.session(context=80, poison=True) as session:
            session.eval(tokens)
            found.append(drafted(session, 3))
    assert found[0] == found[1] == found[2]


def in_words_of(words: str, spark: SparkModel, path: Path) -> Path:
    """The draft file as ds4 has it: with hardly any numbers of the model, and other names."""
    n_stages = len(spark.config["compress_ratios"]) - spark.config["num_hidden_layers"]
    last = n_stages - 1
    if words == "ds4":
        stage, key = "dspark.{}.", "deepseek4.dspark."
        names = {"fc": "dspark.main_proj", "enc.output_norm": "dspark.main_norm", "output_norm": "dspark.norm",
                 "markov_w1": "dspark.markov_w1", "markov_w2": "dspark.markov_w2", "conf_proj": "dspark.conf_proj"}
        head, targets = "dspark.hc_head_", "target_layers"
    else:
        stage, key = "mtp.{}.", "dspark."
        names = {"fc": "mtp.0.main_proj", "enc.output_norm": "mtp.0.main_norm", "output_norm": f"mtp.{last}.norm",
                 "markov_w1": f"mtp.{last}.markov_head.markov_w1", "markov_w2": f"mtp.{last}.markov_head.markov_w2",
                 "conf_proj": f"mtp.{last}.confidence_head.proj"}
        head, targets = f"mtp.{last}.hc_head_", "target_layer_ids"

    def renamed(name: str) -> str:
        base = name.removesuffix(".weight")
        if base in names:
            return names[base] + ".weight"
        if name.startswith("blk."):
            _, number, rest = name.split(".", 2)
            return stage.format(number) + rest
        return name.replace("output_hc_", head)

    writer = GGUFWriter(path, "deepseek4-dspark")
    writer.add_uint32(key + "block_size", spark.config["dspark_block_size"])
    writer.add_uint32(key + "noise_token_id", spark.config["dspark_noise_token_id"])
    writer.add_array(key + targets, spark.config["dspark_target_layer_ids"])
    for tensor in GGUFReader(spark.draft).tensors:
        writer.add_tensor(renamed(tensor.name), tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_other_drafters_are_refused(small: SparkModel, tmp_path: Path) -> None:
    """By what tells them apart, in one line."""
    assert small.draft is not None
    with pytest.raises(pyflash.UnsupportedError, match="DSpark draft model.*this one beside it"):
        pyflash.Model.open(small.draft)
    other = bytearray(in_words_of("ds4", small, tmp_path / "a.gguf").read_bytes())
    at = other.index(b"deepseek4-dspark")
    other[at : at + 16] = b"deepseek5-dspark"
    (tmp_path / "b.gguf").write_bytes(other)
    with pytest.raises(pyflash.UnsupportedError, match="deepseek5-dspark"):
        pyflash.Model.open(small.path, mtp=tmp_path / "b.gguf")
