/* Integer products of FP4 index rows (fp4.h), for the vector kernel files.
 *
 * The including file defines pf_vec (pf_vec_zero, _set1, _load, _store, _mul, _fma, _of_ints), FP4_HEADS, and
 *     types fp4_bytes and fp4_sum: a quad of columns of PF_VEC_LANES rows, and their sums so far;
 *     fp4_bytes fp4_load(p), and fp4_quad(p) with the four bytes at p for every row;
 *     fp4_sum fp4_start(int32_t codes): the sum of nothing; codes is the sum of the query's codes in the group;
 *     fp4_sum fp4_add(s, rows, q): four products a row more;
 *     pf_ivec fp4_total(s): one sum a row, once all quads of a group are added;
 *     void fp4_expand(codes, even, odd): PF_VEC_LANES words of e2m1 pairs to quads, low and high nibbles apart. */
#ifndef PF_BACKEND_CPU_VECTOR_FP4_H
#define PF_BACKEND_CPU_VECTOR_FP4_H

#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "format/floats.h"

#include <string.h>

enum { FP4_VECS = 2, FP4_QUADS = PF_FP4_GROUP / 4, FP4_QUAD_BYTES = 4 * PF_FP4_ROWS };

static void fp4_tile(const uint8_t *const *row, int64_t n_row, int64_t width, uint8_t *tile) {
    float *scales = pf_fp4_row_scales(tile, width);
    for (int64_t group = 0; group < width / PF_FP4_GROUP; ++group) {
        uint32_t words[4][PF_FP4_ROWS];
        for (int64_t r = 0; r < PF_FP4_ROWS; ++r) {
            const uint8_t *from = row[r < n_row ? r : n_row - 1];
            uint32_t four[4];
            memcpy(four, from + group * (PF_FP4_GROUP / 2), sizeof four);
            for (int i = 0; i < 4; ++i) words[i][r] = four[i];
            scales[group * PF_FP4_ROWS + r] = 0.25f * pf_e8m0_to_f32(from[width / 2 + group]);
        }
        for (int i = 0; i < 4; ++i) {
            uint8_t *out = tile + (group * FP4_QUADS + 2 * i) * FP4_QUAD_BYTES;
            for (int r = 0; r < PF_FP4_ROWS; r += PF_VEC_LANES, out += 4 * PF_VEC_LANES) {
                fp4_expand((const uint8_t *)(words[i] + r), out, out + FP4_QUAD_BYTES);
            }
        }
    }
}

/* n_q heads (a constant at every call) times FP4_VECS vectors of rows from `first`. */
PF_INLINE void fp4_block(const uint8_t *q, int n_q, const uint8_t *tile, int first, int64_t width, float *out,
                         int64_t ld) {
    const int64_t stride = pf_fp4_query_bytes(width);
    const float *row_scales = pf_fp4_row_scales(tile, width) + first;
    const uint8_t *rows = tile + 4 * first;
    pf_vec all[FP4_HEADS][FP4_VECS];
    PF_UNROLL for (int h = 0; h < n_q; ++h) {
        PF_UNROLL for (int j = 0; j < FP4_VECS; ++j) all[h][j] = pf_vec_zero();
    }
    for (int64_t group = 0; group < width / PF_FP4_GROUP; ++group, row_scales += PF_FP4_ROWS) {
        fp4_sum s[FP4_HEADS][FP4_VECS];
        PF_UNROLL for (int h = 0; h < n_q; ++h) {
            const fp4_sum start = fp4_start(pf_fp4_query_sums(q + h * stride, width)[group]);
            PF_UNROLL for (int j = 0; j < FP4_VECS; ++j) s[h][j] = start;
        }
        PF_KEEP_LOOP for (int quad = 0; quad < FP4_QUADS; ++quad, rows += FP4_QUAD_BYTES) {
            fp4_bytes v[FP4_VECS];
            PF_UNROLL for (int j = 0; j < FP4_VECS; ++j) v[j] = fp4_load(rows + j * 4 * PF_VEC_LANES);
            PF_UNROLL for (int h = 0; h < n_q; ++h) {
                const fp4_bytes four = fp4_quad(q + h * stride + group * PF_FP4_GROUP + 4 * quad);
                PF_UNROLL for (int j = 0; j < FP4_VECS; ++j) s[h][j] = fp4_add(s[h][j], v[j], four);
            }
        }
        PF_UNROLL for (int h = 0; h < n_q; ++h) {
            const pf_vec scale = pf_vec_set1(pf_fp4_query_scales(q + h * stride, width)[group]);
            PF_UNROLL for (int j = 0; j < FP4_VECS; ++j) {
                const pf_vec both = pf_vec_mul(scale, pf_vec_load(row_scales + j * PF_VEC_LANES));
                all[h][j] = pf_vec_fma(pf_vec_of_ints(fp4_total(s[h][j])), both, all[h][j]);
            }
        }
    }
    PF_UNROLL for (int h = 0; h < n_q; ++h) {
        PF_UNROLL for (int j = 0; j < FP4_VECS; ++j) pf_vec_store(out + h * ld + first + j * PF_VEC_LANES, all[h][j]);
    }
}

static void fp4_dots(const uint8_t *q, int64_t n_q, const uint8_t *tile, int64_t width, float *out, int64_t ld) {
    const int64_t stride = pf_fp4_query_bytes(width);
    for (int first = 0; first < PF_FP4_ROWS; first += FP4_VECS * PF_VEC_LANES) {
        int64_t h = 0;
        for (; h + FP4_HEADS <= n_q; h += FP4_HEADS) {
            fp4_block(q + h * stride, FP4_HEADS, tile, first, width, out + h * ld, ld);
        }
        for (; h < n_q; ++h) fp4_block(q + h * stride, 1, tile, first, width, out + h * ld, ld);
    }
}

#endif
