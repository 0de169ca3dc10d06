"""The model that trains the demonstration checkpoint: the same function as transformers' and the oracle's, and a
checkpoint that holds exactly the weights it computed with."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch trains the demonstration model")
pytest.importorskip("safetensors", reason="safetensors writes its checkpoint")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_demo"))

from export import split_stacks, write_checkpoint  # noqa: E402
from model import Goals, Model, Params, init_params, quantised  # noqa: E402
from muon import Optimiser, orthogonal  # noqa: E402
from presets import PRESETS  # noqa: E402
from quantise import fake_index, fake_row, round_fp4, round_fp8  # noqa: E402
from widen import read_params, widen  # noqa: E402

from oracle.model import Oracle  # noqa: E402
from oracle.numerics import Numerics  # noqa: E402
from oracle.weights import read_checkpoint  # noqa: E402

SMALL = PRESETS["cpu"] | {"vocab_size": 256, "moe_intermediate_size": 128, "n_routed_experts": 8, "index_topk": 12}
LENGTH = 256


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def shaken(config: dict[str, Any], seed: int) -> Params:
    """Initial parameters with noise on everything, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    return {name: value + 0.1 * torch.randn(value.shape, generator=generator) if value.is_floating_point() else value
            for name, value in init_params(config, seed).items()}  # fmt: skip


def tokens(rows: int, seed: int, config: dict[str, Any] = SMALL) -> torch.Tensor:
    return torch.randint(0, config["vocab_size"], (rows, LENGTH), generator=torch.Generator().manual_seed(seed))


def as_arrays(params: Params) -> dict[str, np.ndarray]:
    return {name: value.double().numpy() if value.is_floating_point() else value.numpy()
            for name, value in split_stacks(params)}  # fmt: skip


