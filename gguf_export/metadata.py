"""GGUF key/value pairs of a DeepSeek-V4 model, as llama.cpp's loader for arch deepseek4 reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from gguf_export.chat_template import chat_template
from gguf_export.checkpoint import Checkpoint
from gguf_export.config import DSpark, ModelConfig, read_json_object
from gguf_export.errors import ConvertError
from gguf_export.hub_cache import model_name
from gguf_export.sampling import RECOMMENDABLE, recommended
from gguf_export.standins import is_there
from gguf_export.writer import Metadata, ValueType
from quantize.plan import GGMLType

ARCH = "deepseek4"
DRAFT_ARCH = "dflash"  # llama.cpp's, of a file of DSpark stages
GATING_SQRT_SOFTPLUS = 4
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5

# general.file_type by the experts' tensor type.
_FILE_TYPES = {GGMLType.MXFP4: 38, GGMLType.Q8_0: 7, GGMLType.BF16: 32, GGMLType.F32: 0, GGMLType.I8: 38}

MOST_TOKENIZER_BYTES = 64 << 20


def add_general(
    metadata: Metadata, checkpoint: Checkpoint, experts: GGMLType, name: str | None = None, arch: str = ARCH
) -> None:
    metadata.text("general.architecture", arch)
    metadata.text("general.type", "model")
    folder = model_name(checkpoint.path).encode("utf-8", "replace").decode()  # a path need not be UTF-8
    metadata.text("general.name", name or folder or "DeepSeek-V4")
    metadata.text("general.version", checkpoint.release)
    if _is_mit(checkpoint.path / "LICENSE"):
        metadata.text("general.license", "mit")
    metadata.u32("general.file_type", _FILE_TYPES[experts])
    metadata.u32("general.quantization_version", 2)
    path = checkpoint.path / "generation_config.json"
    if is_there(path):
        values, _ = read_json_object(path)
        found = recommended(lambda each: values.get(each.field))
        for each in RECOMMENDABLE:
            if each.field in found:
                metadata.add(each.key, ValueType.I32 if each.whole else ValueType.F32, found[each.field])


def _is_mit(path: Path) -> bool:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(100).strip().lower() == "mit license"
    except OSError:
        return False


def add_model(metadata: Metadata, config: ModelConfig, *, n_blocks: int, n_nextn: int) -> None:
    """n_blocks is block_count: the layers, and one more in llama.cpp's MTP file. n_nextn 0 leaves the key out."""
    n_ratios = config.n_layers + 1 if n_nextn or config.n_mtp or config.dspark else config.n_layers
    ratios = (list(config.compress_ratios) + [0])[:n_ratios]
    _add_sizes(metadata, config, ARCH, n_blocks, ratios, config.n_hash_layers)
    metadata.u32(f"{ARCH}.embedding_length_out", config.hc_dim)
    if n_nextn:
        metadata.u32(f"{ARCH}.nextn_predict_layers", n_nextn)


def add_dspark_model(metadata: Metadata, config: ModelConfig, spark: DSpark) -> None:
    """Of a file of the DSpark stages alone, as llama.cpp reads it. Its layers are counted from 1 there."""
    _add_sizes(metadata, config, DRAFT_ARCH, spark.n_stages, [0] * spark.n_stages, 0)
    metadata.u32(f"{DRAFT_ARCH}.block_size", spark.block_size)
    metadata.add_array(f"{DRAFT_ARCH}.target_layers", ValueType.I32, [layer + 1 for layer in spark.targets])
    metadata.flag(f"{DRAFT_ARCH}.sample_from_anchor", True)
    metadata.flag(f"{DRAFT_ARCH}.has_confidence_head", True)
    metadata.u32("tokenizer.ggml.mask_token_id", spark.noise_token_id)


def add_native_dspark(metadata: Metadata, spark: DSpark) -> None:
    """Of stages in a native file; the words are ds4's."""
    metadata.u32(f"{ARCH}.dspark.layer_count", spark.n_stages)
    metadata.u32(f"{ARCH}.dspark.block_size", spark.block_size)
    metadata.u32(f"{ARCH}.dspark.markov_rank", spark.markov_rank)
    metadata.u32(f"{ARCH}.dspark.noise_token_id", spark.noise_token_id)
    metadata.add_array(f"{ARCH}.dspark.target_layers", ValueType.I32, list(spark.targets))


