"""Named intermediates of a forward pass, under the names and shapes of the C library's debug taps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# In the order of computation within a layer. Values are [n] per token; topk and experts are int32 ids.
LAYER_TAPS = (
    "attn_in",  # [D] after mHC pre
    "attn_norm",  # [D]
    "q_lora",  # [Rq] after its norm
    "q",  # [H*d] after rope
    "kv",  # [d] after norm and rope
    "comp_row",  # [d] only at tokens that complete a compressed row
    "idx_q",  # [Hi*di] after rope
    "idx_row",  # [di] only at tokens that complete an indexer row
    "idx_w",  # [Hi]
    "topk",  # selected rows, ascending
    "attn_o",  # [H*d] after the inverse rope
    "attn_out",  # [D]
    "attn_X",  # [N*D] streams after the attention site
    "ffn_in",  # [D]
    "ffn_norm",  # [D]
    "router",  # [E] scores s
    "experts",  # chosen ids, highest selection score first (hash layers: table order)
    "expert_w",  # [A] in the order of "experts"
    "ffn_out",  # [D]
    "ffn_X",  # [N*D]
)
HEAD_TAPS = ("head_in", "head_norm", "logits")  # [D], [D], [vocab]


class Taps:
    """Values by (name, layer) and position, in the order of computation. "embed" and the head use layer -1."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, int], dict[int, np.ndarray]] = {}

    def record(
        self, name: str, layer: int, values: Sequence[np.ndarray] | np.ndarray, positions: Sequence[int] | None = None
    ) -> None:
        """values[i] belongs to positions[i], or to position i; flattened."""
        where = range(len(values)) if positions is None else positions
        slot = self._values.setdefault((name, layer), {})
        for position, value in zip(where, values, strict=True):
            slot[int(position)] = np.asarray(value).reshape(-1)

    def keys(self) -> list[tuple[str, int]]:
        """(name, layer) in the order of computation."""
        return list(self._values)

    def positions(self, name: str, layer: int) -> list[int]:
        return sorted(self._values.get((name, layer), ()))

    def get(self, name: str, layer: int, position: int) -> np.ndarray | None:
        """The value, or None where this tap has none."""
        return self._values.get((name, layer), {}).get(position)

    def stack(self, name: str, layer: int) -> np.ndarray:
        """All positions of a tap as one array [T, n]."""
        slot = self._values[(name, layer)]
        return np.stack([slot[p] for p in sorted(slot)])
