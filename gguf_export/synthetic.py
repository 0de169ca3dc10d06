"""Writes DeepSeek-V4 checkpoints with seeded random weights in the official layout, at any size.

For tests (`tiny`) and for measuring at full dimensions with a few layers (`slice`). Weights have the magnitudes of a
trained model's at initialisation, so that activations stay finite and logits are not degenerate. Streaming: memory does
not grow with the checkpoint.

    python -m gguf_export.synthetic DEST --preset slice --layers 4
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gguf_export.config import ModelConfig, parse_config
from gguf_export.errors import ConvertError
from gguf_export.inventory import E8M0, Weight, draft_weights, main_weights, shard_of, tensors_of
from gguf_export.outputs import check_name, output_file, write_output
from gguf_export.safetensors_file import build_header, index_json, shard_name, tensor_bytes
from gguf_export.synthetic_tokenizer import build_tokenizer, least_vocabulary
from quantize import codecs
from quantize.plan import Form

_FLASH: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "quantization_config": {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "scale_fmt": "ue8m0",
        "weight_block_size": [128, 128],
    },
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 32,
        "beta_slow": 1,
        "factor": 16,
        "original_max_position_embeddings": 65536,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 129280,
    "compress_rope_theta": 160000,
}

_GENERATION = {"bos_token_id": 0, "do_sample": True, "eos_token_id": 1, "temperature": 1.0, "top_p": 1.0}

_TINY: dict[str, Any] = {
    "head_dim": 64,
    "hidden_size": 128,
    "index_head_dim": 64,
    "index_n_heads": 4,
    "index_topk": 16,
    "max_position_embeddings": 65536,
    "moe_intermediate_size": 64,
    "n_routed_experts": 8,
    "num_attention_heads": 4,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 6,
    "num_hash_layers": 2,
    "o_groups": 2,
    "o_lora_rank": 64,
    "q_lora_rank": 64,
    "qk_rope_head_dim": 32,
    "sliding_window": 32,
    "vocab_size": 1024,
}


def _ratios(n_layers: int, n_drafts: int) -> list[int]:
    """Two window-only layers, then 4 and 128 in turn, then window-only drafting blocks."""
    return [0 if layer < 2 else (4, 128)[layer % 2] for layer in range(n_layers)] + [0] * n_drafts


def make_config(
    preset: str = "tiny", release: str = "preview", n_layers: int | None = None, **changes: Any
) -> dict[str, Any]:
    """A config.json object.

    preset: "tiny" (a few MB) or "slice" (every dimension as in V4-Flash, or V4-Pro with release="pro", with fewer
    layers). release: "preview" (one MTP block), "0731" (three DSpark stages) or "pro". changes override single keys;
    compress_ratios follows from the number of layers unless given.
    """
    if preset not in ("tiny", "slice") or release not in ("preview", "0731", "pro"):
        raise ValueError(f"no preset {preset!r} of release {release!r}")
    config = dict(_FLASH)
    if release == "pro":
        config |= {
            "hidden_size": 7168, "index_topk": 1024, "moe_intermediate_size": 3072, "n_routed_experts": 384,
            "num_attention_heads": 128, "num_hidden_layers": 61, "o_groups": 16, "q_lora_rank": 1536,
            "routed_scaling_factor": 2.5,
        }  # fmt: skip
    if preset == "tiny":
        config |= _TINY
    if n_layers is not None:
        config["num_hidden_layers"] = n_layers
    config |= changes
    layers = config["num_hidden_layers"]
    config["num_hash_layers"] = min(config["num_hash_layers"], layers)
    n_drafts = config["num_nextn_predict_layers"]
    if release == "0731":
        n_drafts = 3
        targets = list(range(max(0, layers - 3), layers))
        config |= {
            "dspark_block_size": 5,
            "dspark_noise_token_id": min(128799, config["vocab_size"] - 1),
            "dspark_target_layer_ids": targets,
            "dspark_markov_rank": 256 if preset == "slice" else 32,
        }
    if release in ("0731", "pro"):
        config["expert_dtype"] = "fp4"
    if "compress_ratios" not in config:
        config["compress_ratios"] = _ratios(layers, n_drafts)
    return config


def _rng(seed: int, name: str) -> np.random.Generator:
    """Values depend on the seed and the tensor's name only, not on what else is written."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


# Standard deviation and mean by the end of a tensor's name; other matrices get 1/sqrt(inputs).
_PLAIN: list[tuple[str, float, float]] = [
    ("norm.weight", 0.1, 1.0),
    ("attn_sink", 1.0, 0.0),
    ("gate.bias", 0.05, 0.0),
    ("ape", 0.5, 0.0),
    ("_base", 0.5, 0.0),
    ("_scale", 0.2, 0.8),
    ("embed.weight", 1.0, 0.0),
]

