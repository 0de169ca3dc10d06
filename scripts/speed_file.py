"""Makes a GGUF file whose speed is that of a quantised model, in a minute instead of an hour: for timing alone.

    python scripts/speed_file.py slice.gguf out.gguf --experts IQ2_XXS --tensor-type ffn_down_exps=Q2_K [--dense TYPE] [--head TYPE]

slice.gguf: one file with MXFP4 experts. Options as `pyflash quantize` has them. Of every tensor that changes its type the first
64 rows are quantised and repeated, so that its blocks are valid and of usual size but its weights mean nothing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from gguf_export.quantize_jobs import QuantisedTensor
from gguf_export.quantizing import QuantizeOptions, plan_quantization
from gguf_export.reader import read_gguf
from gguf_export.safetensors_file import TensorRef
from quantize.blocks import Bytes, decode, quantise
from quantize.choice import kind_named
from quantize.codecs import bf16_decode

ROWS = 64
PIECE = 64 << 20


def read(ref: TensorRef, nbytes: int, begin: int = 0) -> Bytes:
    assert ref.path is not None
    return np.fromfile(ref.path, dtype=np.uint8, count=nbytes, offset=ref.offset + begin)


def quantised_rows(ref: TensorRef, tensor: QuantisedTensor) -> Bytes:
    """The first rows of a tensor in its new type."""
    columns = ref.shape[0]
    rows = int(np.prod(ref.shape[1:]))
    count = min(ROWS, rows)
    blocks = read(ref, ref.nbytes // rows * count)
    if ref.dtype == "BF16":
        values = bf16_decode(blocks.view(np.uint16)).reshape(count, columns)
    else:
        values = decode(kind_named(ref.dtype), blocks).reshape(count, columns)
    return quantise(tensor.info.kind, values).reshape(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="A file to time a type of weights with.")
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts", default="keep")
    parser.add_argument("--dense", default="Q8_0")
    parser.add_argument("--head", default="BF16")
    parser.add_argument("--tensor-type", action="append", default=[], metavar="REGEX=TYPE")
    args = parser.parse_args()
    begin = time.monotonic()
    types = tuple((regex, kind) for regex, _, kind in (each.rpartition("=") for each in args.tensor_type))
    plan = plan_quantization(args.source, QuantizeOptions(args.experts, args.dense, args.head, types))
    refs = read_gguf(args.source).tensors
    ((file, layout),) = plan.layouts(args.out.name)
    with open(args.out, "wb") as out:
        out.write(layout.header)
        for tensor in file.tensors:
            name, left = tensor.info.name, tensor.info.nbytes
            ref = refs[name]
            out.seek(layout.offsets[name])
            rows = quantised_rows(ref, tensor) if isinstance(tensor, QuantisedTensor) else None
            if rows is not None:
                rows = np.tile(rows, max(1, PIECE // rows.size))
            while left:
                piece = rows if rows is not None else read(ref, min(PIECE, left), tensor.info.nbytes - left)
                out.write(piece[:left].data)
                left -= min(left, piece.size)
        out.truncate(layout.size)
    print(f"{args.out}: {layout.size / 1e9:.2f} GB in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
