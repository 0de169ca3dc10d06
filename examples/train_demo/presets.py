"""The demo's shapes: every mechanism of DeepSeek-V4, small enough to train on two CPU cores or to ship."""

from __future__ import annotations

from typing import Any

_COMMON: dict[str, Any] = {
    "architectures": ["DeepseekV4ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "expert_dtype": "fp4",
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 65536,
    "model_type": "deepseek_v4",
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "qk_rope_head_dim": 32,
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
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": 3072,
}

PRESETS: dict[str, dict[str, Any]] = {
    # An hour and three quarters on two cores: the one that is shipped.
    "cpu": _COMMON | {
        "hidden_size": 128,
        "num_hidden_layers": 5,
        "compress_ratios": [0, 0, 4, 128, 4, 0],
        "num_hash_layers": 1,
        "sliding_window": 128,
        "num_attention_heads": 4,
        "head_dim": 128,
        "q_lora_rank": 128,
        "o_groups": 2,
        "o_lora_rank": 64,
        "index_n_heads": 4,
        "index_head_dim": 64,
        "index_topk": 32,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
    # For a GPU, as large as may be shipped (16 MB); not trained yet.
    "gpu": _COMMON | {
        "hidden_size": 256,
        "num_hidden_layers": 6,
        "compress_ratios": [0, 0, 4, 128, 4, 128, 0],
        "num_hash_layers": 2,
        "sliding_window": 128,
        "num_attention_heads": 8,
        "head_dim": 128,
        "q_lora_rank": 128,
        "o_groups": 2,
        "o_lora_rank": 128,
        "index_n_heads": 8,
        "index_head_dim": 64,
        "index_topk": 64,
        "n_routed_experts": 16,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 128,
    },
}  # fmt: skip
# To measure block formats with: "cpu" with twice the widths, so that every matrix product takes a multiple of 256 columns and
# the formats with blocks of 256 fit all of them. widen.py makes it of a trained one. No MTP block.
PRESETS["wide"] = PRESETS["cpu"] | {
    "hidden_size": 256,
    "num_nextn_predict_layers": 0,
    "compress_ratios": [0, 0, 4, 128, 4],
    "q_lora_rank": 256,
    "o_lora_rank": 128,
    "moe_intermediate_size": 256,
}
