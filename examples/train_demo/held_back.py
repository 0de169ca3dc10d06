"""Writes conversations of the test split as one text, for `pyflash eval ppl MODEL.gguf --text OUT --special`:
`python held_back.py OUT.txt --conversations 300`."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import tasks

from gguf_export.outputs import write_output


def conversations(n: int, seed: int) -> str:
    """n of them, kinds and thinking modes in turn, each from its BOS token to its end token."""
    rng = random.Random(seed)
    kinds = ("arithmetic", "talk", "tools", "recall")
    return "".join(tasks.render(tasks.generate(kinds[i % 4], rng, "test", think=tasks.THINK[i // 4 % 3]))
                   for i in range(n))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--conversations", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_output(options.out, conversations(options.conversations, options.seed).encode("utf-8"))


if __name__ == "__main__":
    main()
