/* Lightning indexer: scores of all visible compressed rows, and the best k of them. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <string.h>

typedef struct score_job {
    const pf_index_args *args;
    const pf_cpu_kernels *k;
    pf_exec *ex;
    uint8_t *codes;         /* [FP4_TOKENS, n_head] for FP4 rows: heads as integers (fp4.h) */
    pf_fp4_level level;     /* [FP4_TOKENS, n_head]: the same levelled, where the set has products of these; or NULL */
    bool *levelled;         /* [FP4_TOKENS, n_head]: which of them could be */
    float *scratch;         /* [worker, scratch_floats] */
    int64_t scratch_floats; /* products of a tile [n_head, PF_ROW_TILE], then its rows, then these levelled */
    int64_t tile_floats;    /* of its rows */
} score_job;

/* Tokens whose queries are integers at once: as much memory for any number of tokens and any length of context. */
enum { FP4_TOKENS = 32 };

/* Scores of token t and the tile's rows; `levelled`: the tile is, too. */
static void score_tile(const score_job *job, int64_t t, float *s, bool levelled, int64_t seen, float *out) {
    const pf_index_args *args = job->args;
    const int64_t width = args->rows->width, n_head = args->n_head;
    const float *rows = s + PF_ROW_TILE * n_head, *q = args->q + t * n_head * width, *w = args->w + t * n_head;
    if (levelled && job->levelled[t * n_head]) { /* which says it of all heads: see level_heads() */
        const pf_fp4_level heads = {job->level.codes + t * n_head * width, job->level.scales + t * n_head};
        job->k->tiles.fp4_scores(&heads, n_head, w, (const uint8_t *)(rows + job->tile_floats), width, args->scale, s);
        memcpy(out, s, (size_t)seen * sizeof *out);
        return;
    }
    if (job->codes) {
        const uint8_t *codes = job->codes + t * n_head * pf_fp4_query_bytes(width);
        job->k->fp4_dots(codes, n_head, (const uint8_t *)rows, width, s, PF_ROW_TILE);
    } else {
        job->k->row_dots(q, n_head, rows, seen, width, s, PF_ROW_TILE);
    }
    job->k->weigh_heads(s, PF_ROW_TILE, seen, w, n_head, args->scale, out);
}

/* Tiles of rows: a row is decoded once and meets every head of every token that sees it. */
static void score_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const score_job *job = arg;
    const pf_index_args *args = job->args;
    const pf_cpu_kernels *k = job->k;
    const int64_t width = args->rows->width, n_head = args->n_head;
    float *s = job->scratch + worker * job->scratch_floats, *rows = s + PF_ROW_TILE * n_head;
    for (int64_t tile = begin; tile < end && !pf_cancelled(job->ex); ++tile) {
        const int64_t first = tile * PF_ROW_TILE;
        const int64_t n_row = pf_min_i64(PF_ROW_TILE, (args->position + args->n_token) / args->ratio - first);
        const uint8_t *at[PF_ROW_TILE];
        for (int64_t i = 0; i < n_row; ++i) at[i] = pf_row_at(args->rows, first + i);
        bool levelled = false;
        if (job->codes) k->fp4_tile(at, n_row, width, (uint8_t *)rows);
        if (job->level.codes) {
            levelled = k->tiles.fp4_level(at, n_row, width, (uint8_t *)rows, (uint8_t *)(rows + job->tile_floats));
        }
        for (int64_t i = 0; i < n_row && !job->codes; ++i) k->load_row(args->rows, at[i], rows + i * width);
        for (int64_t t = 0; t < args->n_token; ++t) {
            /* a row is seen by the token that completes it and by all after */
            const int64_t seen = pf_min_i64(n_row, (args->position + t + 1) / args->ratio - first);
            if (seen > 0) score_tile(job, t, s, levelled, seen, args->scores + t * args->ld + first);
        }
    }
}

static void encode_heads(void *arg, int64_t begin, int64_t end, int worker) {
    const score_job *job = arg;
    const int64_t width = job->args->rows->width;
    (void)worker;
    for (int64_t h = begin; h < end; ++h) {
        uint8_t *codes = job->codes + h * pf_fp4_query_bytes(width);
        pf_cpu_fp4_query(job->args->q + h * width, width, codes);
        if (!job->level.codes) continue;
        job->levelled[h] = pf_cpu_fp4_level_query(codes, width, job->level.codes + h * width, job->level.scales + h);
    }
}

