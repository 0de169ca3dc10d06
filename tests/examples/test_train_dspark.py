"""The drafter's training: its stages against the model's own blocks, what a draft sees, and that it learns and goes on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.oracle
torch = pytest.importorskip("torch", reason="torch trains the drafter")
pytest.importorskip("safetensors", reason="safetensors writes its checkpoint")

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "train_demo"))

from dspark import Drafter, Sizes, Target, init_drafter  # noqa: E402
from model import Model, Params, Turn, local_mask  # noqa: E402
from train_dspark import NOISE, Features, Training, config_of  # noqa: E402

from examples.test_train_model import SMALL, one_thread, shaken, tokens  # noqa: E402, F401

CONFIG = config_of(SMALL, noise=7)
WINDOW = CONFIG["sliding_window"]


def parameters(seed: int) -> Params:
    """Of a target and its drafter, with noise on everything."""
    generator = torch.Generator().manual_seed(seed)
    target = shaken(CONFIG | {"num_nextn_predict_layers": 1}, seed)
    mtp = {name: target.pop(name) for name in list(target) if name.startswith("mtp.")}
    return target | {name: value + 0.1 * torch.randn(value.shape, generator=generator)
                     for name, value in init_drafter(CONFIG, mtp, seed).items()}  # fmt: skip


def test_a_stage_is_a_block() -> None:
    """A block of one token, behind rows that are those of the tokens before it, is a layer of the model."""
    model = Model(CONFIG)
    drafter = Drafter(model)
    drafter.sizes = Sizes(1, 7, (2, 3, 4), 32, 1)
    p, ids = parameters(1), tokens(2, 2)
    X = torch.randn(ids.numel(), CONFIG["hc_mult"], CONFIG["hidden_size"], generator=torch.Generator().manual_seed(3))
    turn = Turn(CONFIG, torch.arange(ids.shape[1]), False)
    local = local_mask(torch.arange(ids.shape[1]), WINDOW)
    expected, *_ = model.block(p, "layers.1.", X, ids, {False: turn}, local, 0, True, False, None)
    x, _, _ = model.site(p, "layers.1.", "attn", X)
    rows = model.rows(p, "layers.1.attn.", x.view(*ids.shape, -1), turn)
    for text, place in ((0, 0), (0, 5), (1, WINDOW - 1)):
        before = place - WINDOW + torch.arange(WINDOW)
        mask = torch.zeros(1, 1, 1, WINDOW + 1)
        mask[..., :WINDOW][..., before < 0] = -torch.inf
        own = X[text * ids.shape[1] + place][None]
        found = drafter.stage(p, "layers.1.", own, rows[text, before.clamp(min=0)][None], mask,
                              Turn(CONFIG, torch.tensor([[place]]), False))  # fmt: skip
        torch.testing.assert_close(found[0], expected[text * ids.shape[1] + place], rtol=1e-4, atol=1e-4)


def test_a_draft_sees_the_window_and_its_block() -> None:
    drafter, p = Drafter(Model(CONFIG)), parameters(4)
    place = 150
    taps = torch.randn(1, 256, 3 * CONFIG["hidden_size"], generator=torch.Generator().manual_seed(5))

    def hidden(changed: int | None = None, token: int = 3) -> Any:
        other = taps.clone()
        if changed is not None:
            other[0, changed] += 1
        return drafter.backbone(p, drafter.context(p, other), torch.tensor([[0, place]]), torch.tensor([token]))[0]

    plain = hidden()
    for changed in (place, place + 1, place - WINDOW - 1):
        assert torch.equal(hidden(changed), plain)
    for changed in (place - 1, place - WINDOW):
        assert not (hidden(changed) == plain).all(1).any()
    assert not (hidden(token=9) == plain).all(1).any()  # all of a block see its first token


def test_proposals_go_by_the_one_before() -> None:
    drafter, p = Drafter(Model(CONFIG)), parameters(6)
    taps = torch.randn(1, 128, 3 * CONFIG["hidden_size"], generator=torch.Generator().manual_seed(7))
    context, anchors, first = drafter.context(p, taps), torch.tensor([[0, 90], [0, 20]]), torch.tensor([11, 12])
    drafts, sure = drafter.propose(p, context, anchors, first)
    hidden = drafter.backbone(p, context, anchors, first).double()
    w1, w2, proj, head, norm = (p[name].double() for name in (
        "mtp.0.markov_head.markov_w1.weight", "mtp.0.markov_head.markov_w2.weight", "mtp.0.confidence_head.proj.weight",
        "head.weight", "mtp.0.norm.weight"))  # fmt: skip
    normed = hidden / (hidden.square().mean(-1, keepdim=True) + CONFIG["rms_norm_eps"]).sqrt() * norm
    for a in range(2):
        previous = int(first[a])
        for i in range(drafter.sizes.block):
            assert int((head @ normed[a, i] + w2 @ w1[previous]).argmax()) == int(drafts[a, i])
            expected = float(proj[0] @ torch.cat([hidden[a, i], w1[previous]]))
            assert float(sure[a, i]) == pytest.approx(expected, abs=1e-4)
            previous = int(drafts[a, i])


def test_taps_are_the_means_of_the_layers_streams() -> None:
    target, p, ids = Target(CONFIG, (2, 4)), parameters(8), tokens(1, 9)
    taps, hidden = target.read(p, ids)
    model = Model(CONFIG)
    model.round_rows = True
    streams = model.forward(p, ids).streams  # of the last layer
    torch.testing.assert_close(taps[..., CONFIG["hidden_size"] :], streams.mean(2))
    torch.testing.assert_close(hidden[0], model.forward(p, ids).hidden)


def test_places_of_another_answer_do_not_count() -> None:
    own = torch.tensor([[True, True, True, False, True, True, False, False]])
    features = Features(tokens(1, 1)[:, :9], own, torch.zeros(1, 8, 1), torch.zeros(1, 8, 128))
    assert features.anchors().tolist() == [[0, 1], [0, 2], [0, 4], [0, 5]]
    right, chances, counts = features.goals(features.anchors(), torch.ones(256, 128), 3)
    assert counts.tolist() == [[1, 1, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0]]
    assert right[0].tolist() == features.tokens[0, 2:5].tolist() and chances.shape == (4, 3, 256)


def test_it_learns_and_goes_on(tmp_path: Path) -> None:
    from export import write_checkpoint

    config = SMALL | {"num_nextn_predict_layers": 1}
    write_checkpoint(tmp_path / "target", config, shaken(config, 10))
    noise = {"added_tokens": [{"content": NOISE, "id": 7}]}
    (tmp_path / "target" / "tokenizer.json").write_text(json.dumps(noise), encoding="utf-8")
    ids = torch.arange(257).remainder(50)[None].repeat(4, 1)  # texts that say how they go on
    torch.save([{"tokens": ids, "own": torch.ones(4, 256, dtype=torch.bool),
                 "taps": torch.randn(4, 256, 384).half(), "hidden": torch.zeros(4, 256, 128).half()}],
               tmp_path / "features.pt")  # fmt: skip
    options = argparse.Namespace(out=tmp_path, checkpoint=tmp_path / "target", minutes=1.0, threads=1, tokens=0, seed=0,
                                 no_compile=True)
    training = Training(options, mixture=None)
    losses = [training.train_step(0.3) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    training.save()
    again = Training(options, mixture=None)
    assert again.step == 12 and again.train_step(0.7) < 0.9 * losses[0]
