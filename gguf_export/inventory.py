"""The tensors that a DeepSeek-V4 checkpoint has, from its config: the official names, dtypes and shapes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gguf_export.config import ModelConfig
from quantize.codecs import BLOCK, FP8_BLOCK
from quantize.plan import Form

E8M0 = "F8_E8M0"
SCALED = (Form.FP8, Form.FP4)


@dataclass(frozen=True, slots=True)
class Weight:
    """One weight of the model, which is one or two tensors of the checkpoint.

    shape is the logical one: [rows, cols] = [outputs, inputs], or [n]. `name` is the full tensor name, except that a
    scaled weight (FP8, FP4) has `name`.weight and `name`.scale. form: how published checkpoints store it. stored: how
    this one does, where that is another way (fine-tunes: BF16, F16 or F32, without a scale).
    """

    name: str
    form: Form
    shape: tuple[int, ...]
    is_expert: bool = False
    stored: Form | None = None

    @property
    def stored_form(self) -> Form:
        return self.stored or self.form

    @property
    def data_name(self) -> str:
        return f"{self.name}.weight" if self.form in SCALED else self.name

    @property
    def scale_name(self) -> str:
        return f"{self.name}.scale"

    @property
    def is_scaled(self) -> bool:
        return self.stored_form in SCALED

    @property
    def data_dtype(self) -> str:
        return {Form.FP8: "F8_E4M3", Form.FP4: "I8"}.get(self.stored_form, self.stored_form.value)

    @property
    def data_shape(self) -> tuple[int, ...]:
        return (self.shape[0], self.shape[1] // 2) if self.stored_form is Form.FP4 else self.shape

    @property
    def scale_shape(self) -> tuple[int, int]:
        rows, cols = self.shape
        if self.form is Form.FP4:
            return rows, cols // BLOCK
        return -(-rows // FP8_BLOCK), -(-cols // FP8_BLOCK)


def tensors_of(weight: Weight, scale_dtype: str = E8M0) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of each tensor of a weight. FP4 scales are always e8m0."""
    tensors = [(weight.data_name, weight.data_dtype, weight.data_shape)]
    if weight.is_scaled:
        dtype = E8M0 if weight.form is Form.FP4 else scale_dtype
        tensors.append((weight.scale_name, dtype, weight.scale_shape))
    return tensors


def root_weights(config: ModelConfig) -> list[Weight]:
    table = (config.vocab_size, config.dim)
    return [
        Weight("embed.weight", Form.BF16, table),
        Weight("head.weight", Form.BF16, table),
        Weight("norm.weight", Form.BF16, (config.dim,)),
        *_hc_head("", config),
    ]


def _hc_head(prefix: str, config: ModelConfig) -> list[Weight]:
    return [
        Weight(f"{prefix}hc_head_fn", Form.F32, (config.hc_mult, config.hc_dim)),
        Weight(f"{prefix}hc_head_base", Form.F32, (config.hc_mult,)),
        Weight(f"{prefix}hc_head_scale", Form.F32, (1,)),
    ]


