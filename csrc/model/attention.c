/* Hybrid attention: sliding window, compressed sparse (CSA, ratio 4) and heavily compressed (HCA, ratio 128). All three
 * share the projections; what differs is which compressed rows a query sees beside its window. */
#include "model/deepseek4.h"

#include "base/arith.h"
#include "step/choices.h"
#include "step/recording.h"

#include <math.h>

/* Scores of a tile of queries over all visible rows take at most this much scratch, or else one query's. */
enum { SCORE_FLOATS = 16 << 20 };

/* Compressor: contributions of the step's tokens, and a pooled row for each window that one of them completes. */
static pf_status compress(const pf_step *s, int32_t layer, int32_t ratio, const pf_compressor_weights *w,
                          const pf_frontier *frontier, const pf_rows *pool, const float *x, const char *tap) {
    const pf_backend *be = s->ex->backend;
    const int64_t width = s->net->config.n_embd, channels = frontier->channels;
    const bool rotate = pool->format == PF_ROW_IDX_FP4; /* Hadamard only serves the rounding that follows it */
    PF_SCRATCH(float, a, s, s->n * channels);
    PF_SCRATCH(float, g, s, s->n * channels);
    PF_TRY(be->linear(s->ex, &w->kv, x, width, s->n, a, channels));
    PF_TRY(be->linear(s->ex, &w->gate, x, width, s->n, g, channels));
    for (int64_t start = 0; start < s->n; start += PF_COMPRESS_BLOCK) {
        const int64_t n = pf_min_i64(PF_COMPRESS_BLOCK, s->n - start), position = s->position + start;
        const int64_t first = position / ratio, count = (position + n) / ratio - first;
        const pf_step_mark mark = pf_step_set_mark(s);
        const pf_frontier_args push = {
            .a = a + start * channels, .g = g + start * channels, .ape = w->ape, .n = n,
            .position = pf_step_place(s) + start, .channels = channels, .ratio = ratio, .ring_a = frontier->a,
            .ring_g = frontier->g, .ring = frontier->ring,
        };
        PF_TRY(be->push_frontier(s->ex, &push));
        if (count == 0) continue;
        const int64_t place = s->frame != NULL ? 0 : first;
        PF_SCRATCH(float, rows, s, count * pool->width);
        pf_compress_args args = {
            .a = frontier->a, .g = frontier->g, .ring = frontier->ring, .ratio = ratio,
            .overlap = ratio == PF_RATIO_CSA, .width = pool->width, .first = place, .n = count, .norm = w->norm,
            .eps = s->net->config.norm_eps, .out = rows,
        };
        if (s->frame != NULL) args.rope = pf_frame_row_rope(s, ratio);
        else PF_TRY(pf_step_rope(s, s->net->rope_freq_compressed, first * ratio, ratio, count, &args.rope));
        pf_frame_count(s, ratio);
        PF_TRY(be->compress(s->ex, &args));
        if (rotate) PF_TRY(be->hadamard(s->ex, rows, count, pool->width));
        PF_TRY(be->store_rows(s->ex, pool, place, count, rows));
        pf_frame_count(s, 0);
        for (int64_t j = 0; j < count; ++j) {
            pf_step_tap_row(s, tap, layer, (first + j + 1) * ratio - 1, rows + j * pool->width, pool->width);
        }
        pf_step_reset(s, mark);
    }
    return PF_OK;
}

/* Lightning indexer: which compressed rows each query attends to. */
static pf_status select_rows(const pf_step *s, int32_t layer, const pf_attention_weights *w, const float *x,
                             const float *q_low, int32_t *select, int32_t *select_n) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_rows *rows = &s->cache->layers[layer].index_pool;
    const int64_t heads = c->index_heads, dim = c->index_dim, k = c->index_topk;
    const int64_t n_rows = (s->position + s->n) / PF_RATIO_CSA;
    if (n_rows <= k) { /* everything is kept, so nothing needs a score */
        return be->topk(s->ex, NULL, 0, s->n, pf_step_place(s), PF_RATIO_CSA, k, select, select_n);
    }
    PF_SCRATCH(float, q, s, s->n * heads * dim);
    PF_SCRATCH(float, weights, s, s->n * heads);
    PF_TRY(be->linear(s->ex, &w->index_q, q_low, c->q_rank, s->n, q, heads * dim));
    PF_TRY(be->rope_tail(s->ex, q, s->n, heads, dim, &s->rope_compressed, false));
    if (rows->format == PF_ROW_IDX_FP4) {
        PF_TRY(be->hadamard(s->ex, q, s->n * heads, dim));
        PF_TRY(be->round_fp4(s->ex, q, s->n * heads, dim));
    }
    PF_TRY(be->linear(s->ex, &w->index_weights, x, c->n_embd, s->n, weights, heads));
    pf_step_tap(s, "idx_q", layer, q, heads * dim);
    /* Not tile * ld, which a longer context can make less: memory is planned by the longest. A recorded step takes that
     * much from the start. */
    const int64_t ld = s->frame != NULL ? rows->capacity : n_rows;
    const int64_t room = pf_max_i64(ld, pf_min_i64(s->n * ld, SCORE_FLOATS)), tile = room / ld;
    PF_SCRATCH(float, scores, s, room);
    for (int64_t t = 0; t < s->n; t += tile) {
        const pf_index_args args = {
            .q = q + t * heads * dim, .w = weights + t * heads, .n_token = pf_min_i64(tile, s->n - t),
            .position = pf_step_place(s) + t, .n_head = heads, .scale = 1.0f / sqrtf((float)(dim * heads)),
            .ratio = PF_RATIO_CSA, .rows = rows, .scores = scores, .ld = ld,
        };
        PF_TRY(be->index_scores(s->ex, &args));
        PF_TRY(be->topk(s->ex, scores, ld, args.n_token, args.position, PF_RATIO_CSA, k, select + t * k,
                        select_n + t));
    }
    return PF_OK;
}

