#include "arch/weights.h"

#include "arch/file_kind.h"
#include "base/arith.h"

#include <stdio.h>
#include <string.h>

enum { NAME_SIZE = 96 };

/* Looks tensors up under a prefix ("blk.3.") and reports the first that does not fit. */
typedef struct finder {
    const pf_gguf *gguf;
    const pf_config *config;
    pf_widened *widened;
    pf_error *err;
    bool is_draft; /* the file is a drafter's alone, and the configuration the model's */
    char prefix[PF_DSPARK_NAME_BYTES];
} finder;

static finder in_layer(const finder *root, int layer) {
    finder f = *root;
    (void)snprintf(f.prefix, sizeof f.prefix, "blk.%d.", layer);
    return f;
}

/* UNSUPPORTED: the type's blocks are not known, and whose they are decides what to do. */
static pf_status refuse_unreadable(const finder *f, const char *full, uint32_t type) {
    char name[PF_DTYPE_NAME_BYTES];
    return pf_fail(f->err, PF_ERR_UNSUPPORTED, "tensor %s has type %s, which this version cannot read: %s", full,
                   pf_dtype_name(type, name), pf_dtype_way_out(type));
}

/* The tensor prefix+name+suffix with shape [ne0, ne1, ne2]; trailing ones may be left out in the file. */
static pf_status find(const finder *f, const char *name, const char *suffix, int64_t ne0, int64_t ne1, int64_t ne2,
                      const pf_gguf_tensor **out) {
    char full[NAME_SIZE];
    (void)snprintf(full, sizeof full, "%s%s%s", f->prefix, name, suffix);
    const pf_gguf_tensor *t = pf_gguf_find_tensor(f->gguf, full);
    if (t == NULL) {
        return pf_fail(f->err, PF_ERR_FORMAT, "the file lacks the tensor %s: convert the checkpoint again", full);
    }
    if (t->ne[0] != (uint64_t)ne0 || t->ne[1] != (uint64_t)ne1 || t->ne[2] != (uint64_t)ne2 || t->ne[3] != 1) {
        return pf_fail(f->err, PF_ERR_FORMAT,
                       "%stensor %s has shape [%llu, %llu, %llu, %llu], the %s asks for [%lld, %lld, %lld]",
                       f->is_draft ? "the draft file does not belong to this model: " : "", full,
                       (unsigned long long)t->ne[0], (unsigned long long)t->ne[1], (unsigned long long)t->ne[2],
                       (unsigned long long)t->ne[3], f->is_draft ? "model" : "configuration", (long long)ne0,
                       (long long)ne1, (long long)ne2);
    }
    if (t->data == NULL) return refuse_unreadable(f, full, t->type);
    if ((uintptr_t)t->data % sizeof(float) != 0) {
        return pf_fail(f->err, PF_ERR_UNSUPPORTED, "tensor %s is not aligned: convert the checkpoint again", full);
    }
    *out = t;
    return PF_OK;
}

#define NUMBERS "a type of real numbers, or of blocks of them,"

/* UNSUPPORTED: t, which is called prefix+name+suffix, has another type than is needed. */
static pf_status refuse_type(const finder *f, const char *name, const char *suffix, const pf_gguf_tensor *t,
                             const char *needed) {
    char type[PF_DTYPE_NAME_BYTES];
    return pf_fail(f->err, PF_ERR_UNSUPPORTED, "tensor %s%s%s has type %s: %s is needed", f->prefix, name, suffix,
                   pf_dtype_name(t->type, type), needed);
}

/* A vector or small table in float32, whatever the file has; ne1 = 1 for a vector. */
static pf_status find_f32(const finder *f, const char *name, const char *suffix, int64_t ne0, int64_t ne1,
                          const float **out) {
    const pf_gguf_tensor *t = NULL;
    PF_TRY(find(f, name, suffix, ne0, ne1, 1, &t));
    if (t->type != PF_F32) {
        if (!pf_can_widen(t->type)) return refuse_type(f, name, suffix, t, NUMBERS);
        *out = pf_widen(f->widened, t);
    } else {
        *out = (const float *)(const void *)t->data;
    }
    return *out != NULL ? PF_OK : pf_fail(f->err, PF_ERR_MEMORY, "out of memory while opening the model");
}

