"""A GGUF file with the same values as another, every matrix stored as float32. By the gguf package alone."""

from __future__ import annotations

from pathlib import Path

from gguf import GGMLQuantizationType
from gguf_copy import copy_gguf


def float32_copy(source: Path, dest: Path) -> Path:
    """Writes dest with source's metadata and tensors; data of all other types become the float32 they stand for."""
    return copy_gguf(source, dest, lambda name, values: (GGMLQuantizationType.F32, values))