def relative_error(got: torch.Tensor, expected: np.ndarray) -> np.ndarray:
    return np.linalg.norm(got.double().numpy() - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


@pytest.mark.parametrize("preset", PRESETS)
def test_same_logits_as_transformers(preset: str) -> None:
    pytest.importorskip("transformers", reason="transformers is the reference")
    from oracle import transformers_model

    config = PRESETS[preset]
    params, ids = shaken(config, 1), tokens(1, 2, config)
    with torch.no_grad():
        ours = Model(config).forward(params, ids).hidden @ params["head.weight"].T
    reference = transformers_model.load(config, {name: v.astype(np.float32) if v.dtype == np.float64 else v
                                                 for name, v in as_arrays(params).items()})  # fmt: skip
    with transformers_model.double_rope(config):
        expected, _ = transformers_model.logits_and_choices(reference, ids[0].numpy())
    error = relative_error(ours, expected)
    assert np.median(error) < 1e-5
    assert (error > 1e-3).mean() < 0.02, "more than near-ties among experts and rows can explain"


def test_widening_keeps_the_function() -> None:
    narrow = PRESETS["cpu"] | {"num_nextn_predict_layers": 0}
    params, ids = shaken(narrow, 1), tokens(1, 2, narrow)
    wide = widen(params)
    assert {name: value.shape for name, value in wide.items()} == {
        name: value.shape for name, value in init_params(PRESETS["wide"], 0).items()}  # fmt: skip
    with torch.no_grad():
        before, after = (Model(config).forward(p, ids).hidden @ p["head.weight"].T
                         for config, p in ((narrow, params), (PRESETS["wide"], wide)))  # fmt: skip
    assert np.median(relative_error(after, before.numpy())) < 1e-5


def test_reading_a_checkpoint_inverts_writing_it(tmp_path: Path) -> None:
    config = SMALL | {"num_nextn_predict_layers": 0}
    params = shaken(config, 5)
    write_checkpoint(tmp_path, config, params)
    read = read_params(tmp_path)
    assert list(read) and set(read) == set(params)
    for name, value in quantised(params).items():
        wanted = value if value.dtype == torch.int64 or torch.equal(value, read[name]) else value.bfloat16().float()
        assert torch.equal(read[name], wanted), name


def test_same_draft_as_the_oracle() -> None:
    config = SMALL | {"num_experts_per_tok": SMALL["n_routed_experts"], "index_topk": LENGTH}  # nothing to choose
    params, ids = shaken(config, 3), tokens(1, 4)
    model = Model(config)
    with torch.no_grad():
        streams = model.forward(params, ids).streams
        following = torch.cat([ids[:, 1:], ids[:, :1]], 1)
        hidden, _ = model.draft(params, streams, following, torch.ones_like(ids, dtype=torch.bool))
    expected = Oracle(config, as_arrays(params)).mtp_forward(ids[0].numpy(), following[0].numpy())
    assert relative_error(hidden @ params["head.weight"].T, expected).max() < 1e-5


def test_rows_of_a_batch_do_not_meet() -> None:
    params, ids = shaken(SMALL, 5), tokens(3, 6)
    model = Model(SMALL)
    with torch.no_grad():
        together = model.forward(params, ids).hidden.view(3, LENGTH, -1)
        alone = model.forward(params, ids[1:2]).hidden
    assert torch.allclose(together[1], alone, atol=1e-4)


def test_skipped_positions_move_rows_apart() -> None:
    params, ids = shaken(SMALL, 5), tokens(1, 6)
    positions = torch.arange(LENGTH)
    positions[128:] += 4096
    with torch.no_grad():
        near = Model(SMALL).forward(params, ids).hidden
        far = Model(SMALL).forward(params, ids, positions).hidden
    assert torch.equal(near[:128], far[:128])
    assert not torch.allclose(near[128:], far[128:], atol=1e-3)


def test_lookups_are_the_share_of_attention() -> None:
    """Where the rows of all earlier tokens are right, the loss is what the sinks and the token's own rows take."""
    params, ids = shaken(SMALL, 5), tokens(2, 6)
    query = 200
    everything = torch.tensor([(1, query, place) for place in range(query)])
    one = torch.tensor([(1, query, 40)])
    with torch.no_grad():
        model = Model(SMALL)
        most = model.forward(params, ids, lookups=everything, sparse=False).lookup_loss
        least = model.forward(params, ids, lookups=one, sparse=False).lookup_loss
        nothing = model.forward(params, ids, lookups=one[:0], sparse=False).lookup_loss
    assert 0 < most < 1 < least and nothing == 0


def test_a_lookup_is_in_the_window_or_in_two_compressed_rows() -> None:
    W = SMALL["sliding_window"]
    goals = Goals.of(torch.tensor([(0, 130, 129), (0, 130, 8), (1, 254, 3)]), LENGTH, W)
    assert goals.rows.tolist() == [0, 1] and goals.places.tolist() == [130, 254]
    first, second = (row.nonzero().flatten().tolist() for row in goals.columns)
    assert first == [8, 129, 2 * W + 1 + 2, 2 * W + 1 + 3]  # 129 is in no row that is complete at 130
    assert second == [2 * W + 1, 2 * W + 1 + 1]


def test_everything_trained_gets_a_gradient() -> None:
    params, ids = shaken(SMALL, 7), tokens(1, 8)
    trained = {name: value.requires_grad_() for name, value in params.items()
               if value.is_floating_point() and not name.endswith("gate.bias")}  # fmt: skip
    model = Model(SMALL)
    p = quantised(params)
    out = model.forward(p, ids, train_index=True)
    hidden, _ = model.draft(p, out.streams, ids, torch.ones_like(ids, dtype=torch.bool))
    ((out.hidden + hidden) @ p["head.weight"].T).square().mean().add(out.index_loss).backward()
    without = [name for name, value in trained.items() if value.grad is None or not value.grad.abs().max() > 0]
    assert without == []


def test_optimiser_lowers_the_loss() -> None:
    generator = torch.Generator().manual_seed(9)
    x, y = torch.randn(64, 32, generator=generator), torch.randn(64, 16, generator=generator)
    params = {"layer.weight": torch.zeros(16, 32).requires_grad_(), "norm": torch.zeros(16).requires_grad_()}
    optimiser = Optimiser(params)
    losses = []
    for _ in range(60):
        loss = (x @ params["layer.weight"].T + params["norm"] - y).square().mean()
        loss.backward()
        losses.append(loss.item())
        optimiser.step(0.05, 0.01, 0.0)
        for value in params.values():
            value.grad = None
    assert losses[-1] < 0.7 * losses[0]
    singular = torch.linalg.svdvals(orthogonal(torch.randn(3, 16, 32, generator=generator)))
    assert singular.min() > 0.6 and singular.max() < 1.3


def test_checkpoint_holds_what_was_computed_with(tmp_path: Path) -> None:
    params = shaken(SMALL, 10)
    write_checkpoint(tmp_path, SMALL, params)
    expected = as_arrays(quantised(params))
    stored = read_checkpoint(tmp_path)
    assert stored.keys() == expected.keys()
    kept_bits = 0
    for name, value in expected.items():
        if "experts." in name or any(f".{part}." in name for part in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b")):
            if "compressor" not in name:
                assert np.array_equal(stored[name], value), name
                kept_bits += 1
                continue
        assert np.allclose(stored[name], value, rtol=2**-8), name
    assert kept_bits > 100


@pytest.mark.parametrize("round_weight", [round_fp4, round_fp8])
def test_rounding_is_close_and_final(round_weight: Any) -> None:
    weight = torch.randn(160, 96, generator=torch.Generator().manual_seed(11)) * torch.logspace(-3, 2, 96)
    rounded = round_weight(weight)
    assert torch.equal(round_weight(rounded), rounded)
    assert ((rounded - weight).norm() / weight.norm()) < (0.15 if round_weight is round_fp4 else 0.04)
    assert torch.equal(round_weight(torch.zeros(128, 128)), torch.zeros(128, 128))


def test_rows_are_rounded_as_the_reference_rounds_them() -> None:
    numerics, rope = Numerics(kv_fp8=True, idx_fp4=True), 32
    rows = torch.randn(50, 128, generator=torch.Generator().manual_seed(9)) * torch.logspace(-6, 3, 50)[:, None]
    rows[3, :64] = 0.0
    np.testing.assert_array_equal(fake_row(rows, rope).numpy(), numerics.kv_row(rows.double().numpy(), rope))
    index = fake_index(rows[:, :64])
    np.testing.assert_allclose(index.numpy(), numerics.index_vector(rows[:, :64].double().numpy()), rtol=1e-6)


def test_rounded_rows_change_the_logits_as_the_oracle_says() -> None:
    config = SMALL | {"num_experts_per_tok": SMALL["n_routed_experts"], "index_topk": LENGTH}  # nothing to choose
    params, ids = shaken(config, 3), tokens(1, 4)
    model = Model(config)
    with torch.no_grad():
        plain = model.forward(params, ids).hidden @ params["head.weight"].T
        model.round_rows = True
        ours = model.forward(params, ids).hidden @ params["head.weight"].T
    expected = Oracle(config, as_arrays(params), Numerics(kv_fp8=True, idx_fp4=True)).forward(ids[0].numpy())
    assert np.median(relative_error(ours, expected)) < 0.1 * np.median(relative_error(plain, expected))
