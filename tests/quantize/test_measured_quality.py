"""scripts/measured_quality.py: the less weighted error a type has, the nearer a model's answers stay."""

from __future__ import annotations

import random
import runpy
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint
from pyflash.cli.main import cli

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measured_quality.py"
TYPES = ("IQ2_XXS", "Q2_K", "IQ3_S")


def test_divergence_falls_with_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("tiny", hidden_size=256, moe_intermediate_size=256, num_hidden_layers=3, num_hash_layers=1,
                         compress_ratios=[0, 4, 128, 0], n_routed_experts=4)
    model, text, importance = tmp_path / "wide.gguf", tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    convert(write_checkpoint(tmp_path / "wide", config, seed=2), model, ConvertOptions())
    rng = random.Random(3)
    text.write_text(" ".join(rng.choice(["the", "river", "over", "12", "stones", "sea"]) for _ in range(500)), encoding="utf-8")
    collected = CliRunner().invoke(cli, ["imatrix", str(model), "--text", str(text), "-o", str(importance), "--ctx", "128"])
    assert collected.exit_code == 0, collected.output
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(model), "--text", str(text), "--imatrix", str(importance), "--ctx", "128",
                                      "--chunks", "2", "--types", *TYPES])
    capsys.readouterr()
    runpy.run_path(str(SCRIPT))["main"]()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == [name for name in TYPES for _ in range(3)]
    for way in ("pyflash, hessian", "pyflash, ggml", "pyflash, unbiased"):
        found = [(float(row[3]), float(row[4].split()[0])) for row in rows if row[2] == way]
        errors, divergences = zip(*found, strict=True)
        assert list(errors) == sorted(errors, reverse=True) and list(divergences) == sorted(divergences, reverse=True), found
        assert divergences[-1] < 0.5 * divergences[0]
