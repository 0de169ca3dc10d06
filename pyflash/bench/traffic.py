"""How many bytes of weights and cache one token reads, from the file's directory."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pyflash.engine.model import ModelInfo
from pyflash.engine.options import cache_in_use
from pyflash.native.values import StrPath

if TYPE_CHECKING:
    from gguf_export.safetensors_file import TensorRef

# Bytes of a row by cache type: (attention's rows, indexer's rows) from (width, rotary values).
_SCALE_GROUP, _INDEX_SCALE_GROUP = 64, 32
# Parts of the names of what is computed with in float32.
_TABLES = ("hc_", "_ape.", "norm.", "_sinks.", "exp_probs_b.")


@dataclass(frozen=True)
class Rows:
    """Bytes of one cache row: attention's and the indexer's."""

    kv: int
    index: int


@dataclass(frozen=True)
class Traffic:
    """What one token needs of a model.

    decode_bytes: of weights that a decoded token reads: everything dense, as many experts as it is routed to, the head,
    and one row of each table that is looked up. decode_ops: multiplications and additions with those weights;
    prefill_ops: the same without the head, which only a prompt's last token needs.
    """

    decode_bytes: int
    decode_ops: int
    prefill_ops: int
    rows: Rows
    layer_ratios: tuple[int, ...]
    window: int
    topk: int

    def cache_bytes(self, position: int) -> int:
        """Bytes of cache rows that the token at a position reads, its own among them."""
        seen = position + 1
        total = 0
        for ratio in self.layer_ratios:
            total += min(seen, self.window) * self.rows.kv
            if ratio == 4:  # the indexer reads all of its rows, attention those it selects
                total += seen // ratio * self.rows.index + min(seen // ratio, self.topk) * self.rows.kv
            elif ratio:
                total += seen // ratio * self.rows.kv
        return total


def _share(name: str, shape: tuple[int, ...], info: ModelInfo) -> float:
    """The part of a tensor that one token reads."""
    if name.startswith((f"blk.{info.n_layer}.", "mtp.", "dspark.")):
        return 0.0
    if name.startswith("token_embd") or "tid2eid" in name:
        return 1 / shape[-1]
    return info.n_expert_used / info.n_expert if "_exps." in name else 1.0


def _read_bytes(name: str, tensor: TensorRef) -> int:
    """Of a tensor in memory, where tables that are computed with in float32 are, whatever the file has."""
    return 4 * math.prod(tensor.shape) if any(mark in name for mark in _TABLES) else tensor.nbytes


def _rows(info: ModelInfo, cache: str, index_width: int) -> Rows:
    cache = cache_in_use(info.precision, cache)
    if cache == "f32":
        return Rows(4 * info.head_dim, 4 * index_width)
    if cache == "f16":
        return Rows(2 * info.head_dim, 2 * index_width)
    plain = info.head_dim - info.rope_dim
    return Rows(plain + math.ceil(plain / _SCALE_GROUP) + 2 * info.rope_dim,
                index_width // 2 + math.ceil(index_width / _INDEX_SCALE_GROUP))


def read_traffic(file: StrPath, info: ModelInfo, cache: str) -> Traffic:
    """cache: a cache type of Model.session(). Raises ConvertError where only the library can read the file."""
    from gguf_export.reader import read_gguf

    gguf = read_gguf(Path(os.fsdecode(file)))
    read = ops = head_ops = 0.0
    for name, tensor in gguf.tensors.items():
        share = _share(name, tensor.shape, info)
        read += share * _read_bytes(name, tensor)
        if len(tensor.shape) > 1 and "token_embd" not in name and "tid2eid" not in name:
            tensor_ops = 2 * share * math.prod(tensor.shape)
            ops += tensor_ops
            head_ops += tensor_ops if name.startswith("output") else 0
    index_width = gguf.keys.get("deepseek4.attention.indexer.key_length", 0)
    index_width = int(index_width[0] if isinstance(index_width, list) else index_width)  # some have one for each layer
    return Traffic(round(read), round(ops), round(ops - head_ops), _rows(info, cache, index_width),
                   info.layer_ratios, info.window, info.index_topk)
