/* Micro-benchmarks of everything but the matrix products; see bench_kernels.c. */
#include "tools/cpu/bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const format_names[] = {"F32", "F16", "FP8", "FP4"};

static pf_rows make_rows(const bench *b, pf_row_format format, int32_t width, int32_t rope, int64_t capacity) {
    return (pf_rows){b->data, format, width, rope, pf_row_bytes(format, width, rope), capacity};
}

/* ---- Attention --------------------------------------------------------------------------------------------- */

enum { CACHE_ROWS = 65536 };

typedef struct attn_case {
    pf_rows raw, pool;
    pf_attn_args args;
    float sinks[HEADS];
    int32_t select[MAX_TOKENS * TOPK], select_n[MAX_TOKENS];
} attn_case;

static void attn_op(bench *b, void *args) { pf_cpu_sparse_attn(&b->ex, &((attn_case *)args)->args); }

static void bench_attention(bench *b) {
    static attn_case c;
    for (int f = PF_ROW_F32; f <= PF_ROW_KV_FP8; ++f) {
        c.raw = make_rows(b, (pf_row_format)f, HEAD_DIM, ROPE_DIM, WINDOW + MAX_TOKENS);
        c.pool = make_rows(b, (pf_row_format)f, HEAD_DIM, ROPE_DIM, CACHE_ROWS);
        for (int i = 0; i < MAX_TOKENS * TOPK; ++i) c.select[i] = i % TOPK * (CACHE_ROWS / TOPK) + i / TOPK;
        for (int i = 0; i < MAX_TOKENS; ++i) c.select_n[i] = TOPK;
        c.args = (pf_attn_args){.q = b->x, .out = b->y, .n_token = 1, .position = 4 * CACHE_ROWS - MAX_TOKENS - 4,
                                .n_head = HEADS, .head_dim = HEAD_DIM, .window = WINDOW, .sinks = c.sinks,
                                .scale = 0.04f, .raw = &c.raw, .pool = &c.pool, .ratio = 4, .select = c.select,
                                .select_n = c.select_n, .select_ld = TOPK};
        for (; c.args.n_token <= 16; c.args.n_token += 15) {
            char what[64];
            const double rows = (double)(c.args.n_token * (WINDOW + TOPK));
            snprintf(what, sizeof what, "%d tokens, 640 rows of %s", (int)c.args.n_token, format_names[f]);
            bench_measure(b, "sparse_attn", what, attn_op, &c, rows * (double)c.raw.row_bytes,
                          rows * 2.0 * HEADS * HEAD_DIM);
        }
    }
}

/* ---- Indexer ----------------------------------------------------------------------------------------------- */

typedef struct index_case {
    pf_rows rows;
    pf_index_args args;
    int32_t select[MAX_TOKENS * TOPK], select_n[MAX_TOKENS];
    int64_t n_rows;
} index_case;

static void index_op(bench *b, void *args) { pf_cpu_index_scores(&b->ex, &((index_case *)args)->args); }

static void topk_op(bench *b, void *args) {
    index_case *c = args;
    pf_cpu_topk(&b->ex, b->z, c->n_rows, 1, 4 * c->n_rows - 1, 4, TOPK, c->select, c->select_n);
}

/* A row's groups have scales that are close together, as the Hadamard transform leaves them. */
static void even_scales(const pf_rows *rows) {
    for (int64_t r = 0; r < rows->capacity; ++r) {
        uint8_t *scales = pf_row_at(rows, r) + INDEX_DIM / 2;
        for (int64_t g = 0; g < INDEX_DIM / 32; ++g) scales[g] = (uint8_t)(124 + (r + g) % 2);
    }
}

