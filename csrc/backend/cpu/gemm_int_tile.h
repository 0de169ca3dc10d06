/* Matrix product of blocks of integer weights with quantised activations (int_acts.h), for the vector kernel files:
 * groups of 16 blocks of a few rows are brought into the form that the products take once, and meet a batch of tokens.
 *
 * The including file defines pf_vec (pf_vec_zero, _set1, _load, _mul, _fma), pf_prefetch, the rows that meet several
 * tokens together (Q16_ROWS, Q8_ROWS: 1 or 2), and
 *     a type int_weights with a member `scale` (pf_vec: a block in every lane);
 *     int_weights load_<type>(const uint8_t *at, int n): the n blocks at `at`, which are a vector's, nothing behind them
 *         is read; zeros for the others;
 *     pf_vec plane_<type>(const int_weights *w, const uint8_t *values, const uint8_t *sums): every block's sum of
 *         products with one plane, whose integers and sums for these blocks begin there;
 *     where it defines PF_INT_WORDS, load_words_<type>, WORD_TOKENS (2 or more), and void word_products(const int_weights *w,
 *         const uint8_t *const *even, int64_t odd, int n, pf_vec *out): the same with q16 words of n tokens (a constant, at
 *         most WORD_TOKENS), whose odd words for these blocks begin `odd` bytes behind the even ones;
 *     float int_total(const pf_vec *sums): of the 16 sums of a row;
 *     PF_OWN_Q16 where it has other loops for q16;
 *     where it defines PF_SUPER, what vector_super.h asks for, and load_<type> of every type of PF_SUPER_TYPES. */
#ifndef PF_BACKEND_CPU_GEMM_INT_TILE_H
#define PF_BACKEND_CPU_GEMM_INT_TILE_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/int_blocks.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"

/* The activations of a batch in a group of columns, and the sums of PF_STREAMS rows, stay in L1. */
enum { INT_BATCH = 16, INT_ROWS_MOST = 2, READ_AHEAD = 544 /* bytes */,
       FEW_STREAMS_MOST = 4 /* tokens; with more, products take as long as reading */, PARTS = PF_INT_SUMS / PF_VEC_LANES };

/* Whether other loops are for one token of q16, so that these need not be quick for it. */
#if defined(PF_INT_WORDS)
enum { ONE_APART = 1 };
#else
enum { ONE_APART = 0 };
#endif

typedef int_weights (*load_fn)(const uint8_t *at, int n);
typedef pf_vec (*plane_fn)(const int_weights *w, const uint8_t *values, const uint8_t *sums);

typedef struct int_format {
    load_fn load;
    plane_fn plane; /* NULL: words */
    int64_t block_bytes; /* of a block, or a super-block */
    int blocks;          /* that these are: 1 or PF_SUPER_BLOCKS */
    float unit; /* what the sums are multiplied with at last */
    int planes; /* of the activations, and what else depends on them: */
    int rows;   /* that meet several tokens together */
    /* Of super-blocks: */
    pf_int_scaling scaling;
    bool has_minimums;
    int bias; /* what the weights are too large by */
} int_format;

/* From a row's beginning to its block `block`, which begins a super-block where it has them. */
PF_INLINE int64_t int_place(int64_t block, int_format f) { return block / f.blocks * f.block_bytes; }

typedef struct int_tile {
    const uint8_t *rows[PF_STREAMS], *act[INT_BATCH];
    int64_t padded; /* columns of a row, filled up to groups */
    pf_vec sums[PF_STREAMS][INT_BATCH][PARTS];
} int_tile;

#if defined(PF_SUPER)
#  include "backend/cpu/vector_super.h"
#else /* is never called */
#  define SUPER_PRODUCTS(w, act, padded, group, part, act_scale, sum, f) (sum)
#endif

