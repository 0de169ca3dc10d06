"""What rounding costs: `python rounding.py OUT` prints the loss of OUT/state.pt on held-back conversations, with float32
weights, with experts in FP4 and linear layers in FP8, as the checkpoint holds them, and with cache rows rounded, too."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import tasks
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from model import Model, Params, quantised

BLOCK = 128  # the model takes multiples of it
END = 1


def rows(tokenizer: Tokenizer, n: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Conversations of the test split as tokens [1, S+1], and [1, S]: whether the next token is the assistant's."""
    rng, kinds = random.Random(seed), tasks.KINDS
    out = []
    for i in range(n):
        text = tasks.render(tasks.generate(kinds[i % 4], rng, "test", think=tasks.THINK[i // 4 % 3]))
        encoding = tokenizer.encode(text)
        spans = tasks.trained_spans(text)
        own = [any(begin <= start < end for begin, end in spans) for start, _ in encoding.offsets]
        pad = -(len(encoding.ids) - 1) % BLOCK
        ids = torch.tensor([encoding.ids + [END] * pad])
        out.append((ids, torch.tensor([own[1:] + [False] * pad])))
    return out


def loss(model: Model, p: Params, examples: list[tuple[Tensor, Tensor]]) -> float:
    """Nats a token that the assistant writes."""
    total, count = 0.0, 0
    with torch.no_grad():
        for ids, wanted in examples:
            logits = model.forward(p, ids[:, :-1], wanted=wanted).hidden @ p["head.weight"].T
            total += F.cross_entropy(logits, ids[:, 1:][wanted], reduction="sum").item()
            count += int(wanted.sum())
    return total / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="train.py's folder")
    parser.add_argument("--conversations", type=int, default=400)
    options = parser.parse_args()
    state = torch.load(options.out / "state.pt", weights_only=True)
    model, params = Model(state["config"]), state["params"]
    examples = rows(Tokenizer.from_file(str(options.out / "tokenizer.json")), options.conversations)
    print(f"{options.conversations} conversations, {sum(int(wanted.sum()) for _, wanted in examples)} tokens")
    print(f"float32 weights  {loss(model, params, examples):.4f} nats a token")
    print(f"as stored        {loss(model, quantised(params), examples):.4f} nats a token")
    model.round_rows = True
    print(f"and rounded rows {loss(model, quantised(params), examples):.4f} nats a token")


if __name__ == "__main__":
    main()
