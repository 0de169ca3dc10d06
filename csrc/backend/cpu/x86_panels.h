/* Rows of Q8_0, MXFP4 and super-blocks unpacked for gemm_panel.h. The including file defines, beside what that and
 * x86_blocks.h ask for, PANEL_FROM and PANEL_SUPER_FROM (pf_tile_kernels), and
 *     pf_ivec rows_16bytes(const uint8_t *const *row, int64_t at): 16 bytes at `at` of every fourth row, row[0] first;
 *     pf_ivec_even_words, _odd_words: the lower, the upper signed byte of every word as a word;
 *     pf_ivec_even_fours(a, b), _odd_fours: every other 128 bits of a, then of b; _sub_bytes; _mul_words (16 bits); and
 *     pf_ivec_of_vec(pf_vec): the same bits. */
#ifndef PF_BACKEND_CPU_X86_PANELS_H
#define PF_BACKEND_CPU_X86_PANELS_H

#include "backend/cpu/gemm_panel.h"
#include "backend/cpu/x86_blocks.h"

/* The 16 bytes at `at` of every row: vector k has bytes 4k to 4k + 3 of row l in lane l. */
PF_INLINE void rows_quads(const uint8_t *const *row, int64_t at, pf_ivec *out) {
    pf_ivec v[4];
    PF_UNROLL for (int j = 0; j < 4; ++j) v[j] = rows_16bytes(row + j, at);
    quads_of_16bytes(v, out);
}

/* Columns 4q to 4q + 3 of every row, signed bytes, to their pairs. */
PF_INLINE void put_quad(pf_ivec *pairs, int q, pf_ivec bytes) {
    pairs[2 * q] = pf_ivec_even_words(bytes);
    pairs[2 * q + 1] = pf_ivec_odd_words(bytes);
}

PF_INLINE void unpack_q8_0(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out) {
    PF_KEEP_LOOP for (int b = 0; b < n_block; ++b) {
        const int64_t at = (block + b) * Q8_0_BYTES;
        uint64_t halves[PF_VEC_LANES / 4] = {0};
        PF_UNROLL for (int r = 0; r < PF_VEC_LANES; ++r) {
            halves[r / 4] |= (uint64_t)pf_load_u16(row[r] + at) << 16 * (r % 4);
        }
        PF_UNROLL for (int half = 0; half < 2; ++half) {
            pf_ivec quads[4];
            rows_quads(row, at + 2 + 16 * half, quads);
            PF_UNROLL for (int q = 0; q < 4; ++q) put_quad(out->pairs[b], 4 * half + q, quads[q]);
        }
        out->scale[b] = pf_vec_of_halves(halves);
    }
}

PF_INLINE void unpack_mxfp4(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out) {
    const pf_ivec table = pf_ivec_table(e2m1_table());
    PF_KEEP_LOOP for (int b = 0; b < n_block; ++b) {
        const int64_t at = (block + b) * MXFP4_BYTES;
        uint32_t *scale_bits = (uint32_t *)(void *)&out->scale[b];
        pf_ivec codes[4];
        PF_UNROLL for (int r = 0; r < PF_VEC_LANES; ++r) scale_bits[r] = opaque((uint32_t)row[r][at] << 23);
        rows_quads(row, at + 1, codes);
        PF_UNROLL for (int q = 0; q < 4; ++q) {
            put_quad(out->pairs[b], q, pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[q])));
            put_quad(out->pairs[b], q + 4, pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[q])));
        }
    }
}

PANEL_GEMM(panels_q8_0, unpack_q8_0, 1.0f, PANEL_PLAIN)
PANEL_GEMM(panels_mxfp4, unpack_mxfp4, PF_INT_MXFP4_UNIT, PANEL_PLAIN)

/* ---- Super-blocks ------------------------------------------------------------------------------------------ */

typedef int_weights (*super_decode_fn)(const uint8_t *a, const uint8_t *b, int n);
enum { SUPER_VECS = PF_SUPER_BLOCKS };

/* Of vectors with the blocks of some rows in their lanes, as super_row() says, one for each block with the rows. */
PF_INLINE void blocks_to_rows(const pf_ivec *v, pf_ivec *out) {
    pf_ivec low[4], high[4];
    quads_of_16bytes(v, low);
    quads_of_16bytes(v + 4, high);
    PF_UNROLL for (int k = 0; k < 4; ++k) {
        out[k] = pf_ivec_even_fours(low[k], high[k]);
        out[k + 4] = pf_ivec_odd_fours(low[k], high[k]);
    }
}
/* The row that vector j has in the lower, and with 16 lanes (s = 1) in the upper half. */
static inline int super_row(int j, int s) { return PF_VEC_LANES == 8 ? j : j / 4 * 8 + 4 * s + j % 4; }

