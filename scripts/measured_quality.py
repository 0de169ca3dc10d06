"""What the types of routed experts cost a trained model: KL divergence with the choices held, beside the measured error.

    python scripts/measured_quality.py MODEL.gguf --text FILE --imatrix FILE [--llama FOLDER] [--types IQ2_XXS Q2_K ...]
        [--free] [--chosen] [--sensitivity FILE] [--ctx 512] [--chunks N] [--special]

MODEL.gguf has its experts in MXFP4. They are quantised to each type in the ways that are compared, everything else stays as it
is: pyflash's quantisers for all objectives, and with --llama those of real llama.cpp (its llama_model_quantize(), called by
tests/import_llama/quantize_with_imatrix.py; FOLDER holds its libraries, such as bins/linux-x64 of the npm package
@node-llama-cpp/linux-x64), with the same importance matrix. With --chosen also to types that `pyflash quantize --size`
chooses for a file of the same size.

All are evaluated in exact precision beside MODEL.gguf, with the experts and rows that it chooses (--free: and once more with
their own). Means over windows of a text with their standard errors; differences between two ways in one type are of the same
windows. Errors are means over the experts' tensors of the share of weighted energy that is lost.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_export.errors import ConvertError
from gguf_export.quantizing import QuantizeOptions, quantize
from gguf_export.reader import GGUFFile, read_gguf
from pyflash import Error, Model
from pyflash.engine.choices import Choices
from pyflash.eval.measure import Evaluator
from pyflash.eval.source import Subject, Text, text_windows
from pyflash.eval.statistics import log_softmax
from pyflash.eval.windows import Windows
from quantize.blocks import decode
from quantize.choice import EXPERT_TYPES, Group, bits, group_of, kind_named
from quantize.importance import Importance, read

Values = npt.NDArray[np.float64]
_LLAMA = Path(__file__).parents[1] / "tests" / "import_llama" / "quantize_with_imatrix.py"
# llama.cpp's numbers of the file types whose first type these are (of IQ2_S it is IQ2_M).
_FILE_TYPES = {"IQ2_XXS": 19, "IQ2_XS": 20, "IQ2_S": 29, "Q2_K": 10, "IQ3_XXS": 23, "IQ3_S": 26, "Q3_K": 11}
_TYPES = [each for each in reversed(EXPERT_TYPES) if each in _FILE_TYPES]


# -- the model and its copies --


@dataclass(frozen=True)
class Expected:
    """What the model itself says of a window."""

    choices: Choices
    log_probabilities: Values  # [scored, vocab]


def expected(model: Path, windows: Windows) -> list[Expected]:
    found = []
    with Model.open(model, precision="exact") as opened, Evaluator(opened, windows.n_ctx) as evaluator:
        for index in range(windows.count):
            choices = Choices.of(opened.info, windows.n_ctx - 1)
            evaluator.note(choices)
            pieces = [log_softmax(logits) for _, logits in evaluator.window(windows, index)]
            found.append(Expected(choices, np.concatenate(pieces)))
    return found


def divergences(file: Path, windows: Windows, base: list[Expected], hold: bool) -> Values:
    """The mean KL divergence from the base of each window, nats a token."""
    means = []
    with Model.open(file, precision="exact") as opened, Evaluator(opened, windows.n_ctx) as evaluator:
        for index, wanted in enumerate(base):
            if hold:
                evaluator.hold(wanted.choices)
            got = np.concatenate([log_softmax(logits) for _, logits in evaluator.window(windows, index)])
            means.append(float((np.exp(wanted.log_probabilities) * (wanted.log_probabilities - got)).sum(axis=1).mean()))
    return np.array(means)


def by_pyflash(args: argparse.Namespace, out: Path, objective: str, kind: str) -> None:
    quantize(args.model, out, QuantizeOptions(experts=kind, dense="keep", head="keep", imatrix=args.imatrix, objective=objective,
                                              restart=True))  # fmt: skip


def by_choice(args: argparse.Namespace, out: Path, size: int) -> None:
    """Types chosen for a file of at most so many bytes."""
    command = [sys.executable, "-m", "pyflash", "quantize", args.model, out, "--size", size, "--dense", "keep", "--head", "keep",
               "--imatrix", args.imatrix, *(["--sensitivity", args.sensitivity] if args.sensitivity else [])]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, encoding="utf-8")
    if done.returncode != 0:
        raise ConvertError(f"pyflash quantize --size {size}: {done.stderr.strip()}")


def by_llama(args: argparse.Namespace, out: Path, kind: str, like: Path) -> None:
    """llama.cpp's experts in a copy of `like`, which has the same types."""
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder, "theirs.gguf")
        command = [sys.executable, str(_LLAMA), str(args.llama), str(args.imatrix), str(args.model), str(theirs),
                   str(_FILE_TYPES[kind]), "experts"]  # fmt: skip
        subprocess.run(command, check=True, capture_output=True)
        out.write_bytes(like.read_bytes())
        ours, source = read_gguf(out), read_gguf(theirs)
        with open(out, "r+b") as file:
            for name in experts_of(ours):
                to, taken = ours.tensors[name], source.tensors[name]
                if (to.dtype, to.nbytes) != (taken.dtype, taken.nbytes):
                    raise ConvertError(f"llama.cpp made {taken.dtype} of {name}, and not {to.dtype}")
                file.seek(to.offset)
                file.write(raw(source, name))


