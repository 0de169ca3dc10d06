"""Converts a slice of V4-Flash at full dimensions and compares with copying the same bytes.

    python scripts/slice_bench.py FOLDER [--layers 4] [--keep-checkpoint]

Writes a synthetic checkpoint into FOLDER (4 layers: 17 GB), times `cp -r` of it and then its conversion, each from
cold caches where this user may drop them and until the data is on the disk, and prints both with the converter's peak
memory. FOLDER needs room for two copies. Linux only. The GGUF stays as FOLDER/slice.gguf.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from gguf_export.synthetic import make_config, write_checkpoint

# The peak comes from /proc, because ru_maxrss of a child begins with its parent's.
_CONVERT = """
import sys
from gguf_export.convert import ConvertOptions, convert
convert(sys.argv[1], sys.argv[2], ConvertOptions())
print([line for line in open("/proc/self/status") if line.startswith("VmHWM")][0].split()[1])
"""


def cool_caches() -> bool:
    """Writes out dirty pages and, if allowed, empties the page cache."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Runs a command in a folder and syncs: (seconds, processor seconds, what it printed)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    output = subprocess.run(command, check=True, cwd=folder, stdout=subprocess.PIPE, text=True).stdout
    os.sync()
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=1, help="repeat both and print each")
    parser.add_argument("--keep-checkpoint", action="store_true")
    args = parser.parse_args()
    args.folder = args.folder.resolve()  # the children start there, away from a source tree that is not built
    args.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, copy, out = (args.folder / name for name in ("checkpoint", "copy", "slice.gguf"))
    if copy.exists():
        sys.exit(f"{copy} is where the copy goes: remove it or name another folder")
    made = not checkpoint.exists()
    if made:
        started = time.monotonic()
        write_checkpoint(checkpoint, make_config("slice", n_layers=args.layers, num_nextn_predict_layers=0))
        print(f"wrote the checkpoint in {time.monotonic() - started:.1f} s", flush=True)
    size = sum(path.stat().st_size for path in checkpoint.iterdir())
    for _ in range(args.rounds):
        is_cold = cool_caches()
        copy_seconds, copy_cpu, _ = timed(["cp", "-r", str(checkpoint), str(copy)], args.folder)
        shutil.rmtree(copy)
        cool_caches()
        seconds, cpu, peak = timed([sys.executable, "-c", _CONVERT, str(checkpoint), str(out)], args.folder)
        print(f"{size / 1e9:.2f} GB, {'cold' if is_cold else 'warm'} caches, load {os.getloadavg()[0]:.1f}")
        print(f"cp       {copy_seconds:7.1f} s  {size / copy_seconds / 1e6:6.0f} MB/s  {copy_cpu:6.1f} s of processor")
        print(f"convert  {seconds:7.1f} s  {size / seconds / 1e6:6.0f} MB/s  {cpu:6.1f} s of processor")
        print(f"ratio {seconds / copy_seconds:.2f}, peak memory {int(peak) * 1024 / 1e6:.0f} MB", flush=True)
    if made and not args.keep_checkpoint:
        shutil.rmtree(checkpoint)


if __name__ == "__main__":
    main()