/* Block scales of a native FP8 matrix: e8m0 bytes (stored as I8) or F32. */
static pf_status find_fp8_scale(const finder *f, const char *name, pf_weight *w) {
    const pf_gguf_tensor *t = NULL;
    w->scale_cols = pf_ceil_div(w->cols, PF_FP8_BLOCK);
    w->scale_rows = pf_ceil_div(w->rows, PF_FP8_BLOCK);
    PF_TRY(find(f, name, ".scale", w->scale_cols, w->scale_rows, w->count, &t));
    if (t->type != PF_I8 && t->type != PF_F32) return refuse_type(f, name, ".scale", t, "I8 or F32");
    w->scale = t->data;
    w->scale_f32 = t->type == PF_F32;
    return PF_OK;
}

/* Blocks whose values a tensor beside them scales, as some writers of NVFP4 have it. */
static pf_status refuse_scale(const finder *f, const char *name) {
    char full[NAME_SIZE];
    (void)snprintf(full, sizeof full, "%s%s.scale", f->prefix, name);
    if (pf_gguf_find_tensor(f->gguf, full) == NULL) return PF_OK;
    return pf_fail(f->err, PF_ERR_UNSUPPORTED,
                   "tensor %s scales a whole matrix, which this version cannot compute with: take another file", full);
}

/* `count` matrices [rows, cols] of any type that kernels multiply. */
static pf_status find_matrices(const finder *f, const char *name, int64_t cols, int64_t rows, int64_t count,
                               pf_weight *out) {
    const pf_gguf_tensor *t = NULL;
    PF_TRY(find(f, name, ".weight", cols, rows, count, &t));
    pf_weight w = {.data = t->data, .type = (pf_dtype)t->type, .cols = cols, .rows = rows, .count = count};
    if (t->type == PF_I8 && f->config->native) {
        w.type = PF_FP8;
        PF_TRY(find_fp8_scale(f, name, &w));
    } else if (pf_weight_kind(w.type) < 0) {
        return refuse_type(f, name, ".weight", t, NUMBERS);
    } else {
        PF_TRY(refuse_scale(f, name));
    }
    uint64_t row_bytes = 0;
    if (!pf_dtype_row_bytes(w.type, (uint64_t)cols, &row_bytes)) {
        return pf_fail(f->err, PF_ERR_FORMAT, "tensor %s%s.weight: rows of %lld values do not divide into blocks",
                       f->prefix, name, (long long)cols);
    }
    w.row_bytes = (int64_t)row_bytes;
    *out = w;
    return PF_OK;
}

static pf_status find_matrix(const finder *f, const char *name, int64_t cols, int64_t rows, pf_weight *out) {
    return find_matrices(f, name, cols, rows, 1, out);
}

static pf_status find_norm(const finder *f, const char *name, int64_t n, const float **out) {
    return find_f32(f, name, ".weight", n, 1, out);
}

/* n_out: (2+N)N mixing numbers with 3 scales at a block, N with 1 scale before the head. */
static pf_status find_mhc(const finder *f, const char *name, int64_t n_out, int64_t n_scale, const char *suffix,
                          pf_mhc_site *out) {
    const int64_t n_in = (int64_t)f->config->n_stream * f->config->n_embd;
    char part[48];
    (void)snprintf(part, sizeof part, "%s_fn", name);
    PF_TRY(find_f32(f, part, suffix, n_in, n_out, &out->fn));
    (void)snprintf(part, sizeof part, "%s_base", name);
    PF_TRY(find_f32(f, part, suffix, n_out, 1, &out->base));
    (void)snprintf(part, sizeof part, "%s_scale", name);
    return find_f32(f, part, suffix, n_scale, 1, &out->scale);
}

