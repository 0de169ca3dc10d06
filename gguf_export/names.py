"""Checkpoint weight names to GGUF tensor names (llama.cpp's for arch deepseek4, and this project's native ones)."""

from __future__ import annotations

import re

_ROOT = {
    "embed.weight": "token_embd.weight",
    "head.weight": "output.weight",
    "norm.weight": "output_norm.weight",
    "hc_head_fn": "output_hc_fn.weight",
    "hc_head_base": "output_hc_base.weight",
    "hc_head_scale": "output_hc_scale.weight",
}

_BLOCK = {
    "attn_norm.weight": "attn_norm.weight",
    "ffn_norm.weight": "ffn_norm.weight",
    "attn.attn_sink": "attn_sinks.weight",
    "attn.wq_a": "attn_q_a.weight",
    "attn.q_norm.weight": "attn_q_a_norm.weight",
    "attn.wq_b": "attn_q_b.weight",
    "attn.wkv": "attn_kv.weight",
    "attn.kv_norm.weight": "attn_kv_a_norm.weight",
    "attn.wo_a": "attn_output_a.weight",
    "attn.wo_b": "attn_output_b.weight",
    "attn.compressor.wkv.weight": "attn_compressor_kv.weight",
    "attn.compressor.wgate.weight": "attn_compressor_gate.weight",
    "attn.compressor.ape": "attn_compressor_ape.weight",
    "attn.compressor.norm.weight": "attn_compressor_norm.weight",
    "attn.indexer.weights_proj.weight": "indexer.proj.weight",
    "attn.indexer.wq_b": "indexer.attn_q_b.weight",
    "attn.indexer.compressor.wkv.weight": "indexer_compressor_kv.weight",
    "attn.indexer.compressor.wgate.weight": "indexer_compressor_gate.weight",
    "attn.indexer.compressor.ape": "indexer_compressor_ape.weight",
    "attn.indexer.compressor.norm.weight": "indexer_compressor_norm.weight",
    "ffn.gate.weight": "ffn_gate_inp.weight",
    "ffn.gate.tid2eid": "ffn_gate_tid2eid.weight",
    "ffn.gate.bias": "exp_probs_b.bias",
    "ffn.shared_experts.w1": "ffn_gate_shexp.weight",
    "ffn.shared_experts.w2": "ffn_down_shexp.weight",
    "ffn.shared_experts.w3": "ffn_up_shexp.weight",
} | {f"hc_{site}_{part}": f"hc_{site}_{part}.weight" for site in ("attn", "ffn") for part in ("fn", "base", "scale")}

# Of the MTP block. llama.cpp has one eh_proj where the checkpoint has two matrices; native files keep the two.
_MTP = {
    "e_proj": "nextn.e_proj.weight",
    "h_proj": "nextn.h_proj.weight",
    "enorm.weight": "nextn.enorm.weight",
    "hnorm.weight": "nextn.hnorm.weight",
    "norm.weight": "nextn.shared_head_norm.weight",
    "hc_head_fn": "nextn.hc_head_fn.weight",
    "hc_head_base": "nextn.hc_head_base.weight",
    "hc_head_scale": "nextn.hc_head_scale.weight",
}
EH_PROJ = "nextn.eh_proj.weight"

# Of the DSpark stages, beside their blocks: in native files, whose words are ds4's, and in llama.cpp's.
_DSPARK = {
    "main_proj": ("dspark.main_proj.weight", "fc.weight"),
    "main_norm.weight": ("dspark.main_norm.weight", "enc.output_norm.weight"),
    "norm.weight": ("dspark.norm.weight", "output_norm.weight"),
    "hc_head_fn": ("dspark.hc_head_fn.weight", "output_hc_fn.weight"),
    "hc_head_base": ("dspark.hc_head_base.weight", "output_hc_base.weight"),
    "hc_head_scale": ("dspark.hc_head_scale.weight", "output_hc_scale.weight"),
    "markov_head.markov_w1.weight": ("dspark.markov_w1.weight", "markov_w1.weight"),
    "markov_head.markov_w2.weight": ("dspark.markov_w2.weight", "markov_w2.weight"),
    "confidence_head.proj.weight": ("dspark.conf_proj.weight", "conf_proj.weight"),
}
NATIVE_STAGE = "dspark."

_EXPERTS = {"w1": "ffn_gate_exps.weight", "w2": "ffn_down_exps.weight", "w3": "ffn_up_exps.weight"}
_EXPERT = re.compile(r"ffn\.experts\.\d+\.(w[123])")


def gguf_name(name: str, n_layers: int) -> str:
    """The GGUF tensor that a checkpoint weight (inventory.Weight.name) goes to. All experts of a layer share one.

    The MTP block mtp.0 becomes block n_layers. Raises KeyError for a name that is not in the inventory.
    """
    part, _, rest = name.partition(".")
    if part not in ("layers", "mtp"):
        return _ROOT[name]
    number, _, rest = rest.partition(".")
    block = int(number) + (n_layers if part == "mtp" else 0)
    short = _MTP[rest] if part == "mtp" and rest in _MTP else _block_name(rest)
    return f"blk.{block}.{short}"


def _block_name(rest: str) -> str:
    expert = _EXPERT.fullmatch(rest)
    return _EXPERTS[expert[1]] if expert else _BLOCK[rest]


def dspark_name(name: str, native: bool) -> str:
    """The same of a weight of the DSpark stages, mtp.0 and on: in a native file, or in llama.cpp's draft file."""
    _, stage, rest = name.split(".", 2)
    if rest in _DSPARK:
        return _DSPARK[rest][0 if native else 1]
    return f"{NATIVE_STAGE if native else 'blk.'}{stage}.{_block_name(rest)}"


def native_scale_name(name: str) -> str:
    """The scale tensor beside a native FP8 tensor."""
    return name.removesuffix(".weight") + ".scale"
