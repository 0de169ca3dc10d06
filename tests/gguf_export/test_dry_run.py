"""Plans: from headers, from an index without shards, at full size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from checkpoints import full_size_config, small_checkpoint

from gguf_export.config import parse_config
from gguf_export.convert import ConvertOptions, convert, plan_conversion
from gguf_export.errors import ConvertError
from gguf_export.inventory import draft_weights, main_weights, tensors_of
from quantize.plan import Form


def full_size(tmp_path: Path, names: list[str] | None = None) -> Path:
    """A folder with the preview's config.json and, given tensor names, an index; no shards."""
    folder = tmp_path / "full-size"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(full_size_config("preview")))
    if names is not None:
        index = {"metadata": {}, "weight_map": dict.fromkeys(names, "model-00001-of-00046.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def published_names() -> list[str]:
    """Of the preview's tensors; test_synthetic.py compares them with what is published."""
    sizes = parse_config(full_size_config("preview"))
    weights = [*main_weights(sizes, Form.FP4), *draft_weights(sizes, Form.FP4)]
    return [name for weight in weights for name, _, _ in tensors_of(weight)]


def test_full_size_index(tmp_path: Path, published_names: list[str]) -> None:
    folder = full_size(tmp_path, published_names)
    plan = plan_conversion(folder, ConvertOptions())
    data = sum(tensor.info.nbytes for tensor in plan.files[0].tensors)
    assert (len(plan.files[0].tensors), data) == (1328, 156_373_008_732)
    kinds = [tensor.info.kind.name for tensor in plan.files[0].tensors]
    counts = {kind: kinds.count(kind) for kind in set(kinds)}
    assert counts == {"F32": 641, "Q8_0": 365, "BF16": 190, "MXFP4": 129, "I32": 3}
    summary = plan.summary()
    assert "156.37 GB" in summary and "not all there" in summary and "1,575 tensors" in summary
    assert "e_proj.weight" in summary
    with pytest.raises(ConvertError, match="not in"):
        convert(folder, tmp_path / "m.gguf", ConvertOptions())


def test_full_size_lossless(tmp_path: Path) -> None:
    plan = plan_conversion(full_size(tmp_path), ConvertOptions(dense="bf16"))
    assert sum(tensor.info.nbytes for tensor in plan.files[0].tensors) == 161_864_270_172


def test_index_with_a_wrong_name(tmp_path: Path, published_names: list[str]) -> None:
    names = ["layers.7.attn.wq.weight" if name == "layers.7.attn.wq_a.weight" else name for name in published_names]
    with pytest.raises(ConvertError) as error:
        plan_conversion(full_size(tmp_path, names), ConvertOptions())
    assert "layers.7.attn.wq_a.weight is missing" in str(error.value)
    assert "layers.7.attn.wq.weight is not a tensor" in str(error.value)


def test_dspark_is_named_and_left_out(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c", "0731")
    summary = plan_conversion(folder, ConvertOptions()).summary()
    for part in ("mtp.0.*", "mtp.1.*", "mtp.2.*", "main_proj.weight", "markov_head.markov_w1.weight", "DSpark"):
        assert part in summary
    assert "left out" not in plan_conversion(folder, ConvertOptions(profile="native", mtp=True)).summary()


def test_shards_in_the_summary(tmp_path: Path) -> None:
    folder = small_checkpoint(tmp_path / "c")
    plan = plan_conversion(folder, ConvertOptions(shard_bytes=500_000))
    assert "OUT-00002-of-" in plan.summary()
    report = convert(folder, tmp_path / "m.gguf", ConvertOptions(shard_bytes=500_000))
    assert plan.total_bytes == report.total_bytes == sum(path.stat().st_size for path in report.files)
