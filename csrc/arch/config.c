#include "arch/config.h"

#include "arch/file_kind.h"
#include "arch/keys.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- Layers ------------------------------------------------------------------------------------------------ */

static const pf_gguf_tensor *block_tensor(const pf_keys *k, int32_t block, const char *name) {
    char full[96];
    (void)snprintf(full, sizeof full, "blk.%d.%s.weight", block, name);
    return pf_gguf_find_tensor(k->gguf, full);
}

/* Whether this block is one of MTP, or what is left of one. */
static bool is_mtp(const pf_keys *k, int32_t block) {
    static const char *const own[] = {"eh_proj", "e_proj", "h_proj", "enorm", "hnorm", "shared_head_norm", "embed_tokens",
                                      "shared_head_head"};
    for (size_t i = 0; i < sizeof own / sizeof *own; ++i) {
        char name[32];
        (void)snprintf(name, sizeof name, "nextn.%s", own[i]);
        if (block_tensor(k, block, name) != NULL) return true;
    }
    return false;
}

/* The layers and the MTP block. The tensors decide what is there, not nextn_predict_layers: files keep that key when
 * their MTP blocks have gone elsewhere, and block_count counts the blocks in some files (llama.cpp's MTP files) and not
 * in others (native ones). Without its projection a block drafts nothing, and is left out as llama.cpp does. Of several
 * blocks the first is the one that the model's own last layer feeds. */
static pf_status read_layers(pf_keys *k, pf_config *c) {
    int32_t blocks, declared = 0;
    PF_TRY(pf_keys_int(k, "block_count", 1, PF_MAX_LAYERS, &blocks));
    if (pf_keys_has(k, "nextn_predict_layers")) {
        PF_TRY(pf_keys_int(k, "nextn_predict_layers", 0, PF_MAX_LAYERS, &declared));
    }
    c->native = pf_gguf_has(k->gguf, "pyflash.fp8");
    c->n_layer = blocks;
    if (!c->native) {
        while (c->n_layer > 0 && is_mtp(k, c->n_layer - 1)) --c->n_layer;
        const bool counted = c->n_layer == blocks; /* and then perhaps without a tensor of its own */
        while (counted && declared-- > 0 && c->n_layer > 1 && block_tensor(k, c->n_layer - 1, "attn_norm") == NULL) {
            --c->n_layer;
        }
    }
    c->n_nextn = block_tensor(k, c->n_layer, c->native ? "nextn.e_proj" : "nextn.eh_proj") != NULL ? 1 : 0;
    if (c->n_layer < 1 || c->n_layer + c->n_nextn > PF_MAX_LAYERS) {
        return pf_fail(k->err, PF_ERR_UNSUPPORTED, PF_ARCH ".block_count = %d leaves no layer to run", blocks);
    }
    k->n_layer = c->n_layer;
    return PF_OK;
}

/* ---- Attention --------------------------------------------------------------------------------------------- */

/* A layer's ratio by the shape of its table of positions, [channels, ratio]. */
static pf_status ratio_of_table(const pf_keys *k, const pf_config *c, int32_t layer, const pf_gguf_tensor *ape,
                                double *out) {
    const uint64_t width = (uint64_t)c->head_dim;
    *out = 0.0;
    if (ape == NULL) return PF_OK;
    if (ape->ne[0] == 2 * width && ape->ne[1] == PF_RATIO_CSA) *out = PF_RATIO_CSA;
    else if (ape->ne[0] == width && ape->ne[1] == PF_RATIO_HCA) *out = PF_RATIO_HCA;
    else {
        return pf_fail(k->err, PF_ERR_UNSUPPORTED,
                       "the file lacks " PF_ARCH ".attention.compress_ratios, and blk.%d.attn_compressor_ape.weight "
                       "of shape [%llu, %llu] tells none: take another file, or convert the checkpoint again",
                       layer, (unsigned long long)ape->ne[0], (unsigned long long)ape->ne[1]);
    }
    return PF_OK;
}

