/* Hybrid attention: sliding window, compressed sparse (CSA, ratio 4) and heavily compressed (HCA, ratio 128). All three
 * share the projections; what differs is which compressed rows a query sees beside its window. */
#include "model/deepseek4.h"

#include "base/arith.h"
#include "step/choices.h"
#include "step/recording.h"

#include <math.h>

/* Scores of a tile of queries over all visible rows take at most this much scratch, or else one query's. */
enum { SCORE_FLOATS = 16 << 20 };

/* A compressor of a layer, and where its rows go. */
typedef struct compressor {
    int32_t layer, ratio;
    const pf_compressor_weights *w;
    const char *tap;
} compressor;

/* Contributions a, g [n, channels] of a share's tokens, and a pooled row for each window that one of them completes. */
static pf_status pool_rows(const pf_step *s, const pf_share *share, const compressor *c, const pf_frontier *frontier,
                           const pf_rows *pool, const float *a, const float *g) {
    const pf_backend *be = s->ex->backend;
    const int64_t channels = frontier->channels, ratio = c->ratio;
    const bool rotate = pool->format == PF_ROW_IDX_FP4; /* Hadamard only serves the rounding that follows it */
    for (int64_t start = 0; start < share->n; start += PF_COMPRESS_BLOCK) {
        const int64_t n = pf_min_i64(PF_COMPRESS_BLOCK, share->n - start), position = share->position + start;
        const int64_t first = position / ratio, count = (position + n) / ratio - first;
        const pf_step_mark mark = pf_step_set_mark(s);
        const pf_frontier_args push = {
            .a = a + start * channels, .g = g + start * channels, .ape = c->w->ape, .n = n,
            .position = pf_step_place(s, share) + start, .channels = channels, .ratio = c->ratio, .ring_a = frontier->a,
            .ring_g = frontier->g, .ring = frontier->ring,
        };
        PF_TRY(be->push_frontier(s->ex, &push));
        if (count == 0) continue;
        const int64_t place = s->frame != NULL ? 0 : first;
        PF_SCRATCH(float, rows, s, count * pool->width);
        pf_compress_args args = {
            .a = frontier->a, .g = frontier->g, .ring = frontier->ring, .ratio = c->ratio,
            .overlap = ratio == PF_RATIO_CSA, .width = pool->width, .first = place, .n = count, .norm = c->w->norm,
            .eps = s->net->config.norm_eps, .out = rows,
        };
        if (s->frame != NULL) args.rope = pf_frame_row_rope(s, c->ratio);
        else PF_TRY(pf_step_rope(s, s->net->rope_freq_compressed, first * ratio, ratio, count, &args.rope));
        pf_frame_count(s, c->ratio);
        PF_TRY(be->compress(s->ex, &args));
        if (rotate) PF_TRY(be->hadamard(s->ex, rows, count, pool->width));
        PF_TRY(be->store_rows(s->ex, pool, place, count, rows));
        pf_frame_count(s, 0);
        for (int64_t j = 0; j < count; ++j) {
            pf_share_tap(s, share, c->tap, c->layer, (first + j + 1) * ratio - 1, rows + j * pool->width, 1, pool->width);
        }
        pf_step_reset(s, mark);
    }
    return PF_OK;
}

/* Compressor of the layer's pool, or of its indexer's: the step's contributions, share by share into the caches. */
static pf_status compress(const pf_step *s, const compressor *c, bool of_index, const float *x) {
    const pf_backend *be = s->ex->backend;
    const int64_t width = s->net->config.n_embd, channels = c->w->kv.rows;
    PF_SCRATCH(float, a, s, s->n * channels);
    PF_SCRATCH(float, g, s, s->n * channels);
    PF_TRY(be->linear(s->ex, &c->w->kv, x, width, s->n, a, channels));
    PF_TRY(be->linear(s->ex, &c->w->gate, x, width, s->n, g, channels));
    for (PF_EACH_SHARE(s, share)) {
        const pf_layer_cache *cache = pf_cache_layer(share->cache, c->layer);
        const pf_frontier *frontier = of_index ? &cache->index_frontier : &cache->frontier;
        const pf_rows *pool = of_index ? &cache->index_pool : &cache->pool;
        PF_TRY(pool_rows(s, share, c, frontier, pool, a + share->first * channels, g + share->first * channels));
    }
    return PF_OK;
}

/* Which compressed rows each query attends to: select [n, k] ascending, select_n [n]. */
typedef struct selection {
    int32_t *rows, *n;
} selection;

