"""`pyflash convert` with types of `pyflash quantize`: one pass, and the bytes of two."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gguf_export.convert import ConvertOptions, convert
from gguf_export.quantizing import QuantizeOptions, quantize
from gguf_export.synthetic import make_config, write_checkpoint

WIDE: dict[str, Any] = {
    "hidden_size": 256, "moe_intermediate_size": 256, "q_lora_rank": 256, "o_lora_rank": 128, "num_hidden_layers": 1,
    "num_hash_layers": 1, "compress_ratios": [0, 0], "n_routed_experts": 2, "vocab_size": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("wide") / "wide", make_config("tiny", **WIDE))


def pyflash_convert(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyflash", "convert", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_one_pass_gives_the_bytes_of_two(checkpoint: Path, tmp_path: Path) -> None:
    lossless = convert(checkpoint, tmp_path / "native.gguf", ConvertOptions(profile="native", name="Wide")).files[0]
    options = QuantizeOptions("IQ2_XXS", "Q6_K", "Q6_K", (("ffn_down_exps", "Q2_K"),), objective="ggml")
    two = quantize(lossless, tmp_path / "two.gguf", options).files[0]
    types = ("--experts", "iq2_xxs", "--dense", "Q6_K", "--head", "q6_k", "--tensor-type", "ffn_down_exps=Q2_K")
    one = pyflash_convert(checkpoint, tmp_path / "one.gguf", "--name", "Wide", *types, "--objective", "ggml", "--json")
    assert one.returncode == 0, one.stderr
    assert (tmp_path / "one.gguf").read_bytes() == two.read_bytes()
    report = json.loads(one.stdout.splitlines()[-1])
    assert report["errors"] and (tmp_path / "one.quantize.json").is_file()


def test_what_is_lossless_stays_so(checkpoint: Path, tmp_path: Path) -> None:
    """--dense bf16 beside a quantised type is what it is without."""
    done = pyflash_convert(checkpoint, tmp_path / "m.gguf", "--experts", "Q2_K", "--dense", "bf16", "--dry-run", "--json")
    plan = json.loads(done.stdout.splitlines()[-1])
    kinds = {kind for group in plan["groups"].values() for kind in group["types"]}
    assert "Q2_K" in kinds and "BF16" in kinds and "Q8_0" not in kinds


@pytest.mark.parametrize(("arguments", "code", "words"), [
    (["--profile", "native", "--experts", "Q2_K"], 2, "leave it out to quantise"),
    (["--experts", "bf16", "--head", "Q6_K"], 2, "leave one of them out"),
    (["--dense", "f32", "--head", "Q6_K"], 2, "leave one of them out"),
    (["--resume"], 2, "--resume is for quantising"),
    (["--experts", "Q4_K"], 1, "can only lose"),
    (["--experts", "int3"], 1, "choose one of"),
    (["--head", "Q6_K", "--imatrix", "{tmp}/none.gguf"], 1, "none.gguf"),
])  # fmt: skip
def test_refused(arguments: list[str], code: int, words: str, checkpoint: Path, tmp_path: Path) -> None:
    given = [each.format(tmp=tmp_path) for each in arguments]
    done = pyflash_convert(checkpoint, tmp_path / "m.gguf", *given)
    assert done.returncode == code and words in done.stderr and list(tmp_path.iterdir()) == [], done.stderr


def test_a_file_is_for_quantize(checkpoint: Path, tmp_path: Path) -> None:
    made = convert(checkpoint, tmp_path / "m.gguf", ConvertOptions()).files[0]
    done = pyflash_convert(made, tmp_path / "q.gguf", "--experts", "Q2_K")
    assert done.returncode == 1 and "`pyflash quantize` takes it" in done.stderr and not (tmp_path / "q.gguf").exists()
