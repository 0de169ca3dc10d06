"""Trains the demonstration model from nothing: `python train.py OUT --preset cpu --steps 3400 --processes 2`.

One process a core (or one for a GPU), gradients averaged. OUT gets `state.pt` to go on from (--resume), `log.csv`, and
in the end a checkpoint in the official layout.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from export import export
from mixture import Batch, Mixture, lengths
from model import Model, Output, Params, init_params, quantised
from muon import Optimiser
from presets import PRESETS

from gguf_export.outputs import output_file

MATRIX_RATE, RATE, DECAY = 0.02, 4e-3, 0.01
WARM_UP, COOL_FROM = 0.01, 0.45  # shares of the training
SPARSE_FROM = 0.85  # until then CSA layers see every row, and the indexer learns which they use
QUANTISED_FROM = 0.75
BALANCE_RATE = 1e-3
INDEX_WEIGHT, LOOKUP_WEIGHT = 0.3, 1.0
DRAFT_SHARE = 0.06  # at the end the MTP block learns alone, where there is one
LOG_EVERY, SAVE_EVERY = 20, 100  # steps


def schedule(progress: float) -> float:
    """Learning rate over its peak: linear up, constant, linear down to 2 %."""
    if progress < WARM_UP:
        return max(progress / WARM_UP, 0.05)
    return 1.0 if progress < COOL_FROM else max(0.02, (1 - progress) / (1 - COOL_FROM))


def losses(model: Model, p: Params, batch: Batch, progress: float, train_index: bool) -> tuple[Tensor, Output]:
    """Mean weighted cross-entropy (nats), and what else the network says."""
    wanted = batch.weights > 0
    out = model.forward(p, batch.tokens[:, :-1], batch.positions, wanted, progress >= SPARSE_FROM, train_index,
                        batch.lookups)  # fmt: skip
    targets, weights = batch.tokens[:, 1:][wanted], batch.weights[wanted]
    each = F.cross_entropy(out.hidden @ p["head.weight"].T, targets, reduction="none")
    return (each * weights).sum() / weights.sum(), out


def draft_loss(model: Model, p: Params, batch: Batch) -> tuple[Tensor, Any]:
    """The MTP block's loss on the token after the next, the trunk frozen."""
    tokens, wanted = batch.tokens[:, :-1], batch.weights > 0
    with torch.no_grad():
        streams = model.forward(p, tokens, batch.positions, torch.zeros_like(wanted)).streams
    wanted = torch.cat([wanted[:, 1:], torch.zeros_like(wanted[:, :1])], 1)
    hidden, loads = model.draft(p, streams, batch.tokens[:, 1:], wanted)
    targets = torch.cat([batch.tokens[:, 2:], batch.tokens[:, :1]], 1)[wanted]
    return F.cross_entropy(hidden @ p["head.weight"].detach().T, targets), loads