/* Reports the rows that select_rows() chose. */
static pf_status tap_selection(const pf_step *s, int32_t layer, const int32_t *select, const int32_t *select_n) {
    const int64_t k = s->net->config.index_topk;
    void *counts;
    if (s->tap == NULL) return PF_OK;
    PF_TRY(pf_step_carry(s, s->host, select_n, (size_t)s->n * sizeof *select_n, &counts));
    for (int64_t t = 0; t < s->n; ++t) {
        pf_step_tap_ints(s, "topk", layer, t, select + t * k, ((const int32_t *)counts)[t]);
    }
    return PF_OK;
}

/* kv = rope(RMSNorm(wkv x)) into the window ring. */
pf_status pf_attention_rows(const pf_step *s, int32_t layer, int32_t ratio, const pf_attention_weights *w,
                            const float *x) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const int64_t d = c->head_dim;
    PF_SCRATCH(float, kv, s, s->n * d);
    PF_TRY(be->linear(s->ex, &w->kv, x, c->n_embd, s->n, kv, d));
    PF_TRY(be->rms_norm(s->ex, kv, s->n, d, w->kv_norm, c->norm_eps, kv));
    PF_TRY(be->rope_tail(s->ex, kv, s->n, 1, d, pf_step_rope_of(s, ratio), false));
    pf_step_tap(s, "kv", layer, kv, d);
    return be->store_rows(s->ex, &s->cache->layers[layer].raw, pf_step_place(s), s->n, kv);
}

/* Grouped output projection: z[g] = wo_a[g] o[heads of g], y = wo_b z. */
static pf_status project_out(const pf_step *s, const pf_attention_weights *w, const float *o, float *y) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const int64_t heads = (int64_t)c->n_head * c->head_dim, group = heads / c->o_groups;
    const int64_t low = (int64_t)c->o_groups * c->o_rank;
    PF_SCRATCH(float, z, s, s->n * low);
    for (int64_t g = 0; g < c->o_groups; ++g) {
        const pf_weight slice = pf_weight_rows(&w->out_a, g * c->o_rank, c->o_rank);
        PF_TRY(be->linear(s->ex, &slice, o + g * group, heads, s->n, z + g * c->o_rank, low));
    }
    return be->linear(s->ex, &w->out_b, z, low, s->n, y, c->n_embd);
}

pf_status pf_attention(const pf_step *s, int32_t layer, int32_t ratio, const pf_attention_weights *w, const float *x,
                       float *y) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_layer_cache *cache = &s->cache->layers[layer];
    const int64_t heads = c->n_head, d = c->head_dim;

    PF_SCRATCH(float, q_low, s, s->n * c->q_rank);
    PF_TRY(be->linear(s->ex, &w->q_a, x, c->n_embd, s->n, q_low, c->q_rank));
    PF_TRY(be->rms_norm(s->ex, q_low, s->n, c->q_rank, w->q_norm, c->norm_eps, q_low));
    pf_step_tap(s, "q_lora", layer, q_low, c->q_rank);
    PF_SCRATCH(float, q, s, s->n * heads * d);
    PF_TRY(be->linear(s->ex, &w->q_b, q_low, c->q_rank, s->n, q, heads * d));
    PF_TRY(be->rms_norm(s->ex, q, s->n * heads, d, NULL, c->norm_eps, q));
    PF_TRY(be->rope_tail(s->ex, q, s->n, heads, d, pf_step_rope_of(s, ratio), false));
    pf_step_tap(s, "q", layer, q, heads * d);
    PF_TRY(pf_attention_rows(s, layer, ratio, w, x));

    pf_attn_args args = {
        .q = q, .out = q, .n_token = s->n, .position = pf_step_place(s), .n_head = heads,
        .head_dim = d,
        .window = c->window, .sinks = w->sinks, .scale = 1.0f / sqrtf((float)d), .raw = &cache->raw, .ratio = ratio,
    };
    if (ratio != 0) {
        PF_TRY(compress(s, layer, ratio, &w->compressor, &cache->frontier, &cache->pool, x, "comp_row"));
        args.pool = &cache->pool;
    }
    if (ratio == PF_RATIO_CSA) {
        PF_SCRATCH(int32_t, select, s, s->n * c->index_topk);
        PF_SCRATCH(int32_t, select_n, s, s->n);
        PF_TRY(compress(s, layer, ratio, &w->index_compressor, &cache->index_frontier, &cache->index_pool, x,
                        "idx_row"));
        if (!pf_choices_take_rows(s, layer, select, select_n)) {
            PF_TRY(select_rows(s, layer, w, x, q_low, select, select_n));
        }
        pf_choices_note_rows(s, layer, select, select_n);
        PF_TRY(tap_selection(s, layer, select, select_n));
        args.select = select;
        args.select_n = select_n;
        args.select_ld = c->index_topk;
    }
    PF_TRY(be->sparse_attn(s->ex, &args));
    PF_TRY(be->rope_tail(s->ex, q, s->n, heads, d, pf_step_rope_of(s, ratio), true));
    pf_step_tap(s, "attn_o", layer, q, heads * d);
    return project_out(s, w, q, y);
}
