#include "runtime/profiler.h"

#include "base/clock.h"
#include "base/memory.h"
#include "runtime/model.h"

#include <stddef.h>
#include <string.h>

/* Rows: the operations without weights, in the order of the table below; then products, by the weight; then experts. */
enum {
    EMBED, RMS_NORM, ROPE, STORE_ROWS, PUSH_FRONTIER, COMPRESS, HADAMARD, ROUND_FP4, INDEX_SCORES, TOPK, ATTENTION, MHC_PRE,
    MHC_POST, MHC_HEAD, ROUTE, EXPERTS, ADD, SWIGLU, N_PLAIN
};
static const char *const plain_names[N_PLAIN] = {
    "embed", "rms_norm", "rope_tail", "store_rows", "push_frontier", "compress", "hadamard", "round_fp4", "index_scores",
    "topk", "sparse_attn", "mhc_pre", "mhc_post", "mhc_head", "route", "experts", "add", "swiglu",
};

/* Names as in the file, without the layer. */
static const struct {
    const char *name;
    size_t at; /* of the pf_weight in pf_layer_weights */
} layer_products[] = {
    {"attn_q_a", offsetof(pf_layer_weights, attn.q_a)},
    {"attn_q_b", offsetof(pf_layer_weights, attn.q_b)},
    {"attn_kv", offsetof(pf_layer_weights, attn.kv)},
    {"attn_output_a", offsetof(pf_layer_weights, attn.out_a)},
    {"attn_output_b", offsetof(pf_layer_weights, attn.out_b)},
    {"attn_compressor_kv", offsetof(pf_layer_weights, attn.compressor.kv)},
    {"attn_compressor_gate", offsetof(pf_layer_weights, attn.compressor.gate)},
    {"indexer.attn_q_b", offsetof(pf_layer_weights, attn.index_q)},
    {"indexer.proj", offsetof(pf_layer_weights, attn.index_weights)},
    {"indexer_compressor_kv", offsetof(pf_layer_weights, attn.index_compressor.kv)},
    {"indexer_compressor_gate", offsetof(pf_layer_weights, attn.index_compressor.gate)},
    {"ffn_gate_inp", offsetof(pf_layer_weights, moe.router)},
    {"ffn_gate_shexp", offsetof(pf_layer_weights, moe.shared_gate)},
    {"ffn_up_shexp", offsetof(pf_layer_weights, moe.shared_up)},
    {"ffn_down_shexp", offsetof(pf_layer_weights, moe.shared_down)},
};
enum { N_LAYER_PRODUCT = (int)(sizeof layer_products / sizeof *layer_products) };
enum { HEAD = N_PLAIN + N_LAYER_PRODUCT, OTHER, N_ROW };

struct pf_profiler {
    pf_backend table; /* first: operations find the profiler by the backend that they run with */
    const pf_backend *inner;
    pf_model *model; /* one reference */
    pf_profile_row rows[N_ROW];
    uint8_t *is_used; /* [n_expert] scratch of experts */
};

static pf_profiler *profiler_of(const pf_exec *ex) { return (pf_profiler *)(uintptr_t)ex->backend; }

static void add(const pf_exec *ex, int row, double began, int64_t n_token, int64_t n_matrix, int64_t bytes, double products) {
    pf_profile_row *to = &profiler_of(ex)->rows[row];
    if (ex->dry) return;
    to->seconds += pf_clock_seconds() - began;
    to->calls += 1;
    to->tokens += n_token;
    to->matrices += n_matrix;
    to->weight_bytes += bytes;
    to->products += products;
}

/* ---- Products ---------------------------------------------------------------------------------------------- */

/* Whether used is w or a part of its rows. */
static bool is_part(const pf_weight *w, const pf_weight *used) {
    return w->data != NULL && used->data >= w->data && used->data < w->data + w->count * w->rows * w->row_bytes;
}

static int row_in_layer(const pf_layer_weights *layer, const pf_weight *used) {
    for (int i = 0; i < N_LAYER_PRODUCT; ++i) {
        const pf_weight *w = (const pf_weight *)(const void *)((const char *)layer + layer_products[i].at);
        if (is_part(w, used)) return N_PLAIN + i;
    }
    return -1;
}

