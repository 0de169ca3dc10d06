"""Reads a checkpoint in the official safetensors layout into dequantised arrays, independently of the converter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def _e4m3_table() -> np.ndarray:
    """Value of each of the 256 codes of e4m3 (finite; 0x7f and 0xff are NaN)."""
    code = np.arange(256)
    exponent, mantissa = (code >> 3) & 15, code & 7
    value = np.where(
        exponent == 0, np.ldexp(mantissa / 8.0, -6), np.ldexp(1 + mantissa / 8.0, exponent.astype(np.int64) - 7)
    )
    value[(code & 127) == 127] = np.nan
    return np.where(code >= 128, -value, value)


_E4M3 = _e4m3_table()
_RAW = {"F8_E4M3": "u1", "F8_E8M0": "u1", "I8": "u1", "BF16": "<u2", "F32": "<f4", "I64": "<i8"}


def read_safetensors(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(name, dtype name, array) of a file; formats that numpy lacks come as raw bytes or 16-bit words."""
    data = np.memmap(path, dtype=np.uint8, mode="r")
    size = int(data[:8].view("<u8")[0])
    header = json.loads(data[8 : 8 + size].tobytes())
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[8 + size + begin : 8 + size + end].tobytes()
        yield name, entry["dtype"], np.frombuffer(raw, dtype=_RAW[entry["dtype"]]).reshape(entry["shape"])


def _scale_values(dtype: str, raw: np.ndarray) -> np.ndarray:
    return np.ldexp(1.0, raw.astype(np.int64) - 127) if dtype == "F8_E8M0" else raw.astype(np.float64)


def _dequantise(dtype: str, raw: np.ndarray, scale: np.ndarray | None) -> np.ndarray:
    """float64 values (integers for tables); scale is that of the tensor's blocks: 128 x 128 for FP8, 1 x 32 for FP4."""
    if dtype == "I64":
        return raw
    if dtype == "F32":
        return raw.astype(np.float64)
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if scale is None:
        raise ValueError(f"a {dtype} weight needs a scale")
    if dtype == "F8_E4M3":
        rows, cols = raw.shape
        return _E4M3[raw] * scale.repeat(128, axis=0)[:rows].repeat(128, axis=1)[:, :cols]
    codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(len(raw), -1)
    return _E2M1[codes] * scale.repeat(32, axis=1)


def read_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Every weight of all shards under its official name; a scale tensor is folded into its weight."""
    raw: dict[str, tuple[str, np.ndarray]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        raw.update((name, (dtype, array)) for name, dtype, array in read_safetensors(path))
    weights = {}
    for name, (dtype, array) in raw.items():
        owner = name.removesuffix(".scale") + ".weight"
        if name.endswith(".scale") and owner in raw:
            continue
        scale = raw.get(name.removesuffix(".weight") + ".scale")
        weights[name] = _dequantise(dtype, array, _scale_values(*scale) if scale else None)
    return weights
