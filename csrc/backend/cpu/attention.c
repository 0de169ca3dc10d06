/* Attention over the window rows and the selected compressed rows: one shared row per token is both key and value.
 *
 * Rows are taken in tiles: a tile is decoded once to float and meets every head, with a running softmax. What a token
 * sees and in which order depends on its position only, so the result does not depend on the batch. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <math.h>
#include <string.h>

typedef struct attn_job {
    const pf_attn_args *args;
    const pf_cpu_kernels *k;
    pf_exec *ex;
    int64_t head_block, n_blocks; /* heads a work item, items a token */
    float *scratch;               /* [worker, scratch_floats] */
    int64_t scratch_floats;
} attn_job;

/* The rows one token attends to: window rows by position, then compressed rows by index. */
typedef struct row_list {
    int64_t window_first, n_window, n_pool;
    const int32_t *select; /* NULL: pool rows 0 .. n_pool-1 */
} row_list;

static row_list rows_of(const pf_attn_args *args, int64_t t) {
    const int64_t p = args->position + t;
    row_list list = {pf_max_i64(0, p - args->window + 1), 0, 0, NULL};
    list.n_window = p + 1 - list.window_first;
    if (args->pool != NULL) {
        if (args->select != NULL) {
            list.select = args->select + t * args->select_ld;
            list.n_pool = args->select_n[t];
        } else {
            list.n_pool = (p + 1) / args->ratio;
        }
    }
    return list;
}

static void load_tile(const attn_job *job, const row_list *list, int64_t first, int64_t n, float *tile) {
    const pf_attn_args *args = job->args;
    for (int64_t i = first; i < first + n; ++i, tile += args->head_dim) {
        if (i < list->n_window) {
            job->k->load_row(args->raw, pf_row_at(args->raw, list->window_first + i), tile);
        } else {
            const int64_t j = i - list->n_window;
            job->k->load_row(args->pool, pf_row_at(args->pool, list->select != NULL ? list->select[j] : j), tile);
        }
    }
}

/* The sink joins the denominator with value 0. */
static float sink_scale(float top, float sum, float sink) {
    if (sink <= top) return 1.0f / (sum + expf(sink - top));
    const float shrink = expf(top - sink);
    return shrink / (sum * shrink + 1.0f);
}

static void attend(void *arg, int64_t begin, int64_t end, int worker) {
    const attn_job *job = arg;
    const pf_attn_args *args = job->args;
    const int64_t d = args->head_dim, block = job->head_block;
    float *tile = job->scratch + worker * job->scratch_floats;
    float *acc = tile + PF_ROW_TILE * d, *s = acc + block * d, *top = s + block * PF_ROW_TILE, *sum = top + block;
    float *shrink = sum + block;
    for (int64_t item = begin; item < end && !pf_cancelled(job->ex); ++item) {
        const int64_t t = item / job->n_blocks, h0 = item % job->n_blocks * block;
        const int64_t n_head = pf_min_i64(block, args->n_head - h0);
        const float *q = args->q + (t * args->n_head + h0) * d;
        float *out = args->out + (t * args->n_head + h0) * d;
        const row_list list = rows_of(args, t);
        memset(acc, 0, (size_t)(n_head * d) * sizeof(float));
        for (int64_t h = 0; h < n_head; ++h) {
            top[h] = -INFINITY;
            sum[h] = 0.0f;
        }
        /* Running softmax: acc = sum exp(s_i - top) row_i. */
        for (int64_t i = 0; i < list.n_window + list.n_pool; i += PF_ROW_TILE) {
            const int64_t n = pf_min_i64(PF_ROW_TILE, list.n_window + list.n_pool - i);
            load_tile(job, &list, i, n, tile);
            job->k->row_dots(q, n_head, tile, n, d, s, PF_ROW_TILE);
            for (int64_t h = 0; h < n_head; ++h) {
                shrink[h] = job->k->softmax_part(s + h * PF_ROW_TILE, n, args->scale, &top[h], &sum[h]);
            }
            job->k->row_sums(s, PF_ROW_TILE, shrink, n_head, tile, n, d, acc);
        }
        for (int64_t h = 0; h < n_head; ++h) {
            const float scale = sink_scale(top[h], sum[h], args->sinks[h0 + h]);
            for (int64_t c = 0; c < d; ++c) out[h * d + c] = acc[h * d + c] * scale;
        }
    }
}

pf_status pf_cpu_sparse_attn(pf_exec *ex, const pf_attn_args *args) {
    const int threads = pf_pool_threads(ex->pool);
    const size_t mark = pf_arena_mark(ex->arena);
    attn_job job = {.args = args, .k = pf_cpu_kernels_of(ex), .ex = ex};
    /* All heads of a token in one item when there are tokens enough; a few tokens' heads are spread over threads, two pieces
     * each, so that nobody waits for a slow one with half of the work. */
    job.n_blocks = pf_min_i64(pf_ceil_div(2 * threads, args->n_token), args->n_head);
    job.head_block = pf_ceil_div(args->n_head, job.n_blocks);
    job.n_blocks = pf_ceil_div(args->n_head, job.head_block);
    job.scratch_floats = PF_ROW_TILE * args->head_dim + job.head_block * (args->head_dim + PF_ROW_TILE + 3);
    job.scratch = pf_arena_alloc(ex->arena, (size_t)threads * (size_t)job.scratch_floats * sizeof(float));
    if (job.scratch == NULL) return PF_ERR_MEMORY;
    const pf_status status = pf_parallel(ex, args->n_token * job.n_blocks, 1, attend, &job);
    pf_arena_reset(ex->arena, mark);
    return status;
}