PF_INLINE void scales_to_rows(const pf_vec *v, pf_vec *out) {
    pf_ivec bits[SUPER_VECS], rows[SUPER_VECS];
    PF_UNROLL for (int j = 0; j < SUPER_VECS; ++j) bits[j] = pf_ivec_of_vec(v[j]);
    blocks_to_rows(bits, rows);
    PF_UNROLL for (int k = 0; k < SUPER_VECS; ++k) out[k] = pf_vec_of_bits(rows[k]);
}

/* A super-block of every row. */
PF_INLINE void unpack_super(const uint8_t *const *row, int64_t at, panel_rows *out, super_decode_fn decode,
                            pf_int_scaling scaling, bool has_minimums, int bias) {
    pf_ivec w[8][SUPER_VECS], c[2][SUPER_VECS], m[2][SUPER_VECS], rows[SUPER_VECS];
    pf_vec scale[SUPER_VECS], half_scale[SUPER_VECS], min_scale[SUPER_VECS];
    PF_KEEP_LOOP for (int j = 0; j < SUPER_VECS; ++j) {
        const int_weights v = decode(row[super_row(j, 0)] + at, row[super_row(j, 1)] + at, PF_VEC_LANES);
        PF_UNROLL for (int q = 0; q < 8; ++q) w[q][j] = v.w[q];
        PF_UNROLL for (int h = 0; h < 2; ++h) {
            if (scaling == PF_SCALES_IN_SUMS) c[h][j] = v.c[h];
            if (has_minimums) m[h][j] = v.m[scaling == PF_SCALES_IN_SUMS ? h : 0];
        }
        scale[j] = v.scale;
        if (scaling == PF_SCALES_OF_HALVES) half_scale[j] = v.half_scale;
        if (has_minimums) min_scale[j] = v.min_scale;
    }
    scales_to_rows(scale, out->scale);
    if (scaling == PF_SCALES_OF_HALVES) scales_to_rows(half_scale, out->half_scale);
    if (has_minimums) scales_to_rows(min_scale, out->min_scale);
    PF_KEEP_LOOP for (int h = 0; h < 2; ++h) {
        pf_ivec factors[SUPER_VECS];
        if (has_minimums) {
            blocks_to_rows(m[h], rows);
            for (int k = 0; k < SUPER_VECS; ++k) out->m[k][h] = rows[k];
        }
        if (scaling == PF_SCALES_IN_SUMS) {
            blocks_to_rows(c[h], factors);
            PF_UNROLL for (int k = 0; k < SUPER_VECS; ++k) {
                factors[k] = pf_ivec_or(pf_ivec_and(factors[k], pf_ivec_set1(0xffff)), pf_ivec_left(factors[k], 16));
            }
        }
        PF_KEEP_LOOP for (int q = 4 * h; q < 4 * h + 4; ++q) {
            blocks_to_rows(w[q], rows);
            PF_UNROLL for (int k = 0; k < SUPER_VECS; ++k) {
                pf_ivec *pairs = out->pairs[k];
                put_quad(pairs, q, bias ? pf_ivec_sub_bytes(rows[k], pf_ivec_set1((int32_t)((uint32_t)bias * ONES))) : rows[k]);
                if (scaling != PF_SCALES_IN_SUMS) continue;
                pairs[2 * q] = pf_ivec_mul_words(pairs[2 * q], factors[k]);
                pairs[2 * q + 1] = pf_ivec_mul_words(pairs[2 * q + 1], factors[k]);
            }
        }
    }
}

#define PANEL_SUPER(type, lower, scaling, has_minimums)                                                                \
    static void unpack_##lower(const uint8_t *const *row, int64_t block, int n_block, panel_rows *out) {               \
        (void)n_block; /* always all */                                                                                \
        unpack_super(row, block / PF_SUPER_BLOCKS * PF_##type##_BYTES, out, decode_##lower, scaling, has_minimums,     \
                     BIAS_##type);                                                                                     \
    }                                                                                                                  \
    PANEL_GEMM(panels_##lower, unpack_##lower, 1.0f,                                                                   \
               (scaling) == PF_SCALES_OF_HALVES ? PANEL_HALVES : (has_minimums) ? PANEL_MINIMUMS : PANEL_PLAIN)
PF_SUPER_TYPES(PANEL_SUPER)
#undef PANEL_SUPER

/* Overrides the table's tiles. */
static inline void set_panel_entries(pf_cpu_kernels *k) {
    pf_tile_kernels *t = &k->tiles;
    t->from = PANEL_FROM;
    t->super_from = PANEL_SUPER_FROM;
    t->rest = 1;
    t->packed_bytes = panel_packed_bytes;
    t->pack = panel_pack;
    t->scratch_bytes = panel_scratch_bytes;
    t->gemm_q16[PF_W_Q8_0] = panels_q8_0;
    t->gemm_q16[PF_W_MXFP4] = panels_mxfp4;
#define SET_SUPER(type, lower, scaling, has_minimums) t->gemm_q16[PF_W_##type] = panels_##lower;
    PF_SUPER_TYPES(SET_SUPER)
#undef SET_SUPER
}

#endif