/* The first head of a token says it for all. */
static void level_heads(const score_job *job) {
    const int64_t n_head = job->args->n_head;
    for (int64_t t = 0; job->level.codes && t < job->args->n_token; ++t) {
        bool *levelled = job->levelled + t * n_head;
        for (int64_t h = 1; h < n_head; ++h) levelled[0] = levelled[0] && levelled[h];
    }
}

static pf_status score_tokens(score_job *job) {
    const pf_index_args *args = job->args;
    const int64_t n_rows = (args->position + args->n_token) / args->ratio, heads = args->n_token * args->n_head;
    pf_status status = PF_OK;
    if (job->codes) {
        status = pf_parallel(job->ex, heads, pf_max_i64(16, pf_grain(job->ex, heads)), encode_heads, job);
        if (!job->ex->dry) level_heads(job);
    }
    if (status == PF_OK) status = pf_parallel(job->ex, pf_ceil_div(n_rows, PF_ROW_TILE), 1, score_rows, job);
    return status;
}

/* Whether the set multiplies levelled heads and rows of this shape. */
static bool has_levels(const pf_cpu_kernels *k, int64_t n_head, int64_t width) {
    return k->tiles.fp4_scores != NULL && n_head % PF_TILE_TOKENS == 0 && (width == 64 || width == PF_FP4_LEVEL_WIDTH);
}

pf_status pf_cpu_index_scores(pf_exec *ex, const pf_index_args *args) {
    const size_t mark = pf_arena_mark(ex->arena);
    const int64_t width = args->rows->width, n_head = args->n_head;
    pf_index_args part = *args;
    score_job job = {.args = &part, .k = pf_cpu_kernels_of(ex), .ex = ex};
    const bool integers = args->rows->format == PF_ROW_IDX_FP4 && width % PF_FP4_GROUP == 0;
    const bool levels = integers && has_levels(job.k, n_head, width);
    job.tile_floats = integers ? pf_fp4_tile_bytes(width) / 4 : PF_ROW_TILE * width;
    job.scratch_floats = PF_ROW_TILE * n_head + job.tile_floats + (levels ? pf_fp4_level_bytes(width) / 4 : 0);
    job.scratch = pf_arena_alloc(ex->arena, (size_t)(pf_pool_threads(ex->pool) * job.scratch_floats) * sizeof(float));
    if (integers) job.codes = pf_arena_alloc(ex->arena, (size_t)(FP4_TOKENS * n_head * pf_fp4_query_bytes(width)));
    if (levels) {
        job.level.codes = pf_arena_alloc(ex->arena, (size_t)(FP4_TOKENS * n_head * width));
        job.level.scales = pf_arena_alloc(ex->arena, (size_t)(FP4_TOKENS * n_head) * sizeof(float));
        job.levelled = pf_arena_alloc(ex->arena, (size_t)(FP4_TOKENS * n_head) * sizeof(bool));
    }
    const bool has_level = job.level.codes != NULL && job.level.scales != NULL && job.levelled != NULL;
    const bool has_all = job.scratch != NULL && (job.codes != NULL || !integers) && (has_level || !levels);
    pf_status status = has_all ? PF_OK : PF_ERR_MEMORY;
    for (int64_t t = 0; t < args->n_token && status == PF_OK; t += part.n_token) {
        part.n_token = pf_min_i64(integers ? FP4_TOKENS : args->n_token, args->n_token - t);
        part.position = args->position + t;
        part.q = args->q + t * n_head * width;
        part.w = args->w + t * n_head;
        part.scores = args->scores + t * args->ld;
        status = score_tokens(&job);
    }
    pf_arena_reset(ex->arena, mark);
    return status;
}

/* Maps floats to integers of the same order. -0 and +0 compare equal as floats, so they share a key. */
static uint32_t order_key(float x) {
    uint32_t u;
    x += 0.0f;
    memcpy(&u, &x, sizeof u);
    return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}

