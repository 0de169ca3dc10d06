"""Runs a slice of V4-Flash at full dimensions on every kernel set and compares them.

    python scripts/slice_run.py FOLDER/slice.gguf [--isa scalar avx2 avx512 amx] [--precision fast] [--emulated LIBRARY]

For each kernel set, in a process of its own: time to open the file (from a warm page cache), prefill of 64 tokens, 16
decoded tokens, peak memory. Then whether all logits are finite, and how far each set is from the first one: relative
L2 error of the logits and KL divergence, over the 80 tokens, all sets being fed the same ones. Exits with 1 when logits
are not finite or a set is further than MOST_KL from the first. scripts/slice_bench.py makes the file. --emulated: a
libpyflash built with -DPYFLASH_EMULATE_AVX512=ON, for machines without AVX-512.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PREFILL, DECODE = 64, 16
MOST_KL = 1e-3  # mean over the tokens; fast is that close to exact where no choice flips


def run_one(path: str, isa: str, precision: str, out: str) -> None:
    """The child process: evaluates and saves the logits, prints the figures."""
    import pyflash

    try:
        pyflash.Model.open(path, isa=isa).close()
    except pyflash.UnsupportedError as error:
        print(f"{isa:7} skipped: {error}", flush=True)
        return
    tokens = np.random.default_rng(1).integers(0, 129280, PREFILL + DECODE).astype(np.int32)
    started = time.perf_counter()
    with pyflash.Model.open(path, precision=precision, isa=isa) as model:
        opened = time.perf_counter() - started
        tokens %= model.info.n_vocab
        with model.session(context=4096) as session:
            started = time.perf_counter()
            first = session.eval(tokens[:PREFILL], all_logits=True)
            prefill = time.perf_counter() - started
            started = time.perf_counter()
            rest = [session.eval([token]) for token in tokens[PREFILL:]]
            decode = time.perf_counter() - started
            memory = session.memory
        threads = model.info.n_threads
    np.save(out, np.concatenate([first, np.stack(rest)]))
    anonymous = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    print(
        f"{isa:7} {precision}, {threads} threads: open {opened * 1e3:.0f} ms, prefill {PREFILL / prefill:.2f} tok/s, "
        f"decode {DECODE / decode:.2f} tok/s, cache {memory.cache_bytes / 1e6:.0f} MB, "
        f"buffers {memory.buffer_bytes / 1e6:.0f} MB, memory beside the file {int(anonymous.split()[1]) / 1e3:.0f} MB",
        flush=True,
    )


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def compare(name: str, reference: np.ndarray, logits: np.ndarray) -> bool:
    """Prints the distance and tells whether it is acceptable."""
    error = np.linalg.norm(logits - reference, axis=-1) / np.linalg.norm(reference, axis=-1)
    p, q = log_softmax(reference), log_softmax(logits)
    divergence = (np.exp(p) * (p - q)).sum(-1)
    same = (reference.argmax(-1) == logits.argmax(-1)).mean()
    is_finite = bool(np.isfinite(logits).all())
    print(
        f"{name:7} finite: {is_finite}; from the first set: relative L2 median "
        f"{np.median(error):.1e}, worst {error.max():.1e}; KL mean {divergence.mean():.1e}; top-1 {same:.3f}"
    )
    return is_finite and bool(divergence.mean() <= MOST_KL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--isa", nargs="+", default=["scalar", "avx2", "avx512", "amx"])
    parser.add_argument("--precision", choices=["fast", "exact", "int8"], default="fast")
    parser.add_argument("--emulated", metavar="LIBRARY", help="library to run avx512 with")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        logits: dict[str, np.ndarray] = {}
        for isa in args.isa:
            out = str(Path(folder) / f"{isa}.npy")
            environment = dict(os.environ)
            if isa == "avx512" and args.emulated:
                environment["PYFLASH_LIBRARY"] = args.emulated
            command = [sys.executable, __file__, "--child", str(args.gguf), isa, args.precision, out]
            subprocess.run(command, env=environment, check=True)
            if Path(out).exists():
                logits[isa] = np.load(out)
        if not logits:
            sys.exit("no kernel set could run")
        good = [compare(isa, next(iter(logits.values())), values) for isa, values in logits.items()]
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_one(*sys.argv[2:6])
    else:
        main()
