/* Manifold-constrained hyper-connections: mixing N residual streams into and out of a block. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <math.h>

enum { MAX_STREAMS = 16 }; /* pf_config refuses more */

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* 1 / rms of all streams of a token. */
static float inverse_rms(const pf_cpu_kernels *k, const pf_mhc_shape *shape, const float *streams) {
    const int64_t n = shape->n_stream * shape->n_embd;
    return 1.0f / sqrtf(k->dot(streams, streams, n) / (float)n + shape->norm_eps);
}

static void normalise_rows(float *c, int n, float eps) {
    for (int j = 0; j < n; ++j) {
        float sum = 0.0f;
        for (int i = 0; i < n; ++i) sum += c[j * n + i];
        for (int i = 0; i < n; ++i) c[j * n + i] /= sum + eps;
    }
}

static void normalise_columns(float *c, int n, float eps) {
    for (int i = 0; i < n; ++i) {
        float sum = 0.0f;
        for (int j = 0; j < n; ++j) sum += c[j * n + i];
        for (int j = 0; j < n; ++j) c[j * n + i] /= sum + eps;
    }
}

/* Softmax over each row, then alternating normalisation towards a doubly stochastic matrix (Sinkhorn-Knopp). */
static void sinkhorn(float *c, int n, int iters, float eps) {
    for (int j = 0; j < n; ++j) {
        float top = c[j * n], sum = 0.0f;
        for (int i = 1; i < n; ++i) top = fmaxf(top, c[j * n + i]);
        for (int i = 0; i < n; ++i) sum += c[j * n + i] = expf(c[j * n + i] - top);
        for (int i = 0; i < n; ++i) c[j * n + i] = c[j * n + i] / sum + eps;
    }
    normalise_columns(c, n, eps);
    for (int it = 1; it < iters; ++it) {
        normalise_rows(c, n, eps);
        normalise_columns(c, n, eps);
    }
}

static void collapse(const pf_cpu_kernels *k, const pf_mhc_shape *shape, const float *pre, const float *streams,
                     float *x) {
    const float *in[MAX_STREAMS];
    for (int s = 0; s < shape->n_stream; ++s) in[s] = streams + s * shape->n_embd;
    k->mix(in, shape->n_stream, pre, 1, &x, shape->n_embd);
}

typedef struct mhc_job {
    const pf_cpu_kernels *k;
    const pf_mhc_shape *shape;
    const pf_mhc_site *site;
    const float *in;   /* pre, head: streams; post: y */
    float *streams;    /* post */
    float *x, *post, *comb;
    pf_exec *ex;
    pf_weight fn;      /* pre, head */
    int64_t n_token;
    float *m;          /* [n_token, fn.rows] fn . streams */
    float *scratch;    /* of the product, [worker, scratch_floats] */
    int64_t scratch_floats;
} mhc_job;

/* Blocks of a few rows of fn and a few tokens: fn is large, and one token must keep several threads busy. */
enum { FN_ROWS = 4, FN_TOKENS = 24 };

static void product_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int64_t row_blocks = pf_ceil_div(job->fn.rows, FN_ROWS), width = job->fn.cols;
    for (int64_t item = begin; item < end && !pf_cancelled(job->ex); ++item) {
        const int64_t row = item % row_blocks * FN_ROWS, token = item / row_blocks * FN_TOKENS;
        const pf_gemm gemm = {
            .w = &job->fn, .act = (const uint8_t *)(job->in + token * width),
            .act_stride = width * (int64_t)sizeof(float), .n = pf_min_i64(FN_TOKENS, job->n_token - token),
            .y = job->m + token * job->fn.rows, .ldy = job->fn.rows,
            .scratch = job->scratch + worker * job->scratch_floats,
        };
        job->k->gemm_f32[PF_W_F32](job->k, &gemm, row, pf_min_i64(row + FN_ROWS, job->fn.rows));
    }
}

