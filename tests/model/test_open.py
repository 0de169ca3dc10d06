"""Opening a converted model that lacks what is optional."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf_copy import copy_gguf
from tiny_models import make_tiny_model

import pyflash


def test_model_without_a_tokenizer(tmp_path: Path) -> None:
    """A vocabulary too small for a tokenizer leaves it out of the file. In a process of its own, should it crash."""
    tiny = make_tiny_model(
        tmp_path, num_hidden_layers=3, compress_ratios=[0, 4, 128, 0], vocab_size=64, num_attention_heads=2
    )
    code = (
        "import sys, pyflash\n"
        "model = pyflash.Model.open(sys.argv[1])\n"
        "print(model.info.bos_token, model.info.eos_token, model.session(context=8).eval([1, 2]).shape)\n"
        "try:\n    model.tokenizer.encode('a')\n"
        "except pyflash.UnsupportedError: print('no tokenizer')\n"
    )
    command = [sys.executable, "-c", code, str(tiny.path)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "-1 -1 (64,)\nno tokenizer\n"


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (9, "has type Q8_1: a type of real numbers, or of blocks of them, is needed"),  # ggml's own, for activations
        (26, "has type I32: a type of real numbers"),
        (28, "has type F64: a type of real numbers"),
        (32, "has type Q4_0_4_8, which this version cannot read"),
        (139, "has type 139 (unknown), which this version cannot read"),
        (1000, "has type 1000 (unknown)"),  # this project's own mark for FP8
    ],
)
@pytest.mark.parametrize("tensor", ["token_embd.weight", "output_norm.weight"])
def test_types_are_told_by_name(tiny_model: Path, tmp_path: Path, number: int, said: str, tensor: str) -> None:
    data = bytearray(tiny_model.read_bytes())
    at = data.rindex(tensor.encode()) + len(tensor)  # in the directory; keys may name tensors, too
    (n_dims,) = struct.unpack_from("<I", data, at)
    struct.pack_into("<I", data, at + 4 + 8 * n_dims, number)
    path = tmp_path / "other.gguf"
    path.write_bytes(data)
    with pytest.raises(pyflash.Error, match=r"\.weight has type|multiple of") as error:
        pyflash.Model.open(path, device="cpu")
    assert said in str(error.value), error.value
    assert f"type {number}:" not in str(error.value)


def test_a_scale_for_a_whole_matrix(tiny_model: Path, tmp_path: Path) -> None:
    """As some writers of NVFP4 have it: not taken into account, it would give wrong numbers in silence."""
    scale = {"blk.1.ffn_up_exps.scale": np.ones(8, np.float32)}
    path = copy_gguf(tiny_model, tmp_path / "scaled.gguf", lambda name, values: None, scale)
    with pytest.raises(pyflash.UnsupportedError, match=r"blk\.1\.ffn_up_exps\.scale scales a whole matrix"):
        pyflash.Model.open(path, device="cpu")
