/* Matrix product of blocks of integer weights with quantised activations (q16.h, q8.h), for the vector kernel files:
 * groups of blocks of a few rows are brought into the form that the products take once, and meet a batch of tokens.
 *
 * A group's 16 sums are PARTS vectors: of q16 four lanes for each of 4 blocks, of q8 one for each of 16. The including
 * file defines pf_vec (pf_vec_zero, _load, _mul, _fma), pf_prefetch, the rows of a tile for one token (Q16_ROWS_ALONE)
 * and for several (Q16_ROWS, Q8_ROWS), and for both forms <q> of activations
 *     a type int_weights with a member `scale` (pf_vec: every block's scale in its lanes);
 *     int_weights load_<q>_<type>(const uint8_t *at, int n): the n blocks at `at`, which are a vector's, nothing behind
 *         them is read; zeros for the others;
 *     pf_vec dot_<q>_<type>(const int_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part): sums of
 *         products with vector `part` of a group of a row of `padded` activations;
 *     float int_total(const pf_vec *sums): of the 16 sums of a row. */
#ifndef PF_BACKEND_CPU_GEMM_INT_TILE_H
#define PF_BACKEND_CPU_GEMM_INT_TILE_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"

/* The activations of a batch in a piece of columns, and the sums of two rows, stay in L1 while all rows pass. */
enum { INT_BATCH = 16, INT_TILE = 16, INT_ROWS_MOST = 4, PARTS = 16 / PF_VEC_LANES };

typedef int_weights (*load_fn)(const uint8_t *at, int n);
typedef pf_vec (*block_dot_fn)(const int_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part);

typedef struct int_format {
    load_fn load;
    block_dot_fn dot;
    int64_t block_bytes;
    float unit;           /* what the sums are multiplied with at last */
    int group_blocks;     /* what follows is the activations' */
    int value_bytes;      /* of a row before its scales, a column */
    int rows, rows_alone; /* of a tile for several tokens, and for one */
    int piece;            /* groups of a piece of columns */
} int_format;

typedef struct int_tile {
    const uint8_t *rows[INT_TILE], *act[INT_BATCH];
    int64_t blocks, padded, n_token; /* blocks of a row; its columns, filled up to groups */
    pf_vec sums[INT_TILE][INT_BATCH][PARTS];
} int_tile;

/* The first n_block blocks of a group of rows [row, row + n_row); n_row, and n_token where it is 1, are constants. */
PF_INLINE void int_group(int_tile *tile, int64_t row, int n_row, int64_t n_token, int64_t group, int n_block,
                         int_format f) {
    const int vec_blocks = f.group_blocks / PARTS;
    PF_UNROLL for (int part = 0; part < PARTS; ++part) {
        const int n = n_block - part * vec_blocks < vec_blocks ? n_block - part * vec_blocks : vec_blocks;
        int_weights w[INT_ROWS_MOST];
        if (n <= 0) break;
        PF_UNROLL for (int r = 0; r < n_row; ++r) {
            w[r] = f.load(tile->rows[row + r] + (f.group_blocks * group + part * vec_blocks) * f.block_bytes, n);
        }
        for (int64_t t = 0; t < n_token; ++t) {
            const uint8_t *scales = tile->act[t] + f.value_bytes * tile->padded;
            const float *act_scale = (const float *)(const void *)scales + 16 * group + part * PF_VEC_LANES;
            PF_UNROLL for (int r = 0; r < n_row; ++r) {
                const pf_vec i = f.dot(&w[r], tile->act[t], tile->padded, group, part);
                pf_vec *sum = &tile->sums[row + r][t][part];
                *sum = pf_vec_fma(i, pf_vec_mul(w[r].scale, pf_vec_load(act_scale)), *sum);
            }
        }
    }
}

PF_INLINE void int_begin(int_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token,
                         int_format f) {
    tile->blocks = g->w->cols / BLOCK;
    tile->padded = (tile->blocks + f.group_blocks - 1) / f.group_blocks * f.group_blocks * BLOCK;
    tile->n_token = n_token;
    for (int64_t t = 0; t < n_token; ++t) tile->act[t] = pf_gemm_act(g, token + t);
    for (int64_t r = 0; r < n_row; ++r) {
        tile->rows[r] = pf_weight_row(g->w, g->matrix, row + r);
        for (int64_t t = 0; t < n_token; ++t) {
            PF_UNROLL for (int part = 0; part < PARTS; ++part) tile->sums[r][t][part] = pf_vec_zero();
        }
    }
}

