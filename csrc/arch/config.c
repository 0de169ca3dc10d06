#include "arch/config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define ARCH "deepseek4"

/* One place that knows how to name a key in a message. */
typedef struct reader {
    const pf_gguf *gguf;
    pf_error *err;
} reader;

static void full_key(const char *name, char *out, size_t size) { (void)snprintf(out, size, ARCH ".%s", name); }

static pf_status bad_key(const reader *r, const char *name, const char *wants) {
    char key[96];
    full_key(name, key, sizeof key);
    if (!pf_gguf_has(r->gguf, key)) {
        return pf_fail(r->err, PF_ERR_FORMAT, "the file lacks the key %s: convert the checkpoint again", key);
    }
    return pf_fail(r->err, PF_ERR_FORMAT, "the key %s is not %s: convert the checkpoint again", key, wants);
}

/* An integer in [low, high]. */
static pf_status read_int(const reader *r, const char *name, int32_t low, int32_t high, int32_t *out) {
    char key[96];
    uint32_t value;
    full_key(name, key, sizeof key);
    if (!pf_gguf_get_u32(r->gguf, key, &value)) return bad_key(r, name, "a non-negative integer");
    if (value < (uint32_t)low || value > (uint32_t)high) {
        return pf_fail(r->err, PF_ERR_UNSUPPORTED, "%s = %u is outside the supported range %d..%d", key, value, low,
                       high);
    }
    *out = (int32_t)value;
    return PF_OK;
}

static pf_status read_float(const reader *r, const char *name, double low, double high, float *out) {
    char key[96];
    float value;
    full_key(name, key, sizeof key);
    if (!pf_gguf_get_f32(r->gguf, key, &value)) return bad_key(r, name, "a float");
    if (!(value >= low && value <= high)) {
        return pf_fail(r->err, PF_ERR_UNSUPPORTED, "%s = %g is outside the supported range %g..%g", key, (double)value,
                       low, high);
    }
    *out = value;
    return PF_OK;
}

static pf_status read_double(const reader *r, const char *name, double low, double high, double *out) {
    float value;
    const pf_status status = read_float(r, name, low, high, &value);
    if (status == PF_OK) *out = value;
    return status;
}

static pf_status read_arch(const reader *r) {
    pf_gguf_string arch;
    if (!pf_gguf_get_string(r->gguf, "general.architecture", &arch)) {
        return pf_fail(r->err, PF_ERR_FORMAT, "the file lacks the key general.architecture: not a model file");
    }
    if (arch.len != strlen(ARCH) || memcmp(arch.data, ARCH, arch.len) != 0) {
        const int shown = arch.len < 40 ? (int)arch.len : 40;
        return pf_fail(r->err, PF_ERR_UNSUPPORTED,
                       "the file holds a model of architecture \"%.*s\", and pyflash runs " ARCH
                       " (DeepSeek-V4) only: run it with llama.cpp, Ollama or LM Studio",
                       shown, arch.data);
    }
    return PF_OK;
}

static pf_status read_ratios(const reader *r, pf_config *c, bool *has_csa, bool *has_compressed) {
    static const char name[] = "attention.compress_ratios";
    const uint64_t n = (uint64_t)c->n_layer + (uint64_t)c->n_nextn;
    uint64_t len;
    *has_csa = *has_compressed = false;
    if (!pf_gguf_array_len(r->gguf, ARCH ".attention.compress_ratios", &len)) return bad_key(r, name, "an array");
    if (len < n) {
        return pf_fail(r->err, PF_ERR_FORMAT, ARCH ".%s has %llu entries for %llu layers", name,
                       (unsigned long long)len, (unsigned long long)n);
    }
    for (uint64_t l = 0; l < n; ++l) {
        int64_t ratio;
        if (!pf_gguf_array_i64(r->gguf, ARCH ".attention.compress_ratios", l, &ratio)) {
            return bad_key(r, name, "an array of integers");
        }
        if (ratio != 0 && ratio != PF_RATIO_CSA && ratio != PF_RATIO_HCA) {
            return pf_fail(r->err, PF_ERR_UNSUPPORTED, "layer %llu has compression ratio %lld: 0, 4 and 128 are known",
                           (unsigned long long)l, (long long)ratio);
        }
        c->ratio[l] = (int32_t)ratio;
        *has_csa |= ratio == PF_RATIO_CSA;
        *has_compressed |= ratio != 0;
    }
    for (int32_t l = c->n_layer; l < c->n_layer + c->n_nextn; ++l) {
        if (c->ratio[l] != 0) {
            return pf_fail(r->err, PF_ERR_UNSUPPORTED, "the MTP block has compression ratio %d: only 0 is known",
                           c->ratio[l]);
        }
    }
    return PF_OK;
}