/* Every block's sum of products, rounded once: 254 hi is exact. */
PF_INLINE pf_vec int_products(const int_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part,
                              int_format f) {
    const uint8_t *values = act + group * PF_INT_GROUP + part * (4 * PF_VEC_LANES);
    const uint8_t *sums = act + f.planes * padded + padded / 8 + group * PF_INT_QUADS + part * (4 * PF_VEC_LANES);
    const pf_vec first = f.plane(w, values, sums);
    if (f.planes == 1) return first;
    return pf_vec_fma(first, pf_vec_set1((float)PF_INT_BASE), f.plane(w, values + padded, sums + padded / 8));
}

#if defined(PF_INT_WORDS)
/* n of the tokens (a constant) from t on, with the words of a row's blocks. */
PF_INLINE void int_some_words(int_tile *tile, const int_weights *w, int64_t row, int64_t t, int n, int64_t group, int part) {
    const int64_t at = group * PF_INT_GROUP + part * (4 * PF_VEC_LANES);
    const uint8_t *even[WORD_TOKENS];
    pf_vec i[WORD_TOKENS];
    PF_UNROLL for (int k = 0; k < n; ++k) even[k] = tile->act[t + k] + at;
    word_products(w, even, tile->padded, n, i);
    PF_UNROLL for (int k = 0; k < n; ++k) {
        const uint8_t *scales = tile->act[t + k] + PF_Q16_PLANES * tile->padded;
        const float *act_scale = (const float *)(const void *)scales + PF_INT_BLOCKS * group + part * PF_VEC_LANES;
        pf_vec *sum = &tile->sums[row][t + k][part];
        *sum = pf_vec_fma(i[k], pf_vec_mul(w->scale, pf_vec_load(act_scale)), *sum);
    }
}

PF_INLINE void int_words(int_tile *tile, const int_weights *w, int64_t row, int64_t n_token, int64_t group, int part) {
    int64_t t = 0;
    PF_KEEP_LOOP for (; t + WORD_TOKENS <= n_token; t += WORD_TOKENS) {
        int_some_words(tile, w, row, t, WORD_TOKENS, group, part);
    }
    PF_KEEP_LOOP for (; t < n_token; ++t) int_some_words(tile, w, row, t, 1, group, part);
}
#else /* is never called */
#  define int_words(tile, w, row, n_token, group, part) (void)(row)
#endif

/* The first n_block blocks of a group of rows [row, row + n_row); n_row, and n_token where it is 1, are constants. */
PF_INLINE void int_group(int_tile *tile, int64_t row, int n_row, int64_t n_token, int64_t group, int n_block,
                         int_format f) {
    PF_UNROLL for (int part = 0; part < PARTS; ++part) {
        const int n = n_block - part * PF_VEC_LANES < PF_VEC_LANES ? n_block - part * PF_VEC_LANES : PF_VEC_LANES;
        int_weights w[INT_ROWS_MOST];
        if (n <= 0) break;
        PF_UNROLL for (int r = 0; r < n_row; ++r) {
            w[r] = f.load(tile->rows[row + r] + int_place(PF_INT_BLOCKS * group + part * PF_VEC_LANES, f), n);
        }
        if (f.plane == NULL && f.blocks == 1) {
            PF_KEEP_LOOP for (int r = 0; r < n_row; ++r) int_words(tile, &w[r], row + r, n_token, group, part);
            continue;
        }
        PF_KEEP_LOOP for (int64_t t = 0; t < n_token; ++t) {
            const uint8_t *scales = tile->act[t] + f.planes * tile->padded;
            const float *act_scale = (const float *)(const void *)scales + PF_INT_BLOCKS * group + part * PF_VEC_LANES;
            PF_UNROLL for (int r = 0; r < n_row; ++r) {
                if (f.blocks > 1) {
                    pf_vec *to = &tile->sums[row + r][t][part];
                    *to = SUPER_PRODUCTS(&w[r], tile->act[t], tile->padded, group, part, pf_vec_load(act_scale), *to, f);
                    continue;
                }
                const pf_vec i = int_products(&w[r], tile->act[t], tile->padded, group, part, f);
                pf_vec *sum = &tile->sums[row + r][t][part];
                *sum = pf_vec_fma(i, pf_vec_mul(w[r].scale, pf_vec_load(act_scale)), *sum);
            }
        }
    }
}

