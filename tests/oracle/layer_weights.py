"""Weights of one block by their names within it, and the linear layer on them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .numerics import Numerics


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    """x divided by the root mean square of its last axis."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


class LayerWeights(Mapping[str, np.ndarray]):
    """weights[prefix + name] as self[name]."""

    def __init__(self, weights: Mapping[str, np.ndarray], prefix: str, numerics: Numerics) -> None:
        self._weights = weights
        self._prefix = prefix
        self._numerics = numerics

    def __getitem__(self, name: str) -> np.ndarray:
        return self._weights[self._prefix + name]

    def __iter__(self):  # noqa: ANN204
        return (name[len(self._prefix) :] for name in self._weights if name.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def has(self, name: str) -> bool:
        return self._prefix + name in self._weights

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """x [..., K] times the transpose of the weight `name` [M, K]."""
        return self._numerics.linear_input(x, name) @ self[name + ".weight"].T
