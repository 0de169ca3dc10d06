/* RMSNorm and rotary embedding of a vector's tail. */
#include "backend/cpu/kernels.h"
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include <math.h>

typedef struct norm_job {
    const pf_cpu_kernels *k;
    const float *x, *gain;
    float *y;
    int64_t n;
    float eps;
} norm_job;

static void norm_rows(void *arg, int64_t begin, int64_t end, int worker) {
    const norm_job *job = arg;
    (void)worker;
    for (int64_t r = begin; r < end; ++r) {
        const float *x = job->x + r * job->n;
        float *y = job->y + r * job->n;
        float scale = 1.0f / sqrtf(job->k->dot(x, x, job->n) / (float)job->n + job->eps);
        job->k->norm(x, scale, job->gain, job->n, y);
    }
}

pf_status pf_cpu_rms_norm(pf_exec *ex, const float *x, int64_t n_row, int64_t n, const float *gain, float eps,
                          float *y) {
    norm_job job = {pf_cpu_kernels_of(ex), x, gain, y, n, eps};
    return pf_parallel(ex, n_row, pf_grain(ex, n_row), norm_rows, &job);
}

typedef struct rope_job {
    float *x;
    int64_t n_head, d;
    pf_rope_table table;
    float sign;
} rope_job;

static void rope_tokens(void *arg, int64_t begin, int64_t end, int worker) {
    const rope_job *job = arg;
    const int64_t half = job->table.half;
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        const float *cos = job->table.cos + t * half, *sin = job->table.sin + t * half;
        for (int64_t h = 0; h < job->n_head; ++h) {
            float *tail = job->x + (t * job->n_head + h + 1) * job->d - 2 * half;
            for (int64_t i = 0; i < half; ++i) {
                float even = tail[2 * i], odd = tail[2 * i + 1], s = job->sign * sin[i];
                tail[2 * i] = even * cos[i] - odd * s;
                tail[2 * i + 1] = even * s + odd * cos[i];
            }
        }
    }
}

pf_status pf_cpu_rope_tail(pf_exec *ex, float *x, int64_t n_token, int64_t n_head, int64_t d,
                           const pf_rope_table *table, bool inverse) {
    rope_job job = {x, n_head, d, *table, inverse ? -1.0f : 1.0f};
    return pf_parallel(ex, n_token, pf_grain(ex, n_token), rope_tokens, &job);
}
