/* The routed experts: out[t] += sum over the token's experts e of down_e (weight * swiglu(gate_e x, up_e x)).
 *
 * Tokens are grouped by expert, so that every active expert's weights are read once a call. Two loops over the pool:
 * gate and up with SwiGLU, over (expert, block of F rows); then down, over blocks of D rows, where one thread adds the
 * experts in ascending order of their ids. A token's result thus depends on its own choices only. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <string.h>

enum { ROW_BLOCK = 64, MIN_ROW_BLOCK = 32 };

/* (token, slot) pairs sorted by expert. */
typedef struct pair_list {
    int64_t n_pair, n_active, most; /* most pairs of one expert */
    int32_t *token;                 /* [n_pair] */
    float *weight;                  /* [n_pair] routing weights */
    int32_t *expert;                /* [n_active] ascending */
    int64_t *start;                 /* [n_active + 1] into the above */
} pair_list;

typedef struct experts_job {
    pf_exec *ex;
    const pf_experts_args *args;
    pair_list pairs;
    pf_acts x;
    float *gate, *up;      /* [n_pair, F]; gate becomes the SwiGLU output */
    pf_acts h;             /* what down takes: gate, or it quantised */
    uint8_t *h_quantised;  /* NULL: down takes floats */
    pf_quantize_fn quantize;
    const float *ones;     /* [most]: down adds */
    pf_gemm_fn gate_fn, up_fn, down_fn;
    int64_t row_block, blocks; /* of F */
    float *scratch;
    int64_t scratch_floats;
} experts_job;

/* A dry run gives every token the same experts, which takes the most memory. */
static int64_t expert_of(const pf_exec *ex, const pf_experts_args *args, int64_t pair) {
    return ex->dry ? args->expert_begin + pair % args->n_used : args->chosen[pair];
}

static bool in_range(const pf_experts_args *args, int64_t expert) {
    return args->expert_begin <= expert && expert < args->expert_end;
}

static pf_status sort_pairs(pf_exec *ex, const pf_experts_args *args, pair_list *out) {
    const int64_t n_expert = args->gate->count, n_pair = args->n_token * args->n_used;
    int64_t *next = pf_arena_alloc(ex->arena, (size_t)(n_expert + 1) * sizeof *next);
    out->token = pf_arena_alloc(ex->arena, (size_t)n_pair * sizeof *out->token);
    out->weight = pf_arena_alloc(ex->arena, (size_t)n_pair * sizeof *out->weight);
    out->expert = pf_arena_alloc(ex->arena, (size_t)n_expert * sizeof *out->expert);
    out->start = pf_arena_alloc(ex->arena, (size_t)(n_expert + 1) * sizeof *out->start);
    if (!next || !out->token || !out->weight || !out->expert || !out->start) return PF_ERR_MEMORY;

    memset(next, 0, (size_t)(n_expert + 1) * sizeof *next);
    for (int64_t p = 0; p < n_pair; ++p) {
        const int64_t e = expert_of(ex, args, p);
        if (e < 0 || e >= n_expert) return PF_ERR_INTERNAL;
        if (in_range(args, e)) next[e + 1]++;
    }
    out->n_active = out->most = 0;
    for (int64_t e = 0; e < n_expert; ++e) {
        const int64_t count = next[e + 1];
        next[e + 1] += next[e];
        if (count == 0) continue;
        out->expert[out->n_active] = (int32_t)e;
        out->start[out->n_active++] = next[e];
        out->most = pf_max_i64(out->most, count);
    }
    out->n_pair = out->start[out->n_active] = next[n_expert];
    for (int64_t p = 0; p < n_pair; ++p) {
        const int64_t e = expert_of(ex, args, p);
        if (!in_range(args, e)) continue;
        const int64_t at = next[e]++;
        out->token[at] = (int32_t)(p / args->n_used);
        out->weight[at] = args->weight[p];
    }
    return PF_OK;
}

static void gate_up_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const experts_job *job = arg;
    const pf_experts_args *args = job->args;
    const pf_cpu_kernels *k = pf_cpu_kernels_of(job->ex);
    const int64_t n_ff = args->gate->rows;
    for (int64_t item = begin; item < end && !pf_cancelled(job->ex); ++item) {
        const int64_t active = item / job->blocks, first = job->pairs.start[active];
        const int64_t row_begin = item % job->blocks * job->row_block;
        const int64_t row_end = pf_min_i64(row_begin + job->row_block, n_ff);
        pf_gemm gemm = {
            .w = args->gate, .matrix = job->pairs.expert[active],
            .act = job->x.data, .act_stride = job->x.stride,
            .n = job->pairs.start[active + 1] - first, .in_rows = job->pairs.token + first,
            .y = job->gate + first * n_ff, .ldy = n_ff,
            .scratch = job->scratch + worker * job->scratch_floats,
        };
        job->gate_fn(k, &gemm, row_begin, row_end);
        gemm.w = args->up;
        gemm.y = job->up + first * n_ff;
        job->up_fn(k, &gemm, row_begin, row_end);
        for (int64_t p = first; p < first + gemm.n; ++p) {
            float *h = job->gate + p * n_ff;
            k->swiglu(h + row_begin, job->up + p * n_ff + row_begin, row_end - row_begin, args->limit,
                      job->pairs.weight[p], h + row_begin);
            if (job->h_quantised) job->quantize(h, n_ff, row_begin, row_end, job->h_quantised + p * job->h.stride);
        }
    }
}

