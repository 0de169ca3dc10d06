"""Real llama.cpp takes our importance matrices, and quantises otherwise for them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from gguf_export.reader import read_gguf
from import_llama.models import write_model
from import_llama.runner import LlamaCpp
from pyflash.cli.main import cli
from quantize import importance

pytestmark = pytest.mark.llama

IQ2_XS = 20  # LLAMA_FTYPE_MOSTLY_IQ2_XS, which is refused without an importance matrix
SCRIPT = Path(__file__).with_name("quantize_with_imatrix.py")


def quantise(llama: LlamaCpp, imatrix: Path | str, model: Path, out: Path) -> subprocess.CompletedProcess[str]:
    libraries = next(llama.package.rglob("libggml-base.so")).parent
    command = [sys.executable, str(SCRIPT), str(libraries), str(imatrix), str(model), str(out), str(IQ2_XS)]
    return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=300)


def test_llama_cpp_quantises_with_ours(llama: LlamaCpp, tmp_path: Path) -> None:
    (model,) = write_model(tmp_path, seed=1, changes={"moe_intermediate_size": 256, "vocab_size": 1024})
    text, ours = tmp_path / "text.txt", tmp_path / "ours.gguf"
    rng = np.random.default_rng(1)
    text.write_text("\n".join(" ".join(rng.choice(["the", "river", "12", "x = y", "sea"], 12)) for _ in range(40)))
    done = CliRunner().invoke(cli, ["imatrix", str(model), "--text", str(text), "-o", str(ours), "--ctx", "64"])
    assert done.exit_code == 0, done.output

    refused = quantise(llama, "-", model, tmp_path / "without.gguf")
    assert refused.returncode != 0 and "requires an imatrix" in refused.stderr, refused.stderr[-2000:]
    out = tmp_path / "out.gguf"
    quantised = quantise(llama, ours, model, out)
    assert quantised.returncode == 0, quantised.stderr[-2000:]
    sizes = json.loads(quantised.stdout.splitlines()[-1])
    read = importance.read(ours)
    assert sizes == {name: entry.n_values for name, entry in read.entries.items()}
    kinds = {name: ref.dtype for name, ref in read_gguf(out, any_type=True).tensors.items()}
    # Every one that it makes small had an entry.
    few = {name for name, kind in kinds.items() if kind.startswith("IQ2")}
    assert "blk.0.ffn_gate_exps.weight" in few and few <= {*read.entries, "token_embd.weight"}
