/* Matrix product of blocks of integer weights with q16 activations, for the vector kernel files: INT_ROWS rows at a
 * time, one 32-bit lane each. A block of every row is loaded and brought into the form that the products take once, and
 * meets a batch of tokens.
 *
 * The including file defines pf_vec with INT_ROWS lanes (pf_vec_zero, _set1, _add, _mul, _store, _of_ints), pf_ivec,
 * pf_prefetch, a type int_block with a member `scale` (pf_vec: the rows' scales), and per type
 *     int_block load_<type>(const uint8_t *const *rows, int64_t block);
 *     pf_ivec dot_<type>(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t act_sum);
 * dot: the exact PF_Q16_BASE (w . hi) + (w . lo); act_sum is the sum of the block's activations. */
#ifndef PF_BACKEND_CPU_GEMM_Q16_TILE_H
#define PF_BACKEND_CPU_GEMM_Q16_TILE_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"

enum { INT_BATCH = 16 };

typedef int_block (*load_fn)(const uint8_t *const *rows, int64_t block);
typedef pf_ivec (*block_dot_fn)(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t act_sum);

/* One token waits for memory: with every block its share of the next tile, which lies behind this one, is asked for. */
PF_INLINE void prefetch_next(const uint8_t *tile, int64_t row_bytes, int64_t b, int64_t block_bytes) {
    const uint8_t *at = tile + INT_ROWS * (row_bytes + b * block_bytes);
    for (int64_t i = 0; i < INT_ROWS * block_bytes; i += 64) pf_prefetch(at + i);
}

/* Rows [row, row + n_row), n_row <= INT_ROWS, times tokens [token, token + n_token). */
PF_INLINE void q16_tile(const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token, load_fn load,
                        block_dot_fn dot_block, int64_t block_bytes) {
    const int64_t cols = g->w->cols;
    const uint8_t *rows[INT_ROWS], *act[INT_BATCH];
    pf_vec sums[INT_BATCH];
    for (int64_t r = 0; r < INT_ROWS; ++r) {
        rows[r] = pf_weight_row(g->w, g->matrix, row + (r < n_row ? r : n_row - 1));
    }
    for (int64_t t = 0; t < n_token; ++t) {
        act[t] = pf_gemm_act(g, token + t);
        sums[t] = pf_vec_zero();
    }
    for (int64_t b = 0; b < cols / BLOCK; ++b) {
        if (n_token == 1) prefetch_next(rows[0], g->w->row_bytes, b, block_bytes);
        const int_block block = load(rows, b);
        for (int64_t t = 0; t < n_token; ++t) {
            const pf_vec d = pf_vec_mul(block.scale, pf_vec_set1(pf_q16_scales(act[t], cols)[b]));
            const uint8_t *hi = act[t] + b * BLOCK;
            const pf_ivec i = dot_block(&block, hi, hi + cols, pf_q16_sums(act[t], cols)[b]);
            sums[t] = pf_vec_add(sums[t], pf_vec_mul(d, pf_vec_of_ints(i)));
        }
    }
    for (int64_t t = 0; t < n_token; ++t) {
        float v[INT_ROWS];
        pf_vec_store(v, sums[t]);
        for (int64_t r = 0; r < n_row; ++r) pf_gemm_put(g, token + t, row + r, v[r]);
    }
}

PF_INLINE void q16_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, load_fn load, block_dot_fn dot_block,
                        int64_t block_bytes) {
    for (int64_t token = 0; token < g->n; token += INT_BATCH) {
        const int64_t n_token = pf_min_i64(INT_BATCH, g->n - token);
        for (int64_t row = row_begin; row < row_end; row += INT_ROWS) {
            const int64_t n_row = pf_min_i64(INT_ROWS, row_end - row);
            if (n_token == 1) {
                q16_tile(g, row, n_row, token, 1, load, dot_block, block_bytes); /* the sum stays in a register */
            } else {
                q16_tile(g, row, n_row, token, n_token, load, dot_block, block_bytes);
            }
        }
    }
}

static void gemm_q16_q8_0(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    (void)k;
    q16_gemm(g, row_begin, row_end, load_q8_0, dot_q8_0, Q8_0_BYTES);
}

static void gemm_q16_mxfp4(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    (void)k;
    q16_gemm(g, row_begin, row_end, load_mxfp4, dot_mxfp4, MXFP4_BYTES);
}

#endif