def _add_sizes(
    metadata: Metadata, config: ModelConfig, arch: str, n_blocks: int, ratios: list[int], n_hash_layers: int
) -> None:
    c = config

    def u32(key: str, value: int) -> None:
        metadata.u32(f"{arch}.{key}", value)

    def f32(key: str, value: float) -> None:
        metadata.f32(f"{arch}.{key}", value)

    u32("block_count", n_blocks)
    u32("context_length", c.context_length)
    u32("embedding_length", c.dim)
    u32("vocab_size", c.vocab_size)
    u32("attention.head_count", c.n_heads)
    u32("attention.head_count_kv", 1)
    u32("attention.key_length", c.head_dim)
    u32("attention.value_length", c.head_dim)
    f32("attention.layer_norm_rms_epsilon", c.norm_eps)
    u32("attention.q_lora_rank", c.q_rank)
    u32("attention.sliding_window", c.window)
    u32("attention.output_group_count", c.o_groups)
    u32("attention.output_lora_rank", c.o_rank)
    metadata.add_array(f"{arch}.attention.compress_ratios", ValueType.I32, ratios)
    f32("attention.compress_rope_freq_base", c.compress_rope_theta)
    u32("attention.indexer.head_count", c.index_heads)
    u32("attention.indexer.key_length", c.index_dim)
    u32("attention.indexer.top_k", c.index_topk)
    u32("expert_count", c.n_experts)
    u32("expert_used_count", c.n_active)
    u32("expert_feed_forward_length", c.expert_dim)
    u32("expert_shared_count", 1)
    f32("expert_weights_scale", c.route_scale)
    metadata.flag(f"{arch}.expert_weights_norm", True)
    u32("expert_gating_func", GATING_SQRT_SOFTPLUS)
    for key in ("swiglu_clamp_exp", "swiglu_clamp_shexp"):
        metadata.add_array(f"{arch}.{key}", ValueType.F32, [c.swiglu_limit] * n_blocks)
    u32("hyper_connection.count", c.hc_mult)
    u32("hyper_connection.sinkhorn_iterations", c.sinkhorn_iters)
    f32("hyper_connection.epsilon", c.hc_eps)
    u32("hash_layer_count", n_hash_layers)
    u32("rope.dimension_count", c.rope_dim)
    f32("rope.freq_base", c.rope_theta)
    metadata.text(f"{arch}.rope.scaling.type", "yarn")
    f32("rope.scaling.factor", c.yarn_factor)
    u32("rope.scaling.original_context_length", c.yarn_original_length)
    f32("rope.scaling.yarn_beta_fast", c.yarn_beta_fast)
    f32("rope.scaling.yarn_beta_slow", c.yarn_beta_slow)


_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>", re.DOTALL)


def _token_table(tokenizer: dict[str, Any], vocab_size: int, where: Path) -> tuple[list[str], list[int]]:
    vocab, added = tokenizer["model"]["vocab"], tokenizer.get("added_tokens", [])
    tokens = [f"[PAD{i}]" for i in range(vocab_size)]
    types = [UNUSED] * vocab_size
    entries = [(token_id, text, NORMAL) for text, token_id in vocab.items()]
    for entry in added:
        text = entry["content"]
        # llama.cpp's rule: what is flagged special or looks like a marker is never produced from plain text.
        is_control = entry["special"] or _LOOKS_SPECIAL.fullmatch(text)
        entries.append((entry["id"], text, CONTROL if is_control else USER_DEFINED))
    for token_id, text, kind in entries:
        if not isinstance(token_id, int) or not isinstance(text, str):
            raise ConvertError(f"{where} is damaged: token {text!r:.40} has the id {token_id!r:.40}")
        if not 0 <= token_id < vocab_size:
            raise ConvertError(f"{where} has token id {token_id}, but vocab_size in config.json is {vocab_size}")
        if types[token_id] == NORMAL and kind == NORMAL:
            raise ConvertError(f"{where} has two tokens with the id {token_id}")
        tokens[token_id], types[token_id] = text, kind
    return tokens, types


