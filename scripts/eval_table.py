"""Converts a checkpoint to every weight type and prints what each costs in quality, as a Markdown table.

    python scripts/eval_table.py CHECKPOINT --text FILE [--ctx 512] [--chunks N] [--special] [--precision exact]

Every file is compared side by side with the one that has all weights in float32, evaluated in exact precision; the cache is
half floats, so that little but the weights differs. See docs/eval.md. One file at a time is on the disk beside that one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gguf_export.convert import ConvertOptions, convert
from gguf_export.errors import ConvertError
from pyflash import Error, Model
from pyflash.engine.options import PRECISIONS
from pyflash.eval.measure import Evaluator, ModelBase, measure_divergence
from pyflash.eval.output import estimate_text
from pyflash.eval.source import Subject, Text, common_windows
from pyflash.eval.statistics import Divergence, Estimate
from pyflash.machine.units import format_bytes
from quantize.plan import DENSE, EXPERTS

BASE = ConvertOptions(dense="f32", experts="f32")
HEAD = ("profile", "dense", "experts", "size", "PPL", "PPL / PPL(f32)", "KL divergence", "same top token")


def all_options() -> Iterator[ConvertOptions]:
    yield ConvertOptions(profile="native")
    for dense in DENSE:
        for experts in EXPERTS:
            yield ConvertOptions(dense=dense, experts=experts)


def measure(file: Path, base: Subject, args: argparse.Namespace) -> Divergence:
    with (
        Model.open(file, threads=args.threads, precision=args.precision) as model,
        Evaluator(model, args.ctx, "auto" if args.precision == "exact" else "f16") as evaluator,
        Evaluator(base.model, args.ctx) as base_evaluator,
    ):
        windows = common_windows(Subject(model, str(file)), base, Text(str(args.text), args.special), args.ctx,
                                 args.chunks)
        latest = None
        for latest in measure_divergence(evaluator, windows, ModelBase(base_evaluator)):
            pass
    assert latest is not None  # there is at least one window
    return latest.result()


def row(options: ConvertOptions, size: int, found: Divergence) -> str:
    native = options.profile == "native"
    percent = Estimate(100 * found.same_top.value, None if found.same_top.error is None else 100 * found.same_top.error)
    cells = (options.profile, "as it is" if native else options.dense, "as it is" if native else options.experts,
             format_bytes(size), estimate_text(found.ppl), estimate_text(found.ratio, 5), estimate_text(found.kld, 6),
             estimate_text(percent, 2, " %"))  # fmt: skip
    return f"| {' | '.join(cells)} |"


def print_table(args: argparse.Namespace, folder: Path) -> None:
    base_file = convert(args.checkpoint, folder / "base.gguf", BASE).files[0]
    with Model.open(base_file, threads=args.threads, precision="exact") as base_model:
        base = Subject(base_model, str(base_file))
        print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}", flush=True)
        for options in all_options():
            converted = convert(args.checkpoint, folder / "native-or-not.gguf", options)
            found = measure(converted.files[0], base, args)
            print(row(options, converted.total_bytes, found), flush=True)
    print(f"\n{found.count:,} tokens of {args.text.name} scored, windows of {args.ctx}, {args.precision} precision; "
          f"the float32 file in exact precision has PPL {estimate_text(found.base_ppl)}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--ctx", type=int, default=512)
    parser.add_argument("--chunks", type=int)
    parser.add_argument("--special", action="store_true", help="text that spells special tokens is those tokens")
    parser.add_argument("--precision", choices=PRECISIONS, default="fast")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as name:
            print_table(args, Path(name))
    except (Error, ConvertError) as error:
        sys.exit(f"eval_table: {error}")


if __name__ == "__main__":
    main()
