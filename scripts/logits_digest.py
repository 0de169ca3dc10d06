"""The bits of the demo model's logits, by kernel set and precision, against those that are committed.

    python scripts/logits_digest.py            # compares; exits with 1 where bits differ
    python scripts/logits_digest.py --write    # replaces those of this machine's kernel sets

Bits change only knowingly: whoever changes them on purpose raises PF_ARITHMETIC_VERSION (csrc/runtime/arithmetic.h), so
that session files of before are told apart, and then runs this with --write on a machine of every kernel set.

Between machines only digests of the same mathematics are compared: routing, softmax and rope call the C library's expf,
log1pf, cos, sin, pow and log, whose last bit is its own affair. `math` is a digest of what these return here.
"""

from __future__ import annotations

import argparse
import ctypes
import ctypes.util
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyflash import Model, demo
from pyflash.machine.hardware import kernel_sets

PATH = Path(__file__).resolve().parent.parent / "tests" / "model" / "logits_digests.json"
COMMAND = "python scripts/logits_digest.py --write"
PRECISIONS = ("fast", "int8", "exact")
CHUNK, ALONE = 290, 14  # tokens in one call, of which HCA makes two rows, and one by one


def math_digest() -> str | None:
    """Of the C library's functions that the forward pass calls; None where they cannot be called from here."""
    try:
        name = "ucrtbase" if os.name == "nt" else ctypes.util.find_library("m")
        library = ctypes.CDLL(name)
        digest = hashlib.sha256()
        for function, kind, arguments in _math_calls():
            call = getattr(library, function)
            call.restype = kind
            call.argtypes = [kind] * len(arguments[0])
            values = [call(*each) for each in arguments]
            digest.update(np.array(values, np.float32 if kind is ctypes.c_float else np.float64).tobytes())
    except (OSError, AttributeError):
        return None
    return digest.hexdigest()[:16]


def _math_calls() -> Iterator[tuple[str, type[ctypes.c_float] | type[ctypes.c_double], list[tuple[float, ...]]]]:
    """Arguments like those of a forward pass."""
    spread = [(float(x),) for x in np.linspace(-30, 0, 20011, dtype=np.float32)]
    yield "expf", ctypes.c_float, spread
    yield "log1pf", ctypes.c_float, [(float(np.float32(np.exp(x))),) for (x,) in spread]
    angles = [(position * 10000.0 ** (-i / 32),) for position in range(0, 4096, 7) for i in range(32)]
    yield "cos", ctypes.c_double, angles
    yield "sin", ctypes.c_double, angles
    yield "pow", ctypes.c_double, [(base, -2.0 * i / 64) for base in (10000.0, 160000.0) for i in range(32)]
    yield "log", ctypes.c_double, [(base,) for base in (10000.0, 160000.0, *np.linspace(0.5, 4096, 97).tolist())]


def logits_digest(path: Path, kernel_set: str, precision: str) -> str:
    """Of the logits of all tokens: most of them in one chunk, the last ones one by one."""
    digest = hashlib.sha256()
    with Model.open(path, device="cpu", isa=kernel_set, precision=precision, threads=2) as model:
        tokens = np.arange(CHUNK + ALONE, dtype=np.int64) * 7919 % model.info.n_vocab
        with model.session(context=512) as session:
            digest.update(session.eval(tokens[:CHUNK], all_logits=True).tobytes())
            for token in tokens[CHUNK:]:
                digest.update(session.eval([int(token)]).tobytes())
    return digest.hexdigest()[:32]


class Outcome(NamedTuple):
    kernel_set: str
    status: str  # "same", "changed" or "unknown"
    line: str


def known() -> dict[str, dict[str, dict[str, str]]]:
    """math -> kernel set -> precision -> digest."""
    digests: dict[str, dict[str, dict[str, str]]] = json.loads(PATH.read_text(encoding="utf-8"))["digests"]
    return digests


def measure(kernel_set: str) -> dict[str, str]:
    path = demo.path()
    return {precision: logits_digest(path, kernel_set, precision) for precision in PRECISIONS}


def compare(kernel_set: str) -> Outcome:
    """The kernel set's digests on this machine against the committed ones."""
    math = math_digest()
    committed = known().get(math or "", {}).get(kernel_set)
    if committed is None:
        why = ("another C library's mathematics than any that digests are known for"
               if math not in known() else "no machine that runs it has written them")
        return Outcome(kernel_set, "unknown", f"{kernel_set}: not yet known here: {why} ({COMMAND})")
    found = measure(kernel_set)
    differ = [precision for precision in PRECISIONS if found[precision] != committed.get(precision)]
    if not differ:
        return Outcome(kernel_set, "same", f"{kernel_set}: the same bits as committed")
    return Outcome(kernel_set, "changed",
                   f"{kernel_set}: the logits have other bits than before in {', '.join(differ)}. If that was not meant, "
                   "find what changed the arithmetic. If it was: raise PF_ARITHMETIC_VERSION in "
                   f"csrc/runtime/arithmetic.h, say so in the change log, and run {COMMAND} for every kernel set")


def write(kernel_sets_here: list[str], measured: Callable[[str], dict[str, str]] = measure) -> None:
    """Replaces the digests of these sets; those of others stay, since nobody can make them here."""
    math = math_digest()
    if math is None:
        sys.exit("the C library's functions cannot be called from here: digests would have no condition")
    content = json.loads(PATH.read_text(encoding="utf-8")) if PATH.is_file() else {"digests": {}}
    content["digests"].setdefault(math, {}).update({name: measured(name) for name in kernel_sets_here})
    PATH.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="replace those of this machine's kernel sets")
    args = parser.parse_args()
    here = [each.name for each in kernel_sets() if each.problem is None]
    if args.write:
        return write(here)
    outcomes = [compare(name) for name in here]
    for outcome in outcomes:
        print(outcome.line)
    if any(outcome.status == "changed" for outcome in outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
