/* Matrix products of one weight with a batch of activations, embeddings, SwiGLU and sums. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <string.h>

pf_acts_form pf_cpu_acts_form(const pf_exec *ex, const pf_weight *w) {
    const pf_acts_form form = ex->exact ? PF_ACTS_F32 : ex->int8 ? PF_ACTS_Q8 : PF_ACTS_Q16;
    return pf_cpu_gemm(ex, form, w) != NULL ? form : PF_ACTS_F32;
}

pf_gemm_fn pf_cpu_gemm(const pf_exec *ex, pf_acts_form form, const pf_weight *w) {
    const pf_cpu_kernels *k = pf_cpu_kernels_of(ex);
    const int kind = pf_weight_kind(w->type);
    return form == PF_ACTS_Q8 ? k->gemm_q8[kind] : form == PF_ACTS_Q16 ? k->gemm_q16[kind] : k->gemm_f32[kind];
}

pf_quantize_fn pf_cpu_quantizer(const pf_exec *ex, pf_acts_form form) {
    const pf_cpu_kernels *k = pf_cpu_kernels_of(ex);
    return form == PF_ACTS_Q8 ? k->quantize_q8 : k->quantize_q16;
}

float *pf_cpu_gemm_scratch(pf_exec *ex, int64_t cols, int64_t *floats) {
    *floats = (cols + 15) & ~(int64_t)15; /* workers never share a cache line */
    return pf_arena_alloc(ex->arena, (size_t)(*floats * pf_pool_threads(ex->pool)) * sizeof(float));
}

/* ---- Quantised activations --------------------------------------------------------------------------------- */

typedef struct quantize_job {
    pf_quantize_fn quantize;
    const float *x;
    int64_t ldx, n, stride;
    uint8_t *out;
} quantize_job;

static void quantize_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const quantize_job *job = arg;
    (void)worker;
    for (int64_t r = begin; r < end; ++r) {
        job->quantize(job->x + r * job->ldx, job->n, 0, job->n, job->out + r * job->stride);
    }
}

pf_status pf_cpu_take_acts(pf_exec *ex, pf_acts_form form, const float *x, int64_t ldx, int64_t n_row, int64_t n,
                           pf_acts *out) {
    if (form == PF_ACTS_F32) {
        *out = (pf_acts){(const uint8_t *)x, ldx * (int64_t)sizeof *x};
        return PF_OK;
    }
    quantize_job job = {pf_cpu_quantizer(ex, form), x, ldx, n, pf_acts_stride(form, n), NULL};
    job.out = pf_arena_alloc(ex->arena, (size_t)(job.stride * n_row));
    if (!job.out) return PF_ERR_MEMORY;
    *out = (pf_acts){job.out, job.stride};
    /* A few rows take less time than waking the workers: one piece, which the caller does itself. */
    const int64_t grain = n_row * n <= 32768 ? n_row : pf_max_i64(4, pf_grain(ex, n_row));
    return pf_parallel(ex, n_row, grain, quantize_piece, &job);
}

/* ---- Linear ------------------------------------------------------------------------------------------------ */

typedef struct linear_job {
    pf_exec *ex;
    pf_gemm gemm;
    pf_gemm_fn fn;
    float *scratch;
    int64_t scratch_floats;
} linear_job;

static void linear_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const linear_job *job = arg;
    if (pf_cancelled(job->ex)) return;
    pf_gemm gemm = job->gemm;
    gemm.scratch = job->scratch + worker * job->scratch_floats;
    job->fn(pf_cpu_kernels_of(job->ex), &gemm, begin, end);
}

/* Rows a piece: whole tiles of the kernels, small enough to share out and to stop soon. */
static int64_t row_grain(const pf_exec *ex, int64_t rows) {
    const int64_t share = rows / (4 * pf_pool_threads(ex->pool));
    return pf_min_i64(64, pf_max_i64(16, share & ~(int64_t)15));
}

pf_status pf_cpu_linear(pf_exec *ex, const pf_weight *w, const float *x, int64_t ldx, int64_t n_token, float *y,
                        int64_t ldy) {
    const size_t mark = pf_arena_mark(ex->arena);
    const pf_acts_form form = pf_cpu_acts_form(ex, w);
    pf_acts acts;
    pf_status status = pf_cpu_take_acts(ex, form, x, ldx, n_token, w->cols, &acts);
    if (status == PF_OK) {
        linear_job job = {
            .ex = ex,
            .gemm = {.w = w, .act = acts.data, .act_stride = acts.stride, .n = n_token, .y = y, .ldy = ldy},
            .fn = pf_cpu_gemm(ex, form, w),
        };
        job.scratch = pf_cpu_gemm_scratch(ex, w->cols, &job.scratch_floats);
        status = job.scratch ? pf_parallel(ex, w->rows, row_grain(ex, w->rows), linear_piece, &job) : PF_ERR_MEMORY;
    }
    pf_arena_reset(ex->arena, mark);
    return status;
}

/* ---- Embedding --------------------------------------------------------------------------------------------- */

typedef struct embed_job {
    pf_dequant_fn dequant;
    const pf_weight *w;
    const int32_t *tokens;
    int64_t n_stream;
    float *x;
} embed_job;

static void embed_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const embed_job *job = arg;
    const int64_t n = job->w->cols;
    (void)worker;
    for (int64_t t = begin; t < end; ++t) {
        float *x = job->x + t * job->n_stream * n;
        job->dequant(job->w, 0, job->tokens[t], x);
        for (int64_t s = 1; s < job->n_stream; ++s) memcpy(x + s * n, x, (size_t)n * sizeof *x);
    }
}

pf_status pf_cpu_embed(pf_exec *ex, const pf_weight *w, const int32_t *tokens, int64_t n_token, int64_t n_stream,
                       float *x) {
    embed_job job = {pf_cpu_kernels_of(ex)->dequant[pf_weight_kind(w->type)], w, tokens, n_stream, x};
    return pf_parallel(ex, n_token, pf_grain(ex, n_token), embed_piece, &job);
}

/* ---- SwiGLU ------------------------------------------------------------------------------------------------ */

typedef struct swiglu_job {
    const pf_cpu_kernels *k;
    const float *gate, *up;
    float limit;
    float *h;
} swiglu_job;

static void swiglu_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const swiglu_job *job = arg;
    (void)worker;
    job->k->swiglu(job->gate + begin, job->up + begin, end - begin, job->limit, 1.0f, job->h + begin);
}

pf_status pf_cpu_swiglu(pf_exec *ex, const float *gate, const float *up, int64_t n, float limit, float *h) {
    swiglu_job job = {pf_cpu_kernels_of(ex), gate, up, limit, h};
    return pf_parallel(ex, n, pf_max_i64(1024, pf_grain(ex, n)), swiglu_piece, &job);
}

/* ---- Sums -------------------------------------------------------------------------------------------------- */

typedef struct add_job {
    const pf_cpu_kernels *k;
    float *y;
    const float *x;
} add_job;

static void add_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const add_job *job = arg;
    (void)worker;
    job->k->axpy(job->y + begin, 1.0f, job->x + begin, end - begin);
}

pf_status pf_cpu_add(pf_exec *ex, float *y, const float *x, int64_t n) {
    add_job job = {pf_cpu_kernels_of(ex), y, x};
    return pf_parallel(ex, n, pf_max_i64(4096, pf_grain(ex, n)), add_piece, &job);
}
