"""generation_config.json -> general.sampling.* -> what Ollama is told."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader

from gguf_export.convert import ConvertOptions, convert
from gguf_export.ollama import modelfile
from gguf_export.reader import read_gguf


def converted(checkpoint: Path, folder: Path, generation: dict[str, Any]) -> Path:
    copy = shutil.copytree(checkpoint, folder / "checkpoint")
    (copy / "generation_config.json").write_text(json.dumps(generation))
    return convert(copy, folder / "model.gguf", ConvertOptions()).files[0]


def sampling_keys(path: Path) -> dict[str, tuple[str, float]]:
    """The type and value of each key, by its name's last part."""
    prefix = "general.sampling."
    return {name.removeprefix(prefix): (field.types[0].name, round(field.contents(), 6))
            for name, field in GGUFReader(path).fields.items() if name.startswith(prefix)}  # fmt: skip


def parameters(path: Path) -> dict[str, str]:
    text = modelfile(read_gguf(path), ["./model.gguf"], "name")
    return dict(re.findall(r"^PARAMETER (?!stop)(\S+) (.*)$", text, re.MULTILINE))


def test_every_field_has_its_key_and_type(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = converted(tiny_checkpoint, tmp_path, {
        "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.05, "repetition_penalty": 1.05,
        "penalty_last_n": -1, "bos_token_id": 0, "max_length": 2048,
    })  # fmt: skip
    assert sampling_keys(path) == {
        "temp": ("FLOAT32", 0.6), "top_k": ("INT32", 20), "top_p": ("FLOAT32", 0.95), "min_p": ("FLOAT32", 0.05),
        "penalty_repeat": ("FLOAT32", 1.05), "penalty_last_n": ("INT32", -1),
    }  # fmt: skip
    assert parameters(path) == {
        "temperature": "0.6", "top_k": "20", "top_p": "0.95", "min_p": "0.05", "repeat_penalty": "1.05",
        "repeat_last_n": "-1",
    }  # fmt: skip


@pytest.mark.parametrize("generation, expected", [
    ({"do_sample": False, "temperature": 0.6}, {"temp": ("FLOAT32", 0.6)}),  # as llama.cpp's converter has it
    ({"do_sample": False}, {}),
    ({"temperature": 0, "top_k": 40.0}, {"temp": ("FLOAT32", 0), "top_k": ("INT32", 40)}),
    ({"temperature": True, "top_k": None, "top_p": "0.9", "min_p": [0.1], "repetition_penalty": {}}, {}),
    ({"temperature": -1, "top_k": 2**31, "top_p": 1.5, "min_p": -0.5, "repetition_penalty": 0}, {}),
    ({"temperature": 10**400, "top_k": 2.5, "top_p": 1e60, "penalty_last_n": -2}, {}),
])  # fmt: skip
def test_what_makes_no_sense_is_left_out(
    tiny_checkpoint: Path, tmp_path: Path, generation: dict[str, Any], expected: dict[str, Any]
) -> None:
    path = converted(tiny_checkpoint, tmp_path, generation)
    assert sampling_keys(path) == expected
    if not expected:  # Ollama's own defaults would filter
        assert parameters(path) == {"temperature": "1", "top_p": "1", "top_k": "0", "repeat_penalty": "1"}