def _check_unicode(texts: list[str], where: Path) -> None:
    """JSON can spell half a surrogate pair, which no UTF-8 stands for."""
    for text in texts:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            raise ConvertError(f"{where} holds text that is not Unicode: {text!r:.80}") from None


def _pad_id(folder: Path, tokens: list[str], default: int) -> int:
    path = folder / "tokenizer_config.json"
    if not is_there(path):
        return default
    values, _ = read_json_object(path)
    pad = values.get("pad_token")
    text = pad.get("content") if isinstance(pad, dict) else pad
    return tokens.index(text) if text in tokens else default


_TURNS = ("<｜User｜>", "<｜Assistant｜>")


def _check_ends(config: ModelConfig, tokens: list[str], types: list[int], where: Path) -> None:
    """Another model's tokenizer has ordinary tokens, or none, where config.json has those that begin and end text."""
    for key, token_id in (("bos_token_id", config.bos_token_id), ("eos_token_id", config.eos_token_id)):
        if types[token_id] not in (CONTROL, USER_DEFINED):
            what = f"the ordinary token {tokens[token_id]!r:.40}" if types[token_id] == NORMAL else "no token"
            raise ConvertError(
                f"{where} has {what} with the {key} of config.json, {token_id}: it is another model's; "
                "take the one that was published with this model"
            )


def _tokenizer_notes(tokens: list[str], types: list[int]) -> list[str]:
    notes = []
    n_used = len(types) - types.count(UNUSED)
    if n_used < len(types):
        notes.append(
            f"tokenizer.json has {n_used:,} tokens, config.json says {len(types):,}: is it this model's? The others "
            "get names that no text has"
        )
    absent = [marker for marker in _TURNS if marker not in tokens]
    if absent:
        notes.append(f"tokenizer.json has no {' and no '.join(absent)}, so chats come out wrong: is it this model's?")
    return notes


def add_tokenizer(metadata: Metadata, checkpoint: Checkpoint) -> list[str]:
    """Adds tokenizer.* from tokenizer.json, where the checkpoint has one. Returns what a person should know."""
    path = checkpoint.path / "tokenizer.json"
    if not is_there(path):
        return ["there is no tokenizer.json, so the output cannot turn text into tokens"]
    config = checkpoint.config
    tokenizer, _ = read_json_object(path, MOST_TOKENIZER_BYTES)
    try:
        if tokenizer["model"]["type"] != "BPE":
            raise ConvertError(f"{path} holds a {tokenizer['model']['type']!r:.40} model, only BPE is supported")
        tokens, types = _token_table(tokenizer, config.vocab_size, path)
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ConvertError(f"{path} is damaged: {type(error).__name__} {error}") from None
    _check_unicode(tokens + merges, path)
    _check_ends(config, tokens, types, path)
    metadata.text("tokenizer.ggml.model", "gpt2")
    metadata.text("tokenizer.ggml.pre", "joyai-llm")
    metadata.add_array("tokenizer.ggml.tokens", ValueType.STRING, tokens)
    metadata.add_array("tokenizer.ggml.token_type", ValueType.I32, types)
    metadata.add_array("tokenizer.ggml.merges", ValueType.STRING, merges)
    metadata.u32("tokenizer.ggml.bos_token_id", config.bos_token_id)
    metadata.u32("tokenizer.ggml.eos_token_id", config.eos_token_id)
    metadata.u32("tokenizer.ggml.padding_token_id", _pad_id(checkpoint.path, tokens, config.eos_token_id))
    metadata.flag("tokenizer.ggml.add_bos_token", False)
    metadata.flag("tokenizer.ggml.add_eos_token", False)
    metadata.text("tokenizer.chat_template", chat_template(checkpoint.release))
    return _tokenizer_notes(tokens, types)


def add_native(metadata: Metadata, checkpoint: Checkpoint) -> None:
    """The keys of the native profile."""
    metadata.text("pyflash.profile", "native")
    metadata.text("pyflash.fp8", "e4m3_b128")
    metadata.text("pyflash.drafts", checkpoint.drafts)
