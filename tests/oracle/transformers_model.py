"""The same weights in transformers' DeepseekV4ForCausalLM, float32 on the CPU, with its discrete choices recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
from transformers.models.deepseek_v4 import modeling_deepseek_v4 as hf

from . import rope
from .config import OracleConfig

# Official name within "layers.N." -> transformers' name within "model.layers.N.".
_LAYER_NAMES = (
    (r"attn_norm\.weight", "input_layernorm.weight"),
    (r"ffn_norm\.weight", "post_attention_layernorm.weight"),
    (r"hc_(attn|ffn)_(fn|base|scale)", r"\1_hc.\2"),
    (r"attn\.attn_sink", "self_attn.sinks"),
    (r"attn\.wq_a\.weight", "self_attn.q_a_proj.weight"),
    (r"attn\.q_norm\.weight", "self_attn.q_a_norm.weight"),
    (r"attn\.wq_b\.weight", "self_attn.q_b_proj.weight"),
    (r"attn\.wkv\.weight", "self_attn.kv_proj.weight"),
    (r"attn\.kv_norm\.weight", "self_attn.kv_norm.weight"),
    (r"attn\.wo_a\.weight", "self_attn.o_a_proj.weight"),
    (r"attn\.wo_b\.weight", "self_attn.o_b_proj.weight"),
    (r"attn\.indexer\.wq_b\.weight", "self_attn.compressor.indexer.q_b_proj.weight"),
    (r"attn\.indexer\.weights_proj\.weight", "self_attn.compressor.indexer.scorer.weights_proj.weight"),
    (r"attn\.(indexer\.)?compressor\.ape", r"self_attn.compressor.\1position_bias"),
    (r"attn\.(indexer\.)?compressor\.norm\.weight", r"self_attn.compressor.\1kv_norm.weight"),
    (r"attn\.(indexer\.)?compressor\.wkv\.weight", r"self_attn.compressor.\1kv_proj.weight"),
    (r"attn\.(indexer\.)?compressor\.wgate\.weight", r"self_attn.compressor.\1gate_proj.weight"),
    (r"ffn\.gate\.weight", "mlp.gate.weight"),
    (r"ffn\.gate\.bias", "mlp.gate.e_score_correction_bias"),
    (r"ffn\.gate\.tid2eid", "mlp.gate.tid2eid"),
    (r"ffn\.shared_experts\.w1\.weight", "mlp.shared_experts.gate_proj.weight"),
    (r"ffn\.shared_experts\.w3\.weight", "mlp.shared_experts.up_proj.weight"),
    (r"ffn\.shared_experts\.w2\.weight", "mlp.shared_experts.down_proj.weight"),
)
_ROOT_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "head.weight": "lm_head.weight",
    "norm.weight": "model.norm.weight",
    "hc_head_fn": "model.hc_head.hc_fn",
    "hc_head_base": "model.hc_head.hc_base",
    "hc_head_scale": "model.hc_head.hc_scale",
}


def state_dict(weights: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Official names to transformers' names; a layer's experts become two stacked tensors. mtp.* has no place there."""
    out: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[int, dict[str, np.ndarray]]] = {}
    for name, value in weights.items():
        if name.startswith("mtp."):
            continue
        if name in _ROOT_NAMES:
            out[_ROOT_NAMES[name]] = torch.tensor(value)
            continue
        _, layer, rest = name.split(".", 2)
        if match := re.fullmatch(r"ffn\.experts\.(\d+)\.(w[123])\.weight", rest):
            experts.setdefault(layer, {}).setdefault(int(match[1]), {})[match[2]] = value
            continue
        for pattern, target in _LAYER_NAMES:
            if match := re.fullmatch(pattern, rest):
                out[f"model.layers.{layer}.{match.expand(target)}"] = torch.tensor(value)
                break
        else:
            raise KeyError(f"no transformers name for {name}")
    for layer, by_id in experts.items():
        order = [by_id[e] for e in range(len(by_id))]
        prefix = f"model.layers.{layer}.mlp.experts."
        gate_up = np.stack([np.concatenate([w["w1"], w["w3"]]) for w in order])
        out[prefix + "gate_up_proj"] = torch.tensor(gate_up)
        out[prefix + "down_proj"] = torch.tensor(np.stack([w["w2"] for w in order]))
    return out


def load(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> DeepseekV4ForCausalLM:
    """The model in float32 with eager attention; every parameter must get a value."""
    model = DeepseekV4ForCausalLM(DeepseekV4Config(**config, attn_implementation="eager")).eval().float()
    missing, unexpected = model.load_state_dict(state_dict(weights), strict=False)
    assert not unexpected, unexpected
    assert all("inv_freq" in name for name in missing), missing
    return model


@contextmanager
def double_rope(config: Mapping[str, Any]) -> Iterator[None]:
    """Computes the rotary angles in double; transformers' float32 product t * f_i is off by up to t * 1e-7 radians."""
    sizes = OracleConfig.from_hf(config)
    tables = {kind: torch.from_numpy(rope.frequencies(sizes, ratio)) for kind, ratio in (("main", 0), ("compress", 4))}

    def forward(self: Any, x: torch.Tensor, position_ids: torch.Tensor, layer_type: str) -> tuple[torch.Tensor, ...]:
        angle = position_ids[..., None].double() * tables[layer_type]
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    original = hf.DeepseekV4RotaryEmbedding.forward
    hf.DeepseekV4RotaryEmbedding.forward = forward
    try:
        yield
    finally:
        hf.DeepseekV4RotaryEmbedding.forward = original


def logits_and_choices(
    model: DeepseekV4ForCausalLM, tokens: np.ndarray
) -> tuple[np.ndarray, dict[tuple[str, int], list[np.ndarray]]]:
    """Logits [T, vocab] of one cacheless call and what its routers and indexers chose, as the oracle's `forced`."""
    choices: dict[tuple[str, int], list[np.ndarray]] = {}
    hooks = []
    for i, layer in enumerate(model.model.layers):
        if isinstance(layer.mlp.gate, hf.DeepseekV4TopKRouter):

            def keep_experts(_module: Any, _args: Any, output: Any, i: int = i) -> None:
                choices[("experts", i)] = list(output[2].numpy())

            hooks.append(layer.mlp.gate.register_forward_hook(keep_experts))
        if isinstance(layer.self_attn.compressor, hf.DeepseekV4CSACompressor):

            def keep_rows(_module: Any, _args: Any, output: Any, i: int = i) -> None:
                choices[("topk", i)] = [row[row >= 0] for row in output[0].numpy()]

            hooks.append(layer.self_attn.compressor.indexer.register_forward_hook(keep_rows))
    try:
        with torch.no_grad():
            out = model(torch.tensor(tokens, dtype=torch.long)[None], use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return out.logits[0].double().numpy(), choices
