/* Matrix product of blocks of integer weights with q16 activations (q16.h), for the vector kernel files: groups of four
 * blocks of a few rows are brought into the form that the products take once, and meet a batch of tokens.
 *
 * The including file defines pf_vec (pf_vec_zero, _load, _mul, _fma), pf_prefetch, the rows of a tile for one token
 * (Q16_ROWS_ALONE) and for several (Q16_ROWS), and with VEC_BLOCKS = PF_VEC_LANES / 4 consecutive blocks to a vector
 *     a type q16_weights with a member `scale` (pf_vec: every block's scale in four lanes);
 *     q16_weights load_<type>(const uint8_t *at, int n): the n blocks at `at`, nothing behind them is read; zeros for
 *         the others of a vector;
 *     pf_vec dot_<type>(const q16_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part): sums of
 *         products with vector `part` of a group of a row of `padded` activations, four lanes a block;
 *     float q16_total(const pf_vec *sums): of the 16 sums of a row. */
#ifndef PF_BACKEND_CPU_GEMM_Q16_TILE_H
#define PF_BACKEND_CPU_GEMM_Q16_TILE_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"

/* The activations of a batch in a piece of columns, and the sums of two rows, stay in L1 while all rows pass. */
enum { INT_BATCH = 16, TILE_Q16 = 16, PIECE_GROUPS = 4, VEC_BLOCKS = PF_VEC_LANES / 4, PARTS = 4 / VEC_BLOCKS };

typedef q16_weights (*load_fn)(const uint8_t *at, int n);
typedef pf_vec (*block_dot_fn)(const q16_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part);

typedef struct q16_format {
    load_fn load;
    block_dot_fn dot;
    int64_t block_bytes;
    float unit; /* what the sums are multiplied with at last */
} q16_format;

typedef struct q16_tile {
    const uint8_t *rows[TILE_Q16], *act[INT_BATCH];
    int64_t cols, n_token;
    pf_vec sums[TILE_Q16][INT_BATCH][PARTS];
} q16_tile;

/* The first n_block blocks of a group of rows [row, row + n_row); n_row, and n_token where it is 1, are constants. */
PF_INLINE void q16_group(q16_tile *tile, int64_t row, int n_row, int64_t n_token, int64_t group, int n_block,
                         q16_format f) {
    const int64_t padded = pf_q16_padded(tile->cols);
    PF_UNROLL for (int part = 0; part < PARTS; ++part) {
        const int n = n_block - part * VEC_BLOCKS < VEC_BLOCKS ? n_block - part * VEC_BLOCKS : VEC_BLOCKS;
        q16_weights w[Q16_ROWS];
        if (n <= 0) break;
        PF_UNROLL for (int r = 0; r < n_row; ++r) {
            w[r] = f.load(tile->rows[row + r] + (4 * group + part * VEC_BLOCKS) * f.block_bytes, n);
        }
        for (int64_t t = 0; t < n_token; ++t) {
            const float *scales = pf_q16_scales(tile->act[t], tile->cols) + 16 * group + part * PF_VEC_LANES;
            PF_UNROLL for (int r = 0; r < n_row; ++r) {
                const pf_vec i = f.dot(&w[r], tile->act[t], padded, group, part);
                pf_vec *sum = &tile->sums[row + r][t][part];
                *sum = pf_vec_fma(i, pf_vec_mul(w[r].scale, pf_vec_load(scales)), *sum);
            }
        }
    }
}

PF_INLINE void q16_begin(q16_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token) {
    tile->cols = g->w->cols;
    tile->n_token = n_token;
    for (int64_t t = 0; t < n_token; ++t) tile->act[t] = pf_gemm_act(g, token + t);
    for (int64_t r = 0; r < n_row; ++r) {
        tile->rows[r] = pf_weight_row(g->w, g->matrix, row + r);
        for (int64_t t = 0; t < n_token; ++t) {
            PF_UNROLL for (int part = 0; part < PARTS; ++part) tile->sums[r][t][part] = pf_vec_zero();
        }
    }
}

