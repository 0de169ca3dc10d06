/* The routed experts: out[t] += sum over the token's experts e of down_e (weight * swiglu(gate_e x, up_e x)).
 *
 * Tokens are grouped by expert, so that every active expert's weights are read once a call. Two loops over the pool:
 * gate and up with SwiGLU, over (expert, block of F rows); then down, over blocks of D rows, where one thread adds the
 * experts in ascending order of their ids. A token's result thus depends on its own choices only. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"

#include <string.h>

enum { ROW_BLOCK = 128, MIN_ROW_BLOCK = 32, TILED_ROW_BLOCK = 4 * PF_TILE_ROWS };

/* (token, slot) pairs sorted by expert. */
typedef struct pair_list {
    int64_t n_pair, n_active, most; /* most pairs of one expert */
    int32_t *token;                 /* [n_pair] */
    float *weight;                  /* [n_pair] routing weights */
    int32_t *expert;                /* [n_active] ascending */
    int64_t *start;                 /* [n_active + 1] into the above */
} pair_list;

/* What the experts' tile kernels take of the activations of a product. */
typedef struct packed_acts {
    int planes;
    int64_t stride;     /* bytes of PF_TILE_TOKENS pairs */
    int64_t n_tile;     /* of all experts */
    int32_t *active;    /* [n_tile] whose they are, as an index of the list of active experts */
    int64_t *first_tile; /* [n_active + 1] */
    int64_t *n_tiled;   /* [n_active] the first of the expert's pairs, which they take */
    uint8_t *data;      /* NULL: none */
} packed_acts;

typedef struct experts_job {
    pf_exec *ex;
    pf_experts_args *args;
    pair_list pairs;
    pf_acts x;
    packed_acts x_packed, h_packed;
    float *gate, *up;      /* [n_pair, F]; gate becomes the SwiGLU output */
    pf_acts h;             /* what down takes: gate, or it quantised */
    uint8_t *h_quantised;  /* NULL: down takes floats */
    pf_quantize_fn quantize;
    const float *ones;     /* [most]: down adds */
    pf_product gate_fn, up_fn, down_fn;
    int64_t blocks, most_blocks; /* of MIN_ROW_BLOCK rows of F: of an expert, and of a piece */
    float *scratch;
    int64_t scratch_floats;
} experts_job;

/* A dry run gives every token the same experts, which takes the most memory. */
static int64_t expert_of(const pf_exec *ex, const pf_experts_args *args, int64_t pair) {
    return ex->dry ? args->expert_begin + pair % args->n_used : args->chosen[pair];
}

/* Where an expert's matrices are among those that the weights hold. */
static int64_t matrix_of(const pf_experts_args *args, int64_t expert) {
    return args->held_at ? args->held_at[expert] : expert - args->held_first;
}