static pf_status find_compressor(const finder *f, const char *name, int32_t ratio, int64_t width,
                                 pf_compressor_weights *out) {
    const int64_t channels = ratio == PF_RATIO_CSA ? 2 * width : width;
    char part[48];
    (void)snprintf(part, sizeof part, "%s_kv", name);
    PF_TRY(find_matrix(f, part, f->config->n_embd, channels, &out->kv));
    (void)snprintf(part, sizeof part, "%s_gate", name);
    PF_TRY(find_matrix(f, part, f->config->n_embd, channels, &out->gate));
    (void)snprintf(part, sizeof part, "%s_ape", name);
    PF_TRY(find_f32(f, part, ".weight", channels, ratio, &out->ape));
    (void)snprintf(part, sizeof part, "%s_norm", name);
    return find_norm(f, part, width, &out->norm);
}

/* One matrix of all groups, [in, groups * rank], or one for each, [in, rank, groups]: the same bytes. */
static pf_status find_output_a(const finder *f, int64_t cols, int64_t low, pf_weight *out) {
    const pf_config *c = f->config;
    char full[NAME_SIZE];
    (void)snprintf(full, sizeof full, "%sattn_output_a.weight", f->prefix);
    const pf_gguf_tensor *t = pf_gguf_find_tensor(f->gguf, full);
    if (t == NULL || t->ne[2] == 1 || c->native) return find_matrix(f, "attn_output_a", cols, low, out);
    PF_TRY(find_matrices(f, "attn_output_a", cols, c->o_rank, c->o_groups, out));
    out->rows = low;
    out->count = 1;
    return PF_OK;
}

static pf_status find_attention(const finder *f, int32_t ratio, pf_attention_weights *out) {
    const pf_config *c = f->config;
    const int64_t d = c->head_dim, width = c->n_embd, heads = (int64_t)c->n_head * d;
    const int64_t low = (int64_t)c->o_groups * c->o_rank;
    PF_TRY(find_norm(f, "attn_norm", width, &out->norm));
    PF_TRY(find_f32(f, "attn_sinks", ".weight", c->n_head, 1, &out->sinks));
    PF_TRY(find_matrix(f, "attn_q_a", width, c->q_rank, &out->q_a));
    PF_TRY(find_norm(f, "attn_q_a_norm", c->q_rank, &out->q_norm));
    PF_TRY(find_matrix(f, "attn_q_b", c->q_rank, heads, &out->q_b));
    PF_TRY(find_matrix(f, "attn_kv", width, d, &out->kv));
    PF_TRY(find_norm(f, "attn_kv_a_norm", d, &out->kv_norm));
    PF_TRY(find_output_a(f, heads / c->o_groups, low, &out->out_a));
    PF_TRY(find_matrix(f, "attn_output_b", low, width, &out->out_b));
    if (ratio == 0) return PF_OK;
    PF_TRY(find_compressor(f, "attn_compressor", ratio, d, &out->compressor));
    if (ratio != PF_RATIO_CSA) return PF_OK;
    PF_TRY(find_matrix(f, "indexer.attn_q_b", c->q_rank, (int64_t)c->index_heads * c->index_dim, &out->index_q));
    PF_TRY(find_matrix(f, "indexer.proj", width, c->index_heads, &out->index_weights));
    return find_compressor(f, "indexer_compressor", ratio, c->index_dim, &out->index_compressor);
}

static pf_status find_token_table(const finder *f, const int32_t **out) {
    const pf_gguf_tensor *t = NULL;
    PF_TRY(find(f, "ffn_gate_tid2eid", ".weight", f->config->n_expert_used, f->config->n_vocab, 1, &t));
    if (t->type != PF_I32) return refuse_type(f, "ffn_gate_tid2eid", ".weight", t, "I32");
    *out = (const int32_t *)(const void *)t->data;
    return PF_OK;
}

