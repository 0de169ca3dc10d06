"""Copies of GGUF files whose tensors have other types, and their values. By the gguf package alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants
from gguf_export.names import gguf_name

Array = np.ndarray[Any, Any]
_PLAIN = (GGMLQuantizationType.F32, GGMLQuantizationType.I32)
_WRITTEN_BY_ITSELF = "general.architecture"


def copy_gguf(
    source: Path, dest: Path, recode: Callable[[str, Array], tuple[GGMLQuantizationType, Array] | None],
    more: Mapping[str, Array] | None = None,
) -> Path:
    """Writes dest with source's metadata and tensors. recode gets each one's name and values, float32 [..., columns], and
    returns another type with its bytes [..., bytes of a row]; None keeps the tensor. Tables of integers stay. more: further tensors."""
    reader = GGUFReader(source)
    writer = GGUFWriter(dest, arch=reader.fields[_WRITTEN_BY_ITSELF].contents())
    for field in reader.fields.values():
        if field.name == _WRITTEN_BY_ITSELF or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        item_kind = field.types[-1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item_kind)
    for tensor in reader.tensors:
        is_real = tensor.tensor_type is not GGMLQuantizationType.I32
        other = recode(tensor.name, quants.dequantize(tensor.data, tensor.tensor_type)) if is_real else None
        kind, data = other or (tensor.tensor_type, tensor.data)
        writer.add_tensor(tensor.name, data, raw_dtype=None if kind in _PLAIN else kind)
    for name, values in (more or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dest


def gguf_values(path: Path, like: Mapping[str, Array], n_layers: int) -> dict[str, Array]:
    """What the file holds of a checkpoint's weights (under their official names, with their shapes), in float64."""
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    values: dict[str, Array] = {}
    decoded: dict[str, Array] = {}
    for name, weight in like.items():
        stored = _stored_name(name, n_layers)
        if weight.dtype.kind in "iu":
            values[name] = weight
            continue
        if stored not in decoded:
            decoded[stored] = quants.dequantize(tensors[stored].data, tensors[stored].tensor_type).astype(np.float64)
        whole = decoded[stored]
        part = whole[int(name.split(".")[4])] if ".experts." in name else whole
        values[name] = part.reshape(weight.shape)
    return values


def _stored_name(name: str, n_layers: int) -> str:
    try:
        return gguf_name(name, n_layers)
    except KeyError:  # one that checkpoints have beside a scale
        return gguf_name(name.removesuffix(".weight"), n_layers)
