"""How fast a model decodes several streams together (pyflash.eval_many), against one alone.

    python scripts/bench_streams.py MODEL.gguf [--streams 1 2 4 8] [--rounds 12] [--isa avx2] [--layers 43]

Each stream is a session with a prompt of its own; a round takes one token of each, random ones, so that streams choose
experts of their own. Counts of streams take turns, round by round, and each one's median stands. Printed: milliseconds a
step, tokens a second of all streams, and how many times that is one stream's.

--layers: of a file with fewer layers than that, also the figures of a model with so many: a step without logits is taken
to be all layers, which are alike, and what logits add to be the head. scripts/slice_bench.py makes such a file.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

import pyflash


def take_step(sessions: Sequence[pyflash.Session], chance: np.random.Generator, wish: Literal["none", "last"]) -> float:
    """Seconds that one token of each takes."""
    n_vocab = sessions[0].model.info.n_vocab
    work = [(session, chance.integers(0, n_vocab, 1).astype(np.int32)) for session in sessions]
    started = time.perf_counter()
    pyflash.eval_many(work, wish)
    return time.perf_counter() - started


def measure(model: pyflash.Model, counts: Sequence[int], rounds: int, prompt: int) -> dict[int, tuple[float, float]]:
    """For each count of streams: median seconds of a step with logits, and of one without."""
    chance = np.random.default_rng(1)
    context = prompt + 2 * len(counts) * (rounds + 2)
    sessions = [model.session(context=context, chunk=64) for _ in range(max(counts))]
    for session in sessions:
        session.eval(chance.integers(0, model.info.n_vocab, prompt).astype(np.int32))
    times: dict[tuple[int, str], list[float]] = {}
    for turn in range(rounds + 2):  # the first two only warm up
        for count in counts:
            for wish in ("last", "none"):
                taken = take_step(sessions[:count], chance, wish)
                if turn > 1:
                    times.setdefault((count, wish), []).append(taken)
    for session in sessions:
        session.close()
    return {n: (statistics.median(times[n, "last"]), statistics.median(times[n, "none"])) for n in counts}


def show(title: str, seconds: dict[int, float]) -> None:
    one = 1 / seconds[min(seconds)] * min(seconds)
    print(title)
    for count, taken in seconds.items():
        print(f"  {count:2} streams: {1e3 * taken:7.1f} ms a step, {count / taken:7.2f} tok/s, {count / taken / one:5.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each stream before")
    parser.add_argument("--isa", help="the CPU kernel set; the machine's best without it")
    parser.add_argument("--precision", choices=["fast", "int8", "exact"], default="fast")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--layers", type=int, help="also the figures of a model with so many layers")
    args = parser.parse_args()
    with pyflash.Model.open(args.gguf, device="cpu", isa=args.isa, precision=args.precision, threads=args.threads) as model:
        found = measure(model, args.streams, args.rounds, args.prompt)
        info = model.info
        print(f"{info.cpu_isa}, {info.precision}, {info.n_threads} threads, {info.n_layer} layers")
        show("with logits:", {n: last for n, (last, _) in found.items()})
        if args.layers:
            scale = args.layers / info.n_layer
            show(f"as {args.layers} layers:", {n: scale * none + last - none for n, (last, none) in found.items()})


if __name__ == "__main__":
    main()
