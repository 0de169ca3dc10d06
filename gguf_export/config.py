"""A checkpoint's config.json, validated: the sizes and constants that the inventory and the GGUF keys need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_export.errors import ConvertError, reason, several
from gguf_export.standins import HEAD_BYTES, standin_reason

MOST_CONFIG_BYTES = 16 << 20
MOST_EXPERTS = 4096
RATIOS = (0, 4, 128)


@dataclass(frozen=True)
class DSpark:
    """The drafting stages of the 0731 release, which take the place of the MTP block."""

    n_stages: int
    targets: tuple[int, ...]  # dspark_target_layer_ids, from 0: the layers whose outputs they see
    markov_rank: int
    block_size: int
    noise_token_id: int

    @property
    def n_targets(self) -> int:
        return len(self.targets)


@dataclass(frozen=True)
class ModelConfig:
    """Sizes follow config.json; `name` in comments is its key where that differs."""

    dim: int  # hidden_size
    n_layers: int  # num_hidden_layers, without MTP
    vocab_size: int
    context_length: int  # max_position_embeddings
    n_heads: int
    head_dim: int
    rope_dim: int  # qk_rope_head_dim
    q_rank: int  # q_lora_rank
    o_groups: int
    o_rank: int  # o_lora_rank, per group
    window: int  # sliding_window
    compress_ratios: tuple[int, ...]  # n_layers entries, then those of MTP blocks
    index_heads: int
    index_dim: int
    index_topk: int
    n_experts: int
    n_active: int  # num_experts_per_tok
    expert_dim: int  # moe_intermediate_size
    n_hash_layers: int
    route_scale: float  # routed_scaling_factor
    swiglu_limit: float
    hc_mult: int
    sinkhorn_iters: int
    hc_eps: float
    norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    yarn_factor: float
    yarn_original_length: int
    yarn_beta_fast: float
    yarn_beta_slow: float
    bos_token_id: int
    eos_token_id: int
    n_mtp: int  # num_nextn_predict_layers
    expert_dtype: str | None
    dspark: DSpark | None
    is_quantized: bool  # has a quantization_config; tensors decide where they are there
    is_tied: bool  # tie_word_embeddings

    @property
    def hc_dim(self) -> int:
        """Width of the flattened residual streams."""
        return self.hc_mult * self.dim

    @property
    def hc_mixes(self) -> int:
        """Numbers that one mHC site computes: pre, post and the mixing matrix."""
        return (2 + self.hc_mult) * self.hc_mult


class _Fields:
    """Typed access to a JSON object that collects every problem instead of stopping at the first."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.problems: list[str] = []

    def integer(self, key: str, low: int = 1, high: int = 2**31 - 1, default: int | None = None) -> int:
        value = self.values.get(key, default)
        if value is None:
            self.problems.append(f"{key} is missing")
            return low
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.problems.append(f"{key} is {value!r:.40}, expected an integer from {low} to {high}")
            return low
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.values.get(key, default)
        if value is None:
            self.problems.append(f"{key} is missing")
            return 1.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e30:
            self.problems.append(f"{key} is {value!r:.40}, expected a positive number")
            return 1.0
        return float(value)

    def must_be(self, key: str, allowed: tuple[Any, ...]) -> None:
        """A key that may be absent, but if present has one of these values."""
        if key in self.values and self.values[key] not in allowed:
            self.problems.append(f"{key} is {self.values[key]!r:.40}, only {allowed[0]!r} is supported")

    def object(self, key: str) -> _Fields:
        value = self.values.get(key)
        if not isinstance(value, dict):
            self.problems.append(f"{key} is missing or no object")
            value = {}
        inner = _Fields(value)
        inner.problems = self.problems
        return inner