PF_INLINE void int_end(const int_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t token,
                       int64_t n_token, int_format f) {
    for (int64_t t = 0; t < n_token; ++t) {
        for (int64_t r = 0; r < n_row; ++r) {
            pf_gemm_put(g, token + t, row + r, int_total(tile->sums[r][t]) * f.unit);
        }
    }
}

/* n_row rows (a constant) times one token: waits for memory, so the rows behind these are asked for meanwhile. */
PF_INLINE void int_gemv(const pf_gemm *g, int64_t row, int n_row, int64_t token, int_format f) {
    const int64_t groups = g->w->cols / BLOCK / f.group_blocks, group_bytes = f.group_blocks * f.block_bytes;
    const int rest = (int)(g->w->cols / BLOCK % f.group_blocks);
    int_tile tile;
    int_begin(&tile, g, row, n_row, token, 1, f);
    for (int64_t group = 0; group < groups; ++group) {
        PF_UNROLL for (int r = 0; r < n_row; ++r) {
            const uint8_t *next = tile.rows[r] + n_row * g->w->row_bytes + group * group_bytes;
            for (int64_t i = 0; i + 16 <= group_bytes; i += 64) pf_prefetch(next + i);
        }
        int_group(&tile, 0, n_row, 1, group, f.group_blocks, f);
    }
    if (rest > 0) int_group(&tile, 0, n_row, 1, groups, rest, f);
    int_end(&tile, g, row, n_row, token, 1, f);
}

/* Groups [begin, end) of n_row rows (a constant) from `row` on. */
PF_INLINE void int_piece(int_tile *tile, int64_t row, int n_row, int64_t begin, int64_t end, int_format f) {
    for (int64_t group = begin; group < end; ++group) {
        const int64_t n_block = tile->blocks - f.group_blocks * group;
        if (n_block >= f.group_blocks) int_group(tile, row, n_row, tile->n_token, group, f.group_blocks, f);
        else int_group(tile, row, n_row, tile->n_token, group, (int)n_block, f);
    }
}

/* Rows [row, row + n_row) times tokens [token, token + n_token). */
PF_INLINE void int_batch(const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token, int_format f) {
    int_tile tile;
    int_begin(&tile, g, row, n_row, token, n_token, f);
    const int64_t groups = tile.padded / BLOCK / f.group_blocks;
    for (int64_t begin = 0; begin < groups; begin += f.piece) {
        const int64_t end = pf_min_i64(begin + f.piece, groups);
        int64_t r = 0;
        for (; r + f.rows <= n_row; r += f.rows) int_piece(&tile, r, f.rows, begin, end, f);
        for (; f.rows > 1 && r < n_row; ++r) int_piece(&tile, r, 1, begin, end, f);
    }
    int_end(&tile, g, row, n_row, token, n_token, f);
}

PF_INLINE void int_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, int_format f) {
    for (int64_t token = 0; token < g->n; token += INT_BATCH) {
        const int64_t n_token = pf_min_i64(INT_BATCH, g->n - token);
        int64_t row = row_begin;
        if (n_token > 1) {
            for (; row < row_end; row += INT_TILE) {
                int_batch(g, row, pf_min_i64(INT_TILE, row_end - row), token, n_token, f);
            }
        } else {
            for (; row + f.rows_alone <= row_end; row += f.rows_alone) int_gemv(g, row, f.rows_alone, token, f);
            for (; f.rows_alone > 1 && row < row_end; ++row) int_gemv(g, row, 1, token, f);
        }
    }
}

#define INT_GEMM(name, acts, ...)                                                                                    \
    static void name(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {                \
        (void)k;                                                                                                     \
        int_gemm(g, row_begin, row_end, (int_format){__VA_ARGS__, acts});                                            \
    }
#define Q16_ACTS PF_Q16_GROUP / BLOCK, 2, Q16_ROWS, Q16_ROWS_ALONE, 4
#define Q8_ACTS PF_Q8_BLOCKS, 1, Q8_ROWS, 1, 2

INT_GEMM(gemm_q16_q8_0, Q16_ACTS, load_q16_q8_0, dot_q16_q8_0, Q8_0_BYTES, 1.0f)
INT_GEMM(gemm_q16_mxfp4, Q16_ACTS, load_q16_mxfp4, dot_q16_mxfp4, MXFP4_BYTES, PF_Q16_MXFP4_UNIT)
INT_GEMM(gemm_q8_q8_0, Q8_ACTS, load_q8_q8_0, dot_q8_q8_0, Q8_0_BYTES, 1.0f)
INT_GEMM(gemm_q8_mxfp4, Q8_ACTS, load_q8_mxfp4, dot_q8_mxfp4, MXFP4_BYTES, PF_Q8_MXFP4_UNIT)

#endif
