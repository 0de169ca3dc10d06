"""Tiny configurations and seeded random weights under the official names, for tests that need no checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def tiny_config(**overrides: Any) -> dict[str, Any]:
    """A config.json of a model of a few MB in which every part of the architecture is at work."""
    config: dict[str, Any] = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "model_type": "deepseek_v4",
        "vocab_size": 512,
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "qk_rope_head_dim": 32,
        "q_lora_rank": 64,
        "o_groups": 2,
        "o_lora_rank": 64,
        "sliding_window": 64,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 0],
        "index_n_heads": 4,
        "index_head_dim": 64,
        "index_topk": 32,
        "n_routed_experts": 16,
        "n_shared_experts": 1,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 128,
        "num_hash_layers": 2,
        "num_nextn_predict_layers": 1,
        "norm_topk_prob": True,
        "scoring_func": "sqrtsoftplus",
        "topk_method": "noaux_tc",
        "routed_scaling_factor": 1.5,
        "swiglu_limit": 10.0,
        "hidden_act": "silu",
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hc_eps": 1e-6,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "compress_rope_theta": 160000,
        "rope_scaling": {
            "type": "yarn",
            "factor": 16,
            "original_max_position_embeddings": 65536,
            "beta_fast": 32,
            "beta_slow": 1,
        },
        "max_position_embeddings": 1048576,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.02,
    }
    unknown = set(overrides) - set(config)
    if unknown:
        raise ValueError(f"not keys of the configuration: {sorted(unknown)}")
    config.update(overrides)
    return config


def random_tokens(config: dict[str, Any], count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, config["vocab_size"], count).astype(np.int32)


def _block_shapes(config: dict[str, Any], prefix: str, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    c = config
    hidden, d, n = c["hidden_size"], c["head_dim"], c["hc_mult"]
    q_width, ratio = c["num_attention_heads"] * d, c["compress_ratios"][layer]
    yield "attn_norm.weight", (hidden,)
    yield "ffn_norm.weight", (hidden,)
    for site in ("attn", "ffn"):
        yield f"hc_{site}_fn", ((2 + n) * n, n * hidden)
        yield f"hc_{site}_base", ((2 + n) * n,)
        yield f"hc_{site}_scale", (3,)
    yield "attn.attn_sink", (c["num_attention_heads"],)
    yield "attn.wq_a.weight", (c["q_lora_rank"], hidden)
    yield "attn.q_norm.weight", (c["q_lora_rank"],)
    yield "attn.wq_b.weight", (q_width, c["q_lora_rank"])
    yield "attn.wkv.weight", (d, hidden)
    yield "attn.kv_norm.weight", (d,)
    yield "attn.wo_a.weight", (c["o_groups"] * c["o_lora_rank"], q_width // c["o_groups"])
    yield "attn.wo_b.weight", (hidden, c["o_groups"] * c["o_lora_rank"])
    compressors = [("attn.compressor.", d)] if ratio else []
    if ratio == 4:
        compressors.append(("attn.indexer.compressor.", c["index_head_dim"]))
        yield "attn.indexer.wq_b.weight", (c["index_n_heads"] * c["index_head_dim"], c["q_lora_rank"])
        yield "attn.indexer.weights_proj.weight", (c["index_n_heads"], hidden)
    for name, width in compressors:
        coff = 2 if ratio == 4 else 1
        yield name + "ape", (ratio, coff * width)
        yield name + "norm.weight", (width,)
        yield name + "wkv.weight", (coff * width, hidden)
        yield name + "wgate.weight", (coff * width, hidden)
    yield "ffn.gate.weight", (c["n_routed_experts"], hidden)
    if layer < c["num_hash_layers"]:
        yield "ffn.gate.tid2eid", (c["vocab_size"], c["num_experts_per_tok"])
    else:
        yield "ffn.gate.bias", (c["n_routed_experts"],)
    for expert in [*(f"experts.{e}" for e in range(c["n_routed_experts"])), "shared_experts"]:
        for w in ("w1", "w3"):
            yield f"ffn.{expert}.{w}.weight", (c["moe_intermediate_size"], hidden)
        yield f"ffn.{expert}.w2.weight", (hidden, c["moe_intermediate_size"])


def weight_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(official name, shape) of every dequantised weight, the MTP block's included if the config has one."""
    c = config
    hidden, n = c["hidden_size"], c["hc_mult"]
    yield "embed.weight", (c["vocab_size"], hidden)
    yield "head.weight", (c["vocab_size"], hidden)
    blocks = [(f"layers.{i}.", i) for i in range(c["num_hidden_layers"])]
    if c["num_nextn_predict_layers"]:
        blocks.append(("mtp.0.", c["num_hidden_layers"]))
        for name in ("e_proj", "h_proj"):
            yield f"mtp.0.{name}.weight", (hidden, hidden)
        for name in ("enorm", "hnorm"):
            yield f"mtp.0.{name}.weight", (hidden,)
    for prefix in ("", "mtp.0.") if c["num_nextn_predict_layers"] else ("",):
        yield prefix + "norm.weight", (hidden,)
        yield prefix + "hc_head_fn", (n, n * hidden)
        yield prefix + "hc_head_base", (n,)
        yield prefix + "hc_head_scale", (1,)
    for prefix, layer in blocks:
        for name, shape in _block_shapes(c, prefix, layer):
            yield prefix + name, shape


def random_weights(config: dict[str, Any], seed: int) -> dict[str, np.ndarray]:
    """float32 values, so that float32 and float64 models can be given the same ones; scales keep every part alive."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    for name, shape in weight_shapes(config):
        if name.endswith("tid2eid"):
            table = rng.random((shape[0], config["n_routed_experts"])).argsort(axis=1)
            weights[name] = table[:, : shape[1]].astype(np.int64)
            continue
        value = rng.standard_normal(shape)
        if name.endswith("norm.weight"):
            value = 1 + 0.2 * value
        elif name.endswith("_scale"):
            value = 0.7 + 0.2 * value
        elif name.endswith("gate.bias"):
            value = 0.1 * value
        elif name.endswith("embed.weight"):
            value = value * 0.5
        elif len(shape) == 2 and not name.endswith("ape"):
            value = value / np.sqrt(shape[1])
        weights[name] = value.astype(np.float32)
    return weights