def _check_architecture(fields: _Fields) -> None:
    fields.must_be("model_type", ("deepseek_v4",))
    fields.must_be("hidden_act", ("silu",))
    fields.must_be("scoring_func", ("sqrtsoftplus",))
    fields.must_be("topk_method", ("noaux_tc",))
    fields.must_be("norm_topk_prob", (True,))
    fields.must_be("num_key_value_heads", (1,))
    fields.must_be("n_shared_experts", (1,))
    fields.must_be("attention_bias", (False,))
    fields.must_be("tie_word_embeddings", (False, True))
    fields.must_be("mlp_bias", (False,))
    fields.must_be("expert_dtype", ("fp4", "fp8", None))
    if fields.values.get("quantization_config") is None:
        return  # weights in BF16, float16 or float32
    quantization = fields.object("quantization_config")
    quantization.must_be("quant_method", ("fp8",))
    quantization.must_be("fmt", ("e4m3",))
    quantization.must_be("weight_block_size", ([128, 128],))


def _ratios(fields: _Fields, n_layers: int, n_stages: int) -> tuple[int, ...]:
    ratios = fields.values.get("compress_ratios")
    if not isinstance(ratios, list) or len(ratios) < n_layers:
        fields.problems.append(f"compress_ratios is no list of at least {n_layers} entries")
        return (0,) * n_layers
    ratios = ratios[: n_layers + n_stages]
    for layer, ratio in enumerate(ratios):
        if isinstance(ratio, bool) or ratio not in RATIOS:
            fields.problems.append(f"compress_ratios[{layer}] is {ratio!r:.40}, only 0, 4 and 128 are supported")
            return (0,) * n_layers
    return tuple(ratios)


def _dspark(fields: _Fields, n_layers: int) -> DSpark | None:
    if "dspark_block_size" not in fields.values:
        return None
    targets = fields.values.get("dspark_target_layer_ids")
    if not isinstance(targets, list) or not targets or any(type(each) is not int for each in targets):
        fields.problems.append("dspark_target_layer_ids is no list of layers")
        return None
    if not all(0 <= each < n_layers for each in targets) or len(set(targets)) < len(targets):
        fields.problems.append(f"dspark_target_layer_ids is {targets!r:.40}, expected different layers of 0 to {n_layers - 1}")
        return None
    # config.json counts the stages only through the entries of compress_ratios past the last layer.
    ratios = fields.values.get("compress_ratios")
    n_stages = len(ratios) - n_layers if isinstance(ratios, list) else 0
    if n_stages < 1:
        fields.problems.append("compress_ratios has no entries for the DSpark stages")
    return DSpark(
        max(n_stages, 1), tuple(targets), fields.integer("dspark_markov_rank", high=1 << 16),
        fields.integer("dspark_block_size", high=64),
        fields.integer("dspark_noise_token_id", low=0, high=fields.integer("vocab_size", high=1 << 24) - 1),
    )


def _check_sizes(config: ModelConfig, problems: list[str]) -> None:
    """Relations that the block formats and the equations need."""
    if config.rope_dim > config.head_dim or config.rope_dim % 2:
        problems.append("qk_rope_head_dim must be even and at most head_dim")
    if config.rope_dim > config.index_dim:
        problems.append("qk_rope_head_dim must be at most index_head_dim")
    if config.n_heads % config.o_groups:
        problems.append("num_attention_heads must be a multiple of o_groups")
        return
    if config.n_active > config.n_experts:
        problems.append("num_experts_per_tok exceeds n_routed_experts")
    widths = {
        "hidden_size": config.dim,
        "q_lora_rank": config.q_rank,
        "moe_intermediate_size": config.expert_dim,
        "num_attention_heads * head_dim / o_groups": config.n_heads * config.head_dim // config.o_groups,
        "o_groups * o_lora_rank": config.o_groups * config.o_rank,
    }
    problems += [f"{name} is {width}, which is no multiple of 32" for name, width in widths.items() if width % 32]


