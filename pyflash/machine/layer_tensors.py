"""Which tensors of a GGUF file a range of layers takes: the same rule as the library's pf_range_has_tensor()."""

from __future__ import annotations

import re

from pyflash.engine.model import ModelInfo

_LAYER = re.compile(r"blk\.(\d+)\.")


def layer_of(name: str, n_layer: int) -> int | None:
    """The layer that a tensor belongs to; None for what belongs to none, as the head and the block after the layers do."""
    number = _LAYER.match(name)
    return int(number[1]) if number and int(number[1]) < n_layer else None


def is_opened(name: str, model: ModelInfo, layers: tuple[int, int] | None = None) -> bool:
    """Whether a tensor belongs to the layers (first, end), by default those that the model was opened with."""
    first, end = layers or (model.first_layer, model.end_layer)
    layer = layer_of(name, model.n_layer)
    if layer is not None:
        return first <= layer < end
    has_head = end == model.n_layer
    return first == 0 or (has_head and model.drafts != "none") if name == "token_embd.weight" else has_head