static pf_status find_moe(const finder *f, bool hash, pf_moe_weights *out) {
    const pf_config *c = f->config;
    const int64_t width = c->n_embd, ff = c->n_ff, n = c->n_expert;
    PF_TRY(find_norm(f, "ffn_norm", width, &out->norm));
    PF_TRY(find_matrix(f, "ffn_gate_inp", width, n, &out->router));
    if (hash) {
        PF_TRY(find_token_table(f, &out->token_table));
    } else {
        PF_TRY(find_f32(f, "exp_probs_b", ".bias", n, 1, &out->router_bias));
    }
    PF_TRY(find_matrices(f, "ffn_gate_exps", width, ff, n, &out->gate));
    PF_TRY(find_matrices(f, "ffn_up_exps", width, ff, n, &out->up));
    PF_TRY(find_matrices(f, "ffn_down_exps", ff, width, n, &out->down));
    PF_TRY(find_matrix(f, "ffn_gate_shexp", width, ff, &out->shared_gate));
    PF_TRY(find_matrix(f, "ffn_up_shexp", width, ff, &out->shared_up));
    return find_matrix(f, "ffn_down_shexp", ff, width, &out->shared_down);
}

/* A block under the finder's prefix; out->ratio, hash and limits are set. */
static pf_status find_block(const finder *f, pf_layer_weights *out) {
    const int64_t mixes = (2 + (int64_t)f->config->n_stream) * f->config->n_stream;
    PF_TRY(find_mhc(f, "hc_attn", mixes, 3, ".weight", &out->hc_attn));
    PF_TRY(find_mhc(f, "hc_ffn", mixes, 3, ".weight", &out->hc_ffn));
    PF_TRY(find_attention(f, out->ratio, &out->attn));
    return find_moe(f, out->hash, &out->moe);
}

static pf_status find_layer(const finder *root, int layer, bool hash, pf_layer_weights *out) {
    const finder f = in_layer(root, layer);
    const pf_config *c = f.config;
    out->ratio = c->ratio[layer];
    out->hash = hash;
    out->limit_routed = c->limit_routed[layer];
    out->limit_shared = c->limit_shared[layer];
    return find_block(&f, out);
}

/* The MTP block: in llama.cpp's layout (a file of its own, whose output_hc_* are the block's) or a native file's. */
static pf_status find_mtp(const finder *root, pf_mtp_weights *out) {
    const pf_config *c = root->config;
    const finder f = in_layer(root, c->n_layer);
    const int64_t width = c->n_embd;
    PF_TRY(find_layer(root, c->n_layer, false, &out->layer));
    PF_TRY(find_norm(&f, "nextn.enorm", width, &out->e_norm));
    PF_TRY(find_norm(&f, "nextn.hnorm", width, &out->h_norm));
    out->joined = !c->native;
    char own_norm[NAME_SIZE];
    (void)snprintf(own_norm, sizeof own_norm, "%snextn.shared_head_norm.weight", f.prefix);
    const bool lends_norm = out->joined && pf_gguf_find_tensor(root->gguf, own_norm) == NULL; /* as in llama.cpp */
    if (lends_norm) PF_TRY(find_norm(root, "output_norm", width, &out->norm));
    else PF_TRY(find_norm(&f, "nextn.shared_head_norm", width, &out->norm));
    if (out->joined) {
        PF_TRY(find_matrix(&f, "nextn.eh_proj", 2 * width, width, &out->eh_proj));
        PF_TRY(find_mhc(root, "output_hc", c->n_stream, 1, ".weight", &out->head_mix));
    } else {
        PF_TRY(find_matrix(&f, "nextn.e_proj", width, width, &out->e_proj));
        PF_TRY(find_matrix(&f, "nextn.h_proj", width, width, &out->h_proj));
        PF_TRY(find_mhc(&f, "nextn.hc_head", c->n_stream, 1, ".weight", &out->head_mix));
    }
    out->present = true;
    return PF_OK;
}

/* DSpark's stages, in whosever words. They are blocks like the model's last layer, whose limits they have.
 * None where not all of the layers whose outputs they see lie in the range. */