static void bench_indexer(bench *b) {
    static index_case c;
    static const pf_row_format formats[] = {PF_ROW_F32, PF_ROW_F16, PF_ROW_IDX_FP4};
    const int64_t n_row = 16384;
    float *q = malloc((size_t)(16 * HEADS * INDEX_DIM) * sizeof *q);
    if (!q) return;
    for (int i = 0; i < 3; ++i) {
        memcpy(q, b->x, (size_t)(16 * HEADS * INDEX_DIM) * sizeof *q);
        /* the model rounds the query where the rows are FP4 */
        if (formats[i] == PF_ROW_IDX_FP4) pf_cpu_round_fp4(&b->ex, q, 16 * HEADS, INDEX_DIM);
        c.rows = make_rows(b, formats[i], INDEX_DIM, 0, n_row);
        if (formats[i] == PF_ROW_IDX_FP4) even_scales(&c.rows);
        for (int64_t n = 1; n <= 16; n += 15) {
            char what[64];
            c.args = (pf_index_args){.q = q, .w = b->z, .scale = 1.0f, .n_token = n, .position = 4 * n_row - n,
                                     .n_head = HEADS, .ratio = 4, .rows = &c.rows, .scores = b->y, .ld = n_row};
            snprintf(what, sizeof what, "%d tokens, 16384 rows of %s", (int)n, format_names[formats[i]]);
            bench_measure(b, "index_scores", what, index_op, &c, (double)(n_row * (c.rows.row_bytes + 4 * n)),
                          (double)(n_row * n * HEADS * INDEX_DIM));
        }
    }
    c.n_rows = 65536;
    bench_measure(b, "topk", "512 of 65536", topk_op, &c, 65536.0 * 4, 0.0);
    free(q);
}

/* ---- Everything else --------------------------------------------------------------------------------------- */

typedef struct token_case {
    int64_t n;
    float *post, *comb;
    pf_rows rows;
    pf_rope_table table;
    pf_compress_args compress;
} token_case;

static const pf_mhc_shape mhc = {STREAMS, 20, D, 1e-6f, 1e-6f};

static void mhc_pre_op(bench *b, void *args) {
    const token_case *c = args;
    const pf_mhc_site site = {b->z, b->z, b->z};
    pf_cpu_mhc_pre(&b->ex, &mhc, &site, b->x, c->n, b->y, c->post, c->comb);
}
static void mhc_post_op(bench *b, void *args) {
    const token_case *c = args;
    pf_cpu_mhc_post(&b->ex, &mhc, b->x, c->post, c->comb, c->n, b->y);
}
static void norm_op(bench *b, void *args) {
    pf_cpu_rms_norm(&b->ex, b->x, ((token_case *)args)->n, D, b->z, 1e-6f, b->y);
}
static void rope_op(bench *b, void *args) {
    const token_case *c = args;
    pf_cpu_rope_tail(&b->ex, b->y, c->n, HEADS, HEAD_DIM, &c->table, false);
}
static void hadamard_op(bench *b, void *args) {
    pf_cpu_hadamard(&b->ex, b->y, ((token_case *)args)->n * HEADS, INDEX_DIM);
}
static void round_op(bench *b, void *args) {
    const int64_t n = ((token_case *)args)->n * HEADS * INDEX_DIM;
    memcpy(b->y, b->x, (size_t)n * sizeof *b->y); /* rounded values would be quicker */
    pf_cpu_round_fp4(&b->ex, b->y, n / INDEX_DIM, INDEX_DIM);
}
static void store_op(bench *b, void *args) {
    const token_case *c = args;
    pf_cpu_store_rows(&b->ex, &c->rows, 0, c->n, b->x);
}
static void swiglu_op(bench *b, void *args) {
    pf_cpu_swiglu(&b->ex, b->x, b->z, ((token_case *)args)->n * FF, 7.0f, b->y);
}
static void quantize(bench *b, pf_acts_form form, int64_t n) {
    pf_acts acts;
    pf_cpu_take_acts(&b->ex, form, b->x, D, n, D, &acts);
    pf_arena_reset(b->ex.arena, 0);
}
static void quantize_op(bench *b, void *args) { quantize(b, PF_ACTS_Q16, ((token_case *)args)->n); }
static void quantize_q8_op(bench *b, void *args) { quantize(b, PF_ACTS_Q8, ((token_case *)args)->n); }
static void compress_op(bench *b, void *args) { pf_cpu_compress(&b->ex, &((token_case *)args)->compress); }
static void route_op(bench *b, void *args) {
    static int32_t chosen[MAX_TOKENS * USED];
    static float weight[MAX_TOKENS * USED];
    const pf_route_args route = {.logits = b->x, .bias = b->z, .n_token = ((token_case *)args)->n,
                                 .n_expert = N_EXPERT, .n_used = USED, .scale = 1.5f, .scores = b->y,
                                 .chosen = chosen, .weight = weight};
    pf_cpu_route(&b->ex, &route);
}