def parse_config(values: Mapping[str, Any]) -> ModelConfig:
    """Validates a config.json object. Raises ConvertError naming every key that is missing or not supported."""
    fields = _Fields(values)
    _check_architecture(fields)
    n_layers = fields.integer("num_hidden_layers", high=1024)
    n_mtp = fields.integer("num_nextn_predict_layers", low=0, high=8, default=0)
    dspark = _dspark(fields, n_layers)
    scaling = fields.object("rope_scaling")
    kind = scaling.values.get("type", scaling.values.get("rope_type"))
    if kind != "yarn":
        fields.problems.append(f"rope_scaling.type is {kind!r:.40}, only 'yarn' is supported")
    vocab_size = fields.integer("vocab_size", high=1 << 24)
    config = ModelConfig(
        dim=fields.integer("hidden_size", high=1 << 20),
        n_layers=n_layers,
        vocab_size=vocab_size,
        context_length=fields.integer("max_position_embeddings"),
        n_heads=fields.integer("num_attention_heads", high=4096),
        head_dim=fields.integer("head_dim", high=1 << 16),
        rope_dim=fields.integer("qk_rope_head_dim", low=2, high=1 << 16),
        q_rank=fields.integer("q_lora_rank", high=1 << 20),
        o_groups=fields.integer("o_groups", high=4096),
        o_rank=fields.integer("o_lora_rank", high=1 << 20),
        window=fields.integer("sliding_window"),
        compress_ratios=_ratios(fields, n_layers, dspark.n_stages if dspark else n_mtp),
        index_heads=fields.integer("index_n_heads", high=4096),
        index_dim=fields.integer("index_head_dim", high=1 << 16),
        index_topk=fields.integer("index_topk"),
        n_experts=fields.integer("n_routed_experts", high=MOST_EXPERTS),
        n_active=fields.integer("num_experts_per_tok", high=4096),
        expert_dim=fields.integer("moe_intermediate_size", high=1 << 20),
        n_hash_layers=min(fields.integer("num_hash_layers", low=0), n_layers),
        route_scale=fields.number("routed_scaling_factor"),
        swiglu_limit=fields.number("swiglu_limit"),
        hc_mult=fields.integer("hc_mult", high=64),
        sinkhorn_iters=fields.integer("hc_sinkhorn_iters", high=10000),
        hc_eps=fields.number("hc_eps"),
        norm_eps=fields.number("rms_norm_eps"),
        rope_theta=fields.number("rope_theta"),
        compress_rope_theta=fields.number("compress_rope_theta"),
        yarn_factor=scaling.number("factor"),
        yarn_original_length=scaling.integer("original_max_position_embeddings"),
        yarn_beta_fast=scaling.number("beta_fast", default=32.0),
        yarn_beta_slow=scaling.number("beta_slow", default=1.0),
        bos_token_id=fields.integer("bos_token_id", low=0, high=vocab_size - 1),
        eos_token_id=fields.integer("eos_token_id", low=0, high=vocab_size - 1),
        n_mtp=n_mtp,
        expert_dtype=values.get("expert_dtype"),
        dspark=dspark,
        is_quantized=values.get("quantization_config") is not None,
        is_tied=values.get("tie_word_embeddings") is True,
    )
    if not fields.problems:
        _check_sizes(config, fields.problems)
    if fields.problems:
        raise several("config.json cannot be converted", fields.problems)
    return config


def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's object_pairs_hook: two equal keys are an error, not the last one's value."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"{key!r:.80} appears twice")
            seen.add(key)
    return result


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def parse_json_object(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object from untrusted bytes. Raises ConvertError that begins with `what`."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=reject_duplicates, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ConvertError(f"{what} is damaged: {error}") from None
    if not isinstance(value, dict):
        raise ConvertError(f"{what} is damaged: no JSON object")
    return value


def read_bytes(path: Path, most: int) -> bytes:
    """A small file. ConvertError for what stands in its place, and for one of more than `most` bytes."""
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise ConvertError(f"cannot read {path}: {reason(error)}") from None
    standin = standin_reason(data[:HEAD_BYTES])
    if standin:
        raise ConvertError(f"{path} {standin}")
    if len(data) > most:
        raise ConvertError(f"{path} has more than {most:,} bytes, which is no {path.name}")
    return data


def read_json_object(path: Path, most: int = MOST_CONFIG_BYTES) -> tuple[dict[str, Any], bytes]:
    """The object in a file of at most `most` bytes, and the file's bytes."""
    data = read_bytes(path, most)
    if not data.strip(b" \t\r\n\0"):  # also what a full disk or a crash leaves: a file of zero bytes
        raise ConvertError(f"{path} is empty: download it again")
    return parse_json_object(data, str(path)), data
