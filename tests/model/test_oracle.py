"""Gate 1: the C core in "exact" against the float64 oracle on the weights of the same checkpoint (oracle/check.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from tiny_models import TinyModel, make_tiny_model

from oracle.check import MAY_LACK, NEAR_TIE, check_exact
from oracle.compare import near_ties, relative_l2
from oracle.core import choices_of, eval_with_taps
from oracle.model import Oracle
from oracle.random_model import tiny_config
from oracle.shapes import SHAPES
from oracle.taps import HEAD_TAPS, LAYER_TAPS


# Every way the converter can store the weights, spread over the shapes.
STORAGE: tuple[dict[str, Any], ...] = (
    dict(dense="bf16"),
    dict(profile="native"),
    dict(dense="f32", experts="f32"),
    dict(dense="q8_0"),
    dict(dense="f32", experts="bf16"),
    dict(profile="native"),  # the shape with 2 streams, which compat refuses
    dict(dense="q8_0", experts="keep"),
)
CASES = [(name, *SHAPES[name], STORAGE[i % len(STORAGE)]) for i, name in enumerate(SHAPES)]


def compare(tiny: TinyModel, tokens: np.ndarray, **open_options: Any) -> None:
    check_exact(tiny.path, tiny.config, tiny.weights, tokens, **open_options)


@pytest.mark.parametrize("name,changes,count,storage", CASES, ids=[case[0] for case in CASES])
def test_logits_agree(tmp_path: Path, name: str, changes: dict[str, Any], count: int, storage: dict[str, Any]) -> None:
    tiny = make_tiny_model(tmp_path, seed=len(name), **changes, **storage)
    compare(tiny, tiny.tokens(count, seed=count))


@pytest.mark.parametrize("isa", ["scalar", "avx2", "avxvnni", "avx512", "amx"])
def test_every_kernel_set_agrees(tmp_path: Path, isa: str) -> None:
    tiny = make_tiny_model(tmp_path, seed=11, profile="native")
    try:
        pyflash.Model.open(tiny.path, isa=isa).close()
    except pyflash.UnsupportedError as error:
        pytest.skip(str(error))
    compare(tiny, tiny.tokens(300, seed=12), isa=isa)


@pytest.mark.oracle
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_agrees_directly(tmp_path: Path, name: str) -> None:
    """Without the oracle in between, up to the first token for which the two choose differently, which must be a tie.

    With few indexer heads many scores are exactly zero and `torch.topk` breaks ties in no particular order, so the
    models here have 32.
    """
    pytest.importorskip("torch", reason="torch is needed to compare with transformers")
    pytest.importorskip("transformers", reason="transformers is needed to compare with its DeepseekV4ForCausalLM")
    from oracle import transformers_model

    changes, count = SHAPES[name]
    changes = {**changes, "index_n_heads": 32}
    tiny = make_tiny_model(tmp_path, seed=17, profile="native", **changes)
    tokens = tiny.tokens(count, seed=18)
    with pyflash.Model.open(tiny.path, precision="exact") as model, model.session(context=count) as session:
        logits, taps = eval_with_taps(session, tokens)
    config = tiny_config(**changes)
    weights = {name: w if w.dtype.kind == "i" else w.astype(np.float32) for name, w in tiny.weights.items()}
    with transformers_model.double_rope(config):
        theirs, their_choices = transformers_model.logits_and_choices(transformers_model.load(config, weights), tokens)
    ours = choices_of(taps, tiny.config, count)
    differs = [t for key, ids in ours.items() for t in range(count) if set(ids[t]) != set(their_choices[key][t])]
    first = min(differs, default=count)
    if differs:
        for choices in (ours, their_choices):
            oracle = Oracle(tiny.config, tiny.weights)
            oracle.forward(tokens, forced=choices)
            print("\n".join(near_ties(oracle.choices, NEAR_TIE)))
    error = relative_l2(logits, theirs)
    print(f"\nrelative L2 error: median {np.median(error):.2e}, worst of the first {first} {error[:first].max():.2e}")
    assert first >= min(count, 100)
    assert np.median(error[:first]) < 1e-5 and error[:first].max() < 5e-5


def test_core_reports_every_tap(tmp_path: Path) -> None:
    """first_difference() can only name a culprit that the core reports."""
    tiny = make_tiny_model(tmp_path, seed=13)
    with pyflash.Model.open(tiny.path, precision="exact") as model, model.session(context=200) as session:
        _, taps = eval_with_taps(session, tiny.tokens(140, seed=14))
    config = tiny.config
    only = {"comp_row": (4, 128), "idx_row": (4,), "topk": (4,)}
    wanted: set[tuple[str, int]] = {("embed", -1), *((name, -1) for name in HEAD_TAPS)}
    for layer in range(config.num_hidden_layers):
        ratio = config.ratio(layer)
        wanted |= {(name, layer) for name in LAYER_TAPS if ratio in only.get(name, (ratio,)) and name not in MAY_LACK}
    assert {key for key in taps.keys() if key[0] not in MAY_LACK} == wanted
    assert taps.positions("comp_row", 3) == [127]
    assert taps.positions("idx_row", 2) == list(range(3, 140, 4))