static void bench_tokens(bench *b, token_case *c) {
    const char *what = c->n == 1 ? "1 token" : "64 tokens";
    const double n = (double)c->n;
    bench_measure(b, "mhc_pre", what, mhc_pre_op, c, 4.0 * STREAMS * D * (24.0 + n), n * STREAMS * D * 26);
    bench_measure(b, "mhc_post", what, mhc_post_op, c, 4.0 * D * n * (2 * STREAMS + 1), n * STREAMS * D * 5);
    bench_measure(b, "rms_norm", what, norm_op, c, 8.0 * D * n, 0.0);
    bench_measure(b, "rope_tail", what, rope_op, c, 8.0 * ROPE_DIM * HEADS * n, 0.0);
    bench_measure(b, "hadamard", what, hadamard_op, c, 8.0 * INDEX_DIM * HEADS * n, 0.0);
    bench_measure(b, "round_fp4", what, round_op, c, 8.0 * INDEX_DIM * HEADS * n, 0.0);
    bench_measure(b, "quantize_q8", what, quantize_q8_op, c, 5.25 * D * n, 0.0);
    bench_measure(b, "swiglu", what, swiglu_op, c, 12.0 * FF * n, 0.0);
    bench_measure(b, "quantize_q16", what, quantize_op, c, 6.5 * D * n, 0.0);
    bench_measure(b, "route", what, route_op, c, 8.0 * N_EXPERT * n, 0.0);
    c->rows = make_rows(b, PF_ROW_KV_FP8, HEAD_DIM, ROPE_DIM, MAX_TOKENS);
    c->rows.data = b->scale; /* the rows that others read stay as they are */
    bench_measure(b, "store_rows", c->n == 1 ? "1 token, FP8" : "64 tokens, FP8", store_op, c,
                  n * (4.0 * HEAD_DIM + (double)c->rows.row_bytes), 0.0);
}

void bench_ops(bench *b) {
    static float post[MAX_TOKENS * STREAMS], comb[MAX_TOKENS * STREAMS * STREAMS];
    token_case c = {.post = post, .comb = comb, .table = {b->x, b->z, ROPE_DIM / 2}};
    bench_attention(b);
    bench_indexer(b);
    c.compress = (pf_compress_args){.a = b->x, .g = b->z, .ring = 1024, .ratio = 4, .overlap = true, .width = HEAD_DIM,
                                    .first = 8, .n = 16, .norm = b->x, .eps = 1e-6f, .rope = c.table, .out = b->y};
    bench_measure(b, "compress", "16 rows of ratio 4", compress_op, &c, 16.0 * 8 * HEAD_DIM * 8, 0.0);
    c.compress.ratio = 128;
    c.compress.overlap = false;
    c.compress.first = 1;
    c.compress.n = 4;
    bench_measure(b, "compress", "4 rows of ratio 128", compress_op, &c, 4.0 * 128 * HEAD_DIM * 8, 0.0);
    for (c.n = 1; c.n <= MAX_TOKENS; c.n += MAX_TOKENS - 1) bench_tokens(b, &c);
}