/* The lowest float of a bucket: the inverse of order_key for a key with zeros at the end. */
static float order_value(uint32_t key) {
    const uint32_t u = (key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key;
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

enum { TOP_BITS = 11, BUCKETS = 1 << TOP_BITS, TOP_SHIFT = 32 - TOP_BITS };

/* A key that is not above the k-th highest (1-based), but near it: the start of the bucket that the k-th lies in, by
 * the highest bits. */
static uint32_t bucket_floor(const float *scores, int64_t n, int64_t k) {
    int32_t count[2][BUCKETS] = {{0}}; /* two, so that neighbours in one bucket need not wait for each other */
    for (int64_t i = 0; i < n; ++i) ++count[i & 1][order_key(scores[i]) >> TOP_SHIFT];
    uint32_t bucket = BUCKETS - 1;
    for (; count[0][bucket] + count[1][bucket] < k; --bucket) k -= count[0][bucket] + count[1][bucket];
    return bucket << TOP_SHIFT;
}

/* The key of the k-th highest of the listed scores, and how many of those equal to it are among the k best: radix
 * selection, 8 bits at a time from the top. */
static uint32_t kth_key(const float *scores, const int32_t *list, int64_t n, int64_t k, int64_t *n_equal) {
    uint32_t prefix = 0, mask = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        int64_t count[256] = {0};
        for (int64_t i = 0; i < n; ++i) {
            const uint32_t key = order_key(scores[list[i]]);
            if ((key & mask) == prefix) ++count[(key >> shift) & 255u];
        }
        uint32_t digit = 255;
        while (count[digit] < k) k -= count[digit--];
        prefix |= digit << shift;
        mask |= 255u << shift;
    }
    *n_equal = k;
    return prefix;
}

typedef struct topk_job {
    const pf_cpu_kernels *k;
    const float *scores;
    int64_t ld, position, ratio, n_best;
    int32_t *select, *select_n;
    int32_t *lists; /* [worker, most] */
    int64_t most;
} topk_job;

/* The n_best of n > n_best scores, in ascending order of their indices. */
static void select_best(const topk_job *job, const float *scores, int64_t n, int32_t *list, int32_t *select) {
    const uint32_t floor = bucket_floor(scores, n, job->n_best);
    const float limit = order_value(floor);
    /* NaNs come along; where even the limit is one, everything does. */
    const int64_t n_list = job->k->collect(scores, n, limit, list);
    int64_t n_equal, have = 0;
    const uint32_t kth = kth_key(scores, list, n_list, job->n_best, &n_equal);
    for (int64_t i = 0; i < n_list && have < job->n_best; ++i) {
        const uint32_t key = order_key(scores[list[i]]);
        if (key < kth || (key == kth && n_equal-- <= 0)) continue;
        select[have++] = list[i];
    }
}

static void topk_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const topk_job *job = arg;
    for (int64_t t = begin; t < end; ++t) {
        const int64_t n = (job->position + t + 1) / job->ratio;
        int32_t *select = job->select + t * job->n_best;
        if (n <= job->n_best) {
            for (int64_t j = 0; j < n; ++j) select[j] = (int32_t)j;
        } else {
            select_best(job, job->scores + t * job->ld, n, job->lists + worker * job->most, select);
        }
        job->select_n[t] = (int32_t)pf_min_i64(n, job->n_best);
    }
}

pf_status pf_cpu_topk(pf_exec *ex, const float *scores, int64_t ld, int64_t n_token, int64_t position, int32_t ratio,
                      int64_t k, int32_t *select, int32_t *select_n) {
    const size_t mark = pf_arena_mark(ex->arena);
    topk_job job = {pf_cpu_kernels_of(ex), scores, ld, position, ratio, k, select, select_n, NULL, 0};
    if (scores != NULL) {
        job.most = (position + n_token) / ratio;
        job.lists = pf_arena_alloc(ex->arena, (size_t)(pf_pool_threads(ex->pool) * job.most) * sizeof *job.lists);
        if (job.lists == NULL) return PF_ERR_MEMORY;
    }
    const pf_status status = pf_parallel(ex, n_token, 1, topk_tokens, &job);
    pf_arena_reset(ex->arena, mark);
    return status;
}
