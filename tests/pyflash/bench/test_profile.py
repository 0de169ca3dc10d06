"""`bench --profile` and `--batch`, and the profiler under them: what they count. Never speed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import pyflash
from gguf_export.reader import read_gguf
from pyflash.bench import measure
from pyflash.cli.main import cli
from pyflash.machine import hardware


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_LEAST_BANDWIDTH_BYTES", 1 << 22)
    monkeypatch.setattr(hardware, "outer_cache_bytes", lambda root=Path("/"): 0)


def test_counts(tiny_model: Path) -> None:
    """Calls, rows, products and bytes are those of the file's tensors; the logits are those of a session without it."""
    gguf = read_gguf(tiny_model)
    with pyflash.Model.open(tiny_model, device="cpu") as model, model.session(context=128) as session:
        tokens = np.arange(20, dtype=np.int32)
        plain = session.eval(tokens, all_logits=True)
        session.rollback(20)
        profiler = model.profiler()
        session.profile(profiler)
        assert session.eval(tokens, all_logits=True).tobytes() == plain.tobytes()
        found = {(each.name, each.weight): each for each in profiler.operations()}
        layers = model.info.n_layer
        q_b = found["linear", "attn_q_b"]
        tensors = [tensor for name, tensor in gguf.tensors.items() if name.endswith(".attn_q_b.weight") and "indexer" not in name]
        assert (q_b.calls, q_b.tokens, q_b.matrices) == (layers, 20 * layers, layers)
        assert q_b.weight_bytes == sum(tensor.nbytes for tensor in tensors)
        assert q_b.products == sum(20 * tensor.shape[0] * tensor.shape[1] for tensor in tensors)
        assert found["linear", "output"].tokens == 20
        experts = next(each for each in found.values() if each.name == "experts")
        used, n_expert = model.info.n_expert_used, model.info.n_expert
        assert layers * used <= experts.matrices <= layers * min(n_expert, 20 * used)
        one = sum(tensor.nbytes for name, tensor in gguf.tensors.items() if "_exps" in name) // (layers * n_expert)
        assert experts.weight_bytes == experts.matrices * one
        assert ("linear", "other") not in found
        assert all(each.seconds > 0 for each in found.values())
        profiler.reset()
        session.profile(None)
        session.eval([1])
        assert profiler.operations() == []


def test_one_at_a_time_and_of_the_same_model(tiny_model: Path) -> None:
    with pyflash.Model.open(tiny_model, device="cpu") as model, model.session(context=64) as session:
        with (
            pyflash.Model.open(tiny_model, device="cpu") as other,
            pytest.raises(pyflash.ArgumentError, match="another model"),
        ):
            session.profile(other.profiler())
        session.collect(model.collector())
        with pytest.raises(pyflash.ArgumentError, match="collects"):
            session.profile(model.profiler())
        session.collect(None)
        session.profile(model.profiler())
        with pytest.raises(pyflash.ArgumentError, match="profiler"):
            session.collect(model.collector())


def run(*arguments: object) -> str:
    done = CliRunner().invoke(cli, ["bench", *map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_batch_in_json(tiny_model: Path) -> None:
    lines = [json.loads(line) for line in
             run(tiny_model, "--prompt", "0", "--gen", 0, "--batch", "2,8", "--repeat", 1, "--json").splitlines()]
    steps, end = lines[:-1], lines[-1]
    assert [each["tokens"] for each in steps] == [1, 2, 8] and end["done"] is True
    assert steps[0]["v"] == 1.0
    with pyflash.Model.open(tiny_model) as model:
        used, n_expert = model.info.n_expert_used, model.info.n_expert
    for each in steps:
        assert used <= each["experts_per_layer"] <= min(n_expert, used * each["tokens"])
    assert steps[0]["experts_per_layer"] == used
    assert steps[0]["weight_bytes"] < steps[2]["weight_bytes"]


def test_tables(tiny_model: Path) -> None:
    text = run(tiny_model, "--prompt", "16", "--gen", 2, "--batch", "1,2", "--repeat", 1, "--profile")
    assert "experts/layer" in text and "prefill 16 at depth 0, by operation:" in text and "decode 2 at depth 0" in text
    for title in ("prefill 16 at depth", "step of 2 at depth"):
        table = [*text[text.index(title):].splitlines()[2:], ""]
        shares = [float(line.split()[1].rstrip("%")) for line in table[:table.index("")]]
        assert shares[:-1] == sorted(shares[:-1], reverse=True) and sum(shares) == pytest.approx(100, abs=3)


def test_steps_by_operation(tiny_model: Path) -> None:
    words = (tiny_model, "--prompt", "0", "--gen", 0, "--batch", "1,2", "--repeat", 1, "--profile")
    for line in run(*words, "--json").splitlines()[:-1]:
        step = json.loads(line)
        assert sum(each["weight_bytes"] for each in step["operations"]) // 4 == step["weight_bytes"]
    assert "step of 2 at depth 0, by operation:" in run(*words)


@pytest.mark.parametrize("words", [("--batch", "0,1"), ("--batch", "2", "--csv"), ("--profile", "--csv"), ("--batch", "x")])
def test_usage(tiny_model: Path, words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(cli, ["bench", str(tiny_model), *words])
    assert done.exit_code == 2 and "Traceback" not in done.output