/* Compressed rows that a share's last token sees. */
static int64_t rows_seen(const pf_share *share) { return (share->position + share->n) / PF_RATIO_CSA; }

/* Queries q [n, heads dim] and weights [n, heads] of the indexer, as each share's pool takes them. */
static pf_status index_queries(const pf_step *s, int32_t layer, const pf_attention_weights *w, const float *x,
                               const float *q_low, float *q, float *weights) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const int64_t heads = c->index_heads, dim = c->index_dim;
    PF_TRY(be->linear(s->ex, &w->index_q, q_low, c->q_rank, s->n, q, heads * dim));
    PF_TRY(be->rope_tail(s->ex, q, s->n, heads, dim, &s->rope_compressed, false));
    PF_TRY(be->linear(s->ex, &w->index_weights, x, c->n_embd, s->n, weights, heads));
    for (PF_EACH_SHARE(s, share)) {
        float *own = q + share->first * heads * dim;
        if (pf_cache_layer(share->cache, layer)->index_pool.format == PF_ROW_IDX_FP4) {
            PF_TRY(be->hadamard(s->ex, own, share->n * heads, dim));
            PF_TRY(be->round_fp4(s->ex, own, share->n * heads, dim));
        }
        if (rows_seen(share) <= c->index_topk) continue;
        pf_share_tap(s, share, "idx_q", layer, share->position, own, share->n, heads * dim);
    }
    return PF_OK;
}

/* The best k of the rows that a share's tokens see; q and weights are the share's. */
static pf_status choose_rows(const pf_step *s, const pf_share *share, const pf_rows *rows, const float *q,
                             const float *weights, const selection *out) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const int64_t heads = c->index_heads, dim = c->index_dim, k = c->index_topk, n_rows = rows_seen(share);
    int32_t *select = out->rows + share->first * k, *select_n = out->n + share->first;
    if (n_rows <= k) { /* everything is kept, so nothing needs a score */
        return be->topk(s->ex, NULL, 0, share->n, pf_step_place(s, share), PF_RATIO_CSA, k, select, select_n);
    }
    /* Not tile * ld, which a longer context can make less: memory is planned by the longest. A recorded step takes that
     * much from the start. */
    const int64_t ld = s->frame != NULL ? rows->capacity : n_rows;
    const int64_t room = pf_max_i64(ld, pf_min_i64(share->n * ld, SCORE_FLOATS)), tile = room / ld;
    const pf_step_mark mark = pf_step_set_mark(s);
    PF_SCRATCH(float, scores, s, room);
    for (int64_t t = 0; t < share->n; t += tile) {
        const pf_index_args args = {
            .q = q + t * heads * dim, .w = weights + t * heads, .n_token = pf_min_i64(tile, share->n - t),
            .position = pf_step_place(s, share) + t, .n_head = heads, .scale = 1.0f / sqrtf((float)(dim * heads)),
            .ratio = PF_RATIO_CSA, .rows = rows, .scores = scores, .ld = ld,
        };
        PF_TRY(be->index_scores(s->ex, &args));
        PF_TRY(be->topk(s->ex, scores, ld, args.n_token, args.position, PF_RATIO_CSA, k, select + t * k,
                        select_n + t));
    }
    pf_step_reset(s, mark);
    return PF_OK;
}

/* Lightning indexer. */
static pf_status select_rows(const pf_step *s, int32_t layer, const pf_attention_weights *w, const float *x,
                             const float *q_low, const selection *out) {
    const pf_config *c = &s->net->config;
    const int64_t heads = c->index_heads, dim = c->index_dim;
    float *q = NULL, *weights = NULL;
    bool is_needed = false;
    for (PF_EACH_SHARE(s, share)) is_needed = is_needed || rows_seen(share) > c->index_topk;
    if (is_needed) {
        q = pf_arena_alloc(s->ex->arena, (size_t)(s->n * heads * dim) * sizeof *q);
        weights = pf_arena_alloc(s->ex->arena, (size_t)(s->n * heads) * sizeof *weights);
        if (q == NULL || weights == NULL) return PF_ERR_MEMORY;
        PF_TRY(index_queries(s, layer, w, x, q_low, q, weights));
    }
    for (PF_EACH_SHARE(s, share)) {
        const float *own_q = is_needed ? q + share->first * heads * dim : NULL;
        const float *own_weights = is_needed ? weights + share->first * heads : NULL;
        PF_TRY(choose_rows(s, share, &pf_cache_layer(share->cache, layer)->index_pool, own_q, own_weights, out));
    }
    return PF_OK;
}

