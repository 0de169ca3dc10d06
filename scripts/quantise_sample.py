"""How long quantising the experts of a model takes, from a sample of its own experts at full width.

    python scripts/quantise_sample.py model.gguf [--layer 0] [--experts 1] [--types IQ2_XXS,Q2_K] [--cores 16]

model.gguf: with MXFP4 experts, whole or a slice of few layers. Reads, decodes and quantises the first experts of a layer,
gate, up and down, and prints for each type millions of weights a second of one core (processor time, so that other work on
the machine counts little) and the hours for all routed experts of V4-Flash (43 layers) on so many such cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from gguf_export.reader import read_gguf
from gguf_export.safetensors_file import TensorRef
from quantize.blocks import WRITABLE, decode, quantise
from quantize.choice import kind_named

N_LAYERS = 43  # of V4-Flash
ROWS = 256  # at a time


def work(ref: TensorRef, expert: int, row: int, kind: int) -> int:
    """Quantises rows of an expert; returns how many weights they have."""
    columns, n_rows, n_experts = ref.shape
    row_bytes = ref.nbytes // (n_rows * n_experts)
    taken = min(ROWS, n_rows - row)
    offset = ref.offset + (expert * n_rows + row) * row_bytes
    assert ref.path is not None
    blocks = np.fromfile(ref.path, dtype=np.uint8, count=taken * row_bytes, offset=offset)
    quantise(kind, decode(kind_named(ref.dtype), blocks).reshape(taken, columns))
    return taken * columns


def main() -> None:
    parser = argparse.ArgumentParser(description="How long quantising takes, from a sample.")
    parser.add_argument("model", type=Path)
    parser.add_argument("--layer", type=int, default=0)
    parser.add_argument("--experts", type=int, default=1)
    parser.add_argument("--cores", type=int, default=16)
    parser.add_argument("--types", default=",".join(WRITABLE))
    options = parser.parse_args()
    tensors = read_gguf(options.model).tensors
    refs = [tensors[f"blk.{options.layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down")]
    total = N_LAYERS * sum(int(np.prod(ref.shape)) for ref in refs)
    pieces = [(ref, expert, row) for ref in refs for expert in range(options.experts)
              for row in range(0, ref.shape[1], ROWS)]  # fmt: skip
    print("| type | weights | Mw/s a core | hours, whole model |\n|---|---|---|---|")
    for name in options.types.split(","):
        begin = time.process_time()
        done = sum(work(*piece, WRITABLE[name]) for piece in pieces)
        rate = done / (time.process_time() - begin)
        print(f"| {name} | {done / 1e6:.0f} M | {rate / 1e6:.1f} | {total / rate / options.cores / 3600:.2f} |", flush=True)


if __name__ == "__main__":
    main()
