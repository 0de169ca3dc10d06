"""Checkpoints in other programs' words: names and config.json as `transformers` saves them, said as published.

`DeepseekV4ForCausalLM.save_pretrained` writes names between the published ones and its own, depending on its version;
state dicts saved by other means have its own, with a layer's experts stacked into two tensors. Each word is mapped by
itself, so that every mixture is understood. What is as published already stays as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gguf_export.config import MOST_EXPERTS
from gguf_export.errors import ConvertError, several
from gguf_export.safetensors_file import TensorRef

_ROOT = {
    "embed_tokens.weight": "embed.weight",
    "lm_head.weight": "head.weight",
    "hc_head.hc_fn": "hc_head_fn",
    "hc_head.hc_base": "hc_head_base",
    "hc_head.hc_scale": "hc_head_scale",
}

# Within "layers.N.", in this order; each is tried on what the ones before it made.
_WORDS = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"^self_attn\.", "attn."),
        (r"^mlp\.", "ffn."),
        (r"^input_layernorm\.", "attn_norm."),
        (r"^post_attention_layernorm\.", "ffn_norm."),
        (r"^(attn|ffn)_hc\.(fn|base|scale)$", r"hc_\1_\2"),
        (r"^attn\.sinks$", "attn.attn_sink"),
        (r"^attn\.q_a_proj\.", "attn.wq_a."),
        (r"^attn\.q_a_norm\.", "attn.q_norm."),
        (r"^attn\.q_b_proj\.", "attn.wq_b."),
        (r"^attn\.kv_proj\.", "attn.wkv."),
        (r"^attn\.norm\.", "attn.kv_norm."),
        (r"^attn\.o_([ab])_proj\.", r"attn.wo_\1."),
        (r"^attn\.compressor\.indexer\.(scorer\.)?weights_proj\.", "attn.indexer.weights_proj."),
        (r"^attn\.compressor\.indexer\.(q_b_proj|wq_b)\.", "attn.indexer.wq_b."),
        (r"^attn\.compressor\.indexer\.", "attn.indexer.compressor."),
        (r"(?<=\.compressor\.)kv_proj\.", "wkv."),
        (r"(?<=\.compressor\.)gate_proj\.", "wgate."),
        (r"(?<=\.compressor\.)kv_norm\.", "norm."),
        (r"(?<=\.compressor\.)position_bias$", "ape"),
        (r"^ffn\.gate\.e_score_correction_bias$", "ffn.gate.bias"),
        (r"(?<=experts\.)((?:\d+\.)?)gate_proj\.", r"\1w1."),
        (r"(?<=experts\.)((?:\d+\.)?)down_proj\.", r"\1w2."),
        (r"(?<=experts\.)((?:\d+\.)?)up_proj\.", r"\1w3."),
        (r"\.weight_scale_inv$", ".scale"),
    )
)
_STACKED = re.compile(r"(.*\.ffn\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")

_RATIOS = {"sliding_attention": 0, "compressed_sparse_attention": 4, "heavily_compressed_attention": 128}
_SCALING_KEYS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")


def published_name(name: str) -> str:
    """The published name of a tensor; one that is not known comes back with no more than its prefix taken off."""
    name = name.removeprefix("model.")
    part, _, rest = name.partition(".")
    number, _, inner = rest.partition(".")
    if part not in ("layers", "mtp") or not inner:
        return _ROOT.get(name, name)
    for pattern, word in _WORDS:
        inner = pattern.sub(word, inner)
    return f"{part}.{number}.{inner}"


def _slice(ref: TensorRef, index: int, begin_row: int, n_rows: int) -> TensorRef:
    """Rows of one matrix of a tensor [matrices, rows, cols]."""
    _, rows, cols = ref.shape
    row_bytes = ref.nbytes // math.prod(ref.shape[:2])
    offset = ref.offset + (index * rows + begin_row) * row_bytes
    return replace(ref, name=f"{ref.name}[{index}]", shape=(n_rows, cols), offset=offset, nbytes=n_rows * row_bytes)


def _unstacked(prefix: str, which: str, ref: TensorRef) -> list[tuple[str, TensorRef]]:
    """A layer's experts one by one: gate_up_proj [experts, 2 * width, dim] has w1 above w3."""
    n_experts, rows, _ = ref.shape
    parts = [("w2", 0, rows)] if which == "down_proj" else [("w1", 0, rows // 2), ("w3", rows // 2, rows // 2)]
    return [
        (f"{prefix}.{expert}.{matrix}.weight", _slice(ref, expert, begin, n_rows))
        for expert in range(n_experts)
        for matrix, begin, n_rows in parts
    ]


def published_tensors(tensors: Mapping[str, TensorRef], is_tied: bool) -> dict[str, TensorRef]:
    """The tensors by their published names; each keeps its own name in the file. is_tied: the head is the embedding."""
    result: dict[str, TensorRef] = {}
    twice = []
    for name, ref in tensors.items():
        if name.endswith("inv_freq"):  # a table that old versions save, and that config.json gives
            continue
        new = published_name(name)
        stacked = _STACKED.fullmatch(new)
        if stacked is not None and len(ref.shape) == 3 and 0 not in ref.shape and ref.shape[0] <= MOST_EXPERTS:
            entries = _unstacked(stacked[1], stacked[2], ref)
        else:
            entries = [(new, ref)]
        for key, each in entries:
            if key in result:
                twice.append(f"{name} and {result[key].name} are the same weight")
            result[key] = each
    if twice:
        raise several("the checkpoint holds weights twice, under two names", twice)
    if is_tied and "head.weight" not in result and "embed.weight" in result:
        result["head.weight"] = result["embed.weight"]
    return result


def _fail(why: str) -> ConvertError:
    return ConvertError(f"config.json cannot be converted: {why}")


def _compress_ratios(values: Mapping[str, Any]) -> list[int]:
    types, rates = values["layer_types"], values.get("compress_rates") or {}
    if not isinstance(types, list) or not isinstance(rates, dict):
        raise _fail("layer_types is no list, or compress_rates no object")
    ratios = []
    for layer, kind in enumerate(types):
        if not isinstance(kind, str) or kind not in _RATIOS:
            raise _fail(f"layer_types[{layer}] is {kind!r:.40}, expected one of {', '.join(_RATIOS)}")
        ratios.append(rates.get(kind, _RATIOS[kind]))
    # DSpark's stages are no layers; in the published config only their ratios tell how many there are.
    targets = values.get("dspark_target_layer_ids")
    return ratios + [0] * (len(targets) if isinstance(targets, list) else 1)


def _hash_layers(kinds: Any) -> int:
    if not isinstance(kinds, list) or any(kind not in ("hash_moe", "moe") for kind in kinds):
        raise _fail("mlp_layer_types is no list of hash_moe and moe")
    count = kinds.count("hash_moe")
    if "hash_moe" in kinds[count:]:
        raise _fail("mlp_layer_types has hash_moe after moe; only the first layers can be")
    return count


def _rope(values: dict[str, Any], parameters: Any) -> None:
    """rope_parameters as rope_scaling, rope_theta and compress_rope_theta. The main rotation is never scaled."""
    if not isinstance(parameters, dict):
        raise _fail("rope_parameters is no object")
    main, compress = parameters.get("main"), parameters.get("compress", parameters)
    if not isinstance(compress, dict) or not isinstance(main, dict | None):
        raise _fail("rope_parameters has no objects main and compress")
    main = main or {}
    if main.get("rope_type", "default") != "default":
        raise _fail(f"rope_parameters.main.rope_type is {main['rope_type']!r:.40}, only 'default' is supported")
    if compress.get("attention_factor", 1.0) not in (None, 1, 1.0) or compress.get("truncate", True) is not True:
        raise _fail("rope_parameters.compress scales attention or does not round; only YaRN as published is supported")
    kind = compress.get("rope_type", compress.get("type"))
    scaling = {"type": kind} | {key: compress[key] for key in _SCALING_KEYS if key in compress}
    if kind == "default":  # YaRN by a factor of 1
        length = values.get("max_position_embeddings")
        scaling = {"type": "yarn", "factor": 1, "original_max_position_embeddings": length}
    values["rope_scaling"] = scaling
    for part, key in ((main, "rope_theta"), (compress, "compress_rope_theta")):
        if "rope_theta" in part:
            values[key] = part["rope_theta"]
    if "qk_rope_head_dim" not in values:
        share = compress.get("partial_rotary_factor", values.get("partial_rotary_factor"))
        width = values.get("head_dim")
        if isinstance(share, int | float) and isinstance(width, int) and 0 < share <= 1:
            values["qk_rope_head_dim"] = int(width * share)


def published_config(values: Mapping[str, Any]) -> dict[str, Any]:
    """config.json's object in the published words. ConvertError for what they have no word for."""
    result = dict(values)
    if "compress_ratios" not in result and "layer_types" in result:
        result["compress_ratios"] = _compress_ratios(result)
    if "num_hash_layers" not in result and "mlp_layer_types" in result:
        result["num_hash_layers"] = _hash_layers(result["mlp_layer_types"])
    if result.get("rope_scaling") is None and "rope_parameters" in result:
        _rope(result, result["rope_parameters"])
    eos = result.get("eos_token_id")
    if isinstance(eos, list) and eos:
        result["eos_token_id"] = eos[0]  # the turn's end; the others would end a text as well
    return result