static int row_of(const pf_profiler *p, const pf_weight *used) {
    const pf_weights *weights = &p->model->net.weights;
    if (is_part(&weights->head, used)) return HEAD;
    for (int32_t l = 0; l < p->model->net.config.n_layer; ++l) {
        const int row = row_in_layer(&weights->layers[l], used);
        if (row >= 0) return row;
    }
    for (int32_t i = 0; i < pf_weights_draft_shape(weights).n_layer; ++i) {
        const int row = row_in_layer(pf_weights_draft_layer(weights, i), used);
        if (row >= 0) return row;
    }
    return OTHER;
}

static pf_status timed_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                              int64_t ldy) {
    const double began = pf_clock_seconds();
    const pf_status status = profiler_of(ex)->inner->linear(ex, w, x, ldx, n_token, y, ldy);
    add(ex, row_of(profiler_of(ex), w), began, n_token, 1, w->rows * w->row_bytes,
        (double)w->rows * (double)w->cols * (double)n_token);
    return status;
}

static pf_status timed_experts(pf_exec *ex, const pf_experts_args *args) {
    pf_profiler *p = profiler_of(ex);
    const double began = pf_clock_seconds();
    const pf_status status = p->inner->experts(ex, args);
    const double took = pf_clock_seconds() - began;
    int64_t n_pair = 0, n_used = 0, bytes = 0, numbers = 0;
    if (ex->dry) return status;
    const pf_weight *parts[] = {args->gate, args->up, args->down};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; ++i) {
        bytes += parts[i]->rows * parts[i]->row_bytes;
        numbers += parts[i]->rows * parts[i]->cols;
    }
    memset(p->is_used, 0, (size_t)p->model->net.config.n_expert);
    for (int64_t i = 0; i < args->n_token * args->n_used; ++i) {
        const int32_t e = args->chosen[i];
        if (e < args->expert_begin || e >= args->expert_end || (args->held_at && args->held_at[e] < 0)) continue;
        n_pair++;
        n_used += !p->is_used[e];
        p->is_used[e] = 1;
    }
    add(ex, EXPERTS, pf_clock_seconds() - took, args->n_token, n_used, n_used * bytes, (double)numbers * (double)n_pair);
    return status;
}

/* ---- The others -------------------------------------------------------------------------------------------- */

/* TIMED(row, name, parameters, arguments, tokens): timed_name, which calls the operation of that name. */
#define TIMED(row, name, parameters, arguments, tokens)                          \
    static pf_status timed_##name parameters {                                   \
        const double began = pf_clock_seconds();                                 \
        const pf_status status = profiler_of(ex)->inner->name arguments;         \
        add(ex, row, began, tokens, 0, 0, 0.0);                                  \
        return status;                                                           \
    }

TIMED(EMBED, embed, (pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n, int64_t n_stream, float *x),
      (ex, w, tokens, n, n_stream, x), n)
TIMED(RMS_NORM, rms_norm, (pf_exec *ex, const float *x, int64_t n, int64_t width, const float *gain, float eps, float *y),
      (ex, x, n, width, gain, eps, y), n)
TIMED(ROPE, rope_tail, (pf_exec *ex, float *x, int64_t n, int64_t n_head, int64_t d, const pf_rope_table *table, bool inverse),
      (ex, x, n, n_head, d, table, inverse), n)
TIMED(STORE_ROWS, store_rows, (pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x),
      (ex, rows, first, n, x), n)
TIMED(PUSH_FRONTIER, push_frontier, (pf_exec *ex, const pf_frontier_args *args), (ex, args), args->n)
TIMED(COMPRESS, compress, (pf_exec *ex, const pf_compress_args *args), (ex, args), args->n)
TIMED(HADAMARD, hadamard, (pf_exec *ex, float *x, int64_t n, int64_t width), (ex, x, n, width), n)
TIMED(ROUND_FP4, round_fp4, (pf_exec *ex, float *x, int64_t n, int64_t width), (ex, x, n, width), n)
TIMED(INDEX_SCORES, index_scores, (pf_exec *ex, const pf_index_args *args), (ex, args), args->n_token)
TIMED(TOPK, topk, (pf_exec *ex, const float *scores, int64_t ld, int64_t n, int64_t position, int32_t ratio, int64_t k,
                   int32_t *select, int32_t *select_n),
      (ex, scores, ld, n, position, ratio, k, select, select_n), n)
