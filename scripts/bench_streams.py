"""How fast a model decodes several streams together (pyflash.eval_many), against one alone.

    python scripts/bench_streams.py MODEL.gguf [--streams 1 2 4] [--rounds 8] [--isa avx2] [--layers 43]

Each stream is a session with a prompt of its own; in a round each has one next token, a random one, so that streams choose
experts of their own. A round's tokens are evaluated by all streams once, which brings their experts into memory, and then,
without keeping anything, by each count of streams in turn. The quickest of the rounds: milliseconds a step, tokens a second of
all streams, and how many times that is one stream's.

--layers: of a file with fewer layers than that, also the figures of a model with so many: a step without logits is taken
to be all layers, which are alike, and what logits add to be the head. scripts/slice_bench.py makes such a file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

import pyflash


Work = list[tuple[pyflash.Session, list[int]]]


def take_step(work: Work, wish: Literal["none", "last"]) -> float:
    """Seconds that it takes; nothing of it is kept."""
    started = time.perf_counter()
    pyflash.eval_many(work, wish, keep=False)
    taken = time.perf_counter() - started
    for session, _ in work:
        session.keep(0)
    return taken


def measure(model: pyflash.Model, counts: Sequence[int], rounds: int, prompt: int) -> dict[int, tuple[float, float]]:
    """For each count of streams: least seconds of a step with logits, and of one without."""
    chance = np.random.default_rng(1)
    n_vocab = model.info.n_vocab
    sessions = [model.session(context=prompt + rounds, chunk=max(1, prompt)) for _ in range(max(counts))]
    for session in sessions:
        session.eval(chance.integers(0, n_vocab, prompt).astype(np.int32))
    times: dict[tuple[int, str], list[float]] = {}
    for _ in range(rounds):
        work = [(session, [int(chance.integers(0, n_vocab))]) for session in sessions]
        take_step(work, "last")
        for count in counts:
            times.setdefault((count, "last"), []).append(take_step(work[:count], "last"))
            times.setdefault((count, "none"), []).append(take_step(work[:count], "none"))
        pyflash.eval_many(work, "none")
    for session in sessions:
        session.close()
    return {n: (min(times[n, "last"]), min(times[n, "none"])) for n in counts}


def show(title: str, seconds: dict[int, float]) -> None:
    one = 1 / seconds[min(seconds)] * min(seconds)
    print(title)
    for count, taken in seconds.items():
        print(f"  {count:2} streams: {1e3 * taken:7.1f} ms a step, {count / taken:7.2f} tok/s, {count / taken / one:5.2f} x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=8, help="tokens of each stream before")
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
