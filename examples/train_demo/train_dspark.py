"""Trains DSpark's stages for the demonstration model: `python train_dspark.py OUT --minutes 25`.

The target is read once over conversations of the training split (`OUT/features.pt`) and stays as it is, as do its embedding
and head. Stopped, it goes on from `OUT/dspark.pt`. In the end OUT/stages has what was trained, and OUT/checkpoint that and the
target, in the layout of release 0731.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dspark import Drafter, Goals, Sizes, Target, init_drafter
from export import write_checkpoint
from mixture import Mixture
from model import Params, quantised
from muon import Optimiser
from widen import read_params

from gguf_export.outputs import output_file

BLOCK, RANK, STAGES, TARGETS = 5, 32, 1, 3
NOISE = "<｜fim▁hole｜>"  # no text has it
SHARES = {256: 0.45, 512: 0.4, 1024: 0.15}  # of tokens, by the length of their rows
ANCHORS, ROWS = 256, 8192  # of one step; tokens of the rows that they are in
MATRIX_RATE, RATE, DECAY = 0.02, 2e-3, 0.01
BALANCE_RATE = 1e-3
ROUNDED_FROM = 0.6  # of the training: from there on weights are as they will be stored
LOG_SECONDS, SAVE_SECONDS = 20, 120


def config_of(target: dict[str, Any], noise: int) -> dict[str, Any]:
    """The target's config.json with release 0731's keys."""
    n = target["num_hidden_layers"]
    return target | {
        "compress_ratios": [*target["compress_ratios"][:n], *[0] * STAGES],
        "dspark_block_size": BLOCK,
        "dspark_noise_token_id": noise,
        "dspark_target_layer_ids": list(range(n - TARGETS, n)),
        "dspark_markov_rank": RANK,
    }


@dataclass
class Features:
    """What the target made of rows of one length. tokens [R, S+1]; own [R, S]: whether the next token is the assistant's;
    taps [R, S, layers * D] and hidden [R, S, D], as Target.read() has them, in half precision."""

    tokens: Tensor
    own: Tensor
    taps: Tensor
    hidden: Tensor

    def anchors(self) -> Tensor:
        """[K, 2]: the places of tokens behind which the assistant's come, with a token before them."""
        own = self.own.clone()
        own[:, 0] = False
        return own.nonzero()

    def goals(self, anchors: Tensor, head: Tensor, block: int) -> Goals:
        """Of Drafter.loss(). A place counts if all tokens up to it are the assistant's, in one answer."""
        text, place = anchors[:, :1], anchors[:, 1:] + torch.arange(block)
        inside = place < self.own.shape[1]
        place = place.clamp(max=self.own.shape[1] - 1)
        counts = (inside & self.own[text, place]).cumprod(1)
        chances = (self.hidden[text, place].float() @ head.T).softmax(-1)
        return self.tokens[text, place + 1], chances, counts


def collect(target: Target, p: Params, mixture: Mixture, n_tokens: int) -> list[Features]:
    """The target over so many tokens of new rows."""
    found = []
    for length, share in SHARES.items():
        parts: list[tuple[Tensor, ...]] = []
        for _ in range(math.ceil(share * n_tokens / 2048)):
            batch = mixture.batch(length, 2048, 1.0, drilled=0.0)
            taps, hidden = target.read(p, batch.tokens[:, :-1])
            parts.append((batch.tokens, batch.weights == 1, taps.half(), hidden.half()))
        found.append(Features(*(torch.cat(part) for part in zip(*parts, strict=True))))
    return found


