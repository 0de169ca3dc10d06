"""Muon for the matrices, Adam for the rest: the pair of optimisers that DeepSeek-V4's report trains with."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

# Quintic steps tuned for five iterations, as published for Muon (Y. Jiacheng, 2024).
_COEFFICIENTS = ((4.0848, -6.8946, 2.9270), (3.9505, -6.3029, 2.6377), (3.7418, -5.5913, 2.3037),
                 (2.8769, -3.1427, 1.2046), (2.8366, -3.0525, 1.2012))  # fmt: skip


def orthogonal(update: Tensor) -> Tensor:
    """The nearest matrix with equal singular values, by Newton-Schulz steps, of each matrix of a stack [..., m, n]."""
    tall = update.shape[-2] > update.shape[-1]
    x = update.mT if tall else update
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in _COEFFICIENTS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Optimiser:
    """Steps named parameters in place. state_dict() holds the moments, so that training can go on.

    rank, world: of several processes that hold the same gradients, each orthogonalises its share of the matrices.
    """

    def __init__(self, params: dict[str, Tensor], rank: int = 0, world: int = 1) -> None:
        self.params, self.rank, self.world = params, rank, world
        self.moments = {name: torch.zeros_like(value) for name, value in params.items()}
        self.squares = {name: torch.zeros_like(value) for name, value in params.items() if not self._is_matrix(name)}
        self.steps = 0

    def _is_matrix(self, name: str) -> bool:
        kept_apart = ("embed", "head.weight", "hc_", "ape", "gate.weight", "markov_", "confidence_")
        return self.params[name].ndim >= 2 and not any(part in name for part in kept_apart)

    @torch.no_grad()
    def step(self, matrix_rate: float, rate: float, decay: float) -> None:
        """matrix_rate: root-mean-square size of a matrix's step per entry of unit fan-in; rate: Adam's."""
        self.steps += 1
        matrices = {}
        for name, value in self.params.items():
            if value.grad is None:
                continue
            moment = self.moments[name]
            if name not in self.squares:
                moment.lerp_(value.grad, 0.05)
                matrices[name] = value.grad.lerp(moment, 0.95)
                continue
            square = self.squares[name]
            moment.lerp_(value.grad, 0.1)
            square.lerp_(value.grad.square(), 0.01)
            step = moment / (1 - 0.9**self.steps)
            value.sub_(rate * step / ((square / (1 - 0.99**self.steps)).sqrt() + 1e-8))
        for name, step in self._orthogonal(matrices).items():
            value = self.params[name]
            value.mul_(1 - matrix_rate * decay)
            value.add_(step, alpha=-matrix_rate * max(1.0, value.shape[-2] / value.shape[-1]) ** 0.5)

    def _orthogonal(self, matrices: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.world == 1:
            return {name: orthogonal(update) for name, update in matrices.items()}
        order = sorted(matrices, key=lambda name: (matrices[name].numel(), name))
        mine = set(order[self.rank :: self.world])
        flat = torch.cat([(orthogonal(matrices[name]) if name in mine else torch.zeros_like(matrices[name])).flatten()
                          for name in order])  # fmt: skip
        dist.all_reduce(flat)
        parts = flat.split([matrices[name].numel() for name in order])
        return {name: part.view_as(matrices[name]) for name, part in zip(order, parts, strict=True)}

    def state_dict(self) -> dict[str, object]:
        return {"moments": self.moments, "squares": self.squares, "steps": self.steps}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.moments, self.squares, self.steps = state["moments"], state["squares"], state["steps"]