static pf_status read_ratios(const pf_keys *k, pf_config *c, bool *has_csa, bool *has_compressed) {
    static const char name[] = "attention.compress_ratios";
    const bool written = pf_keys_has(k, name);
    double ratio[PF_MAX_LAYERS];
    if (written) PF_TRY(pf_keys_by_layer(k, name, c->n_layer, ratio));
    *has_csa = *has_compressed = false;
    for (int32_t l = 0; l < c->n_layer; ++l) {
        const pf_gguf_tensor *ape = block_tensor(k, l, "attn_compressor_ape");
        if (!written) PF_TRY(ratio_of_table(k, c, l, ape, &ratio[l]));
        if (ratio[l] != 0 && ratio[l] != (double)PF_RATIO_CSA && ratio[l] != (double)PF_RATIO_HCA) {
            return pf_fail(k->err, PF_ERR_UNSUPPORTED, "layer %d has compression ratio %g: 0, 4 and 128 are known", l,
                           ratio[l]);
        }
        if (ratio[l] == 0 && ape != NULL) {
            return pf_fail(k->err, PF_ERR_FORMAT,
                           "layer %d has tensors of a compressor, and " PF_ARCH ".%s says that it has none: take "
                           "another file, or convert the checkpoint again", l, name);
        }
        c->ratio[l] = (int32_t)ratio[l];
        *has_csa |= c->ratio[l] == PF_RATIO_CSA;
        *has_compressed |= c->ratio[l] != 0;
    }
    /* The MTP block has no compressor, whatever an entry for it says. */
    if (c->n_nextn > 0 && block_tensor(k, c->n_layer, "attn_compressor_ape") != NULL) {
        return pf_fail(k->err, PF_ERR_UNSUPPORTED, "the MTP block, blk.%d, has a compressor, and only those without are "
                       "known: take another file", c->n_layer);
    }
    return PF_OK;
}

/* A clamp for each layer. 0 is llama.cpp's word for none. */
static pf_status read_limits(const pf_keys *k, const char *name, const pf_config *c, float *out) {
    const int32_t n = c->n_layer + c->n_nextn;
    double limit[PF_MAX_LAYERS];
    PF_TRY(pf_keys_by_layer(k, name, n, limit));
    for (int32_t l = 0; l < n; ++l) {
        if (!(limit[l] >= 0.0)) {
            return pf_fail(k->err, PF_ERR_UNSUPPORTED, PF_ARCH ".%s: %g is no SwiGLU limit", name, limit[l]);
        }
        out[l] = limit[l] > 0.0 && limit[l] < (double)FLT_MAX ? (float)limit[l] : FLT_MAX;
    }
    return PF_OK;
}

/* Compressed layers without YaRN give wrong text past a few thousand tokens, so a file that lacks the keys is refused
 * with their names rather than run. Where the factor and the original length stand without a type, as ds4 writes them,
 * YaRN is meant: nothing else takes both. */
static pf_status read_compressed_rope(const pf_keys *k, pf_config *c) {
    static const char *const needed[] = {"attention.compress_rope_freq_base", "rope.scaling.factor",
                                         "rope.scaling.original_context_length"};
    char missing[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; ++i) {
        if (pf_keys_has(k, needed[i])) continue;
        const int n = snprintf(missing + used, sizeof missing - used, "%s" PF_ARCH ".%s", used > 0 ? ", " : "",
                               needed[i]);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used > 0) {
        return pf_fail(k->err, PF_ERR_FORMAT,
                       "the file lacks %s: its compressed layers would give wrong text; take another file, or convert "
                       "the checkpoint again", missing);
    }
    pf_gguf_string type = {"yarn", 4};
    if (pf_keys_has(k, "rope.scaling.type") &&
        (!pf_gguf_get_string(k->gguf, PF_ARCH ".rope.scaling.type", &type) || type.len != 4 ||
         memcmp(type.data, "yarn", 4) != 0)) {
        return pf_fail(k->err, PF_ERR_UNSUPPORTED, PF_ARCH ".rope.scaling.type is not \"yarn\": its compressed layers "
                       "would give wrong text; take another file, or convert the checkpoint again");
    }
    pf_rope_config *rope = &c->rope_compressed;
    int32_t original;
    PF_TRY(pf_keys_double(k, "attention.compress_rope_freq_base", 2.0, 1e12, &rope->theta));
    PF_TRY(pf_keys_double(k, "rope.scaling.factor", 1.0, 1e6, &rope->factor));
    PF_TRY(pf_keys_int(k, "rope.scaling.original_context_length", 1, INT32_MAX, &original));
    rope->original_length = original;
    rope->beta_fast = 32.0;
    rope->beta_slow = 1.0;
    if (pf_keys_has(k, "rope.scaling.yarn_beta_fast")) {
        PF_TRY(pf_keys_double(k, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &rope->beta_fast));
    }
    if (pf_keys_has(k, "rope.scaling.yarn_beta_slow")) {
        PF_TRY(pf_keys_double(k, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &rope->beta_slow));
    }
    return PF_OK;
}

