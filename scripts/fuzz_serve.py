"""Sends a server of its own made-up requests for a while, and tells how many answers of each status there were.

    pip install '.[test]' && python scripts/fuzz_serve.py --seconds 600

It ends with 1 at the first answer that is an error of the server's own, and shows the request. The model is a tiny one of
random weights. Linux tells the memory before and after.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "serve"))

from fuzzing import Found, fuzz  # noqa: E402
from serving import serving  # noqa: E402
from test_connections import listening  # noqa: E402

from gguf_export.convert import ConvertOptions, convert  # noqa: E402
from gguf_export.synthetic import make_config, write_checkpoint  # noqa: E402
from pyflash.machine import hardware  # noqa: E402


def resident() -> float:
    """MB that this process has in memory."""
    found = hardware.process_memory()
    return found.resident / 1e6 if found else 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = write_checkpoint(Path(folder) / "checkpoint", make_config("tiny"), seed=4)
        model = convert(checkpoint, Path(folder) / "tiny.gguf", ConvertOptions()).files[0]
        with serving(model, context=256) as made, listening(made) as port:
            fuzz(port, min(20.0, options.seconds), options.seed)  # caches fill
            before = resident()
            try:
                counts = fuzz(port, options.seconds, options.seed + 1_000_000)
            except Found as error:
                print(error, file=sys.stderr)
                return 1
            told = ", ".join(f"{status}: {n}" for status, n in sorted(counts.items()))
            print(f"seed {options.seed}, {options.seconds:.0f} s, {counts.total()} answers ({told}), "
                  f"memory {before:.0f} MB before and {resident():.0f} MB after")
    return 0


if __name__ == "__main__":
    sys.exit(main())
