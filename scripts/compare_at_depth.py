"""Runs pyflash and llama.cpp side by side far into a context that neither of them has evaluated.

    python scripts/compare_llama.py build FOLDER          # llama.cpp, once
    python scripts/compare_at_depth.py build FOLDER       # two small programs beside it
    python scripts/compare_at_depth.py run FILE.gguf FOLDER [--depth 262144] [--prompt 512] [--gen 32] [--rounds 3]

Filling 262,144 tokens takes pyflash most of an hour on two cores, and llama.cpp five. What a token costs there does not
depend on what the rows hold, so both get a context that is as long without: llama.cpp by evaluating at that position of an
empty one, where its compressed rows are zeros (llama_depth.cpp), pyflash from a session file of random rows
(csrc/tools/made_up_context.c), among which the indexer chooses as widely as it may. The two take turns; each process
warms up before what counts. Everything else is as in compare_llama.py.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from compare_llama import VERSION, Results, lines_of, processor, warm_file

ROOT = Path(__file__).resolve().parent.parent


def build(folder: Path) -> None:
    """llama_depth against the libraries that compare_llama.py built there, and made_up_context against this source."""
    source = folder / "llama.cpp"
    libraries = sorted(map(str, (folder / "llama-native").rglob("lib*.a")))
    if not source.exists() or not libraries:
        sys.exit(f"there is no llama.cpp in {folder}: run `python scripts/compare_llama.py build {folder}` first")
    compiler = os.environ.get("CXX") or shutil.which("c++") or sys.exit("there is no C++ compiler: install g++")
    group = ["-Wl,--start-group", *libraries, "-Wl,--end-group"] if sys.platform == "linux" else libraries
    subprocess.run([compiler, "-std=c++17", "-O2", "-I", source / "include", "-I", source / "ggml" / "include",
                    ROOT / "scripts" / "llama_depth.cpp", "-o", folder / "llama_depth", *group, "-fopenmp", "-pthread",
                    "-ldl"], check=True)  # fmt: skip
    made = folder / "pyflash"
    subprocess.run(["cmake", "-S", ROOT, "-B", made, "-DCMAKE_BUILD_TYPE=Release"], check=True)
    subprocess.run(["cmake", "--build", made, "--target", "made_up_context", "-j", str(os.cpu_count())], check=True)


def run_llama(args: argparse.Namespace, depth: int, results: Results) -> None:
    numbers = (args.threads, depth, args.prompt, args.gen, args.repeat)
    for found in lines_of([str(args.folder / "llama_depth"), str(args.file), *map(str, numbers)], 0):
        keep(found, "llama.cpp", depth, results)


def run_pyflash(args: argparse.Namespace, depth: int, results: Results) -> None:
    """In a process of its own, as llama.cpp has."""
    numbers = (args.threads, depth, args.prompt, args.gen, args.repeat)
    command = [sys.executable, __file__, "measure", str(args.file), str(args.contexts / f"{depth}.session")]
    for found in lines_of([*command, *map(str, numbers)], 0):
        keep(found, "pyflash", depth, results)


def keep(found: dict[str, object], engine: str, depth: int, results: Results) -> None:
    tokens, took = int(str(found["tokens"])), float(str(found["seconds"]))
    results.rates[engine][str(found["test"]), tokens, depth].append(tokens / took)


def measure(file: Path, context: Path, threads: int, depth: int, prompt: int, gen: int, repeat: int) -> None:
    """What llama_depth.cpp does, in pyflash."""
    from pyflash import Model

    random = np.random.default_rng(1)
    with Model.open(file, threads=threads, device="cpu") as model:
        with model.session(context=depth + prompt + gen + 256, chunk=prompt) as session:
            if depth:
                session.load(context)
            session.checkpoint()
            for turn in range(repeat + 1):
                took = {}
                for test, steps in (("prefill", [prompt]), ("decode", [1] * gen)):
                    tokens = [random.integers(0, model.info.n_vocab, n, dtype=np.int32) for n in steps]
                    started = time.perf_counter()
                    for step in tokens:
                        session.eval(step)
                    took[test] = time.perf_counter() - started
                session.rollback(session.position - depth)
                for test, tokens in (("prefill", prompt), ("decode", gen)):
                    if turn and tokens:
                        print(json.dumps({"test": test, "tokens": tokens, "seconds": took[test]}), flush=True)


def make_contexts(args: argparse.Namespace) -> Iterator[str]:
    for depth in args.depth:
        if depth:
            path = args.contexts / f"{depth}.session"
            subprocess.run([args.folder / "pyflash" / "made_up_context", args.file, str(depth), path], check=True)
            yield f"{depth:,} tokens: {path.stat().st_size:,} bytes"


def run(args: argparse.Namespace) -> None:
    results = Results()
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        args.contexts = Path(place)
        for line in make_contexts(args):
            print(line, file=sys.stderr, flush=True)
        for turn in range(args.rounds):
            for depth in args.depth:
                for engine in (run_llama, run_pyflash) if turn % 2 == 0 else (run_pyflash, run_llama):
                    warm_file(args.file)
                    engine(args, depth, results)
                    print(f"round {turn + 1}, {engine.__name__[4:]} at {depth:,}", file=sys.stderr, flush=True)
    print(f"{time.strftime('%Y-%m-%d')}, {processor()}, {args.threads} threads; llama.cpp of {VERSION} without "
          f"repacking; contexts that were not evaluated. Tokens/s, medians (lowest to highest):\n\n{results.table()}")
    for depth in args.depth[1:]:
        for key, rates in sorted(results.rates["pyflash"].items()):
            if key[2] == depth and (first := results.rates["pyflash"].get((*key[:2], args.depth[0]))):
                share = statistics.median(rates) / statistics.median(first)
                print(f"pyflash {key[0]} at {depth:,}: {share:.0%} of its speed at {args.depth[0]:,}")


def main() -> None:
    from pyflash.machine import processor as cpu

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("build").add_argument("folder", type=Path)
    asked = commands.add_parser("run")
    asked.add_argument("file", type=Path)
    asked.add_argument("folder", type=Path, help="where `build` put llama.cpp and the programs")
    asked.add_argument("--depth", type=lambda text: [int(part) for part in text.split(",")], default=[0, 262144])
    asked.add_argument("--prompt", type=int, default=512)
    asked.add_argument("--gen", type=int, default=32)
    asked.add_argument("--rounds", type=int, default=3, help="processes of each engine")
    asked.add_argument("--repeat", type=int, default=1, help="repetitions in each")
    asked.add_argument("--threads", type=int, default=cpu.processor().physical or os.cpu_count())
    one = commands.add_parser("measure", help="one process of pyflash, for run")
    one.add_argument("file", type=Path)
    one.add_argument("context", type=Path)
    for name in ("threads", "depth", "prompt", "gen", "repeat"):
        one.add_argument(name, type=int)
    args = parser.parse_args()
    if args.command == "build":
        build(args.folder)
    elif args.command == "run":
        run(args)
    else:
        measure(args.file, args.context, args.threads, args.depth, args.prompt, args.gen, args.repeat)


if __name__ == "__main__":
    main()