static bool in_range(const pf_experts_args *args, int64_t expert) {
    return args->expert_begin <= expert && expert < args->expert_end && (!args->held_at || args->held_at[expert] >= 0);
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

/* The pairs of an active expert, as a product takes them. */
static pf_gemm gate_gemm(const experts_job *job, int64_t active) {
    const int64_t first = job->pairs.start[active];
    return (pf_gemm){
        .w = job->args->gate, .matrix = matrix_of(job->args, job->pairs.expert[active]), .act = job->x.data,
        .act_stride = job->x.stride, .n = job->pairs.start[active + 1] - first, .in_rows = job->pairs.token + first,
        .y = job->gate + first * job->args->gate->rows, .ldy = job->args->gate->rows,
    };
}
static pf_gemm down_gemm(const experts_job *job, int64_t active) {
    const int64_t first = job->pairs.start[active];
    return (pf_gemm){
        .w = job->args->down, .matrix = matrix_of(job->args, job->pairs.expert[active]),
        .act = job->h.data + first * job->h.stride, .act_stride = job->h.stride,
        .n = job->pairs.start[active + 1] - first, .out_rows = job->pairs.token + first,
        .gain = job->ones, .y = job->args->out, .ldy = job->args->down->rows,
    };
}

/* Rows of one active expert. next: rows that come after them, or NULL. */
static void run_gemm(const experts_job *job, const pf_product *product, pf_gemm *gemm, const packed_acts *packed,
                     int64_t active, int64_t row_begin, int64_t row_end, const uint8_t *next) {
    int64_t n_tiled = 0;
    if (packed->data) {
        n_tiled = packed->n_tiled[active];
        gemm->packed = packed->data + packed->first_tile[active] * packed->stride;
        gemm->next = next;
        gemm->next_bytes = next ? PF_TILE_ROWS * gemm->w->row_bytes : 0;
    }
    pf_cpu_gemm_run(job->ex, product, gemm, n_tiled, row_begin, row_end);
}

/* Rows [row_begin, row_end) of F of an active expert. */
static void gate_up_rows(const experts_job *job, int64_t active, int64_t row_begin, int64_t row_end, int worker) {
    const pf_experts_args *args = job->args;
    const pf_cpu_kernels *k = pf_cpu_kernels_of(job->ex);
    const int64_t n_ff = args->gate->rows, matrix = matrix_of(args, job->pairs.expert[active]);
    pf_gemm gate = gate_gemm(job, active), up = gate;
    gate.scratch = up.scratch = job->scratch + worker * job->scratch_floats;
    up.w = args->up;
    up.y = job->up + job->pairs.start[active] * n_ff;
    run_gemm(job, &job->gate_fn, &gate, &job->x_packed, active, row_begin, row_end,
             pf_weight_row(args->up, matrix, row_begin));
    run_gemm(job, &job->up_fn, &up, &job->x_packed, active, row_begin, row_end,
             row_end + PF_TILE_ROWS <= n_ff ? pf_weight_row(args->gate, matrix, row_end) : NULL);
    for (int64_t p = job->pairs.start[active]; p < job->pairs.start[active + 1]; ++p) {
        float *h = job->gate + p * n_ff;
        k->swiglu(h + row_begin, job->up + p * n_ff + row_begin, row_end - row_begin, args->limit, job->pairs.weight[p],
                  h + row_begin);
        if (job->h_quantised) job->quantize(h, n_ff, row_begin, row_end, job->h_quantised + p * job->h.stride);
    }
}

/* Items are blocks of MIN_ROW_BLOCK rows, expert after expert; those of one expert are done together. */
static void gate_up_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const experts_job *job = arg;
    const int64_t n_ff = job->args->gate->rows;
    while (begin < end && !pf_cancelled(job->ex)) {
        const int64_t active = begin / job->blocks, first = active * job->blocks;
        const int64_t last = pf_min_i64(end, first + job->blocks);
        gate_up_rows(job, active, (begin - first) * MIN_ROW_BLOCK, pf_min_i64((last - first) * MIN_ROW_BLOCK, n_ff), worker);
        begin = last;
    }
}

static void down_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const experts_job *job = arg;
    const pf_weight *down = job->args->down;
    for (int64_t active = 0; active < job->pairs.n_active && !pf_cancelled(job->ex); ++active) {
        pf_gemm gemm = down_gemm(job, active);
        gemm.scratch = job->scratch + worker * job->scratch_floats;
        const bool more = active + 1 < job->pairs.n_active && begin + PF_TILE_ROWS <= down->rows;
        run_gemm(job, &job->down_fn, &gemm, &job->h_packed, active, begin, end,
                 more ? pf_weight_row(down, matrix_of(job->args, job->pairs.expert[active + 1]), begin) : NULL);
    }
}

/* ---- Packing ----------------------------------------------------------------------------------------------- */

static int64_t pairs_of(const pair_list *pairs, int64_t active) {
    return pairs->start[active + 1] - pairs->start[active];
}

/* Tiles that there is room for: what an even spread over the experts takes, and more. The memory of a dry run must do for
 * every spread, and the most uneven ones take nearly twice this, so they are worked off in several calls (cut_range). */
static int64_t tile_room(const pf_experts_args *args) {
    const int64_t most = args->n_token * args->n_used;
    return most / PF_TILE_TOKENS + pf_max_i64(1, pf_min_i64(args->gate->count, most) / 2);
}

/* The active expert from which on the activations of a product have no room; n_active: none. */
static int64_t first_without_room(const experts_job *job, pf_acts_form form, const pf_weight *w) {
    int64_t tiles = 0, active = 0;
    for (; active < job->pairs.n_active; ++active) {
        tiles += pf_ceil_div(pf_cpu_tile_tokens(job->ex, form, w, pairs_of(&job->pairs, active)), PF_TILE_TOKENS);
        if (tiles > tile_room(job->args)) break;
    }
    return active;
}

