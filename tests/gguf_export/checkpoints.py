"""Small checkpoints for tests, and ways to look at them and to damage them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from gguf_export.safetensors_file import build_header, read_header
from gguf_export.synthetic import make_config, write_checkpoint

# Three layers, one of each attention kind; odd sizes so that FP8 blocks are cut at the edges.
SMALL: dict[str, Any] = {
    "hidden_size": 160,
    "q_lora_rank": 96,
    "moe_intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_hash_layers": 1,
    "compress_ratios": [0, 4, 128, 0],
    "n_routed_experts": 5,
    "vocab_size": 512,
}


def small_config(release: str = "preview", **changes: Any) -> dict[str, Any]:
    values = SMALL | changes
    if release == "0731" and "compress_ratios" not in changes:
        values["compress_ratios"] = [0, 4, 128, 0, 0, 0]
    return make_config("tiny", release, **values)


def small_checkpoint(
    path: Path, release: str = "preview", changes: dict[str, Any] | None = None, **options: Any
) -> Path:
    return write_checkpoint(path, small_config(release, **(changes or {})), **options)


def payloads(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> (dtype, shape, bytes) of all the shards."""
    result = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        for name, ref in read_header(path).items():
            result[name] = (ref.dtype, ref.shape, data[ref.offset : ref.offset + ref.nbytes])
    return result


Edit = Callable[[dict[str, tuple[str, tuple[int, ...], bytes]]], None]


def rewrite(folder: Path, name: str, edit: Edit) -> None:
    """Applies `edit` to the tensors of the shard that holds `name`, and fixes the index to match."""
    for path in sorted(folder.glob("*.safetensors")):
        if name in read_header(path):
            break
    else:
        raise AssertionError(name)
    data = path.read_bytes()
    refs = read_header(path)
    tensors = {
        key: (ref.dtype, ref.shape, data[ref.offset : ref.offset + ref.nbytes]) for key, ref in refs.items()
    }
    edit(tensors)
    header, _ = build_header(path, [(key, dtype, shape) for key, (dtype, shape, _) in tensors.items()])
    path.write_bytes(header + b"".join(payload for _, _, payload in tensors.values()))
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        index = json.loads(index_path.read_text())
        places = {key: shard for key, shard in index["weight_map"].items() if shard != path.name}
        index["weight_map"] = places | {key: path.name for key in tensors}
        index_path.write_text(json.dumps(index))


def poke(name: str, values: Any, dtype: str, at: int = 0) -> Edit:
    """An edit that overwrites elements of one tensor."""

    def edit(tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
        kind, shape, payload = tensors[name]
        array = np.frombuffer(payload, dtype=dtype).copy()
        array[at : at + np.size(values)] = values
        tensors[name] = (kind, shape, array.tobytes())

    return edit


def leftovers(folder: Path) -> list[str]:
    """Files that a conversion should not have left."""
    return [path.name for path in folder.iterdir() if path.name.startswith(".") or path.suffix == ".part"]


def full_size_config(release: str) -> dict[str, Any]:
    """The config.json of a published release, without transformers_version: Pro begins with two HCA layers where Flash has
    two window-only ones."""
    if release != "pro":
        return make_config("slice", release)
    n_layer = make_config("slice", release)["num_hidden_layers"]
    return make_config("slice", release, compress_ratios=[128, *([128, 4] * n_layer)[: n_layer - 1], 0])
