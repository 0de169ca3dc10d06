"""Opening a converted model that lacks what is optional."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny_models import make_tiny_model


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
