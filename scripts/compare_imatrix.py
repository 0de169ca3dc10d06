"""The sums of `pyflash imatrix` next to those of llama.cpp's llama-imatrix, on the same file and text.

    python scripts/compare_imatrix.py llama-imatrix model.gguf text.txt [--ctx 512] [--chunks 4] [--threads 2]

model.gguf: best of float32 weights, with which both compute in float32; the sums of quantised files differ by what each
rounds activations to. Prints the entries that only one has, and for each kind of weight the largest differences: of the
numbers of tokens, and of the sums, over the largest sum of the same matrix.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np

from quantize import importance
from quantize.importance import Entry, Importance


def collect(options: argparse.Namespace, folder: Path) -> tuple[Importance, Importance]:
    ours, theirs = folder / "ours.gguf", folder / "theirs.gguf"
    windows = ["-c", str(options.ctx), "--chunks", str(options.chunks), "-t", str(options.threads)]
    subprocess.run([sys.executable, "-m", "pyflash", "imatrix", str(options.model), "--text", str(options.text), "-o",
                    str(ours), "--precision", "exact", *windows], check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run([str(options.tool), "-m", str(options.model), "-f", str(options.text), "-o", str(theirs), *windows,
                    "--process-output", "--no-ppl", "-ngl", "0", "-b", str(options.ctx)],
                   check=True, capture_output=True)  # fmt: skip
    return importance.read(ours), importance.read(theirs)


def differences(ours: Entry, theirs: Entry) -> tuple[float, float]:
    """Largest of the counts, and of the sums over the largest of their matrix."""
    counts = float(np.abs(ours.counts - theirs.counts).max())
    sums, others = (each.sums().astype(np.float64).reshape(len(ours.counts), -1) for each in (ours, theirs))
    most = np.maximum(np.abs(others).max(axis=1, keepdims=True), 1e-30)
    return counts, float((np.abs(sums - others) / most).max())


def main() -> None:
    parser = argparse.ArgumentParser(description="Importance matrices of pyflash and llama.cpp.")
    parser.add_argument("tool", type=Path, help="llama-imatrix")
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = collect(options, Path(folder))
        for name, found, other in (("pyflash", ours, theirs), ("llama.cpp", theirs, ours)):
            alone = sorted({re.sub(r"blk\.\d+\.", "", each) for each in found.entries.keys() - other.entries.keys()})
            print(f"only {name}: {', '.join(alone) or 'none'}")
        kinds: dict[str, list[tuple[float, float]]] = defaultdict(list)
        for name in sorted(ours.entries.keys() & theirs.entries.keys()):
            kind, pair = re.sub(r"blk\.\d+\.", "", name), (ours.entries[name], theirs.entries[name])
            if pair[0].n_values != pair[1].n_values or len(pair[0].counts) != len(pair[1].counts):
                print(f"{name}: {pair[0].n_values} values of {len(pair[0].counts)} matrices, and llama.cpp's "
                      f"{pair[1].n_values} of {len(pair[1].counts)}")  # fmt: skip
            else:
                kinds[kind].append(differences(*pair))
    print("| weight | entries | counts differ by | sums differ by |\n|---|---|---|---|")
    for kind, found in sorted(kinds.items()):
        print(f"| {kind} | {len(found)} | {max(each[0] for each in found):g} | {max(each[1] for each in found):.1e} |")


if __name__ == "__main__":
    main()
