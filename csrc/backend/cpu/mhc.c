/* Manifold-constrained hyper-connections: mixing N residual streams into and out of a block. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include <math.h>
#include <string.h>

enum { MAX_STREAMS = 16 }; /* pf_config refuses more */

static float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/* m = (fn . f) * rsqrt(mean(f^2) + eps), n_out numbers. */
static void mix(const pf_cpu_kernels *k, const pf_mhc_shape *shape, const float *fn, const float *streams, int n_out,
                float *m) {
    const int64_t n = shape->n_stream * shape->n_embd;
    const float scale = 1.0f / sqrtf(k->dot(streams, streams, n) / (float)n + shape->norm_eps);
    for (int i = 0; i < n_out; ++i) m[i] = k->dot(fn + i * n, streams, n) * scale;
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
    memset(x, 0, (size_t)shape->n_embd * sizeof(float));
    for (int s = 0; s < shape->n_stream; ++s) k->axpy(x, pre[s], streams + s * shape->n_embd, shape->n_embd);
}

typedef struct mhc_job {
    const pf_cpu_kernels *k;
    const pf_mhc_shape *shape;
    const pf_mhc_site *site;
    const float *in;   /* pre, head: streams; post: y */
    float *streams;    /* post */
    float *x, *post, *comb;
    pf_exec *ex;
} mhc_job;

static void pre_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int n = job->shape->n_stream;
    const pf_mhc_site *site = job->site;
    (void)worker;
    for (int64_t t = begin; t < end && !pf_cancelled(job->ex); ++t) {
        const float *streams = job->in + t * n * job->shape->n_embd;
        float m[(2 + MAX_STREAMS) * MAX_STREAMS], pre[MAX_STREAMS];
        float *post = job->post + t * n, *comb = job->comb + t * n * n;
        mix(job->k, job->shape, site->fn, streams, (2 + n) * n, m);
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
    return pf_parallel(ex, n_token, pf_grain(ex, n_token), pre_tokens, &job);
}

/* A strip of channels of all streams at a time: each new stream needs every old one. */
enum { STRIP = 128 };

static void post_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int n = job->shape->n_stream;
    const int64_t width = job->shape->n_embd;
    float old[MAX_STREAMS][STRIP];
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        const float *y = job->in + t * width, *post = job->post + t * n, *comb = job->comb + t * n * n;
        float *streams = job->streams + t * n * width;
        for (int64_t c = 0; c < width; c += STRIP) {
            const int64_t len = width - c < STRIP ? width - c : STRIP;
            for (int j = 0; j < n; ++j) memcpy(old[j], streams + j * width + c, (size_t)len * sizeof(float));
            for (int k = 0; k < n; ++k) {
                float *dst = streams + k * width + c;
                for (int64_t i = 0; i < len; ++i) dst[i] = post[k] * y[c + i];
                for (int j = 0; j < n; ++j) {
                    const float w = comb[j * n + k];
                    for (int64_t i = 0; i < len; ++i) dst[i] += w * old[j][i];
                }
            }
        }
    }
}

pf_status pf_cpu_mhc_post(pf_exec *ex, const pf_mhc_shape *shape, const float *y, const float *post,
                          const float *comb, int64_t n_token, float *streams) {
    mhc_job job = {.shape = shape, .in = y, .post = (float *)(uintptr_t)post, .comb = (float *)(uintptr_t)comb,
                   .streams = streams, .ex = ex};
    return pf_parallel(ex, n_token, pf_grain(ex, n_token), post_tokens, &job);
}

static void head_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const mhc_job *job = arg;
    const int n = job->shape->n_stream;
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        const float *streams = job->in + t * n * job->shape->n_embd;
        float pre[MAX_STREAMS];
        mix(job->k, job->shape, job->site->fn, streams, n, pre);
        for (int i = 0; i < n; ++i) {
            pre[i] = sigmoid(pre[i] * job->site->scale[0] + job->site->base[i]) + job->shape->hc_eps;
        }
        collapse(job->k, job->shape, pre, streams, job->x + t * job->shape->n_embd);
    }
}

pf_status pf_cpu_mhc_head(pf_exec *ex, const pf_mhc_shape *shape, const pf_mhc_site *site, const float *streams,
                          int64_t n_token, float *x) {
    mhc_job job = {.k = pf_cpu_kernels_of(ex), .shape = shape, .site = site, .in = streams, .x = x, .ex = ex};
    return pf_parallel(ex, n_token, pf_grain(ex, n_token), head_tokens, &job);
}