static pf_status find_dspark(const finder *root, pf_layer_range range, pf_dspark_weights *out) {
    const pf_config *c = root->config;
    const int64_t width = c->n_embd;
    pf_dspark_config *d = &out->config;
    char name[PF_DSPARK_NAME_BYTES];
    PF_TRY(pf_dspark_read(root->gguf, c, d, root->err));
    for (int32_t i = 0; i < d->n_target; ++i) {
        if (d->target[i] < range.first) *d = (pf_dspark_config){0}; /* another stage has what they are made of */
    }
    for (int32_t i = 0; i < d->n_stage; ++i) {
        pf_layer_weights *stage = &out->stages[i];
        finder f = *root;
        (void)pf_dspark_stage(d, i, f.prefix);
        stage->limit_routed = c->limit_routed[c->n_layer - 1];
        stage->limit_shared = c->limit_shared[c->n_layer - 1];
        PF_TRY(find_block(&f, stage));
    }
    if (d->n_stage == 0) return PF_OK;
    const int64_t n_feature = d->n_target * width;
    PF_TRY(find_matrix(root, pf_dspark_name(d, PF_DSPARK_MAIN_PROJ, name), n_feature, width, &out->main_proj));
    PF_TRY(find_norm(root, pf_dspark_name(d, PF_DSPARK_MAIN_NORM, name), width, &out->main_norm));
    PF_TRY(find_norm(root, pf_dspark_name(d, PF_DSPARK_NORM, name), width, &out->norm));
    PF_TRY(find_mhc(root, pf_dspark_name(d, PF_DSPARK_HEAD_MIX, name), c->n_stream, 1, ".weight", &out->head_mix));
    PF_TRY(find_matrix(root, pf_dspark_name(d, PF_DSPARK_MARKOV_W1, name), d->rank, c->n_vocab, &out->markov_w1));
    PF_TRY(find_matrix(root, pf_dspark_name(d, PF_DSPARK_MARKOV_W2, name), d->rank, c->n_vocab, &out->markov_w2));
    if (!d->has_confidence) return PF_OK;
    return find_f32(root, pf_dspark_name(d, PF_DSPARK_CONFIDENCE, name), ".weight", width + d->rank, 1, &out->confidence);
}

/* An MTP file must be of the same model: its block runs with the main file's sizes, and its tensors are checked against
 * its own. */
static pf_status check_mtp_config(const pf_config *c, const pf_config *m, pf_error *err) {
    const bool same_attention = m->n_head == c->n_head && m->head_dim == c->head_dim && m->rope_dim == c->rope_dim &&
                                m->q_rank == c->q_rank && m->o_groups == c->o_groups && m->o_rank == c->o_rank &&
                                m->window == c->window;
    const bool same_experts =
        m->n_expert == c->n_expert && m->n_expert_used == c->n_expert_used && m->n_ff == c->n_ff;
    if (m->n_nextn != 1 || m->n_layer != c->n_layer || m->n_embd != c->n_embd || m->n_stream != c->n_stream ||
        !same_attention || !same_experts) {
        return pf_fail(err, PF_ERR_FORMAT,
                       "the MTP file does not belong to this model: convert both from one checkpoint");
    }
    return PF_OK;
}

static pf_status find_vocab(const pf_gguf *gguf, int32_t *n_vocab, pf_error *err) {
    const pf_gguf_tensor *t = pf_gguf_find_tensor(gguf, "token_embd.weight");
    if (t == NULL) {
        return pf_fail(err, PF_ERR_FORMAT, "the file lacks the tensor token_embd.weight: convert the checkpoint again");
    }
    if (t->ne[1] < 1 || t->ne[1] > INT32_MAX / 2) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "a vocabulary of %llu tokens is not supported",
                       (unsigned long long)t->ne[1]);
    }
    *n_vocab = (int32_t)t->ne[1];
    return PF_OK;
}

/* The number of "blk.N." at the beginning of a name; -1: it begins otherwise. */
static int64_t layer_of_name(pf_gguf_string name) {
    const char start[] = "blk.";
    const uint64_t begin = sizeof start - 1;
    int64_t layer = 0;
    uint64_t at = begin;
    if (name.len < begin || memcmp(name.data, start, begin) != 0) return -1;
    for (; at < name.len && at < begin + 6 && name.data[at] >= '0' && name.data[at] <= '9'; ++at) {
        layer = layer * 10 + (name.data[at] - '0');
    }
    return at > begin && at < name.len && name.data[at] == '.' ? layer : -1;
}

static bool is_called(pf_gguf_string name, const char *wanted) {
    return name.len == strlen(wanted) && memcmp(name.data, wanted, (size_t)name.len) == 0;
}

