"""In a process of its own: reads an importance matrix as llama-quantize does, by ggml's own reader of GGUF files, and
has llama.cpp quantise a model with it.

    python quantize_with_imatrix.py FOLDER_OF_LIBRARIES IMATRIX|- MODEL OUT FTYPE [experts]

experts: those of all layers become the type that the file type is named after, none another, and all else Q8_0.
Prints, as JSON, the number of entries and the sizes of each.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

folder, imatrix, model, out, ftype, *flags = sys.argv[1:]


def load(name: str) -> Any:
    return ctypes.CDLL(str(Path(folder, name)), mode=ctypes.RTLD_GLOBAL)


class InitParams(ctypes.Structure):
    _fields_ = [("no_alloc", ctypes.c_bool), ("ctx", ctypes.POINTER(ctypes.c_void_p))]


class Data(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("data", ctypes.POINTER(ctypes.c_float)), ("size", ctypes.c_size_t)]


class Override(ctypes.Structure):
    _fields_ = [("pattern", ctypes.c_char_p), ("type", ctypes.c_int32)]


class QuantizeParams(ctypes.Structure):
    """llama_model_quantize_params as far as they are used, and room for what newer versions may add."""

    _fields_ = [
        ("nthread", ctypes.c_int32), ("ftype", ctypes.c_int32), ("output_type", ctypes.c_int32),
        ("embedding_type", ctypes.c_int32), ("allow_requantize", ctypes.c_bool), ("quantize_output", ctypes.c_bool),
        ("only_copy", ctypes.c_bool), ("pure", ctypes.c_bool), ("keep_split", ctypes.c_bool),
        ("dry_run", ctypes.c_bool), ("imatrix", ctypes.POINTER(Data)), ("kv_overrides", ctypes.c_void_p),
        ("overrides", ctypes.POINTER(Override)), ("rest", ctypes.c_void_p * 16),
    ]  # fmt: skip


base = load("libggml-base.so")
base.gguf_init_from_file.restype = ctypes.c_void_p
base.gguf_init_from_file.argtypes = [ctypes.c_char_p, InitParams]
base.ggml_get_first_tensor.restype = base.ggml_get_next_tensor.restype = ctypes.c_void_p
base.ggml_get_first_tensor.argtypes = [ctypes.c_void_p]
base.ggml_get_next_tensor.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
base.ggml_get_name.restype = ctypes.c_char_p
base.ggml_get_name.argtypes = [ctypes.c_void_p]
base.ggml_get_data_f32.restype = ctypes.POINTER(ctypes.c_float)
base.ggml_get_data_f32.argtypes = [ctypes.c_void_p]
base.ggml_nelements.restype = ctypes.c_int64
base.ggml_nelements.argtypes = [ctypes.c_void_p]


def means() -> dict[str, np.ndarray]:
    """As its load_imatrix() makes them: by the endings of names, and ones where nothing was counted."""
    context = ctypes.c_void_p()
    assert base.gguf_init_from_file(imatrix.encode(), InitParams(False, ctypes.pointer(context))), "no GGUF file"
    found: dict[str, np.ndarray] = {}
    tensor = base.ggml_get_first_tensor(context)
    while tensor:
        name = base.ggml_get_name(tensor).decode()
        if name.endswith((".in_sum2", ".counts")):  # the reader puts one beside that holds all of the data
            found[name] = np.ctypeslib.as_array(base.ggml_get_data_f32(tensor), (base.ggml_nelements(tensor),)).copy()
        tensor = base.ggml_get_next_tensor(context, tensor)
    result = {}
    for name in [name.removesuffix(".in_sum2") for name in found if name.endswith(".in_sum2")]:
        counts = found[f"{name}.counts"]
        sums = found[f"{name}.in_sum2"].reshape(len(counts), -1)
        divided = sums / np.maximum(counts, 1)[:, None]
        result[name] = np.where(counts[:, None] > 0, divided, 1).astype(np.float32).reshape(-1)
    return result


entries = means() if imatrix != "-" else {}
load(next(Path(folder).glob("libggml.v*.so")).name)
llama = load(next(Path(folder).glob("libllama.v*.so")).name)
llama.llama_model_quantize_default_params.restype = QuantizeParams
params = llama.llama_model_quantize_default_params()
data = (Data * (len(entries) + 1))()  # the last one has no name
for place, (name, values) in zip(data, entries.items(), strict=False):
    place.name, place.size = name.encode(), values.size
    place.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
params.nthread, params.ftype, params.allow_requantize = 1, int(ftype), True
Q8_0 = 8
if flags == ["experts"]:
    params.pure, params.output_type, params.embedding_type = True, Q8_0, Q8_0
    params.overrides = (Override * 2)(Override(b"^(?!.*_exps)", Q8_0))
params.imatrix = data if entries else None
llama.llama_model_quantize.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.POINTER(QuantizeParams)]
llama.llama_model_quantize.restype = ctypes.c_uint32
assert llama.llama_model_quantize(model.encode(), out.encode(), ctypes.byref(params)) == 0
print(json.dumps({name: values.size for name, values in entries.items()}))