class Training:
    """options: main()'s. mixture: where the target's texts come from, None where it has read them."""

    def __init__(self, options: argparse.Namespace, mixture: Mixture | None) -> None:
        self.out, self.minutes, self.threads = options.out, options.minutes, options.threads
        self.frozen = read_params(options.checkpoint, with_drafts=True)
        mtp = {name: self.frozen.pop(name) for name in list(self.frozen) if name.startswith("mtp.")}
        tokenizer = options.checkpoint / "tokenizer.json"
        noise = next(token["id"] for token in json.loads(tokenizer.read_text(encoding="utf-8"))["added_tokens"]
                     if token["content"] == NOISE)  # fmt: skip
        self.config = config_of(json.loads((options.checkpoint / "config.json").read_text(encoding="utf-8")), noise)
        target = Target(self.config, Sizes.of(self.config).layers)
        if not options.no_compile:
            target.compile()
        self.drafter = Drafter(target)
        self.params = init_drafter(self.config, mtp, options.seed)
        self.step, self.seconds = 0, 0.0
        state = None
        if (self.out / "dspark.pt").is_file():
            state = torch.load(self.out / "dspark.pt", weights_only=True)
            self.params, self.step, self.seconds = state["params"], state["step"], state["seconds"]
        self.trained = {name: value.requires_grad_() for name, value in self.params.items() if not name.endswith("gate.bias")}
        self.optimiser = Optimiser(self.trained)
        if state:
            self.optimiser.load_state_dict(state["optimiser"])
        self.features = self._features(target, mixture, options.tokens)
        self.anchors = [features.anchors() for features in self.features]
        self.random = torch.Generator().manual_seed(options.seed + self.step)

    def _features(self, target: Target, mixture: Mixture | None, n_tokens: int) -> list[Features]:
        path = self.out / "features.pt"
        if mixture is None or path.is_file():
            return [Features(**each) for each in torch.load(path, weights_only=True)]
        found = collect(target, self.frozen, mixture, n_tokens)
        with output_file(path) as file:
            torch.save([vars(features) for features in found], file)
        return found

    def draw(self) -> tuple[Features, Tensor]:
        """Some rows of one length, and anchors in them."""
        sizes = torch.tensor([float(len(anchors)) for anchors in self.anchors])
        which = int(torch.multinomial(sizes, 1, generator=self.random))
        features, anchors = self.features[which], self.anchors[which]
        n = max(1, ROWS // features.own.shape[1])
        rows = torch.randperm(len(features.own), generator=self.random)[:n]
        there = anchors[torch.isin(anchors[:, 0], rows)]
        chosen = there[torch.randperm(len(there), generator=self.random)[:ANCHORS]]
        new = torch.empty(len(features.own), dtype=torch.long).index_copy_(0, rows, torch.arange(len(rows)))
        part = Features(*(value[rows] for value in vars(features).values()))
        return part, torch.stack([new[chosen[:, 0]], chosen[:, 1]], 1)

    def train_step(self, progress: float) -> float:
        features, anchors = self.draw()
        own = quantised(self.params) if progress >= ROUNDED_FROM else self.params
        p = self.frozen | own
        goals = features.goals(anchors, p["head.weight"], self.drafter.sizes.block)
        context = self.drafter.context(p, features.taps.float())
        tokens = features.tokens[anchors[:, 0], anchors[:, 1]]
        loss = self.drafter.loss(p, context, anchors, tokens, goals)
        loss.backward()
        rate = schedule(progress)
        self.optimiser.step(MATRIX_RATE * rate, RATE * rate, DECAY)
        for value in self.trained.values():
            value.grad = None
        for name, load in self.drafter.loads.items():
            self.params[name].add_(torch.sign(1 / len(load) - load), alpha=BALANCE_RATE)
        self.step += 1
        return loss.item()

    def run(self, until: float) -> bool:
        """Trains for the processor time that is left, though not beyond so many seconds from now. Whether it is done."""
        began, used, before = time.monotonic(), time.process_time(), self.seconds
        logged, saved, losses = began, began, []
        while (progress := self.seconds / (60 * self.minutes)) < 1 and time.monotonic() - began < until:
            losses.append(self.train_step(progress))
            now = time.monotonic()
            self.seconds = before + (time.process_time() - used) / self.threads
            if now - logged > LOG_SECONDS:
                print(f"step {self.step}, {self.seconds:.0f} s, loss {sum(losses) / len(losses):.4f}", flush=True)
                logged, losses = now, []
            if now - saved > SAVE_SECONDS:
                self.save()
                saved = now
        self.save()
        return progress >= 1

    def save(self) -> None:
        state = {"params": {name: value.detach() for name, value in self.params.items()}, "step": self.step,
                 "optimiser": self.optimiser.state_dict(), "seconds": self.seconds, "config": self.config}  # fmt: skip
        with output_file(self.out / "dspark.pt") as file:
            torch.save(state, file)


def export(out: Path, target: Path) -> None:
    """OUT/stages, and OUT/checkpoint: those and the target's weights as they are."""
    state = torch.load(out / "dspark.pt", weights_only=True)
    write_checkpoint(out / "stages", state["config"], state["params"])
    folder = out / "checkpoint"
    kept = {name: value for name, value in load_file(target / "model.safetensors").items() if not name.startswith("mtp.")}
    write_checkpoint(folder, state["config"], state["params"], kept)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(target / name, folder / name)


def schedule(progress: float) -> float:
    """Learning rate over its peak: linear up, then half a cosine down to 2 %."""
    return min(1.0, progress / 0.02 + 0.05) * (0.02 + 0.98 * (1 + math.cos(math.pi * progress)) / 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="gets everything")
    parser.add_argument("--checkpoint", type=Path, required=True, help="the target: `python -m pyflash --demo-checkpoint`")
    parser.add_argument("--minutes", type=float, default=25, help="of the processor, as if it had nothing else to do")
    parser.add_argument("--stop-after", type=float, default=math.inf, metavar="MINUTES", help="of this run; the next goes on")
    parser.add_argument("--tokens", type=int, default=400_000, help="that the target reads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.out.mkdir(parents=True, exist_ok=True)
    training = Training(options, Mixture(options.checkpoint / "tokenizer.json", options.seed))
    if training.run(60 * options.stop_after):
        export(options.out, options.checkpoint)


if __name__ == "__main__":
    main()