_PIECE_VALUES = 1 << 20


def _spread(weight: Weight) -> tuple[float, float]:
    for ending, std, mean in _PLAIN:
        if weight.name.endswith(ending):
            return std, mean
    # Logits of a few units, so that the likeliest token stands out.
    gain = 2.5 if weight.name == "head.weight" else 1.0
    return gain / math.sqrt(weight.shape[-1]), 0.0


class _Values:
    """Random payloads. Large tensors are cut at random places from pools of codes drawn once, which is fast and as
    good as fresh numbers for a model that means nothing."""

    def __init__(self, config: ModelConfig, seed: int, pool_values: int) -> None:
        self.config = config
        self.seed = seed
        self.fp4_pool = np.empty(pool_values // 2, dtype=np.uint8)
        self.fp8_pool = np.empty(pool_values, dtype=np.uint8)
        self.bf16_pool = np.empty(pool_values, dtype=np.uint16)
        rng = _rng(seed, "pool")
        for begin in range(0, pool_values, _PIECE_VALUES):
            end = min(begin + _PIECE_VALUES, pool_values)
            normal = rng.standard_normal(end - begin, dtype=np.float32)
            self.fp4_pool[begin // 2 : end // 2] = codecs.fp4_pack(codecs.e2m1_encode(normal * 2.0))
            self.fp8_pool[begin:end] = codecs.e4m3_encode(normal * 64.0)
            self.bf16_pool[begin:end] = codecs.bf16_encode(normal)

    @staticmethod
    def _from_pool(pool: NDArray[Any], count: int, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        while count:
            start = int(rng.integers(0, max(1, len(pool) // 2)))
            piece = pool[start : start + min(count, _PIECE_VALUES)]
            yield piece
            count -= len(piece)

    def weight(self, weight: Weight) -> Iterator[NDArray[Any]]:
        """The payload of `weight.data_name`, in pieces."""
        rng = _rng(self.seed, weight.data_name)
        n = math.prod(weight.shape)
        if weight.form is Form.FP4:
            yield from self._from_pool(self.fp4_pool, n // 2, rng)
        elif weight.form is Form.FP8:
            yield from self._from_pool(self.fp8_pool, n, rng)
        elif weight.form is Form.I64:
            yield self._expert_ids(weight.shape, rng)
        elif n > 1 << 22:
            yield from self._large_bf16(weight, n, rng)
        else:
            values = self._plain(weight, rng)
            yield codecs.bf16_encode(values) if weight.form is Form.BF16 else values

    def _large_bf16(self, weight: Weight, n: int, rng: np.random.Generator) -> Iterator[NDArray[Any]]:
        std, _ = _spread(weight)
        for piece in self._from_pool(self.bf16_pool, n, rng):
            yield piece if std == 1.0 else codecs.bf16_encode(codecs.bf16_decode(piece) * np.float32(std))

    def _plain(self, weight: Weight, rng: np.random.Generator) -> NDArray[np.float32]:
        std, mean = _spread(weight)
        values: NDArray[np.float32] = rng.standard_normal(weight.shape, dtype=np.float32)
        values = values * np.float32(std) + np.float32(mean)
        if weight.name.endswith(("hc_attn_base", "hc_ffn_base")):
            # Streams mostly keep themselves: a heavier diagonal of the mixing matrix before Sinkhorn.
            n = self.config.hc_mult
            values[2 * n :].reshape(n, n)[np.diag_indices(n)] += np.float32(1.5)
        return values

    def _expert_ids(self, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.int64]:
        """Rows of distinct ids: an arithmetic progression that does not wrap onto itself."""
        rows, active = shape
        n = self.config.n_experts
        start = rng.integers(0, n, (rows, 1))
        step = rng.integers(1, max(2, (n - 1) // max(1, active - 1) + 1), (rows, 1))
        ids: NDArray[np.int64] = (start + step * np.arange(active)) % n
        return ids

    def scale(self, weight: Weight, dtype: str) -> NDArray[Any]:
        """Scales around the one that gives the weight the standard deviation 1/sqrt(inputs)."""
        rng = _rng(self.seed, weight.scale_name)
        code_std = 2.0 if weight.form is Form.FP4 else 64.0
        middle = -math.log2(code_std * math.sqrt(weight.shape[1]))
        if dtype == "F32":
            factors = rng.uniform(0.7, 1.4, weight.scale_shape)
            scales: NDArray[np.float32] = (2.0**middle * factors).astype(np.float32)
            return scales
        exponents = math.floor(middle) + rng.integers(-1, 2, weight.scale_shape, dtype=np.int8)
        codes: NDArray[np.uint8] = (exponents.astype(np.int16) + 127).astype(np.uint8)
        return codes


def _write_all(file: BinaryIO, array: NDArray[Any]) -> int:
    data = np.ascontiguousarray(array).data.cast("B")
    file.write(data)
    return data.nbytes


def write_checkpoint(
    dest: Path | str,
    config: dict[str, Any],
    *,
    seed: int = 0,
    experts: str = "fp4",
    sharded: bool = True,
    drafts: bool = True,
    tokenizer: bool | None = None,
) -> Path:
    """Writes config.json, safetensors (with an index when sharded) and tokenizer files into the folder `dest`.

    experts: "fp4", or "fp8" for e4m3 with float32 scales per 128 x 128 block, as the Base models have. drafts=False
    leaves out the mtp.* tensors. tokenizer=None writes one where the vocabulary is large enough to hold it.
    """
    forms = {"fp4": Form.FP4, "fp8": Form.FP8}
    if experts not in forms:
        raise ValueError(f"experts is {experts!r}, expected 'fp4' or 'fp8'")
    if experts == "fp8":
        config = {key: value for key, value in config.items() if key != "expert_dtype"}
    sizes = parse_config(config)
    form = forms[experts]
    weights = [*main_weights(sizes, form), *(draft_weights(sizes, form) if drafts else ())]
    dest = Path(check_name(dest))
    os.makedirs(os.path.realpath(dest), exist_ok=True)
    n_values = sum(math.prod(weight.shape) for weight in weights)
    # A small checkpoint gets a small pool, because most of the time would go into drawing it.
    values = _Values(sizes, seed, min(max(n_values // 4 * 2, 1 << 18), 1 << 25))
    shards: dict[int, list[Weight]] = {}
    for weight in weights:
        shards.setdefault(shard_of(weight.name, sizes) if sharded else 0, []).append(weight)
    places: dict[str, str] = {}
    total = 0
    for index, (_, members) in enumerate(sorted(shards.items())):
        path = dest / shard_name(index, len(shards))
        total += _write_shard(path, members, values, "F32" if experts == "fp8" else E8M0, places)
    if len(shards) > 1:
        write_output(dest / "model.safetensors.index.json", index_json(places, total), streams=False)
    _write_json(dest / "config.json", config)
    _write_json(dest / "generation_config.json", _GENERATION)
    if tokenizer is None:
        tokenizer = sizes.vocab_size >= least_vocabulary()
    if tokenizer:
        for name, value in build_tokenizer(sizes.vocab_size).items():
            _write_json(dest / name, value)
    return dest


def _write_json(path: Path, value: Any) -> None:
    write_output(path, (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8"), streams=False)


def _write_shard(
    path: Path, weights: list[Weight], values: _Values, expert_scale: str, places: dict[str, str]
) -> int:
    def scale_dtype(weight: Weight) -> str:
        return expert_scale if weight.is_expert else E8M0

    tensors = [tensor for weight in weights for tensor in tensors_of(weight, scale_dtype(weight))]
    header, _ = build_header(path, tensors)
    with output_file(path) as raw:
        raw.write(header)
        for weight in weights:
            written = sum(_write_all(raw, piece) for piece in values.weight(weight))
            assert written == tensor_bytes(weight.data_dtype, weight.data_shape), weight.name
            if weight.is_scaled:
                _write_all(raw, values.scale(weight, scale_dtype(weight)))
    places.update((name, path.name) for name, _, _ in tensors)
    return sum(tensor_bytes(dtype, shape) for _, dtype, shape in tensors)


def _setting(text: str) -> tuple[str, int]:
    key, _, value = text.partition("=")
    if type(_FLASH.get(key)) is not int or not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number of config.json, as in index_topk=512")
    return key, int(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a DeepSeek-V4 checkpoint with random weights.")
    parser.add_argument("dest", type=Path)
    parser.add_argument("--preset", choices=("tiny", "slice"), default="tiny")
    parser.add_argument("--release", choices=("preview", "0731", "pro"), default="preview")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--experts", choices=("fp4", "fp8"), default="fp4")
    parser.add_argument("--no-drafts", action="store_true", help="leave out the mtp.* tensors")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", action="append", type=_setting, default=[], metavar="KEY=NUMBER", dest="changes",
                        help="another number in config.json; may be given more than once")
    args = parser.parse_args()
    if os.path.lexists(args.dest) and (not args.dest.is_dir() or any(args.dest.iterdir())):
        parser.error(f"{args.dest} exists and is not an empty folder; give a new name")  # a real checkpoint, perhaps
    changes = {"num_nextn_predict_layers": 0} if args.no_drafts and args.release != "0731" else {}
    changes |= dict(args.changes)
    config = make_config(args.preset, args.release, args.layers, **changes)
    try:
        write_checkpoint(args.dest, config, seed=args.seed, experts=args.experts, drafts=not args.no_drafts)
    except (ConvertError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
