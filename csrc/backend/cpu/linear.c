/* Matrix products of one weight with a batch of activations, embeddings, SwiGLU and sums. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <string.h>

enum {
    FEW_TOKENS = 8,
    ROWS_OF_FEW = 512, /* of a piece for a few tokens: long runs to read (PF_STREAMS) */
    ROWS_LEAST = 32    /* of any piece: a panel of the tile kernels (gemm_panel.h) */
};

pf_acts_form pf_cpu_acts_form(const pf_exec *ex, const pf_weight *w) {
    const pf_acts_form form = ex->exact ? PF_ACTS_F32 : ex->int8 ? PF_ACTS_Q8 : PF_ACTS_Q16;
    if (pf_cpu_gemm(ex, form, w) != NULL) return form;
    return form == PF_ACTS_Q8 && pf_cpu_gemm(ex, PF_ACTS_Q16, w) != NULL ? PF_ACTS_Q16 : PF_ACTS_F32;
}

pf_gemm_fn pf_cpu_gemm(const pf_exec *ex, pf_acts_form form, const pf_weight *w) {
    const pf_cpu_kernels *k = pf_cpu_kernels_of(ex);
    const int kind = pf_weight_kind(w->type);
    if (kind < 0) return NULL; /* no weight's */
    return form == PF_ACTS_Q8 ? k->gemm_q8[kind] : form == PF_ACTS_Q16 ? k->gemm_q16[kind] : k->gemm_f32[kind];
}

pf_quantize_fn pf_cpu_quantizer(const pf_exec *ex, pf_acts_form form) {
    const pf_cpu_kernels *k = pf_cpu_kernels_of(ex);
    return form == PF_ACTS_Q8 ? k->quantize_q8 : k->quantize_q16;
}

float *pf_cpu_gemm_scratch(pf_exec *ex, int64_t cols, bool tiled, int64_t *floats) {
    const int64_t tile_floats = tiled ? pf_cpu_kernels_of(ex)->tiles.scratch_bytes(cols) / 4 : 0;
    *floats = (pf_max_i64(cols, tile_floats) + 15) & ~(int64_t)15; /* workers never share a cache line */
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

/* ---- Tiles ------------------------------------------------------------------------------------------------- */

int64_t pf_cpu_tile_tokens(const pf_exec *ex, pf_acts_form form, const pf_weight *w, int64_t n) {
    const pf_cpu_kernels *k = pf_cpu_kernels_of(ex);
    const pf_tile_kernels *tiles = &k->tiles;
    if (form == PF_ACTS_F32 || tiles->from == 0 || pf_cpu_tile_gemm(ex, form, w) == NULL) return 0;
    const bool of_supers = k->gemm_q8[pf_weight_kind(w->type)] == NULL; /* what has tiles has q8 else */
    if (n < (of_supers ? tiles->super_from : tiles->from)) return 0;
    /* A few tokens left over are quicker without, and as right. */
    const int64_t rest = n % PF_TILE_TOKENS;
    return rest < tiles->rest ? n - rest : n;
}

pf_gemm_fn pf_cpu_tile_gemm(const pf_exec *ex, pf_acts_form form, const pf_weight *w) {
    const pf_tile_kernels *tiles = &pf_cpu_kernels_of(ex)->tiles;
    const int kind = pf_weight_kind(w->type);
    return form == PF_ACTS_Q8 ? tiles->gemm_q8[kind] : tiles->gemm_q16[kind];
}

void pf_cpu_gemm_run(const pf_exec *ex, const pf_product *p, const pf_gemm *gemm, int64_t n_tiled, int64_t row_begin,
                     int64_t row_end) {
    const pf_cpu_kernels *k = pf_cpu_kernels_of(ex);
    pf_gemm part = *gemm;
    if (n_tiled > 0) {
        part.n = n_tiled;
        p->tile_fn(k, &part, row_begin, row_end);
    }
    if (n_tiled == gemm->n) return;
    part = *gemm;
    part.n -= n_tiled;
    if (part.in_rows) part.in_rows += n_tiled;
    else part.act += n_tiled * part.act_stride;
    if (part.out_rows) part.out_rows += n_tiled;
    else part.y += n_tiled * part.ldy;
    if (part.gain) part.gain += n_tiled;
    p->fn(k, &part, row_begin, row_end);
}

/* ---- Linear ------------------------------------------------------------------------------------------------ */

typedef struct linear_job {
    pf_exec *ex;
    pf_gemm gemm;
    pf_product product;
    int planes;
    int64_t n_tiled, packed_stride;
    uint8_t *packed;
    float *scratch;
    int64_t scratch_floats;
} linear_job;

static void linear_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const linear_job *job = arg;
    if (pf_cancelled(job->ex)) return;
    pf_gemm gemm = job->gemm;
    gemm.scratch = job->scratch + worker * job->scratch_floats;
    pf_cpu_gemm_run(job->ex, &job->product, &gemm, job->n_tiled, begin, end);
}

static void pack_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const linear_job *job = arg;
    (void)worker;
    for (int64_t tile = begin; tile < end; ++tile) {
        const int64_t first = tile * PF_TILE_TOKENS, n = pf_min_i64(PF_TILE_TOKENS, job->n_tiled - first);
        pf_cpu_kernels_of(job->ex)->tiles.pack(&job->gemm, job->planes, first, n, job->packed + tile * job->packed_stride);
    }
}

/* Most rows of a piece: whole tiles of the kernels, small enough to share out and to stop soon. */
static int64_t most_rows(const pf_exec *ex, int64_t rows, int64_t n_token) {
    const int64_t share = rows / (4 * pf_pool_threads(ex->pool));
    const int64_t most = n_token <= FEW_TOKENS ? ROWS_OF_FEW : PF_TILE_ROWS;
    return pf_min_i64(most, pf_max_i64(ROWS_LEAST, share & ~(int64_t)(ROWS_LEAST - 1)));
}

static pf_status pack(linear_job *job) {
    pf_exec *ex = job->ex;
    const int64_t tiles = pf_ceil_div(job->n_tiled, PF_TILE_TOKENS);
    if (tiles == 0) return PF_OK;
    job->packed_stride = pf_cpu_kernels_of(ex)->tiles.packed_bytes(job->planes, job->gemm.w->cols);
    job->packed = pf_arena_alloc(ex->arena, (size_t)(tiles * job->packed_stride));
    job->gemm.packed = job->packed;
    return job->packed ? pf_parallel(ex, tiles, 1, pack_piece, job) : PF_ERR_MEMORY;
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
            .product = {pf_cpu_gemm(ex, form, w), pf_cpu_tile_gemm(ex, form, w)},
            .planes = pf_acts_planes(form),
            .n_tiled = pf_cpu_tile_tokens(ex, form, w, n_token),
        };
        job.scratch = pf_cpu_gemm_scratch(ex, w->cols, job.n_tiled > 0, &job.scratch_floats);
        status = job.scratch ? pack(&job) : PF_ERR_MEMORY;
        if (status == PF_OK) {
            status = pf_parallel_shared(ex, w->rows, ROWS_LEAST, most_rows(ex, w->rows, n_token), linear_piece, &job);
        }
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