static pf_status read_attention(const pf_keys *k, pf_config *c) {
    int32_t kv_heads, value_dim;
    bool has_csa, has_compressed;
    PF_TRY(pf_keys_int(k, "attention.head_count", 1, 4096, &c->n_head));
    PF_TRY(pf_keys_int(k, "attention.head_count_kv", 1, 1, &kv_heads));
    PF_TRY(pf_keys_int(k, "attention.key_length", 2, 8192, &c->head_dim));
    PF_TRY(pf_keys_int(k, "attention.value_length", c->head_dim, c->head_dim, &value_dim));
    PF_TRY(pf_keys_int(k, "rope.dimension_count", 2, c->head_dim, &c->rope_dim));
    PF_TRY(pf_keys_int(k, "attention.q_lora_rank", 1, 1 << 20, &c->q_rank));
    PF_TRY(pf_keys_int(k, "attention.output_group_count", 1, c->n_head, &c->o_groups));
    PF_TRY(pf_keys_int(k, "attention.output_lora_rank", 1, 1 << 20, &c->o_rank));
    PF_TRY(pf_keys_int(k, "attention.sliding_window", 1, 1 << 20, &c->window));
    PF_TRY(read_ratios(k, c, &has_csa, &has_compressed));
    if (c->rope_dim % 2 != 0) return pf_fail(k->err, PF_ERR_UNSUPPORTED, PF_ARCH ".rope.dimension_count is odd");
    if (c->n_head % c->o_groups != 0) {
        return pf_fail(k->err, PF_ERR_UNSUPPORTED, "%d heads do not divide into %d output groups", c->n_head,
                       c->o_groups);
    }
    if (has_csa) {
        PF_TRY(pf_keys_int(k, "attention.indexer.head_count", 1, 4096, &c->index_heads));
        PF_TRY(pf_keys_int(k, "attention.indexer.key_length", 32, 4096, &c->index_dim));
        PF_TRY(pf_keys_int(k, "attention.indexer.top_k", 1, 1 << 20, &c->index_topk));
        if ((c->index_dim & (c->index_dim - 1)) != 0 || c->rope_dim > c->index_dim) {
            return pf_fail(k->err, PF_ERR_UNSUPPORTED,
                           "indexer rows of %d values with %d rotary ones: a power of two that holds them is needed",
                           c->index_dim, c->rope_dim);
        }
    }
    c->rope.theta = 10000.0; /* llama.cpp's default when the key is absent */
    c->rope.factor = 1.0;
    if (pf_keys_has(k, "rope.freq_base")) {
        PF_TRY(pf_keys_double(k, "rope.freq_base", 2.0, 1e12, &c->rope.theta));
    }
    if (has_compressed) PF_TRY(read_compressed_rope(k, c));
    return PF_OK;
}

/* ds4 does not ask for the key: then what YaRN stretches the original length to. */
static pf_status read_context(const pf_keys *k, pf_config *c) {
    const double stretched = c->rope_compressed.factor * c->rope_compressed.original_length;
    int32_t context = (int32_t)(stretched < INT32_MAX ? stretched : INT32_MAX);
    if (context < 1 || pf_keys_has(k, "context_length")) {
        PF_TRY(pf_keys_int(k, "context_length", 1, INT32_MAX, &context));
    }
    c->n_ctx_train = context;
    return PF_OK;
}

/* ---- Experts ----------------------------------------------------------------------------------------------- */

/* Routing within groups of experts is another model's; ds4's files say 0 groups, others 1. */
static pf_status check_groups(const pf_keys *k) {
    static const char *const names[] = {"expert_group_count", "expert_group_used_count"};
    int32_t groups;
    for (size_t i = 0; i < sizeof names / sizeof *names; ++i) {
        if (pf_keys_has(k, names[i])) PF_TRY(pf_keys_int(k, names[i], 0, 1, &groups));
    }
    return PF_OK;
}