TIMED(ATTENTION, sparse_attn, (pf_exec *ex, const pf_attn_args *args), (ex, args), args->n_token)
TIMED(MHC_PRE, mhc_pre, (pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams, int64_t n,
                         float *x, float *post, float *comb),
      (ex, shape, site, streams, n, x, post, comb), n)
TIMED(MHC_POST, mhc_post, (pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post, const float *comb,
                           int64_t n, float *streams),
      (ex, shape, y, post, comb, n, streams), n)
TIMED(MHC_HEAD, mhc_head, (pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams, int64_t n,
                           float *x),
      (ex, shape, site, streams, n, x), n)
TIMED(ROUTE, route, (pf_exec *ex, const pf_route_args *args), (ex, args), args->n_token)
TIMED(ADD, add, (pf_exec *ex, float *y, const float *x, int64_t n), (ex, y, x, n), 0)
TIMED(SWIGLU, swiglu, (pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h),
      (ex, gate, up, n, limit, h), 0)

/* ---- Handle ------------------------------------------------------------------------------------------------ */

const pf_backend *pf_profiler_backend(const pf_profiler *profiler) { return &profiler->table; }

bool pf_profiler_fits(const pf_profiler *profiler, const pf_model *model) { return profiler->model == model; }

static void set_table(pf_backend *t) {
    t->embed = timed_embed;
    t->linear = timed_linear;
    t->rms_norm = timed_rms_norm;
    t->rope_tail = timed_rope_tail;
    t->store_rows = timed_store_rows;
    t->push_frontier = timed_push_frontier;
    t->compress = timed_compress;
    t->hadamard = timed_hadamard;
    t->round_fp4 = timed_round_fp4;
    t->index_scores = timed_index_scores;
    t->topk = timed_topk;
    t->sparse_attn = timed_sparse_attn;
    t->mhc_pre = timed_mhc_pre;
    t->mhc_post = timed_mhc_post;
    t->mhc_head = timed_mhc_head;
    t->route = timed_route;
    t->experts = timed_experts;
    t->add = timed_add;
    t->swiglu = timed_swiglu;
}

static void set_names(pf_profile_row *rows) {
    for (int i = 0; i < N_ROW; ++i) {
        rows[i].operation = i < N_PLAIN ? plain_names[i] : "linear";
        rows[i].weight = i < N_PLAIN ? "" : i == HEAD ? "output" : i == OTHER ? "other" : layer_products[i - N_PLAIN].name;
    }
    rows[EXPERTS].weight = "ffn_gate_exps, ffn_up_exps, ffn_down_exps";
}

pf_status pf_profiler_open(pf_model *model, pf_profiler **out, pf_error *err) {
    if (model == NULL || out == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_profiler_open: model and out are needed");
    }
    if (model->link != NULL) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "operations are timed on the processor: open the model with device \"cpu\"");
    }
    pf_profiler *p = pf_calloc(1, sizeof *p);
    uint8_t *is_used = pf_calloc((size_t)model->net.config.n_expert, 1);
    if (p == NULL || is_used == NULL) {
        pf_free(p);
        pf_free(is_used);
        return pf_fail(err, PF_ERR_MEMORY, "out of memory for a profiler");
    }
    p->is_used = is_used;
    p->model = pf_model_retain(model);
    p->inner = model->backend;
    p->table = *model->backend;
    set_table(&p->table);
    set_names(p->rows);
    *out = p;
    return PF_OK;
}

void pf_profiler_close(pf_profiler *profiler) {
    if (profiler == NULL) return;
    pf_model_release(profiler->model);
    pf_free(profiler->is_used);
    pf_free(profiler);
}

pf_status pf_profiler_row(const pf_profiler *profiler, int32_t index, pf_profile_row *out, pf_error *err) {
    if (profiler == NULL || out == NULL || out->struct_size < sizeof *out) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_profiler_row: a profiler, and out with its struct_size, are needed");
    }
    if (index < 0 || index >= N_ROW) return pf_fail(err, PF_ERR_ARGUMENT, "there are %d rows", (int)N_ROW);
    const uint32_t size = out->struct_size;
    *out = profiler->rows[index];
    out->struct_size = size;
    return PF_OK;
}

int32_t pf_profiler_rows(void) { return N_ROW; }

void pf_profiler_reset(pf_profiler *profiler) {
    if (profiler == NULL) return;
    memset(profiler->rows, 0, sizeof profiler->rows);
    set_names(profiler->rows);
}