/* Room for the packed activations of a product, where its kernels take them. */
static pf_status plan_packing(experts_job *job, pf_acts_form form, const pf_weight *w, packed_acts *out) {
    pf_exec *ex = job->ex;
    const pair_list *pairs = &job->pairs;
    const int64_t n_expert = job->args->gate->count, most_tiles = tile_room(job->args);
    if (pf_cpu_tile_tokens(ex, form, w, job->args->n_token * job->args->n_used) == 0) return PF_OK;
    out->planes = pf_acts_planes(form);
    out->stride = pf_cpu_kernels_of(ex)->tiles.packed_bytes(out->planes, w->cols);
    out->active = pf_arena_alloc(ex->arena, (size_t)most_tiles * sizeof *out->active);
    out->first_tile = pf_arena_alloc(ex->arena, (size_t)(n_expert + 1) * sizeof *out->first_tile);
    out->n_tiled = pf_arena_alloc(ex->arena, (size_t)n_expert * sizeof *out->n_tiled);
    if (!out->active || !out->first_tile || !out->n_tiled) return PF_ERR_MEMORY;
    for (int64_t active = 0; active < pairs->n_active; ++active) {
        out->first_tile[active] = out->n_tile;
        out->n_tiled[active] = pf_cpu_tile_tokens(ex, form, w, pairs_of(pairs, active));
        const int64_t end = out->n_tile + pf_ceil_div(out->n_tiled[active], PF_TILE_TOKENS);
        while (out->n_tile < end) out->active[out->n_tile++] = (int32_t)active;
    }
    out->first_tile[pairs->n_active] = out->n_tile;
    out->data = pf_arena_alloc(ex->arena, (size_t)(most_tiles * out->stride));
    return out->data ? PF_OK : PF_ERR_MEMORY;
}

static void pack_tile(const experts_job *job, const packed_acts *packed, const pf_gemm *gemm, int64_t tile) {
    const int64_t active = packed->active[tile], first = (tile - packed->first_tile[active]) * PF_TILE_TOKENS;
    const int64_t n = pf_min_i64(PF_TILE_TOKENS, packed->n_tiled[active] - first);
    pf_cpu_kernels_of(job->ex)->tiles.pack(gemm, packed->planes, first, n, packed->data + tile * packed->stride);
}
static void pack_x_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const experts_job *job = arg;
    (void)worker;
    for (int64_t tile = begin; tile < end; ++tile) {
        const pf_gemm gemm = gate_gemm(job, job->x_packed.active[tile]);
        pack_tile(job, &job->x_packed, &gemm, tile);
    }
}
static void pack_h_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const experts_job *job = arg;
    (void)worker;
    for (int64_t tile = begin; tile < end; ++tile) {
        const pf_gemm gemm = down_gemm(job, job->h_packed.active[tile]);
        pack_tile(job, &job->h_packed, &gemm, tile);
    }
}

/* ---- The operation ----------------------------------------------------------------------------------------- */

/* Leaves experts to a later call that the tiles have no room for: there is always room for one. */
static pf_status cut_range(experts_job *job, pf_acts_form x_form, pf_acts_form h_form, size_t mark) {
    pf_experts_args *args = job->args;
    const int64_t cut = pf_min_i64(first_without_room(job, x_form, args->gate), first_without_room(job, h_form, args->down));
    if (cut == job->pairs.n_active) return PF_OK;
    args->expert_end = job->pairs.expert[cut];
    pf_arena_reset(job->ex->arena, mark);
    return sort_pairs(job->ex, args, &job->pairs);
}

