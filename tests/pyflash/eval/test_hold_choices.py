"""`pyflash eval kld --hold-choices`: from a file of log-probabilities, side by side, and what does not go together."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from click.testing import CliRunner, Result
from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint
from pyflash.cli.main import cli
from pyflash.engine.choices import Choices
from pyflash.eval import measure
from pyflash.eval.kept_choices import Sizes, decode, encode
from pyflash.native.errors import FormatError

CTX = 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """text.txt; float.gguf and rounded.gguf of one checkpoint, in float32 and in the default types; fewer.gguf of another one,
    whose tokens use fewer experts."""
    folder = tmp_path_factory.mktemp("held")
    rng = random.Random(6)
    words = ["the", "little", "river", "runs", "over", "12", "stones", "and", "a", "long", "way", "to", "sea"]
    (folder / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(900)), encoding="utf-8")
    config = make_config("tiny")
    checkpoint = write_checkpoint(folder / "checkpoint", config, seed=4)
    convert(checkpoint, folder / "float.gguf", ConvertOptions(dense="f32", experts="f32"))
    convert(checkpoint, folder / "rounded.gguf", ConvertOptions())
    fewer = dict(config, num_experts_per_tok=config["num_experts_per_tok"] - 1)
    convert(write_checkpoint(folder / "fewer", fewer, seed=4), folder / "fewer.gguf", ConvertOptions())
    return folder


@pytest.fixture(scope="module")
def kept(folder: Path) -> Path:
    path = folder / "base.kld"
    done = run("ppl", folder / "float.gguf", "--text", folder / "text.txt", "--ctx", CTX, "--logits", path, "--precision", "exact")
    assert done.exit_code == 0, done.output
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["eval", *map(str, arguments)])


def end(*arguments: object) -> dict[str, Any]:
    done = run("kld", *arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_held_divergence_is_smaller_and_steadier(folder: Path, kept: Path) -> None:
    free, held = end(folder / "rounded.gguf", kept), end(folder / "rounded.gguf", kept, "--hold-choices")
    print(f"\nfree {free['kld']:.6f} ± {free['kld_error']:.6f}, held {held['kld']:.6f} ± {held['kld_error']:.6f}")
    assert held["hold_choices"] and not free["hold_choices"]
    assert 0 < held["kld"] < 0.5 * free["kld"] and held["kld_error"] < 0.5 * free["kld_error"]


@pytest.mark.parametrize("chunk", [CTX, 50])
def test_side_by_side_is_the_same(folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    of_file = end(folder / "rounded.gguf", kept, "--hold-choices")
    with pyflash.Model.open(folder / "float.gguf") as model:
        monkeypatch.setattr(measure, "MOST_LOGITS_BYTES", chunk * 4 * model.info.n_vocab)
    text = ["--text", folder / "text.txt", "--ctx", CTX]
    both = end(folder / "rounded.gguf", folder / "float.gguf", *text, "--hold-choices")
    assert both["nll"] == pytest.approx(of_file["nll"], rel=1e-12)
    assert both["kld"] == pytest.approx(of_file["kld"], abs=2e-5)


def test_own_choices_change_nothing(folder: Path) -> None:
    path = folder / "rounded.gguf"
    found = end(path, path, "--text", folder / "text.txt", "--ctx", CTX, "--base-precision", "fast", "--hold-choices")
    assert found["kld"] == 0 and found["ratio"] == 1


def test_what_does_not_go_together_is_refused(folder: Path, kept: Path, tmp_path: Path) -> None:
    rounded, fewer = folder / "rounded.gguf", folder / "fewer.gguf"
    with pyflash.Model.open(rounded) as model:
        sizes = Sizes.of(model.info)
    whole = kept.read_bytes()
    n_choices = sizes.file_bytes(CTX - 1, int.from_bytes(whole[16:20], "little"))
    plain, damaged, cut = tmp_path / "plain.kld", tmp_path / "damaged.kld", tmp_path / "cut.kld"
    plain.write_bytes(whole[:-n_choices])  # as llama.cpp writes it
    cut.write_bytes(whole[:-7])
    last = sizes.window_bytes(CTX - 1)
    damaged.write_bytes(whole[:-last] + b"\xff" * last)
    assert end(rounded, plain)["kld"] == end(rounded, kept)["kld"]
    side = [fewer, rounded, "--text", folder / "text.txt", "--ctx", CTX]
    for arguments, words in (
        ([rounded, plain], f"{plain} holds no choices: make it again"),
        ([fewer, kept], "experts a token there"),
        (side, "experts a token there"),
        ([rounded, damaged], "holds impossible choices"),
        ([rounded, cut], "interrupted"),
    ):
        done = run("kld", *arguments, "--hold-choices")
        assert isinstance(done.exception, pyflash.Error) and words in str(done.exception), (arguments, done)
        assert len(str(done.exception).splitlines()) == 1


def draw(sizes: Sizes, n: int) -> Choices:
    """Some that a model could make."""
    rng = np.random.default_rng(n)
    experts = rng.random((sizes.n_layer, n, sizes.n_expert)).argsort(axis=2)[..., : sizes.n_expert_used]
    rows = np.full((sizes.n_sparse, n, sizes.index_topk), -1)
    for layer in range(sizes.n_sparse):
        for position in range(n):
            seen = (position + 1) // 4
            chosen = np.sort(rng.permutation(seen)[: sizes.index_topk])
            rows[layer, position, : len(chosen)] = chosen
    return Choices(experts.astype(np.int32), rows.astype(np.int32))


@pytest.mark.quick
@pytest.mark.parametrize("n", [1, 18, 19, 20, 63, 200])
@pytest.mark.parametrize("ratios", [(0, 4, 128, 4), (0, 0, 128)])
def test_round_trip(n: int, ratios: tuple[int, ...]) -> None:
    sizes = Sizes(len(ratios), 1, 300, 3, 4, ratios)
    choices, read = draw(sizes, n), Choices(*(np.empty_like(each) for each in dataclasses.astuple(draw(sizes, n))))
    data = encode(sizes, choices)
    assert len(data) == sizes.window_bytes(n)
    decode(sizes, data, read, "base.kld")
    assert np.array_equal(read.experts, choices.experts)
    for position in range(n):
        count = min(sizes.index_topk, (position + 1) // 4)
        assert np.array_equal(read.rows[:, position, :count], choices.rows[:, position, :count])
    if sizes.first_chosen(n) < n and sizes.n_sparse:
        with pytest.raises(FormatError, match="impossible choices"):
            decode(sizes, data[:-1] + b"\xff", read, "base.kld")
