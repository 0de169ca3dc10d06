"""`pyflash imatrix`, and the sums that a session collects, against those of the float64 oracle's own products."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import pyflash
from gguf_export.reader import read_gguf
from oracle.core import choices_of, eval_with_taps
from oracle.model import Oracle
from oracle.numerics import Numerics
from pyflash.cli.main import cli
from pyflash.engine.collector import Input
from pyflash.eval import imatrix
from pyflash.eval.source import Subject, Text, text_windows
from quantize import importance

sys.path.append(str(Path(__file__).resolve().parents[2] / "model"))

from tiny_models import TinyModel, make_tiny_model  # noqa: E402

CTX = 64
N_TOKENS = 150
HEAD = (Input.HEAD, Input.HEAD_MIX)
Array = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(5)
    words = ["the", "little", "river", "runs", "over", "12", "stones", "and", "a", "long", "way", "to", "sea"]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(" ".join(rng.choice(words, 9)) for _ in range(20)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"), seed=3, dense="bf16")


Sums = dict[tuple[Input, int], Array]


def collected(path: Path, tokens: Array, chunk: int = 512, **options: Any) -> tuple[Array, Sums]:
    """Logits and all sums."""
    with pyflash.Model.open(path, device="cpu", **options) as model, model.session(context=256, chunk=chunk) as session:
        collector = model.collector()
        session.collect(collector)
        logits = session.eval(tokens, all_logits=True)
        kinds = [(kind, layer) for layer in range(model.info.n_layer) for kind in Input if kind not in HEAD]
        return logits, {key: collector.sums(*key).sums.copy() for key in [*kinds, *((kind, -1) for kind in HEAD)]}


class _Watched(Numerics):
    """Sums the squares of what each weight of the oracle takes, in the order that it computes them."""

    def __init__(self) -> None:
        super().__init__()
        object.__setattr__(self, "seen", [])

    def linear_input(self, x: Array, weight_name: str) -> Array:
        self.seen.append((weight_name, x))  # type: ignore[attr-defined]
        return super().linear_input(x, weight_name)


def test_the_sums_are_those_of_the_oracle(tiny: TinyModel) -> None:
    tokens = tiny.tokens(N_TOKENS, seed=1)
    logits, sums = collected(tiny.path, tokens, precision="exact")
    with pyflash.Model.open(tiny.path, device="cpu", precision="exact") as model, model.session(context=256) as session:
        plain, taps = eval_with_taps(session, tokens)
        n_layer = model.info.n_layer
    assert plain.tobytes() == logits.tobytes()
    watched = _Watched()
    oracle = Oracle(tiny.config, tiny.weights, watched)
    oracle.forward(tokens, forced=choices_of(taps, tiny.config, len(tokens)))
    seen: list[tuple[str, Array]] = watched.seen  # type: ignore[attr-defined]
    layer = -1
    wanted: dict[tuple[Input, int], Array] = {}
    routed = re.compile(r"ffn\.experts\.(\d+)\.(w1|w2)")
    of_layer = {"attn.wq_a": Input.ATTENTION, "attn.wq_b": Input.QUERY, "attn.wo_b": Input.OUT, "ffn.gate": Input.FFN,
                "ffn.shared_experts.w2": Input.SHARED_HIDDEN}  # fmt: skip
    n_expert = tiny.config.n_routed_experts
    for name, x in seen:
        layer += name == "attn.wq_a"
        rows = x.reshape(-1, x.shape[-1])
        match = routed.fullmatch(name)
        if name in of_layer:
            wanted[of_layer[name], layer] = (rows**2).sum(axis=0, keepdims=True)
        elif name == "attn.wo_a":
            wanted[Input.OUT_GROUPS, layer] = (x**2).sum(axis=0)
        elif match:
            expert = int(match[1])
            kind = Input.EXPERTS if match[2] == "w1" else Input.EXPERT_HIDDEN
            wanted.setdefault((kind, layer), np.zeros((n_expert, rows.shape[1])))[expert] = (rows**2).sum(axis=0)
            if kind is Input.EXPERT_HIDDEN:
                ids, weights = taps.stack("experts", layer), taps.stack("expert_w", layer)
                weight = weights[ids == expert]
                weighted = wanted.setdefault((Input.EXPERT_HIDDEN_WEIGHTED, layer), np.zeros((n_expert, rows.shape[1])))
                weighted[expert] = ((rows * weight[:, None]) ** 2).sum(axis=0)
    wanted[Input.HEAD, -1] = (taps.stack("head_norm", -1).astype(float) ** 2).sum(axis=0, keepdims=True)
    streams = [taps.stack("embed", -1)]  # before each site, and in the end the head
    streams += [taps.stack(name, layer) for layer in range(n_layer) for name in ("attn_X", "ffn_X")]
    kinds = [(kind, layer) for layer in range(n_layer) for kind in (Input.ATTENTION_MIX, Input.FFN_MIX)]
    for key, each in zip([*kinds, (Input.HEAD_MIX, -1)], streams, strict=True):
        squares = each.astype(float) ** 2
        wanted[key] = (squares / (squares.mean(axis=1, keepdims=True) + tiny.config.rms_norm_eps)).sum(axis=0, keepdims=True)
    assert wanted.keys() == sums.keys() and len(wanted) == 11 * n_layer + 2
    for key, values in wanted.items():
        np.testing.assert_allclose(sums[key], values, rtol=2e-4, atol=1e-6 * values.max(), err_msg=str(key))


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_the_same_bits_for_any_threads_and_split_and_as_without(tiny: TinyModel, precision: str) -> None:
    tokens = tiny.tokens(N_TOKENS, seed=2)
    logits, sums = collected(tiny.path, tokens, precision=precision, threads=1)
    with pyflash.Model.open(tiny.path, device="cpu", precision=precision) as model, model.session() as session:
        assert session.eval(tokens, all_logits=True).tobytes() == logits.tobytes()
    for options in (dict(threads=3), dict(chunk=7), dict(expert_budget=1)):
        other, again = collected(tiny.path, tokens, precision=precision, **options)  # type: ignore[arg-type]
        assert other.tobytes() == logits.tobytes(), options
        for key, values in sums.items():
            assert again[key].tobytes() == values.tobytes(), (options, key)


def test_a_cancelled_step_makes_sums_unusable_and_a_foreign_model_is_refused(tiny: TinyModel, tiny_model: Path) -> None:
    with pyflash.Model.open(tiny.path, device="cpu") as model, model.session(context=256) as session:
        collector = model.collector()
        session.collect(collector)
        session.eval([1, 2, 3])
        before = collector.sums(Input.HEAD).sums
        with pyflash.Model.open(tiny_model, device="cpu") as other, pytest.raises(pyflash.ArgumentError):
            session.collect(other.collector())
        session.set_tap(lambda name, *_: session.cancel() if name == "ffn_norm" else None)
        with pytest.raises(pyflash.CancelledError):
            session.eval([4, 5])
        with pytest.raises(pyflash.ArgumentError, match="open a new collector"):
            collector.sums(Input.HEAD)
    del collector
    gc.collect()
    assert before.sum() > 0  # memory that is still there


# -- the command --


def run(*arguments: object) -> list[dict[str, Any]]:
    done = CliRunner().invoke(cli, ["imatrix", *map(str, arguments), "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def test_the_command_writes_what_importance_reads(tmp_path: Path, tiny_model: Path, text: Path) -> None:
    out = tmp_path / "out.gguf"
    told = run(tiny_model, "--text", text, "-o", out, "--ctx", CTX, "--chunks", 2)
    assert [line.get("window") for line in told] == [1, 2, None]
    model = read_gguf(tiny_model)
    read = importance.read(out)
    assert (list(read.datasets), read.chunk_count, read.chunk_size) == ([text.name], 2, CTX)
    for name, ref in model.tensors.items():
        is_matrix = len(ref.shape) > 1 and re.search(r"\.(attn_|ffn_|indexer|hc_.*fn)|^output", name)
        if not is_matrix or re.search("norm|sinks|tid2eid|_ape|bias", name):
            assert name not in read.entries
            continue
        found = read.of(name, ref.shape[2] if len(ref.shape) == 3 else 1, ref.shape[0])
        assert found is not None and (found >= 0).all() and found.any(), name
    assert read.uses_route_weights("blk.0.ffn_down_exps.weight")
    assert not read.uses_route_weights("blk.0.ffn_up_exps.weight")
    keys = read_gguf(out).keys
    assert keys["pyflash.imatrix.tokens"] == 2 * CTX == told[-1]["tokens"]
    assert keys["pyflash.imatrix.visits_min"] == [layer["visits_min"] for layer in told[-1]["layers"]]
    assert keys["pyflash.imatrix.unvisited"] == [len(layer["unvisited"]) for layer in told[-1]["layers"]]


def test_coverage_of_hash_layers_is_what_collecting_counts(tmp_path: Path, tiny_model: Path, text: Path) -> None:
    (alone,) = run(tiny_model, "--text", text, "--coverage", "--ctx", CTX)
    told = run(tiny_model, "--text", text, "-o", tmp_path / "out.gguf", "--ctx", CTX)[-1]
    assert alone["layers"] == [layer for layer in told["layers"] if layer["by_token"]] and alone["layers"]


def test_a_killed_run_goes_on_to_the_same_bytes(
    tmp_path: Path, tiny_model: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole.gguf", tmp_path / "broken.gguf"
    run(tiny_model, "--text", text, "-o", whole, "--ctx", CTX)
    monkeypatch.setattr(imatrix, "_SAVE_SECONDS", 0.0)
    monkeypatch.setattr(imatrix, "_SAVE_SHARE", 0)
    notes: Iterator[None] = iter([None] * 3)

    class Killed(Exception):
        pass

    def note(_progress: imatrix.Progress) -> None:
        if next(notes, 1) is not None:
            raise Killed

    from gguf_export.outputs import find_place

    with pyflash.Model.open(tiny_model, device="cpu") as model:
        subject = Subject(model, str(tiny_model))
        windows = text_windows(subject, Text(str(text)), CTX)
        job = imatrix.Job(model, read_gguf(tiny_model), str(tiny_model), windows, text.name, "auto")
        with pytest.raises(Killed):
            imatrix.collect(job, find_place(broken), note)
        assert not broken.exists()
        told: list[imatrix.Progress] = []
        imatrix.collect(job, find_place(broken), told.append)
    assert (told[0].windows, told[0].resumed, told[-1].windows) == (3, 3, windows.count)
    assert broken.read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf", "whole.gguf"]


def failure(*arguments: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "pyflash", "imatrix", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=60)
    return done.returncode, done.stderr


def test_what_is_refused(tmp_path: Path, tiny_model: Path, text: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    out = tmp_path / "out.gguf"
    for code, told, *arguments in (
        (2, "--coverage", "--text", text),
        (1, "twice", "--text", short, "-o", out),
        (1, "made from", "--text", text, "-o", tiny_model),
        (1, "absent.txt", "--text", tmp_path / "absent.txt", "-o", out),
    ):
        found, error = failure(tiny_model, *arguments)
        assert (found, told in error) == (code, True), error
    assert not out.exists()