static void down_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const experts_job *job = arg;
    const pf_experts_args *args = job->args;
    for (int64_t active = 0; active < job->pairs.n_active && !pf_cancelled(job->ex); ++active) {
        const int64_t first = job->pairs.start[active];
        const pf_gemm gemm = {
            .w = args->down, .matrix = job->pairs.expert[active],
            .act = job->h.data + first * job->h.stride, .act_stride = job->h.stride,
            .n = job->pairs.start[active + 1] - first, .out_rows = job->pairs.token + first, .gain = job->ones,
            .y = args->out, .ldy = args->down->rows,
            .scratch = job->scratch + worker * job->scratch_floats,
        };
        job->down_fn(pf_cpu_kernels_of(job->ex), &gemm, begin, end);
    }
}

/* Kernels, and the activations in the form they take. */
static pf_status prepare(experts_job *job) {
    pf_exec *ex = job->ex;
    const pf_experts_args *args = job->args;
    const int64_t n_embd = args->gate->cols, n_ff = args->gate->rows;
    const pf_acts_form gate_form = pf_cpu_acts_form(ex, args->gate), h_form = pf_cpu_acts_form(ex, args->down);
    const pf_acts_form x_form = pf_cpu_acts_form(ex, args->up) == gate_form ? gate_form : PF_ACTS_F32;
    job->gate_fn = pf_cpu_gemm(ex, x_form, args->gate);
    job->up_fn = pf_cpu_gemm(ex, x_form, args->up);
    job->down_fn = pf_cpu_gemm(ex, h_form, args->down);

    pf_status status = sort_pairs(ex, args, &job->pairs);
    if (status != PF_OK) return status;
    const int64_t n_pair = job->pairs.n_pair;
    status = pf_cpu_take_acts(ex, x_form, args->x, n_embd, args->n_token, n_embd, &job->x);
    if (status != PF_OK) return status;

    float *ones = pf_arena_alloc(ex->arena, (size_t)job->pairs.most * sizeof *ones);
    job->gate = pf_arena_alloc(ex->arena, (size_t)(n_pair * n_ff) * sizeof(float));
    job->up = pf_arena_alloc(ex->arena, (size_t)(n_pair * n_ff) * sizeof(float));
    job->scratch = pf_cpu_gemm_scratch(ex, pf_max_i64(n_embd, n_ff), &job->scratch_floats);
    if (!ones || !job->gate || !job->up || !job->scratch) return PF_ERR_MEMORY;
    for (int64_t i = 0; i < job->pairs.most; ++i) ones[i] = 1.0f;
    job->ones = ones;

    job->h = (pf_acts){(const uint8_t *)job->gate, n_ff * (int64_t)sizeof(float)};
    if (h_form != PF_ACTS_F32) {
        job->quantize = pf_cpu_quantizer(ex, h_form);
        job->h.stride = pf_acts_stride(h_form, n_ff);
        job->h.data = job->h_quantised = pf_arena_alloc(ex->arena, (size_t)(n_pair * job->h.stride));
        if (!job->h_quantised) return PF_ERR_MEMORY;
    }
    const int64_t wanted = 4 * pf_pool_threads(ex->pool);
    job->row_block = job->pairs.n_active * pf_ceil_div(n_ff, ROW_BLOCK) >= wanted ? ROW_BLOCK : MIN_ROW_BLOCK;
    job->blocks = pf_ceil_div(n_ff, job->row_block);
    return PF_OK;
}

pf_status pf_cpu_experts(pf_exec *ex, const pf_experts_args *args) {
    const size_t mark = pf_arena_mark(ex->arena);
    experts_job job = {.ex = ex, .args = args};
    pf_status status = prepare(&job);
    if (status == PF_OK) status = pf_parallel(ex, job.pairs.n_active * job.blocks, 1, gate_up_piece, &job);
    if (status == PF_OK) {
        const int64_t rows = args->down->rows, share = rows / (4 * pf_pool_threads(ex->pool));
        const int64_t grain = pf_min_i64(ROW_BLOCK, pf_max_i64(16, share & ~(int64_t)15));
        status = pf_parallel(ex, rows, grain, down_piece, &job);
    }
    pf_arena_reset(ex->arena, mark);
    return status;
}
