"""The pieces of the oracle that decide about others: roundings, the checkpoint reader, choices, naming a difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from oracle import numerics
from oracle.choices import choose
from oracle.compare import first_difference, kl_divergence, near_ties
from oracle.model import Oracle
from oracle.random_model import random_tokens, random_weights, tiny_config
from oracle.taps import Taps
from oracle.weights import read_checkpoint


@pytest.mark.oracle
def test_fp8_rounds_as_torch_does() -> None:
    torch = pytest.importorskip("torch", reason="torch has an independent e4m3")
    x = np.random.default_rng(0).standard_normal((64, 128)) * np.logspace(-6, 6, 64)[:, None]
    blocks = x.reshape(64, 2, 64)
    scale = 2.0 ** np.ceil(np.log2(np.maximum(np.abs(blocks).max(-1, keepdims=True), 1e-4) / 448))
    cast = torch.tensor(blocks / scale).to(torch.float8_e4m3fn).double().numpy() * scale
    assert np.array_equal(numerics.fp8(x, 64), cast.reshape(64, 128))


def test_fp4_takes_the_nearest_value() -> None:
    values = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    grid = np.concatenate([-values, values])
    x = np.random.default_rng(1).uniform(-6, 6, (50, 32))
    x[:, 0] = 6  # so that the scale is 1
    rounded = numerics.fp4(x)
    assert np.isin(rounded, grid).all()
    assert np.array_equal(np.abs(rounded - x), np.abs(x[..., None] - grid).min(-1))
    assert numerics.fp4(np.array([[6.1] + [0.0] * 31]))[0, 0] == 6  # 2^ceil: the scale doubles, 3.05 becomes 3
    assert not numerics.fp4(np.zeros((1, 32))).any()


def test_hadamard_is_orthogonal() -> None:
    x = np.random.default_rng(2).standard_normal((3, 64))
    assert np.allclose(numerics.hadamard(x) @ numerics.hadamard(x).T, x @ x.T, rtol=1e-12)
    assert np.allclose(numerics.hadamard(numerics.hadamard(x)), x, rtol=1e-12)


@pytest.mark.oracle
def test_checkpoint_reader_dequantises(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch writes FP8 safetensors")
    save_file = pytest.importorskip("safetensors.torch").save_file
    rng = np.random.default_rng(3)
    wide = torch.tensor(rng.standard_normal((130, 200)), dtype=torch.float32).to(torch.float8_e4m3fn)
    exponent = torch.tensor([[120, 130], [127, 100]], dtype=torch.uint8)
    packed = torch.tensor(rng.integers(-128, 128, (3, 32)), dtype=torch.int8)
    fp4_scale = torch.tensor([[127, 128], [126, 129], [127, 127]], dtype=torch.uint8)
    tensors = {
        "a.weight": wide,
        "a.scale": exponent.view(torch.float8_e8m0fnu),
        "f.weight": wide.clone(),
        "f.scale": torch.tensor([[0.3, 2.0], [1.0, 7.0]]),
        "e.weight": packed,
        "e.scale": fp4_scale.view(torch.float8_e8m0fnu),
        "norm.weight": torch.tensor([1.5, -2.25], dtype=torch.bfloat16),
        "hc_scale": torch.tensor([0.1]),
        "tid2eid": torch.tensor([[1, 2]], dtype=torch.int64),
    }
    save_file(tensors, str(tmp_path / "model.safetensors"))
    got = read_checkpoint(tmp_path)
    assert set(got) == {"a.weight", "f.weight", "e.weight", "norm.weight", "hc_scale", "tid2eid"}

    rows, cols = np.arange(130)[:, None] // 128, np.arange(200)[None, :] // 128
    assert np.array_equal(got["a.weight"], wide.double().numpy() * 2.0 ** (exponent.numpy()[rows, cols] - 127.0))
    f32_scale = tensors["f.scale"].numpy().astype(np.float64)
    assert np.array_equal(got["f.weight"], wide.double().numpy() * f32_scale[rows, cols])
    value = [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    for row in range(3):
        for col in range(64):
            byte = int(packed[row, col // 2]) & 255
            code = byte >> 4 if col % 2 else byte & 15
            assert got["e.weight"][row, col] == value[code] * 2.0 ** (int(fp4_scale[row, col // 32]) - 127)
    assert got["norm.weight"].tolist() == [1.5, -2.25]
    assert got["hc_scale"] == np.float32(0.1)
    assert got["tid2eid"].tolist() == [[1, 2]]


def test_choices_measure_what_an_imposed_choice_costs() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 2.0], [5.0, 4.0, 1.0, 9.0]])
    ids, record = choose("topk", 1, scores, 2, np.array([4, 3]), None)
    assert [i.tolist() for i in ids] == [[0, 2], [0, 1]]  # lowest id among equals; the second token sees three
    assert record.margin.tolist() == [0.0, 3.0]

    imposed = {("topk", 1): [np.array([3, 0]), np.array([2, 0])]}
    ids, record = choose("topk", 1, scores, 2, np.array([4, 3]), imposed)
    assert [i.tolist() for i in ids] == [[3, 0], [2, 0]]
    assert record.differs.tolist() == [True, True] and record.regret.tolist() == [0.0, 3.0]
    with pytest.raises(AssertionError, match=r"no near-ties[^$]*topk of layer 1, token 1: relative gap 6.00e-01"):
        near_ties([record], 1e-4)
    assert near_ties([record], 0.7)[0] == "topk of layer 1, token 0: exact tie"

    for bad in ([0], [0, 0], [0, 3], [0, -1]):
        with pytest.raises(AssertionError, match="token 1"):
            choose("topk", 1, scores, 2, np.array([4, 3]), {("topk", 1): [np.array([0, 2]), np.array(bad)]})


def test_first_difference_names_the_earliest_tap() -> None:
    def taps(q: float, row: list[int]) -> Taps:
        out = Taps()
        out.record("embed", -1, np.ones((2, 3)))
        out.record("q", 0, np.array([[1.0, 2.0], [3.0, q]]))
        out.record("topk", 0, [np.array([0], np.int32), np.array(row, np.int32)])
        return out

    expected = taps(4.0, [0, 1])
    assert first_difference(taps(4.0, [0, 1]), expected, 1e-6) == "no tap differs"
    q_differs = first_difference(taps(5.0, [0, 2]), expected, 1e-6)
    assert q_differs.startswith("tap 'q' of layer 0 at position 1 differs by 2.0")
    assert "is [0, 2], expected [0, 1]" in first_difference(taps(4.0, [0, 2]), expected, 1e-6)
    assert first_difference(taps(float("nan"), [0, 1]), expected, 1e-6).startswith("tap 'q' of layer 0 at position 1")
    empty = Taps()
    assert first_difference(empty, expected, 1e-6) == "tap 'embed' of layer -1 at position 0 is missing"


def test_kl_divergence() -> None:
    p, q = np.log(np.array([0.5, 0.5])), np.log(np.array([0.25, 0.75]))
    assert kl_divergence(p + 3, q - 2) == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert kl_divergence(p, p) == pytest.approx(0)


def test_oracle_sees_every_weight() -> None:
    """Changing any one tensor changes the logits, so that no comparison with it can pass by ignoring a part."""
    config = tiny_config(
        num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], num_hash_layers=1, n_routed_experts=4,
        num_experts_per_tok=2, vocab_size=64, index_topk=4, hidden_size=64,
    )  # fmt: skip
    weights, tokens = random_weights(config, 5), random_tokens(config, 140, 6)
    reference = Oracle(config, weights)
    before, draft = reference.forward(tokens), reference.mtp_forward(tokens, np.roll(tokens, -1))
    rng = np.random.default_rng(7)
    for name, value in weights.items():
        if name.endswith("tid2eid"):
            changed = (value + 1) % 4
        else:
            changed = value + rng.standard_normal(value.shape).astype(np.float32)
        oracle = Oracle(config, {**weights, name: changed})
        if name.startswith("mtp."):
            same = np.array_equal(oracle.mtp_forward(tokens, np.roll(tokens, -1)), draft)
        else:
            same = np.array_equal(oracle.forward(tokens), before)
        assert not same, f"{name} has no influence"
