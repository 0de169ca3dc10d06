"""How far `fast` is from `exact` on the answers of a demonstration model, by the length of the text before them.

    python examples/train_demo/depth.py MODEL.gguf [--lengths 1024 4096 16384] [--counts 240] [--cache reference]
        [--exact-cache f32]

Asks the held-back questions of measure.py for facts that are planted in texts of these lengths, and compares what the two
predict at each token of the right answers: Kullback-Leibler divergence, mean and its standard error, and the share of
tokens at which both find the same one likeliest. With --exact-cache reference both read rows as the published model rounds
them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import tasks
from numpy.typing import NDArray
from pyflash import Model, Session
from pyflash.eval.statistics import log_softmax

from measure import MAX_TOKENS, Row, common, questions

CACHES = ("reference", "f16", "f32")
Rows = NDArray[np.float64]


def answer_predictions(session: Session, text: Sequence[int], n_prompt: int, shared: int) -> Rows:
    """Log-probabilities [answer tokens, vocabulary] of what follows the prompt. The first `shared` tokens are left behind
    a checkpoint, for the next question of the same text."""
    session.reuse(text[:shared])
    if session.position < shared:
        session.eval(text[session.position : shared])
        session.checkpoint()
    begin = session.position
    return log_softmax(session.eval(text[begin:], all_logits=True)[n_prompt - 1 - begin : -1])


def compare(length: int, counts: int, exact: Session, fast: Session) -> tuple[Rows, NDArray[np.bool_]]:
    """The divergence of every answer token after texts of a length, and whether both find the same token likeliest."""
    tokenizer = fast.model.tokenizer
    row = Row("recall", ("off",), n_tokens=length)
    examples = questions(f"recall, {length // 1024}K", counts, tokenizer, row=row)
    prompts = [tokenizer.encode(tasks.render(example, with_answer=False), special=True) for example in examples]
    divergences, same = [], []
    for i, (example, prompt) in enumerate(zip(examples, prompts, strict=True)):
        neighbour = prompts[i + 1] if i + 1 < len(prompts) else prompts[i - 1]
        shared = max(common(prompt, neighbour), common(prompt, prompts[i - 1]) if i else 0)
        text = tokenizer.encode(tasks.render(example), special=True)
        want, got = (answer_predictions(session, text, len(prompt), shared) for session in (exact, fast))
        divergences.append((np.exp(want) * (want - got)).sum(axis=-1))
        same.append(want.argmax(axis=-1) == got.argmax(axis=-1))
    return np.concatenate(divergences), np.concatenate(same)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--lengths", type=int, nargs="+", default=[1024, 4096, 16384], help="in tokens")
    parser.add_argument("--counts", type=int, default=240)
    parser.add_argument("--cache", choices=CACHES, default="reference")
    parser.add_argument("--exact-cache", choices=CACHES, default="f32")
    options = parser.parse_args()
    with Model.open(options.model, precision="exact") as slow, Model.open(options.model) as quick:
        for length in options.lengths:
            context = length + 2 * MAX_TOKENS
            with slow.session(context=context, cache=options.exact_cache) as exact, \
                    quick.session(context=context, cache=options.cache) as fast:
                kl, same = compare(length, options.counts, exact, fast)
            print(f"after {length:7,}: {len(kl):6,} tokens: KL {kl.mean():.7f} ± {kl.std() / np.sqrt(len(kl)):.7f}, "
                  f"median {np.median(kl):.1e}, same token {same.mean():.4%}", flush=True)


if __name__ == "__main__":
    main()
