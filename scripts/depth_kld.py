"""How far `fast` is from `exact` at every depth of one long context: KL divergence of the next token by position.

    python scripts/depth_kld.py MODEL.gguf [TEXT] [--tokens 16384] [--cache reference] [--exact-cache f32]

Evaluates the text, or random tokens where none is given, once in each precision, as one sequence, and prints the mean
and its standard error over ranges of positions. With --exact-cache reference both read rows as the published model rounds
them: what is left is the arithmetic of `fast`. Without it, what the rounding moves counts too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pyflash import Model
from pyflash.eval.statistics import log_softmax

CHUNK = 256


def tokens_of(model: Path, text: Path | None, n: int) -> NDArray[np.int32]:
    with Model.open(model) as opened:
        if text is None:
            return np.random.default_rng(0).integers(0, opened.info.n_vocab, n).astype(np.int32)
        return np.asarray(opened.tokenizer.encode(text.read_text(), special=True)[:n], np.int32)


def divergences(model: Path, tokens: NDArray[np.int32], cache: str, exact_cache: str) -> Iterator[NDArray[np.float64]]:
    """Of each chunk's positions."""
    with Model.open(model, precision="exact") as exact, Model.open(model) as fast:
        n = len(tokens)
        with exact.session(context=n, cache=exact_cache) as a, fast.session(context=n, cache=cache) as b:
            for start in range(0, len(tokens), CHUNK):
                chunk = tokens[start : start + CHUNK]
                want, got = (log_softmax(session.eval(chunk, all_logits=True)) for session in (a, b))
                yield (np.exp(want) * (want - got)).sum(axis=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--cache", default="reference", choices=["reference", "f16", "f32"])
    parser.add_argument("--exact-cache", default="f32", choices=["reference", "f16", "f32"])
    args = parser.parse_args()
    tokens = tokens_of(args.model, args.text, args.tokens)
    kl = np.concatenate(list(divergences(args.model, tokens, args.cache, args.exact_cache)))
    edges = [0, *(1 << k for k in range(10, 30) if 1 << k < len(kl)), len(kl)]
    for begin, end in zip(edges, edges[1:]):
        part = kl[begin:end]
        print(f"{begin:7,} to {end:7,}: KL {part.mean():.7f} ± {part.std() / np.sqrt(len(part)):.7f}, median {np.median(part):.2e}")


if __name__ == "__main__":
    main()
