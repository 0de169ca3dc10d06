"""The error and the speed of this project's quantisers next to ggml's, in the same formats on the same rows.

    python scripts/compare_quantisers.py libggml-base.so [--rows 64] [--columns 4096] [--seed 0]

libggml-base.so: of any build of llama.cpp, such as the npm package @node-llama-cpp/linux-x64 (bins/linux-x64). Both get the
same importance. Prints a table: the share of the weighted energy that is lost, and millions of weights a second of one core
(processor time, so that other work on the machine counts little).
"""

from __future__ import annotations

import argparse
import ctypes
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from quantize.blocks import WRITABLE, decode, quantise

Floats = npt.NDArray[np.float32]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)


def to_fp4(rows: Floats) -> Floats:
    """The values of FP4 codes with a power of two for every 32, as checkpoints hold experts."""
    groups = rows.reshape(len(rows), -1, 32)
    scale = 2.0 ** (np.floor(np.log2(np.abs(groups).max(axis=-1, keepdims=True))) - 2)
    code = np.abs(np.abs(groups / scale)[..., None] - E2M1).argmin(axis=-1)
    return (np.sign(groups) * E2M1[code] * scale).reshape(rows.shape).astype(np.float32)


def inputs(n_rows: int, n_cols: int, seed: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    rng = np.random.default_rng(seed)
    gaussian = (0.02 * rng.standard_normal((n_rows, n_cols))).astype(np.float32)
    heavy = (0.02 * rng.standard_t(4, (n_rows, n_cols))).astype(np.float32)
    importance = np.exp(1.5 * rng.standard_normal(n_cols)).astype(np.float32)
    rows = {"FP4": to_fp4(gaussian), "Gaussian": gaussian, "heavy-tailed": heavy}
    return rows, {"lognormal, sigma 1.5": importance, "flat": np.ones(n_cols, dtype=np.float32)}


class Ggml:
    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        for kind in WRITABLE.values():
            self._library.ggml_quantize_init(kind)  # tables, once a process

    def quantise(self, kind: int, rows: Floats, importance: Floats, row_bytes: int) -> npt.NDArray[np.uint8]:
        out = np.zeros((len(rows), row_bytes), dtype=np.uint8)
        pointers = [ctypes.c_void_p(array.ctypes.data) for array in (rows, out, importance)]
        self._library.ggml_quantize_chunk(kind, pointers[0], pointers[1], ctypes.c_int64(0), ctypes.c_int64(rows.shape[0]),
                                          ctypes.c_int64(rows.shape[1]), pointers[2])  # fmt: skip
        return out


def timed(call: Callable[[], npt.NDArray[np.uint8]]) -> tuple[npt.NDArray[np.uint8], float]:
    begin = time.process_time()
    return call(), time.process_time() - begin


def lost(kind: int, rows: Floats, importance: Floats, blocks: npt.NDArray[np.uint8]) -> float:
    error = rows.astype(np.float64) - decode(kind, blocks).reshape(rows.shape)
    return float((importance * error**2).sum() / (importance * rows.astype(np.float64) ** 2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description="Error and speed of quantisers next to ggml's.")
    parser.add_argument("library", type=Path, help="libggml-base.so")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ggml = Ggml(options.library)
    all_rows, all_importance = inputs(options.rows, options.columns, options.seed)
    print("| rows | importance | type | ggml | pyflash | error | ggml, Mw/s | pyflash, Mw/s |\n|---|---|---|---|---|---|---|---|")
    for row_name, rows in all_rows.items():
        for importance_name, importance in all_importance.items():
            for name, kind in WRITABLE.items():
                ours, our_time = timed(lambda: quantise(kind, rows, importance))  # noqa: B023
                theirs, their_time = timed(lambda: ggml.quantise(kind, rows, importance, ours.shape[1]))  # noqa: B023
                ours_lost, theirs_lost = (lost(kind, rows, importance, blocks) for blocks in (ours, theirs))
                print(f"| {row_name} | {importance_name} | {name} | {theirs_lost:.5f} | {ours_lost:.5f} "
                      f"| {100 * (ours_lost / theirs_lost - 1):+.1f} % | {rows.size / their_time / 1e6:.1f} "
                      f"| {rows.size / our_time / 1e6:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
