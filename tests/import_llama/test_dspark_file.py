"""The file of DSpark stages that the converter writes beside a model, in real llama.cpp."""

from __future__ import annotations

from pathlib import Path

from gguf_export.convert import ConvertOptions, convert
from gguf_export.synthetic import make_config, write_checkpoint

from import_llama.runner import LlamaCpp


def test_the_draft_file_loads(llama: LlamaCpp, tmp_path: Path) -> None:
    """llama.cpp asks for each number and tensor, and ends where one is missing or has another shape. Its own drafting is
    not within reach of the package: it takes the model's outputs in a program's memory."""
    config = make_config("tiny", "0731")
    checkpoint = write_checkpoint(tmp_path / "checkpoint", config, seed=3)
    for dense in ("q8_0", "f32"):
        report = convert(checkpoint, tmp_path / f"{dense}.gguf", ConvertOptions(mtp=True, dense=dense))
        assert report.files[1].name == f"dspark-{dense}.gguf"
        assert llama.run(report.files[1])["vocab"] == config["vocab_size"]