static pf_status read_moe(const pf_keys *k, pf_config *c) {
    int32_t shared, gating;
    bool normalised;
    PF_TRY(pf_keys_int(k, "expert_count", 1, 1 << 16, &c->n_expert));
    PF_TRY(pf_keys_int(k, "expert_used_count", 1, c->n_expert < 256 ? c->n_expert : 256, &c->n_expert_used));
    PF_TRY(pf_keys_int(k, "expert_feed_forward_length", 32, 1 << 20, &c->n_ff));
    PF_TRY(pf_keys_int(k, "expert_shared_count", 1, 1, &shared));
    PF_TRY(pf_keys_float(k, "expert_weights_scale", 1e-6, 1e6, &c->expert_scale));
    /* ds4 does not ask for the key: this architecture has one gating function */
    if (pf_keys_has(k, "expert_gating_func")) PF_TRY(pf_keys_int(k, "expert_gating_func", 4, 4, &gating));
    PF_TRY(pf_keys_int(k, "hash_layer_count", 0, c->n_layer, &c->n_hash_layer));
    PF_TRY(check_groups(k));
    PF_TRY(pf_keys_flag(k, "expert_weights_norm", &normalised));
    if (!normalised) return pf_fail(k->err, PF_ERR_UNSUPPORTED, PF_ARCH ".expert_weights_norm is false");
    PF_TRY(read_limits(k, "swiglu_clamp_exp", c, c->limit_routed));
    if (pf_keys_has(k, "swiglu_clamp_shexp")) return read_limits(k, "swiglu_clamp_shexp", c, c->limit_shared);
    memcpy(c->limit_shared, c->limit_routed, sizeof c->limit_shared);
    return PF_OK;
}

pf_status pf_config_read(const pf_gguf *gguf, pf_config *out, pf_error *err) {
    pf_keys k = {gguf, 0, err};
    pf_config c = {0};
    PF_TRY(pf_file_kind_check(gguf, err));
    PF_TRY(read_layers(&k, &c));
    PF_TRY(pf_keys_int(&k, "embedding_length", 32, 1 << 20, &c.n_embd));
    PF_TRY(pf_keys_float(&k, "attention.layer_norm_rms_epsilon", 0.0, 1.0, &c.norm_eps));
    PF_TRY(pf_keys_int(&k, "hyper_connection.count", 1, 16, &c.n_stream));
    PF_TRY(pf_keys_int(&k, "hyper_connection.sinkhorn_iterations", 1, 1000, &c.sinkhorn_iters));
    PF_TRY(pf_keys_float(&k, "hyper_connection.epsilon", 0.0, 1.0, &c.hc_eps));
    PF_TRY(read_attention(&k, &c));
    PF_TRY(read_context(&k, &c));
    PF_TRY(read_moe(&k, &c));
    *out = c;
    return PF_OK;
}

void pf_rope_frequencies(const pf_rope_config *rope, int32_t rope_dim, double *out) {
    const double pi = 3.14159265358979323846, r = rope_dim;
    double low = 0.0, high = 1.0;
    if (rope->factor > 1.0) {
        /* YaRN: index of the frequency that turns b times over the original length */
        const double span = 2.0 * log(rope->theta);
        low = floor(r * log(rope->original_length / (rope->beta_fast * 2.0 * pi)) / span);
        high = ceil(r * log(rope->original_length / (rope->beta_slow * 2.0 * pi)) / span);
        low = low < 0.0 ? 0.0 : low;
        high = high > r - 1.0 ? r - 1.0 : high;
        if (high <= low) high = low + 0.001;
    }
    for (int32_t i = 0; i < rope_dim / 2; ++i) {
        const double f = pow(rope->theta, -2.0 * i / r);
        if (rope->factor > 1.0) {
            double ramp = (i - low) / (high - low);
            ramp = ramp < 0.0 ? 0.0 : ramp > 1.0 ? 1.0 : ramp;
            out[i] = f * (1.0 - ramp) + f / rope->factor * ramp;
        } else {
            out[i] = f;
        }
    }
}
