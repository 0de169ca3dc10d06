"""A file that is laid over a model: its tensors are the model's, as if they had been written there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyflash
import pytest
from gguf import GGUFReader, GGUFWriter
from gguf_export.convert import ConvertOptions, convert
from gguf_export.quantizing import QuantizeOptions, quantize
from gguf_export.synthetic import make_config, write_checkpoint

NAMES = ("blk.1.ffn_down_exps.weight", "blk.0.attn_q_a.weight", "output.weight")
TYPES = (("^blk.1.ffn_down_exps", "IQ2_XXS"), ("^blk.0.attn_q_a", "Q4_K"), ("^output.weight", "Q6_K"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, the same with some tensors quantised, and these tensors alone."""
    folder = tmp_path_factory.mktemp("overlay")
    config = make_config("tiny", hidden_size=256, moe_intermediate_size=256, n_routed_experts=4, num_hidden_layers=3,
                         num_hash_layers=1, compress_ratios=[0, 4, 128, 0])
    paths = {name: folder / f"{name}.gguf" for name in ("whole", "changed", "over")}
    convert(write_checkpoint(folder / "checkpoint", config, seed=2), paths["whole"], ConvertOptions())
    quantize(paths["whole"], paths["changed"], QuantizeOptions(dense="keep", head="keep", tensor_types=TYPES))
    write_tensors(paths["over"], [each for each in GGUFReader(paths["changed"]).tensors if each.name in NAMES])
    return paths


def write_tensors(path: Path, tensors: list[Any]) -> None:
    writer = GGUFWriter(path, "deepseek4")
    for tensor in tensors:
        writer.add_tensor(tensor.name, np.ascontiguousarray(tensor.data), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(path: Path, **options: Any) -> bytes:
    with pyflash.Model.open(path, device="cpu", **options) as model, model.session(context=64) as session:
        return session.eval(np.arange(5, 45, dtype=np.int32), all_logits=True).tobytes()


@pytest.mark.parametrize("options", [{}, {"precision": "exact"}, {"expert_budget": 1}, {"prefault": True}])
def test_the_same_bits_as_one_file(options: dict[str, Any], files: dict[str, Path]) -> None:
    wanted = logits(files["changed"], **options)
    assert logits(files["whole"], overlay=files["over"], **options) == wanted != logits(files["whole"], **options)


def test_sessions_of_the_model_itself_do_not_fit(files: dict[str, Path], tmp_path: Path) -> None:
    with pyflash.Model.open(files["whole"]) as model, model.session(context=64) as session:
        session.eval([1, 2, 3])
        session.save(tmp_path / "s")
    with pyflash.Model.open(files["whole"], overlay=files["over"]) as model, model.session(context=64) as session:
        with pytest.raises(pyflash.Error, match="another model"):
            session.load(tmp_path / "s")


def test_refused(files: dict[str, Path], tmp_path: Path) -> None:
    tensors = {tensor.name: tensor for tensor in GGUFReader(files["changed"]).tensors}
    renamed = tensors["output.weight"]._replace(name="blk.9.attn_q_a.weight")
    shorter = tensors["blk.0.attn_q_a.weight"]._replace(data=tensors["blk.0.attn_q_a.weight"].data[:16])
    for wrong in (renamed, shorter):
        write_tensors(tmp_path / "o.gguf", [tensors["blk.1.ffn_down_exps.weight"], wrong])
        with pytest.raises(pyflash.FormatError, match=f"no tensor {wrong.name} of that shape"):
            pyflash.Model.open(files["whole"], overlay=tmp_path / "o.gguf")
    with pytest.raises(pyflash.FileError, match="none.gguf"):
        pyflash.Model.open(files["whole"], overlay=tmp_path / "none.gguf")
