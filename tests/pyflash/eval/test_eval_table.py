"""scripts/eval_table.py: the figures of its rows are those of `pyflash eval kld`."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from gguf_export.convert import ConvertOptions, convert
from pyflash.cli.main import cli
from pyflash.eval.output import estimate_text
from pyflash.eval.statistics import Estimate

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "eval_table.py"
CTX = 32


def test_table(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The river runs over many little stones. " * 12)
    main = runpy.run_path(str(SCRIPT))["main"]
    main.__globals__["DENSE"], main.__globals__["EXPERTS"] = ("q8_0", "f32"), ("keep",)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tiny_checkpoint), "--text", str(text), "--ctx", str(CTX)])
    main()
    head, line, native, q8, f32, _, note = capsys.readouterr().out.splitlines()
    assert head.count("|") == line.count("|") == native.count("|") == q8.count("|") == f32.count("|")
    assert [row.split(" | ")[1] for row in (native, q8, f32)] == ["as it is", "q8_0", "f32"]

    files = [convert(tiny_checkpoint, tmp_path / f"{dense}.gguf", ConvertOptions(dense=dense, experts=experts)).files[0]
             for dense, experts in (("q8_0", "keep"), ("f32", "f32"))]
    arguments = ["eval", "kld", *map(str, files), "--text", str(text), "--ctx", str(CTX), "--cache-type", "f16", "--json"]
    done = CliRunner().invoke(cli, arguments)
    end = json.loads(done.stdout.splitlines()[-1])
    cells = q8.strip("| ").split(" | ")
    assert cells[4:7] == [
        estimate_text(Estimate(end[name], end[f"{name}_error"]), digits)
        for name, digits in (("ppl", 4), ("ratio", 5), ("kld", 6))
    ]
    assert note.startswith(f"{end['scored']:,} tokens of text.txt scored, windows of {CTX}, fast precision")
    assert estimate_text(Estimate(end["base_ppl"], end["base_ppl_error"])) in note


def test_errors_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(tmp_path), "--text", str(tmp_path / "text.txt")])
    with pytest.raises(SystemExit, match=r"^eval_table: [^\n]+$"):
        main()