/* Of n_row rows, `step` apart from `row` on. */
PF_INLINE void int_begin(int_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t step, int64_t token,
                         int64_t n_token) {
    tile->padded = pf_int_padded(g->w->cols);
    for (int64_t t = 0; t < n_token; ++t) tile->act[t] = pf_gemm_act(g, token + t);
    for (int64_t r = 0; r < n_row; ++r) {
        tile->rows[r] = pf_weight_row(g->w, g->matrix, row + r * step);
        for (int64_t t = 0; t < n_token; ++t) {
            PF_UNROLL for (int part = 0; part < PARTS; ++part) tile->sums[r][t][part] = pf_vec_zero();
        }
    }
}

PF_INLINE void int_end(const int_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t step, int64_t token,
                       int64_t n_token, int_format f) {
    for (int64_t t = 0; t < n_token; ++t) {
        for (int64_t r = 0; r < n_row; ++r) {
            pf_gemm_put(g, token + t, row + r * step, int_total(tile->sums[r][t]) * f.unit);
        }
    }
}

/* n_row rows, `step` apart, times n_token tokens, asked for `far` bytes ahead. n_token is a constant where it is 1, and 2 with
 * words; at_once, the rows that meet several tokens together, is one and divides n_row. */
PF_INLINE void int_rows(const pf_gemm *g, int64_t row, int64_t n_row, int at_once, int64_t step, int64_t token, int64_t n_token,
                        int64_t far, int_format f) {
    const int64_t blocks = g->w->cols / BLOCK, group_bytes = int_place(PF_INT_BLOCKS, f);
    const int64_t groups = f.blocks > 1 ? pf_ceil_div(blocks, PF_INT_BLOCKS) : blocks / PF_INT_BLOCKS;
    const int rest = (int)(blocks - PF_INT_BLOCKS * groups);
    int_tile tile;
    int_begin(&tile, g, row, n_row, step, token, n_token);
    for (int64_t group = 0; group < groups; ++group) {
        const int64_t ahead = group * group_bytes + far;
        const int n_block = f.blocks > 1 ? (int)pf_min_i64(PF_INT_BLOCKS, blocks - PF_INT_BLOCKS * group) : PF_INT_BLOCKS;
        PF_KEEP_LOOP for (int64_t r = 0; r < n_row; r += at_once) {
            for (int i = 0; i < at_once; ++i) {
                for (int64_t j = 0; j + 16 <= group_bytes; j += 64) pf_prefetch(tile.rows[r + i] + ahead + j);
            }
            int_group(&tile, r, at_once, n_token, group, n_block, f);
        }
    }
    for (int64_t r = 0; f.blocks == 1 && rest > 0 && r < n_row; ++r) int_group(&tile, r, 1, n_token, groups, rest, f);
    int_end(&tile, g, row, n_row, step, token, n_token, f);
}

/* Rows [row_begin, row_end) in as many runs as there are streams, and what is left of them. */
PF_INLINE void int_runs(int64_t streams, const pf_gemm *g, int64_t row_begin, int64_t row_end, int64_t token, int64_t n_token,
                        int_format f) {
    const int64_t run = (row_end - row_begin) / streams, rest = row_begin + streams * run;
    const int64_t far = streams < PF_STREAMS ? PF_FAR_AHEAD : READ_AHEAD;
    if (f.blocks > 1) {
        for (int64_t i = 0; i < run + (row_end - rest); ++i) {
            const bool in_run = i < run;
            int_rows(g, in_run ? row_begin + i : rest + i - run, in_run ? streams : 1, 1, in_run ? run : 1, token, n_token, far, f);
        }
        return;
    }
    const int at_once = n_token > 1 ? f.rows : 1;
    for (int64_t row = row_begin; row < row_begin + run; ++row) int_rows(g, row, streams, at_once, run, token, n_token, far, f);
    for (int64_t row = rest; row < row_end; ++row) int_rows(g, row, 1, 1, 1, token, n_token, far, f);
}