class Worker:
    """One of the processes that train together."""

    def __init__(self, rank: int, options: argparse.Namespace) -> None:
        self.rank, self.options, self.world = rank, options, options.processes
        self.device = torch.device(options.device)
        self.config = json.loads(options.config) if options.config else PRESETS[options.preset]
        self.model = Model(self.config)
        if not options.no_compile:
            self.model.compile()
        self.mixture = Mixture(options.out / "tokenizer.json", options.seed * 1000 + rank)
        self.shared = random.Random(options.seed)  # the same choices in every process
        params = init_params(self.config, options.seed)
        self.step, self.tokens, self.seconds_before = 0, 0, 0.0
        state = None
        if options.resume and (options.out / "state.pt").is_file():
            state = torch.load(options.out / "state.pt", weights_only=True)
            params, self.step, self.seconds_before = state["params"], state["step"], state["seconds"]
            self.tokens = state["tokens"]
            self.shared.seed(options.seed + self.step)
            self.mixture = Mixture(options.out / "tokenizer.json", options.seed * 1000 + rank + 7919 * self.step)
        self.params = {name: value.to(self.device) for name, value in params.items()}
        self.trained = {name: value.requires_grad_() for name, value in self.params.items()
                        if value.is_floating_point() and not name.endswith("gate.bias")}  # fmt: skip
        self.optimiser = Optimiser(self.trained, rank, self.world)
        if state:
            self.optimiser.load_state_dict(state["optimiser"])
        self.start = time.monotonic()
        self.sums = torch.zeros(4)

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.start

    def progress(self) -> float:
        """0 to 1. Of a time, the first process's clock decides, so that all agree."""
        if self.options.minutes is None:
            return self.step / self.options.steps
        value = torch.tensor([self.seconds() / (60 * self.options.minutes)])
        if self.world > 1:
            dist.broadcast(value, 0)
        return float(value)

    def average(self, names: list[str], loads: dict[str, Tensor]) -> None:
        """Gradients and loads become the mean over the processes."""
        if self.world == 1:
            return
        parts = [self.trained[name].grad for name in names] + list(loads.values())
        flat = torch.cat([part.flatten() for part in parts])
        dist.all_reduce(flat)
        flat /= self.world
        for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(mean.view_as(part))

    def train_step(self, progress: float) -> None:
        drafts = DRAFT_SHARE if self.config["num_nextn_predict_layers"] else 0.0
        drafting = progress > 1 - drafts
        share = progress / (1 - drafts) if not drafting else (progress - 1 + drafts) / drafts
        table = lengths(share)
        length = 256 if drafting else self.shared.choices(list(table), list(table.values()))[0]
        batch = self.mixture.batch(length, self.options.tokens, share)
        batch = Batch(**{name: value.to(self.device) for name, value in vars(batch).items()})
        self.model.round_rows = drafting or share >= QUANTISED_FROM
        p = quantised(self.params) if self.model.round_rows else self.params
        if drafting:
            loss, loads = draft_loss(self.model, p, batch)
            total, index_loss, lookup_loss = loss, torch.zeros(()), torch.zeros(())
        else:
            train_index = share > 0.05 and self.shared.random() < 0.25
            loss, out = losses(self.model, p, batch, share, train_index)
            index_loss, lookup_loss, loads = out.index_loss, out.lookup_loss, out.loads
            total = loss + INDEX_WEIGHT * index_loss + LOOKUP_WEIGHT * lookup_loss
        total.backward()
        names = [name for name, value in self.trained.items() if value.grad is not None]
        self.average(names, loads)
        rate = schedule(share)
        self.optimiser.step(MATRIX_RATE * rate, RATE * rate, DECAY)
        for name in names:
            self.trained[name].grad = None
        for name, load in loads.items():
            self.params[name].add_(torch.sign(1 / len(load) - load), alpha=BALANCE_RATE)
        self.step += 1
        self.tokens += batch.weights.numel() * self.world
        self.sums += torch.tensor([loss.item(), index_loss.item(), lookup_loss.item(), 1.0])

    def run(self) -> None:
        while (progress := self.progress()) < 1:
            self.train_step(progress)
            if self.step % LOG_EVERY == 0:
                self.log(progress)
            if self.step % SAVE_EVERY == 0:
                self.save()
        self.save()
        if self.rank == 0:
            export(self.options.out)

    def log(self, progress: float) -> None:
        loss, index_loss, lookup_loss, n = self.sums.tolist()
        self.sums.zero_()
        if self.rank:
            return
        path = self.options.out / "log.csv"
        new = not path.exists()
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if new:
                writer.writerow(["step", "seconds", "tokens", "progress", "loss", "index_loss",
                                 "lookup_loss"])  # fmt: skip
            writer.writerow([self.step, f"{self.seconds():.0f}", self.tokens, f"{progress:.4f}", f"{loss / n:.4f}",
                             f"{index_loss / n:.4f}", f"{lookup_loss / n:.4f}"])  # fmt: skip

    def save(self) -> None:
        if self.rank:
            return
        state = {"params": {name: value.detach() for name, value in self.params.items()},
                 "optimiser": self.optimiser.state_dict(), "step": self.step, "tokens": self.tokens, "seconds": self.seconds(),
                 "config": self.config}  # fmt: skip
        with output_file(self.options.out / "state.pt") as file:
            torch.save(state, file)


def work(rank: int, options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed + rank)
    if options.device == "cpu":
        torch.set_num_threads(options.threads)
    if options.processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port)}
        dist.init_process_group("gloo", rank=rank, world_size=options.processes)
    Worker(rank, options).run()
    if options.processes > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder with tokenizer.json of tokenizer.py; gets everything")
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--config", help="a config.json object instead of a preset")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--steps", type=int, default=3400)
    extent.add_argument("--minutes", type=float, help="as many steps as fit, instead")
    parser.add_argument("--tokens", type=int, default=2048, help="of one step in one process")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--port", type=int, default=29512)
    parser.add_argument("--seed", type=int, default=4)
    parser.add_argument("--resume", action="store_true", help="go on from OUT/state.pt")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    if not (options.out / "tokenizer.json").is_file():
        sys.exit(f"{options.out}/tokenizer.json is not there: run tokenizer.py {options.out} first")
    if options.processes == 1:
        work(0, options)
    else:
        mp.spawn(work, (options,), options.processes)


if __name__ == "__main__":
    main()
