"""The bits of the demo model's logits, by kernel set and precision, against those that are committed.

    python scripts/logits_digest.py            # compares; exits with 1 where bits differ
    python scripts/logits_digest.py --write    # replaces those of this machine's kernel sets

Bits change only knowingly: whoever changes them on purpose raises PF_ARITHMETIC_VERSION (csrc/include/pyflash_base.h), so that
session files of before are told apart, and then runs this with --write, on a machine of every kernel set. Until then the
other sets are not known, and told so.

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
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pyflash import Model, demo
from pyflash.machine.hardware import kernel_sets
from pyflash.native.library import lib

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


def _math_calls() -> Iterator[tuple[str, type[ctypes.c_float | ctypes.c_double], Sequence[tuple[float, ...]]]]:
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


Digests = dict[str, dict[str, dict[str, str]]]  # C library's mathematics -> kernel set -> precision -> digest


def read() -> tuple[int, Digests]:
    """The version of the arithmetic, and its digests."""
    if not PATH.is_file():
        return 0, {}
    content = json.loads(PATH.read_text(encoding="utf-8"))
    return content["arithmetic"], content["digests"]


def measure(kernel_set: str) -> dict[str, str]:
    path = demo.path()
    return {precision: logits_digest(path, kernel_set, precision) for precision in PRECISIONS}


def compare(kernel_set: str, measured: Callable[[str], dict[str, str]] = measure) -> Outcome:
    """The kernel set's digests on this machine against the committed ones."""
    math = math_digest()
    version, digests = read()
    if version != lib.PF_ARITHMETIC_VERSION:
        return Outcome(kernel_set, "changed", f"{kernel_set}: the committed digests are of version {version} of the "
                       f"arithmetic, this is {lib.PF_ARITHMETIC_VERSION}: run {COMMAND}")
    committed = digests.get(math or "", {}).get(kernel_set)
    if committed is None:
        why = ("no machine that runs it has written them" if math in digests
               else "the C library's mathematics are others than those of any known digest")
        return Outcome(kernel_set, "unknown", f"{kernel_set}: not yet known here: {why} ({COMMAND})")
    found = measured(kernel_set)
    differ = [precision for precision in PRECISIONS if found[precision] != committed.get(precision)]
    if not differ:
        return Outcome(kernel_set, "same", f"{kernel_set}: the same bits as committed")
    return Outcome(kernel_set, "changed",
                   f"{kernel_set}: the logits have other bits than before in {', '.join(differ)}. Not meant: find what "
                   "changed the arithmetic. Meant: raise PF_ARITHMETIC_VERSION (csrc/include/pyflash_base.h), say so in the "
                   f"change log, and run {COMMAND} for every kernel set")


def write(names: list[str], measured: Callable[[str], dict[str, str]] = measure) -> None:
    """Replaces the digests of these sets. Those of others stay, since nobody can make them here, unless the version of the
    arithmetic has been raised. Refuses to replace digests of the same version by others."""
    math = math_digest()
    if math is None:
        sys.exit("the C library's functions cannot be called from here: digests would have no condition")
    version, digests = read()
    if version != lib.PF_ARITHMETIC_VERSION:
        digests = {}
    known = digests.setdefault(math, {})
    for name in names:
        found = measured(name)
        if known.get(name, found) != found:
            sys.exit(f"{name} computes other bits than before, and PF_ARITHMETIC_VERSION is still {version}: raise it "
                     "first, if they were changed on purpose")
        known[name] = found
    text = json.dumps({"arithmetic": lib.PF_ARITHMETIC_VERSION, "digests": digests}, indent=2, sort_keys=True)
    PATH.write_text(text + "\n", encoding="utf-8", newline="\n")


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
