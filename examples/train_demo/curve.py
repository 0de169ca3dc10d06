"""Draws OUT/log.csv as OUT/curve.svg: `python curve.py OUT` (needs matplotlib)."""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def draw(out: Path) -> Path:
    with (out / "log.csv").open(encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    tokens = [row["tokens"] / 1e6 for row in rows]
    figure, axes = plt.subplots(figsize=(8, 4))
    axes.plot(tokens, [row["loss"] for row in rows], label="cross-entropy, nats a token", color="#1f5fa8")
    axes.plot(tokens, [row["index_loss"] for row in rows], label="indexer, KL from the attention", color="#c2571a")
    axes.plot(tokens, [row["lookup_loss"] for row in rows], label="lookups, −ln of the attention", color="#3a8a4d")
    axes.set_yscale("log")
    axes.set_xlabel("tokens, millions")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    figure.tight_layout()
    path = out / "curve.svg"
    figure.savefig(path, metadata={"Date": None})
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="train.py's folder")
    print(draw(parser.parse_args().out))
