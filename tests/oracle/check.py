"""The C core in "exact" against the oracle.

Wherever the core chose other experts or rows than the oracle, the oracle is run with the core's choices, and each one
must have been a tie up to float32 rounding. What is left is then compared for every token, not on average.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyflash

from .compare import first_difference, near_ties, relative_l2
from .config import OracleConfig
from .core import choices_of, eval_with_taps
from .model import Oracle
from .taps import Taps

NEAR_TIE = 1e-4  # gap of a choice that may flip, relative to the token's largest score
TAP_TOLERANCE = 1e-4
# The core needs no indexer query while every row is kept, and folds the scale of idx_w into the scores.
MAY_LACK = frozenset({"idx_q", "idx_w"})


def check_exact(
    path: Path, config: OracleConfig, weights: Mapping[str, np.ndarray], tokens: np.ndarray, **open_options: Any
) -> np.ndarray:
    """Compares "exact" on a file with the oracle on the values that it holds; fails with the first tap that differs when
    any token's logits are off. Returns the core's logits."""
    with pyflash.Model.open(path, precision="exact", **open_options) as model:
        with model.session(context=len(tokens), chunk=256, poison=True) as session:
            logits, actual = eval_with_taps(session, tokens)
    oracle = Oracle(config, weights)
    expected = Taps()
    reference = oracle.forward(tokens, expected, choices_of(actual, config, len(tokens)))
    error = relative_l2(logits, reference)
    difference = first_difference(actual, expected, TAP_TOLERANCE, MAY_LACK)
    assert difference == "no tap differs", f"{difference}; logits differ by {np.median(error):.2e} (median)"
    ties = near_ties(oracle.choices, NEAR_TIE)
    print(f"\nrelative L2 error: median {np.median(error):.2e}, worst {error.max():.2e}; {len(ties)} near-ties imposed")
    print("\n".join(ties))
    if ties:
        free = relative_l2(logits, oracle.forward(tokens))
        print(f"without imposing them: median {np.median(free):.2e}, worst {free.max():.2e}")
    assert np.median(error) < 1e-5
    assert error.max() < 5e-5
    return logits
