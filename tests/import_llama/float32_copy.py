"""A GGUF file with the same values as another, every matrix stored as float32. By the gguf package alone."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, quants

_KEPT = (GGMLQuantizationType.F32, GGMLQuantizationType.I32)
_WRITTEN_BY_ITSELF = "general.architecture"


def float32_copy(source: Path, dest: Path) -> Path:
    """Writes dest with source's metadata and tensors; Q8_0, MXFP4 and BF16 data become the float32 they stand for."""
    reader = GGUFReader(source)
    writer = GGUFWriter(dest, arch=reader.fields[_WRITTEN_BY_ITSELF].contents())
    for field in reader.fields.values():
        if field.name == _WRITTEN_BY_ITSELF or field.name.startswith("GGUF."):
            continue
        kind = field.types[0]
        item_kind = field.types[-1] if kind is GGUFValueType.ARRAY else None
        writer.add_key_value(field.name, field.contents(), kind, sub_type=item_kind)
    for tensor in reader.tensors:
        if tensor.tensor_type in _KEPT:
            writer.add_tensor(tensor.name, tensor.data)
        else:
            writer.add_tensor(tensor.name, quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return dest