PF_INLINE void q16_end(const q16_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t token,
                       int64_t n_token, q16_format f) {
    for (int64_t t = 0; t < n_token; ++t) {
        for (int64_t r = 0; r < n_row; ++r) {
            pf_gemm_put(g, token + t, row + r, q16_total(tile->sums[r][t]) * f.unit);
        }
    }
}

/* n_row rows (a constant) times one token: waits for memory, so the rows behind these are asked for meanwhile. */
PF_INLINE void q16_gemv(const pf_gemm *g, int64_t row, int n_row, int64_t token, q16_format f) {
    const int64_t groups = g->w->cols / PF_Q16_GROUP, group_bytes = 4 * f.block_bytes;
    const int rest = (int)(g->w->cols % PF_Q16_GROUP / BLOCK);
    q16_tile tile;
    q16_begin(&tile, g, row, n_row, token, 1);
    for (int64_t group = 0; group < groups; ++group) {
        PF_UNROLL for (int r = 0; r < n_row; ++r) {
            const uint8_t *next = tile.rows[r] + n_row * g->w->row_bytes + group * group_bytes;
            for (int64_t i = 0; i + 64 <= group_bytes; i += 64) pf_prefetch(next + i);
        }
        q16_group(&tile, 0, n_row, 1, group, 4, f);
    }
    if (rest > 0) q16_group(&tile, 0, n_row, 1, groups, rest, f);
    q16_end(&tile, g, row, n_row, token, 1, f);
}

/* Groups [begin, end) of n_row rows (a constant) from `row` on. */
PF_INLINE void q16_piece(q16_tile *tile, int64_t row, int n_row, int64_t begin, int64_t end, q16_format f) {
    for (int64_t group = begin; group < end; ++group) {
        const int64_t n_block = pf_min_i64(4, tile->cols / BLOCK - 4 * group);
        if (n_block == 4) q16_group(tile, row, n_row, tile->n_token, group, 4, f);
        else q16_group(tile, row, n_row, tile->n_token, group, (int)n_block, f);
    }
}

/* Rows [row, row + n_row) times tokens [token, token + n_token). */
PF_INLINE void q16_batch(const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token, q16_format f) {
    const int64_t groups = pf_q16_padded(g->w->cols) / PF_Q16_GROUP;
    q16_tile tile;
    q16_begin(&tile, g, row, n_row, token, n_token);
    for (int64_t begin = 0; begin < groups; begin += PIECE_GROUPS) {
        const int64_t end = pf_min_i64(begin + PIECE_GROUPS, groups);
        int64_t r = 0;
        for (; r + Q16_ROWS <= n_row; r += Q16_ROWS) q16_piece(&tile, r, Q16_ROWS, begin, end, f);
        for (; r < n_row; ++r) q16_piece(&tile, r, 1, begin, end, f);
    }
    q16_end(&tile, g, row, n_row, token, n_token, f);
}

PF_INLINE void q16_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, q16_format f) {
    for (int64_t token = 0; token < g->n; token += INT_BATCH) {
        const int64_t n_token = pf_min_i64(INT_BATCH, g->n - token);
        int64_t row = row_begin;
        if (n_token > 1) {
            for (; row < row_end; row += TILE_Q16) {
                q16_batch(g, row, pf_min_i64(TILE_Q16, row_end - row), token, n_token, f);
            }
        } else {
            for (; row + Q16_ROWS_ALONE <= row_end; row += Q16_ROWS_ALONE) q16_gemv(g, row, Q16_ROWS_ALONE, token, f);
            for (; row < row_end; ++row) q16_gemv(g, row, 1, token, f);
        }
    }
}

static void gemm_q16_q8_0(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    (void)k;
    q16_gemm(g, row_begin, row_end, (q16_format){load_q8_0, dot_q8_0, Q8_0_BYTES, 1.0f});
}

static void gemm_q16_mxfp4(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    (void)k;
    q16_gemm(g, row_begin, row_end, (q16_format){load_mxfp4, dot_mxfp4, MXFP4_BYTES, PF_Q16_MXFP4_UNIT});
}

#endif