def experts_of(gguf: GGUFFile) -> list[str]:
    return [name for name in gguf.tensors if group_of(name) is Group.EXPERTS]


def raw(gguf: GGUFFile, name: str) -> bytes:
    ref = gguf.tensors[name]
    assert ref.path is not None
    with open(ref.path, "rb") as file:
        file.seek(ref.offset)
        return file.read(ref.nbytes)


def values(gguf: GGUFFile, name: str) -> Values:
    """[matrices, rows, columns]."""
    ref = gguf.tensors[name]
    flat = decode(kind_named(ref.dtype), np.frombuffer(raw(gguf, name), dtype=np.uint8))
    return flat.astype(np.float64).reshape(ref.shape[::-1])


def weighted_error(model: GGUFFile, file: GGUFFile, importance: Importance) -> float:
    """The mean over the experts' tensors."""
    shares = []
    for name in experts_of(model):
        before, after = values(model, name), values(file, name)
        weight = importance.of(name, before.shape[0], before.shape[2])
        h = np.ones((before.shape[0], 1, before.shape[2])) if weight is None else weight.astype(np.float64)[:, None]
        shares.append(float(((before - after) ** 2 * h).sum() / (before**2 * h).sum()))
    return float(np.mean(shares))


# -- the table --


def cell(windows: Values, digits: int = 5) -> str:
    return f"{windows.mean():.{digits}f} ± {windows.std(ddof=1) / np.sqrt(len(windows)):.{digits}f}"


def ways(args: argparse.Namespace, kind: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """The files to compare in a type, one at a time."""
    ours = folder / "hessian.gguf"
    for objective in ("hessian", "ggml", "unbiased"):
        path = folder / f"{objective}.gguf"
        by_pyflash(args, path, objective, kind)
        yield f"pyflash, {objective}", path
    if args.llama is not None:
        path = folder / "llama.gguf"
        by_llama(args, path, kind, ours)
        yield "llama.cpp", path
    if args.chosen:
        path = folder / "chosen.gguf"
        by_choice(args, path, ours.stat().st_size)
        yield "pyflash, --size", path


def print_rows(args: argparse.Namespace, measure: Callable[[Path, bool], Values], folder: Path) -> None:
    model, importance = read_gguf(args.model), read(args.imatrix)
    print("| experts | bits | quantiser | weighted error | KL divergence, held | less that of pyflash, hessian |"
          + (" free |" if args.free else "") + "\n|---|---|---|---|---|---|" + ("---|" if args.free else ""), flush=True)
    for kind in args.types:
        first = None
        for name, path in ways(args, kind, folder):
            held = measure(path, True)
            first = held if first is None else first
            against = "" if held is first else cell(held - first)
            error = weighted_error(model, read_gguf(path), importance)
            free = f" {cell(measure(path, False))} |" if args.free else ""
            width = bits(kind_named(kind))
            print(f"| {kind} | {width:.4f} | {name} | {error:.5f} | {cell(held)} | {against} |{free}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--llama", type=Path, help="folder of llama.cpp's libraries")
    parser.add_argument("--types", nargs="+", choices=_TYPES, default=_TYPES)
    parser.add_argument("--free", action="store_true")
    parser.add_argument("--chosen", action="store_true")
    parser.add_argument("--sensitivity", type=Path, help="for --chosen")
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--special", action="store_true")
    args = parser.parse_args()
    try:
        with Model.open(args.model) as opened:
            windows = text_windows(Subject(opened, str(args.model)), Text(str(args.text), args.special), args.ctx, args.chunks)
        base = expected(args.model, windows)
        with tempfile.TemporaryDirectory() as folder:
            print_rows(args, lambda path, hold: divergences(path, windows, base, hold), Path(folder))
    except (Error, ConvertError) as error:
        sys.exit(f"measured_quality: {error}")


if __name__ == "__main__":
    main()