bool pf_range_has_tensor(const pf_config *config, pf_layer_range range, bool mtp, pf_gguf_string name) {
    const int64_t layer = layer_of_name(name);
    const bool has_head = pf_range_has_head(config, range);
    if (layer >= 0 && layer < config->n_layer) return layer >= range.first && layer < range.end;
    if (is_called(name, "token_embd.weight")) return range.first == 0 || (has_head && mtp);
    return has_head;
}

/* What drafts, from the file beside the model's or else the model's own. */
static pf_status find_drafter(const finder *root, const pf_gguf *draft_gguf, const pf_config *mtp_config,
                              pf_weights *out) {
    if (draft_gguf == NULL) {
        PF_TRY(find_dspark(root, out->range, &out->dspark));
        return out->dspark.config.n_stage == 0 && root->config->n_nextn > 0 ? find_mtp(root, &out->mtp) : PF_OK;
    }
    finder beside = {.gguf = draft_gguf, .config = root->config, .widened = root->widened, .err = root->err,
                     .is_draft = true};
    if (mtp_config == NULL) {
        PF_TRY(pf_file_kind_check_dspark(draft_gguf, root->err));
        pf_config plain = *root->config;
        plain.native = false;
        beside.config = &plain;
        return find_dspark(&beside, out->range, &out->dspark);
    }
    PF_TRY(check_mtp_config(root->config, mtp_config, root->err));
    beside.config = mtp_config;
    return find_mtp(&beside, &out->mtp);
}

static pf_status load_all(const pf_gguf *gguf, pf_config *config, pf_layer_range range, const pf_gguf *draft_gguf,
                          const pf_config *mtp_config, pf_weights *out, pf_error *err) {
    PF_TRY(find_vocab(gguf, &config->n_vocab, err));
    const finder root = {.gguf = gguf, .config = config, .widened = &out->widened, .err = err};
    const bool has_head = pf_range_has_head(config, range);
    for (int l = range.first; l < range.end; ++l) {
        PF_TRY(find_layer(&root, l, l < config->n_hash_layer, &out->layers[l]));
    }
    if (has_head) {
        PF_TRY(find_matrix(&root, "output", config->n_embd, config->n_vocab, &out->head));
        PF_TRY(find_norm(&root, "output_norm", config->n_embd, &out->norm));
        PF_TRY(find_mhc(&root, "output_hc", config->n_stream, 1, ".weight", &out->head_mix));
        PF_TRY(find_drafter(&root, draft_gguf, mtp_config, out));
    }
    const bool embeds = range.first == 0 || pf_weights_draft_shape(out).n_layer > 0;
    return embeds ? find_matrix(&root, "token_embd", config->n_embd, config->n_vocab, &out->embed) : PF_OK;
}

pf_status pf_weights_load(const pf_gguf *gguf, pf_config *config, pf_layer_range range, const pf_gguf *draft_gguf,
                          const pf_config *mtp_config, pf_weights *out, pf_error *err) {
    memset(out, 0, sizeof *out);
    out->range = range;
    out->layers = pf_calloc((size_t)config->n_layer, sizeof *out->layers);
    if (out->layers == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory for the layer table");
    const pf_status status = load_all(gguf, config, range, draft_gguf, mtp_config, out, err);
    if (status != PF_OK) pf_weights_free(out);
    return status;
}

pf_draft_shape pf_weights_draft_shape(const pf_weights *w) {
    if (w->dspark.config.n_stage > 0) {
        return (pf_draft_shape){.n_layer = w->dspark.config.n_stage, .block = w->dspark.config.block};
    }
    return (pf_draft_shape){.n_layer = w->mtp.present ? 1 : 0, .block = 1, .has_streams = w->mtp.present};
}

const pf_layer_weights *pf_weights_draft_layer(const pf_weights *w, int32_t i) {
    return w->dspark.config.n_stage > 0 ? &w->dspark.stages[i] : &w->mtp.layer;
}

void pf_weights_free(pf_weights *weights) {
    pf_free(weights->layers);
    pf_widened_free(&weights->widened);
    memset(weights, 0, sizeof *weights);
}