/* Kernels, and the activations in the form they take. */
static pf_status prepare(experts_job *job) {
    pf_exec *ex = job->ex;
    const pf_experts_args *args = job->args;
    const size_t mark = pf_arena_mark(ex->arena);
    const int64_t n_embd = args->gate->cols, n_ff = args->gate->rows;
    const pf_acts_form gate_form = pf_cpu_acts_form(ex, args->gate), h_form = pf_cpu_acts_form(ex, args->down);
    const pf_acts_form x_form = pf_cpu_acts_form(ex, args->up) == gate_form ? gate_form : PF_ACTS_F32;
    job->gate_fn = (pf_product){pf_cpu_gemm(ex, x_form, args->gate), pf_cpu_tile_gemm(ex, x_form, args->gate)};
    job->up_fn = (pf_product){pf_cpu_gemm(ex, x_form, args->up), pf_cpu_tile_gemm(ex, x_form, args->up)};
    job->down_fn = (pf_product){pf_cpu_gemm(ex, h_form, args->down), pf_cpu_tile_gemm(ex, h_form, args->down)};

    pf_status status = sort_pairs(ex, args, &job->pairs);
    if (status == PF_OK) status = cut_range(job, x_form, h_form, mark);
    if (status != PF_OK) return status;
    const int64_t n_pair = job->pairs.n_pair;
    status = pf_cpu_take_acts(ex, x_form, args->x, n_embd, args->n_token, n_embd, &job->x);
    if (status != PF_OK) return status;

    if (job->up_fn.tile_fn) status = plan_packing(job, x_form, args->gate, &job->x_packed);
    if (status == PF_OK) status = plan_packing(job, h_form, args->down, &job->h_packed);
    if (status != PF_OK) return status;

    float *ones = pf_arena_alloc(ex->arena, (size_t)job->pairs.most * sizeof *ones);
    job->gate = pf_arena_alloc(ex->arena, (size_t)(n_pair * n_ff) * sizeof(float));
    job->up = pf_arena_alloc(ex->arena, (size_t)(n_pair * n_ff) * sizeof(float));
    const bool tiled = job->x_packed.data || job->h_packed.data;
    job->scratch = pf_cpu_gemm_scratch(ex, pf_max_i64(n_embd, n_ff), tiled, &job->scratch_floats);
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
    const int64_t wanted = 4 * pf_pool_threads(ex->pool), n_active = job->pairs.n_active;
    int64_t most = n_active * pf_ceil_div(n_ff, ROW_BLOCK) >= wanted ? ROW_BLOCK : MIN_ROW_BLOCK;
    if (job->x_packed.n_tile > 0 && n_active * pf_ceil_div(n_ff, TILED_ROW_BLOCK) >= 4 * wanted) {
        most = TILED_ROW_BLOCK; /* the next rows are asked for while these compute */
    }
    job->most_blocks = most / MIN_ROW_BLOCK;
    job->blocks = pf_ceil_div(n_ff, MIN_ROW_BLOCK);
    return PF_OK;
}

/* Of the experts of the range, or of the first of them: then it makes the range end where it did. */
static pf_status run_range(pf_exec *ex, pf_experts_args *args) {
    const size_t mark = pf_arena_mark(ex->arena);
    experts_job job = {.ex = ex, .args = args};
    pf_status status = prepare(&job);
    if (status == PF_OK) status = pf_parallel(ex, job.x_packed.n_tile, 1, pack_x_piece, &job);
    if (status == PF_OK) {
        status = pf_parallel_shared(ex, job.pairs.n_active * job.blocks, 1, job.most_blocks, gate_up_piece, &job);
    }
    if (status == PF_OK && args->watch && !ex->dry) {
        const pair_list *pairs = &job.pairs;
        const pf_expert_pairs seen = {pairs->n_active, pairs->expert, pairs->start, pairs->token, pairs->weight, job.gate};
        args->watch(args->watch_user, ex, args, &seen);
    }
    if (status == PF_OK) status = pf_parallel(ex, job.h_packed.n_tile, 1, pack_h_piece, &job);
    if (status == PF_OK) {
        const int64_t rows = args->down->rows, share = rows / (4 * pf_pool_threads(ex->pool));
        status = pf_parallel_shared(ex, rows, MIN_ROW_BLOCK, pf_min_i64(ROW_BLOCK, share), down_piece, &job);
    }
    pf_arena_reset(ex->arena, mark);
    return status;
}

pf_status pf_cpu_experts(pf_exec *ex, const pf_experts_args *args) {
    pf_experts_args part = *args;
    pf_status status;
    do {
        part.expert_end = args->expert_end;
        status = run_range(ex, &part);
        part.expert_begin = part.expert_end;
    } while (status == PF_OK && part.expert_begin < args->expert_end);
    return status;
}