def _attention(prefix: str, config: ModelConfig) -> list[Weight]:
    c, p = config, f"{prefix}attn."
    return [
        Weight(f"{prefix}attn_norm.weight", Form.BF16, (c.dim,)),
        Weight(f"{p}wq_a", Form.FP8, (c.q_rank, c.dim)),
        Weight(f"{p}q_norm.weight", Form.BF16, (c.q_rank,)),
        Weight(f"{p}wq_b", Form.FP8, (c.n_heads * c.head_dim, c.q_rank)),
        Weight(f"{p}wkv", Form.FP8, (c.head_dim, c.dim)),
        Weight(f"{p}kv_norm.weight", Form.BF16, (c.head_dim,)),
        Weight(f"{p}wo_a", Form.FP8, (c.o_groups * c.o_rank, c.n_heads * c.head_dim // c.o_groups)),
        Weight(f"{p}wo_b", Form.FP8, (c.dim, c.o_groups * c.o_rank)),
        Weight(f"{p}attn_sink", Form.F32, (c.n_heads,)),
    ]


def _compressor(prefix: str, config: ModelConfig, ratio: int, width: int) -> list[Weight]:
    channels = 2 * width if ratio == 4 else width  # ratio 4 overlaps two windows
    return [
        Weight(f"{prefix}compressor.ape", Form.F32, (ratio, channels)),
        Weight(f"{prefix}compressor.norm.weight", Form.BF16, (width,)),
        Weight(f"{prefix}compressor.wkv.weight", Form.BF16, (channels, config.dim)),
        Weight(f"{prefix}compressor.wgate.weight", Form.BF16, (channels, config.dim)),
    ]


def _indexer(prefix: str, config: ModelConfig) -> list[Weight]:
    p = f"{prefix}attn.indexer."
    return [
        *_compressor(p, config, 4, config.index_dim),
        Weight(f"{p}weights_proj.weight", Form.BF16, (config.index_heads, config.dim)),
        Weight(f"{p}wq_b", Form.FP8, (config.index_heads * config.index_dim, config.q_rank)),
    ]


def _hyper_connections(prefix: str, config: ModelConfig) -> list[Weight]:
    weights = []
    for site in ("attn", "ffn"):
        weights += [
            Weight(f"{prefix}hc_{site}_fn", Form.F32, (config.hc_mixes, config.hc_dim)),
            Weight(f"{prefix}hc_{site}_base", Form.F32, (config.hc_mixes,)),
            Weight(f"{prefix}hc_{site}_scale", Form.F32, (3,)),
        ]
    return weights


def expert_shape(config: ModelConfig, matrix: str) -> tuple[int, int]:
    """Of "w1", "w2" or "w3"."""
    return (config.dim, config.expert_dim) if matrix == "w2" else (config.expert_dim, config.dim)


def _ffn(prefix: str, config: ModelConfig, experts: Form, is_hashed: bool) -> Iterator[Weight]:
    p = f"{prefix}ffn."
    yield Weight(f"{prefix}ffn_norm.weight", Form.BF16, (config.dim,))
    yield Weight(f"{p}gate.weight", Form.BF16, (config.n_experts, config.dim))
    if is_hashed:
        yield Weight(f"{p}gate.tid2eid", Form.I64, (config.vocab_size, config.n_active))
    else:
        yield Weight(f"{p}gate.bias", Form.F32, (config.n_experts,))
    for matrix in ("w1", "w2", "w3"):
        yield Weight(f"{p}shared_experts.{matrix}", Form.FP8, expert_shape(config, matrix))
    for expert in range(config.n_experts):
        for matrix in ("w1", "w2", "w3"):
            yield Weight(f"{p}experts.{expert}.{matrix}", experts, expert_shape(config, matrix), is_expert=True)


def block_weights(prefix: str, config: ModelConfig, ratio: int, experts: Form, is_hashed: bool) -> Iterator[Weight]:
    """One transformer block under `prefix` ("layers.0.")."""
    yield from _attention(prefix, config)
    if ratio:
        yield from _compressor(f"{prefix}attn.", config, ratio, config.head_dim)
    if ratio == 4:
        yield from _indexer(prefix, config)
    yield from _hyper_connections(prefix, config)
    yield from _ffn(prefix, config, experts, is_hashed)


def mtp_weights(config: ModelConfig, experts: Form) -> Iterator[Weight]:
    """mtp.0: the multi-token-prediction block of the preview release and Pro."""
    prefix = "mtp.0."
    yield from block_weights(prefix, config, 0, experts, is_hashed=False)
    yield Weight(f"{prefix}e_proj", Form.FP8, (config.dim, config.dim))
    yield Weight(f"{prefix}h_proj", Form.FP8, (config.dim, config.dim))
    for norm in ("enorm", "hnorm", "norm"):
        yield Weight(f"{prefix}{norm}.weight", Form.BF16, (config.dim,))
    yield from _hc_head(prefix, config)


def dspark_weights(config: ModelConfig, experts: Form) -> Iterator[Weight]:
    """mtp.0, mtp.1, ...: the DSpark stages of the 0731 release."""
    if config.dspark is None:
        raise ValueError("this config has no DSpark stages")
    spark = config.dspark
    for stage in range(spark.n_stages):
        yield from block_weights(f"mtp.{stage}.", config, 0, experts, is_hashed=False)
    yield Weight("mtp.0.main_proj", Form.FP8, (config.dim, spark.n_targets * config.dim))
    yield Weight("mtp.0.main_norm.weight", Form.BF16, (config.dim,))
    last = f"mtp.{spark.n_stages - 1}."
    yield Weight(f"{last}norm.weight", Form.BF16, (config.dim,))
    yield from _hc_head(last, config)
    yield Weight(f"{last}markov_head.markov_w1.weight", Form.BF16, (config.vocab_size, spark.markov_rank))
    yield Weight(f"{last}markov_head.markov_w2.weight", Form.BF16, (config.vocab_size, spark.markov_rank))
    yield Weight(f"{last}confidence_head.proj.weight", Form.BF16, (1, config.dim + spark.markov_rank))


def main_weights(config: ModelConfig, experts: Form) -> Iterator[Weight]:
    """Everything but the drafting blocks, in the order of the forward pass."""
    yield from root_weights(config)
    for layer in range(config.n_layers):
        yield from block_weights(
            f"layers.{layer}.", config, config.compress_ratios[layer], experts, layer < config.n_hash_layers
        )


def draft_weights(config: ModelConfig, experts: Form) -> Iterator[Weight]:
    """The drafting blocks that this config describes: DSpark, one MTP block, or nothing."""
    if config.dspark is not None:
        yield from dspark_weights(config, experts)
    elif config.n_mtp:
        yield from mtp_weights(config, experts)


def shard_of(name: str, config: ModelConfig) -> int:
    """The official layout: shard 0 the embedding, one per layer, one for the head, one per drafting block."""
    part, _, rest = name.partition(".")
    if part == "embed":
        return 0
    if part in ("layers", "mtp"):
        number = int(rest.partition(".")[0])
        return 1 + number if part == "layers" else config.n_layers + 2 + number
    return config.n_layers + 1
