"""`pyflash eval sensitivity`: what it measures, that it goes on, and that `quantize --size` takes it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from gguf_export.convert import ConvertOptions, convert
from gguf_export.fitting import fit
from gguf_export.groups import read_sensitivity
from gguf_export.quantizing import QuantizeOptions, quantize
from gguf_export.synthetic import make_config, write_checkpoint
from pyflash.cli.main import cli
from pyflash.eval import sensitivity

GROUPS = ["blk.0.gate_up", "blk.0.down", "blk.1.gate_up", "blk.1.down", "attention", "embedding", "head", "shared_experts"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.gguf of two layers, and text.txt."""
    folder = tmp_path_factory.mktemp("sensitivity")
    config = make_config("tiny", hidden_size=256, moe_intermediate_size=256, q_lora_rank=256, o_lora_rank=128,
                         n_routed_experts=4, num_hidden_layers=2, num_hash_layers=1, compress_ratios=[0, 4, 0])
    convert(write_checkpoint(folder / "checkpoint", config, seed=3), folder / "model.gguf", ConvertOptions())
    rng = random.Random(7)
    words = ["the", "little", "river", "runs", "over", "12", "stones", "and", "a", "long", "way", "to", "sea"]
    (folder / "text.txt").write_text(" ".join(rng.choice(words) for _ in range(300)), encoding="utf-8")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, list(map(str, arguments)))


def measure(folder: Path, out: Path, *more: object) -> Result:
    return run("eval", "sensitivity", folder / "model.gguf", "--text", folder / "text.txt", "-o", out, "--ctx", 64,
               "--chunks", 2, "--threads", 2, *more)  # fmt: skip


@pytest.fixture(scope="module")
def table(folder: Path) -> Path:
    done = measure(folder, folder / "s.json")
    assert done.exit_code == 0, (done.output, done.exception)
    assert all(group in done.stdout for group in GROUPS)
    return folder / "s.json"


def held(folder: Path, file: Path) -> float:
    """The divergence of a file from the model, with choices held."""
    done = run("eval", "kld", file, folder / "model.gguf", "--text", folder / "text.txt", "--ctx", 64, "--chunks", 2,
               "--base-precision", "fast", "--hold-choices", "--json")  # fmt: skip
    return float(json.loads(done.stdout.splitlines()[-1])["kld"])


def test_what_it_measures(folder: Path, table: Path, tmp_path: Path) -> None:
    """A group's divergence is that of a file in which it alone is quantised."""
    groups: dict[str, Any] = json.loads(table.read_text())["groups"]
    assert list(groups) == GROUPS
    for entry in groups.values():
        assert entry["kld"] > 0 and entry["sensitivity"] == pytest.approx(entry["kld"] / entry["error"])
    one = QuantizeOptions(dense="keep", head="keep", tensor_types=((r"blk\.1\.ffn_down_exps", "IQ2_XXS"),))
    report = quantize(folder / "model.gguf", tmp_path / "one.gguf", one)
    entry = groups["blk.1.down"]
    assert entry["type"] == "IQ2_XXS" and entry["error"] == report.errors["blk.1.ffn_down_exps.weight"].plain
    assert held(folder, tmp_path / "one.gguf") == pytest.approx(entry["kld"], rel=1e-3)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_it_goes_on(folder: Path, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, measured = sensitivity._measure, []

    def stopping(job: Any, trial: Any, *more: Any) -> Any:
        if len(measured) == 3:
            raise KeyboardInterrupt
        measured.append(trial.group)
        return real(job, trial, *more)

    def noting(job: Any, trial: Any, *more: Any) -> Any:
        measured.append(trial.group)
        return real(job, trial, *more)

    monkeypatch.setattr(sensitivity, "_measure", stopping)
    out = tmp_path / "s.json"
    assert measure(folder, out).exit_code != 0 and not out.exists()
    monkeypatch.setattr(sensitivity, "_measure", noting)
    monkeypatch.setattr(sensitivity, "_write_base", None)  # what has been written is not written again
    again = measure(folder, out)
    assert again.exit_code == 0 and "goes on after 3 of 8 groups" in again.output, again.output
    assert measured == GROUPS and out.read_bytes() == table.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]


def test_quantize_takes_it(folder: Path, table: Path, tmp_path: Path) -> None:
    whole = (folder / "model.gguf").stat().st_size
    found = run("quantize", folder / "model.gguf", tmp_path / "q.gguf", "--size", int(0.8 * whole), "--sensitivity", table,
                "--dry-run", "--json")  # fmt: skip
    fit = json.loads(found.stdout.splitlines()[-1])["fit"]
    wanted = json.loads(table.read_text())["groups"]
    assert fit["sensitivity"] == str(table) and fit["total_bytes"] <= int(0.8 * whole)
    assert {group: entry["sensitivity"] for group, entry in fit["types"].items()} == {
        group: pytest.approx(entry["sensitivity"]) for group, entry in wanted.items()
    }


def test_refused(folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small.gguf"
    quantize(folder / "model.gguf", small, QuantizeOptions(experts="IQ2_XXS"))
    done = run("eval", "sensitivity", small, "--text", folder / "text.txt", "-o", tmp_path / "s.json", "--ctx", 64)
    assert done.exit_code == 1 and "blk.0.gate_up to IQ2_XXS" in str(done.exception)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.gguf", "small.quantize.json"]


def test_what_is_expected_comes_true(folder: Path, table: Path, tmp_path: Path) -> None:
    """The types that are chosen by it do less harm than one type for all in a file of the same size, and about as much as
    was expected."""
    uniform = QuantizeOptions("IQ3_XXS", "Q6_K", "Q6_K")
    quantize(folder / "model.gguf", tmp_path / "uniform.gguf", uniform)
    size = (tmp_path / "uniform.gguf").stat().st_size
    found = fit(folder / "model.gguf", size, QuantizeOptions(), sensitivity=read_sensitivity(table))
    quantize(folder / "model.gguf", tmp_path / "fitted.gguf", found.options)
    real = {name: held(folder, tmp_path / f"{name}.gguf") for name in ("uniform", "fitted")}
    print(f"\nexpected {found.damage:.4f}, found {real['fitted']:.4f}; one type for all {real['uniform']:.4f}")
    assert real["fitted"] < 0.8 * real["uniform"] and found.damage == pytest.approx(real["fitted"], rel=0.3)