/* Reports the rows that select_rows() chose. */
static pf_status tap_selection(const pf_step *s, int32_t layer, const selection *chosen) {
    const int64_t k = s->net->config.index_topk;
    for (PF_EACH_SHARE(s, share)) {
        void *counts;
        if (share->tap == NULL) continue;
        PF_TRY(pf_step_carry(s, s->host, chosen->n + share->first, (size_t)share->n * sizeof *chosen->n, &counts));
        for (int64_t t = 0; t < share->n; ++t) {
            pf_share_tap_ints(s, share, "topk", layer, share->position + t, chosen->rows + (share->first + t) * k,
                              ((const int32_t *)counts)[t]);
        }
    }
    return PF_OK;
}

/* kv = rope(RMSNorm(wkv x)) into the window rings. */
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
    for (PF_EACH_SHARE(s, share)) {
        PF_TRY(be->store_rows(s->ex, &pf_cache_layer(share->cache, layer)->raw, pf_step_place(s, share), share->n,
                              kv + share->first * d));
    }
    return PF_OK;
}

/* Every row as the block's last one, whose window reaches back over the block and the tokens before it. */
static pf_status attend_block(const pf_step *s, const pf_share *share, pf_attn_args *args) {
    const int64_t width = args->n_head * args->head_dim;
    args->n_token = 1;
    args->position += share->n - 1;
    args->window += share->n;
    for (int64_t t = 0; t < share->n; ++t, args->q += width, args->out += width) {
        PF_TRY(s->ex->backend->sparse_attn(s->ex, args));
    }
    return PF_OK;
}

/* Softmax attention of each share's queries q [n, H d] to what its cache holds, in their place. chosen: of CSA, or NULL. */
static pf_status attend(const pf_step *s, int32_t layer, int32_t ratio, const pf_attention_weights *w, float *q,
                        const selection *chosen) {
    const pf_config *c = &s->net->config;
    const int64_t heads = c->n_head, d = c->head_dim, k = c->index_topk;
    for (PF_EACH_SHARE(s, share)) {
        const pf_layer_cache *cache = pf_cache_layer(share->cache, layer);
        float *own = q + share->first * heads * d;
        pf_attn_args args = {
            .q = own, .out = own, .n_token = share->n, .position = pf_step_place(s, share), .n_head = heads,
            .head_dim = d, .window = share->context > 0 ? share->context : c->window, .sinks = w->sinks,
            .scale = 1.0f / sqrtf((float)d), .raw = &cache->raw,
            .pool = ratio != 0 ? &cache->pool : NULL, .ratio = ratio,
            .select = chosen != NULL ? chosen->rows + share->first * k : NULL,
            .select_n = chosen != NULL ? chosen->n + share->first : NULL, .select_ld = chosen != NULL ? k : 0,
        };
        if (share->is_block) PF_TRY(attend_block(s, share, &args));
        else PF_TRY(s->ex->backend->sparse_attn(s->ex, &args));
    }
    return PF_OK;
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
    const int64_t heads = c->n_head, d = c->head_dim;
    selection chosen = {NULL, NULL};

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

    if (ratio != 0) PF_TRY(compress(s, &(compressor){layer, ratio, &w->compressor, "comp_row"}, false, x));
    if (ratio == PF_RATIO_CSA) {
        PF_SCRATCH(int32_t, select, s, s->n * c->index_topk);
        PF_SCRATCH(int32_t, select_n, s, s->n);
        chosen = (selection){select, select_n};
        PF_TRY(compress(s, &(compressor){layer, ratio, &w->index_compressor, "idx_row"}, true, x));
        if (!pf_choices_take_rows(s, layer, select, select_n)) PF_TRY(select_rows(s, layer, w, x, q_low, &chosen));
        pf_choices_note_rows(s, layer, select, select_n);
        PF_TRY(tap_selection(s, layer, &chosen));
    }
    PF_TRY(attend(s, layer, ratio, w, q, chosen.rows != NULL ? &chosen : NULL));
    PF_TRY(be->rope_tail(s->ex, q, s->n, heads, d, pf_step_rope_of(s, ratio), true));
    pf_step_tap(s, "attn_o", layer, q, heads * d);
    return project_out(s, w, q, y);
}