/* A clamp for each layer: an array (of n_layer, or n_layer + n_nextn entries) or one number for all. */
static pf_status read_limits(const reader *r, const char *name, const pf_config *c, float *out) {
    char key[96];
    const int32_t n = c->n_layer + c->n_nextn;
    uint64_t len;
    float scalar;
    full_key(name, key, sizeof key);
    if (pf_gguf_get_f32(r->gguf, key, &scalar)) {
        for (int32_t l = 0; l < n; ++l) out[l] = scalar;
    } else if (pf_gguf_array_len(r->gguf, key, &len) && len >= (uint64_t)c->n_layer) {
        for (int32_t l = 0; l < n; ++l) {
            const uint64_t at = (uint64_t)l < len ? (uint64_t)l : len - 1;
            if (!pf_gguf_array_f32(r->gguf, key, at, &out[l])) return bad_key(r, name, "an array of floats");
        }
    } else {
        return bad_key(r, name, "a float or an array with an entry for each layer");
    }
    for (int32_t l = 0; l < n; ++l) {
        if (!(out[l] > 0.0f)) {
            return pf_fail(r->err, PF_ERR_UNSUPPORTED, "%s: %g is no SwiGLU limit", key, (double)out[l]);
        }
    }
    return PF_OK;
}

/* Compressed layers without YaRN give wrong text past a few thousand tokens, so a file that lacks the keys is refused
 * with their names rather than run. */
static pf_status read_compressed_rope(const reader *r, pf_config *c) {
    static const char *const needed[] = {ARCH ".attention.compress_rope_freq_base", ARCH ".rope.scaling.type",
                                         ARCH ".rope.scaling.factor", ARCH ".rope.scaling.original_context_length"};
    char missing[256] = "";
    size_t used = 0;
    for (size_t i = 0; i < sizeof needed / sizeof *needed; ++i) {
        if (pf_gguf_has(r->gguf, needed[i])) continue;
        const int n = snprintf(missing + used, sizeof missing - used, "%s%s", used > 0 ? ", " : "", needed[i]);
        used += n > 0 ? (size_t)n : 0;
    }
    if (used > 0) {
        return pf_fail(r->err, PF_ERR_FORMAT,
                       "the file lacks %s: its compressed layers would give wrong text; convert the checkpoint again",
                       missing);
    }
    pf_gguf_string type;
    if (!pf_gguf_get_string(r->gguf, ARCH ".rope.scaling.type", &type) || type.len != 4 ||
        memcmp(type.data, "yarn", 4) != 0) {
        return pf_fail(r->err, PF_ERR_UNSUPPORTED, ARCH ".rope.scaling.type is not \"yarn\"");
    }
    pf_rope_config *rope = &c->rope_compressed;
    int32_t original;
    PF_TRY(read_double(r, "attention.compress_rope_freq_base", 2.0, 1e12, &rope->theta));
    PF_TRY(read_double(r, "rope.scaling.factor", 1.0, 1e6, &rope->factor));
    PF_TRY(read_int(r, "rope.scaling.original_context_length", 1, INT32_MAX, &original));
    rope->original_length = original;
    rope->beta_fast = 32.0;
    rope->beta_slow = 1.0;
    if (pf_gguf_has(r->gguf, ARCH ".rope.scaling.yarn_beta_fast")) {
        PF_TRY(read_double(r, "rope.scaling.yarn_beta_fast", 1e-3, 1e6, &rope->beta_fast));
    }
    if (pf_gguf_has(r->gguf, ARCH ".rope.scaling.yarn_beta_slow")) {
        PF_TRY(read_double(r, "rope.scaling.yarn_beta_slow", 1e-3, 1e6, &rope->beta_slow));
    }
    return PF_OK;
}

