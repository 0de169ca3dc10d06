"""Real llama.cpp's llama_model_quantize(), by ctypes: python quantise.py LIBRARY SOURCE FTYPE=DEST ...

In a process of its own, as llama.cpp ends its process where it meets what it does not expect. All weights get an importance
matrix of ones and twos, which some types need.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np


class _Params(ctypes.Structure):
    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int), ("output_type", ctypes.c_int), ("embedding_type", ctypes.c_int),
        ("allow_requantize", ctypes.c_bool), ("quantize_output", ctypes.c_bool), ("only_copy", ctypes.c_bool),
        ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool), ("dry_run", ctypes.c_bool),
        ("imatrix", ctypes.c_void_p), ("kv_overrides", ctypes.c_void_p), ("types", ctypes.c_void_p),
        ("prune_layers", ctypes.c_void_p), ("max_buf_size", ctypes.c_size_t),
    ]  # fmt: skip


class _Importance(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


def quantised(package: Path, source: Path, files: Mapping[int, Path]) -> None:
    """Writes a file for each of llama.cpp's file types."""
    (library,) = package.glob("node_modules/@node-llama-cpp/linux-x64/bins/linux-x64/libllama.*so*")
    parts = [f"{ftype}={path}" for ftype, path in files.items()]
    command = [sys.executable, __file__, str(library), str(source), *parts]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=600)
    assert done.returncode == 0, f"llama_model_quantize: exit code {done.returncode}\n{done.stderr[-4000:]}"


def _importance(source: Path) -> tuple[ctypes.Array[_Importance], list[object]]:
    from gguf import GGUFReader

    rows = [(tensor.name.encode(), np.prod(tensor.shape[2:], dtype=int) * int(tensor.shape[0]))
            for tensor in GGUFReader(source).tensors if len(tensor.shape) > 1]  # fmt: skip
    values = [(np.arange(size) % 2 + 1).astype(np.float32) for _, size in rows]
    entries = [_Importance(name, array.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), size)
               for (name, size), array in zip(rows, values, strict=True)]  # fmt: skip
    return (_Importance * (len(rows) + 1))(*entries), [rows, values]


def main(path: str, source: str, *parts: str) -> None:
    llama = ctypes.CDLL(path)
    llama.llama_model_quantize_default_params.restype = _Params
    importance, _kept = _importance(Path(source))
    for part in parts:
        ftype, _, dest = part.partition("=")
        params = llama.llama_model_quantize_default_params()
        params.nthread, params.ftype = 1, int(ftype)
        params.imatrix = ctypes.addressof(importance)
        status = llama.llama_model_quantize(source.encode(), dest.encode(), ctypes.byref(params))
        assert status == 0, f"file type {ftype}: status {status}"


if __name__ == "__main__":
    main(*sys.argv[1:])
