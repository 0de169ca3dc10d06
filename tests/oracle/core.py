"""Drives a session of the C core for comparison with the oracle."""

from __future__ import annotations

from typing import Any

import numpy as np

from .config import OracleConfig
from .taps import Taps


def eval_with_taps(session: Any, tokens: np.ndarray) -> tuple[np.ndarray, Taps]:
    """Logits [T, vocab] of a pyflash session and everything its debug taps reported."""
    taps = Taps()
    session.set_tap(lambda name, layer, position, value: taps.record(name, layer, [value], [position]))
    try:
        return session.eval(tokens, all_logits=True), taps
    finally:
        session.set_tap(None)


def choices_of(taps: Taps, config: OracleConfig, n_tokens: int) -> dict[tuple[str, int], list[np.ndarray]]:
    """The taps' discrete choices as the oracle's `forced`: experts where a router chose, rows where an indexer did."""
    choices: dict[tuple[str, int], list[np.ndarray]] = {}
    nothing = np.zeros(0, dtype=np.int32)
    for layer in range(config.num_hidden_layers):
        kinds = ["experts"] if layer >= config.num_hash_layers else []
        kinds += ["topk"] if config.ratio(layer) == 4 else []
        for kind in kinds:
            ids = [taps.get(kind, layer, t) for t in range(n_tokens)]
            choices[(kind, layer)] = [nothing if i is None else i for i in ids]
    return choices