PF_INLINE void int_gemm(int64_t best_streams, const pf_gemm *g, int64_t row_begin, int64_t row_end, int_format f) {
    for (int64_t token = 0; token < g->n; token += INT_BATCH) {
        const int64_t n_token = pf_min_i64(INT_BATCH, g->n - token);
        const int64_t streams = n_token <= FEW_STREAMS_MOST ? best_streams : PF_STREAMS;
        if (n_token == 2 && f.plane == NULL && f.blocks == 1) int_runs(streams, g, row_begin, row_end, token, 2, f);
        else if (n_token > 1 || (ONE_APART && f.plane == NULL)) int_runs(streams, g, row_begin, row_end, token, n_token, f);
        else int_runs(streams, g, row_begin, row_end, token, 1, f);
    }
}

#define INT_GEMM(name, ...)                                                                                      \
    static void name(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {            \
        int_gemm(k->streams, g, row_begin, row_end, (int_format){__VA_ARGS__});                                              \
    }
#define Q16_ACTS .planes = PF_Q16_PLANES, .rows = Q16_ROWS
#define Q8_ACTS .planes = PF_Q8_PLANES, .rows = Q8_ROWS
#define Q8_0_BLOCKS .block_bytes = Q8_0_BYTES, .blocks = 1, .unit = 1.0f
#define MXFP4_BLOCKS .block_bytes = MXFP4_BYTES, .blocks = 1, .unit = PF_INT_MXFP4_UNIT

#if defined(PF_OWN_Q16)
#elif defined(PF_INT_WORDS)
INT_GEMM(gemm_q16_q8_0, .load = load_words_q8_0, Q8_0_BLOCKS, Q16_ACTS)
INT_GEMM(gemm_q16_mxfp4, .load = load_words_mxfp4, MXFP4_BLOCKS, Q16_ACTS)
#else
INT_GEMM(gemm_q16_q8_0, .load = load_q8_0, .plane = plane_q8_0, Q8_0_BLOCKS, Q16_ACTS)
INT_GEMM(gemm_q16_mxfp4, .load = load_mxfp4, .plane = plane_mxfp4, MXFP4_BLOCKS, Q16_ACTS)
#endif
INT_GEMM(gemm_q8_q8_0, .load = load_q8_0, .plane = plane_q8_0, Q8_0_BLOCKS, Q8_ACTS)
INT_GEMM(gemm_q8_mxfp4, .load = load_mxfp4, .plane = plane_mxfp4, MXFP4_BLOCKS, Q8_ACTS)

#if defined(PF_SUPER)
#  define SUPER_GEMM(type, lower, scales, minimums)                                                                   \
    INT_GEMM(gemm_q16_##lower, .load = load_##lower, .block_bytes = PF_##type##_BYTES, .blocks = PF_SUPER_BLOCKS,     \
             .unit = 1.0f, .planes = PF_Q16_PLANES, .rows = 1, .scaling = (scales),                                  \
             .has_minimums = (minimums), .bias = BIAS_##type)
PF_SUPER_TYPES(SUPER_GEMM)
#  undef SUPER_GEMM
#endif

/* Overrides the table's products of these. */
static inline void set_int_entries(pf_cpu_kernels *k) {
#if !defined(PF_OWN_Q16)
    k->gemm_q16[PF_W_Q8_0] = gemm_q16_q8_0;
    k->gemm_q16[PF_W_MXFP4] = gemm_q16_mxfp4;
#endif
    k->gemm_q8[PF_W_Q8_0] = gemm_q8_q8_0;
    k->gemm_q8[PF_W_MXFP4] = gemm_q8_mxfp4;
#if defined(PF_SUPER)
#  define SET_SUPER(type, lower, scales, minimums) k->gemm_q16[PF_W_##type] = gemm_q16_##lower;
    PF_SUPER_TYPES(SET_SUPER)
#  undef SET_SUPER
#endif
}

#endif