/* fn . streams for all tokens, then `finish` for every token. */
static pf_status run_site(pf_exec *ex, mhc_job *job, int64_t n_out, int64_t n_token, pf_pool_fn finish) {
    const size_t mark = pf_arena_mark(ex->arena);
    const int64_t width = job->shape->n_stream * job->shape->n_embd;
    job->fn = (pf_weight){.data = (const uint8_t *)job->site->fn, .type = PF_F32, .cols = width, .rows = n_out,
                          .count = 1, .row_bytes = width * (int64_t)sizeof(float)};
    job->n_token = n_token;
    job->m = pf_arena_alloc(ex->arena, (size_t)(n_token * n_out) * sizeof(float));
    job->scratch = pf_cpu_gemm_scratch(ex, width, false, &job->scratch_floats);
    pf_status status = job->m && job->scratch ? PF_OK : PF_ERR_MEMORY;
    if (status == PF_OK) {
        const int64_t items = pf_ceil_div(n_out, FN_ROWS) * pf_ceil_div(n_token, FN_TOKENS);
        status = pf_parallel(ex, items, 1, product_piece, job);
    }
    if (status == PF_OK) status = pf_parallel(ex, n_token, pf_grain(ex, n_token), finish, job);
    pf_arena_reset(ex->arena, mark);
    return status;
}

static void pre_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int n = job->shape->n_stream;
    const pf_mhc_site *site = job->site;
    (void)worker;
    for (int64_t t = begin; t < end && !pf_cancelled(job->ex); ++t) {
        const float *streams = job->in + t * n * job->shape->n_embd;
        float pre[MAX_STREAMS], *m = job->m + t * job->fn.rows;
        float *post = job->post + t * n, *comb = job->comb + t * n * n;
        const float scale = inverse_rms(job->k, job->shape, streams);
        for (int i = 0; i < (2 + n) * n; ++i) m[i] *= scale;
        for (int i = 0; i < n; ++i) {
            pre[i] = sigmoid(m[i] * site->scale[0] + site->base[i]) + job->shape->hc_eps;
            post[i] = 2.0f * sigmoid(m[n + i] * site->scale[1] + site->base[n + i]);
        }
        for (int i = 0; i < n * n; ++i) comb[i] = m[2 * n + i] * site->scale[2] + site->base[2 * n + i];
        sinkhorn(comb, n, job->shape->sinkhorn_iters, job->shape->hc_eps);
        collapse(job->k, job->shape, pre, streams, job->x + t * job->shape->n_embd);
    }
}

pf_status pf_cpu_mhc_pre(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                         int64_t n_token, float *x, float *post, float *comb) {
    mhc_job job = {.k = pf_cpu_kernels_of(ex), .shape = shape, .site = site, .in = streams, .x = x, .post = post,
                   .comb = comb, .ex = ex};
    return run_site(ex, &job, (2 + shape->n_stream) * shape->n_stream, n_token, pre_tokens);
}

static void post_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int n = job->shape->n_stream;
    const int64_t width = job->shape->n_embd;
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        const float *post = job->post + t * n, *comb = job->comb + t * n * n;
        const float *in[MAX_STREAMS + 1] = {job->in + t * width};
        float *out[MAX_STREAMS], w[MAX_STREAMS * (MAX_STREAMS + 1)];
        for (int k = 0; k < n; ++k) {
            in[k + 1] = out[k] = job->streams + (t * n + k) * width;
            w[k * (n + 1)] = post[k];
            for (int j = 0; j < n; ++j) w[k * (n + 1) + 1 + j] = comb[j * n + k];
        }
        job->k->mix(in, n + 1, w, n, out, width);
    }
}

pf_status pf_cpu_mhc_post(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post,
                          const float *comb, int64_t n_token, float *streams) {
    mhc_job job = {.k = pf_cpu_kernels_of(ex), .shape = shape, .in = y, .post = (float *)(uintptr_t)post,
                   .comb = (float *)(uintptr_t)comb, .streams = streams, .ex = ex};
    return pf_parallel(ex, n_token, pf_grain(ex, n_token), post_tokens, &job);
}

static void head_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int n = job->shape->n_stream;
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        const float *streams = job->in + t * n * job->shape->n_embd;
        float pre[MAX_STREAMS];
        const float scale = inverse_rms(job->k, job->shape, streams);
        for (int i = 0; i < n; ++i) {
            pre[i] = sigmoid(job->m[t * n + i] * scale * job->site->scale[0] + job->site->base[i]) + job->shape->hc_eps;
        }
        collapse(job->k, job->shape, pre, streams, job->x + t * job->shape->n_embd);
    }
}

pf_status pf_cpu_mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n_token, float *x) {
    mhc_job job = {.k = pf_cpu_kernels_of(ex), .shape = shape, .site = site, .in = streams, .x = x, .ex = ex};
    return run_site(ex, &job, shape->n_stream, n_token, head_tokens);
}