static pf_status read_attention(const reader *r, pf_config *c) {
    int32_t kv_heads, value_dim;
    bool has_csa, has_compressed;
    PF_TRY(read_int(r, "attention.head_count", 1, 4096, &c->n_head));
    PF_TRY(read_int(r, "attention.head_count_kv", 1, 1, &kv_heads));
    PF_TRY(read_int(r, "attention.key_length", 2, 8192, &c->head_dim));
    PF_TRY(read_int(r, "attention.value_length", c->head_dim, c->head_dim, &value_dim));
    PF_TRY(read_int(r, "rope.dimension_count", 2, c->head_dim, &c->rope_dim));
    PF_TRY(read_int(r, "attention.q_lora_rank", 1, 1 << 20, &c->q_rank));
    PF_TRY(read_int(r, "attention.output_group_count", 1, c->n_head, &c->o_groups));
    PF_TRY(read_int(r, "attention.output_lora_rank", 1, 1 << 20, &c->o_rank));
    PF_TRY(read_int(r, "attention.sliding_window", 1, 1 << 20, &c->window));
    PF_TRY(read_ratios(r, c, &has_csa, &has_compressed));
    if (c->rope_dim % 2 != 0) return pf_fail(r->err, PF_ERR_UNSUPPORTED, ARCH ".rope.dimension_count is odd");
    if (c->n_head % c->o_groups != 0) {
        return pf_fail(r->err, PF_ERR_UNSUPPORTED, "%d heads do not divide into %d output groups", c->n_head,
                       c->o_groups);
    }
    if (has_csa) {
        PF_TRY(read_int(r, "attention.indexer.head_count", 1, 4096, &c->index_heads));
        PF_TRY(read_int(r, "attention.indexer.key_length", 32, 4096, &c->index_dim));
        PF_TRY(read_int(r, "attention.indexer.top_k", 1, 1 << 20, &c->index_topk));
        if ((c->index_dim & (c->index_dim - 1)) != 0 || c->rope_dim > c->index_dim) {
            return pf_fail(r->err, PF_ERR_UNSUPPORTED,
                           "indexer rows of %d values with %d rotary ones: a power of two that holds them is needed",
                           c->index_dim, c->rope_dim);
        }
    }
    c->rope.theta = 10000.0; /* llama.cpp's default when the key is absent */
    c->rope.factor = 1.0;
    if (pf_gguf_has(r->gguf, ARCH ".rope.freq_base")) {
        PF_TRY(read_double(r, "rope.freq_base", 2.0, 1e12, &c->rope.theta));
    }
    if (has_compressed) PF_TRY(read_compressed_rope(r, c));
    return PF_OK;
}

static pf_status read_moe(const reader *r, pf_config *c) {
    int32_t shared, gating;
    bool normalised;
    PF_TRY(read_int(r, "expert_count", 1, 1 << 16, &c->n_expert));
    PF_TRY(read_int(r, "expert_used_count", 1, c->n_expert < 256 ? c->n_expert : 256, &c->n_expert_used));
    PF_TRY(read_int(r, "expert_feed_forward_length", 32, 1 << 20, &c->n_ff));
    PF_TRY(read_int(r, "expert_shared_count", 1, 1, &shared));
    PF_TRY(read_float(r, "expert_weights_scale", 1e-6, 1e6, &c->expert_scale));
    PF_TRY(read_int(r, "expert_gating_func", 4, 4, &gating));
    PF_TRY(read_int(r, "hash_layer_count", 0, c->n_layer, &c->n_hash_layer));
    if (!pf_gguf_get_bool(r->gguf, ARCH ".expert_weights_norm", &normalised)) {
        return bad_key(r, "expert_weights_norm", "a bool");
    }
    if (!normalised) return pf_fail(r->err, PF_ERR_UNSUPPORTED, ARCH ".expert_weights_norm is false");
    PF_TRY(read_limits(r, "swiglu_clamp_exp", c, c->limit_routed));
    if (pf_gguf_has(r->gguf, ARCH ".swiglu_clamp_shexp")) {
        return read_limits(r, "swiglu_clamp_shexp", c, c->limit_shared);
    }
    memcpy(c->limit_shared, c->limit_routed, sizeof c->limit_shared);
    return PF_OK;
}

pf_status pf_config_read(const pf_gguf *gguf, pf_config *out, pf_error *err) {
    const reader r = {gguf, err};
    pf_config c = {0};
    int32_t blocks, context;
    PF_TRY(read_arch(&r));
    PF_TRY(read_int(&r, "block_count", 1, PF_MAX_LAYERS, &blocks));
    if (pf_gguf_has(gguf, ARCH ".nextn_predict_layers")) PF_TRY(read_int(&r, "nextn_predict_layers", 0, 1, &c.n_nextn));
    /* An MTP file counts the block in block_count (llama.cpp); a native file names it apart. */
    c.native = pf_gguf_has(gguf, "pyflash.fp8");
    c.n_layer = c.native ? blocks : blocks - c.n_nextn;
    if (c.n_layer < 1 || c.n_layer + c.n_nextn > PF_MAX_LAYERS) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, ARCH ".block_count = %d leaves no layer to run", blocks);
    }
    PF_TRY(read_int(&r, "context_length", 1, INT32_MAX, &context));
    c.n_ctx_train = context;
    PF_TRY(read_int(&r, "embedding_length", 32, 1 << 20, &c.n_embd));
    PF_TRY(read_float(&r, "attention.layer_norm_rms_epsilon", 0.0, 1.0, &c.norm_eps));
    PF_TRY(read_int(&r, "hyper_connection.count", 1, 16, &c.n_stream));
    PF_TRY(read_int(&r, "hyper_connection.sinkhorn_iterations", 1, 1000, &c.sinkhorn_iters));
    PF_TRY(read_float(&r, "hyper_connection.epsilon", 0.0, 1.0, &c.hc_eps));
    PF_TRY(read_attention(&r, &c));
    PF_TRY(read_moe(&r, &c));
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
