/* Blocks of Q8_0, MXFP4 and index rows for the x86 kernel files: to floats, and as integers for gemm_q16_tile.h.
 *
 * The including file defines pf_vec, from_i8, INT_ROWS, pf_ivec (INT_ROWS 32-bit lanes: pf_ivec_set1, _add, _sub, _max,
 * _left; pf_ivec_low32, _high32, _low64, _high64, the unpacks of every 128 bits; pf_ivec_table, _lookup,
 * _low_nibbles, _high_nibbles of every byte), pf_vec_of_bits, and, for the rows of a tile,
 *     rows_16bytes: 16 bytes of rows[0], rows[4], ... side by side;
 *     rows_halves, rows_bytes: a half float, a byte of every row in its lane. */
#ifndef PF_BACKEND_CPU_X86_BLOCKS_H
#define PF_BACKEND_CPU_X86_BLOCKS_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/x86_intrinsics.h"

#include <string.h>

/* ---- To floats --------------------------------------------------------------------------------------------- */

PF_INLINE void from_q8_0(const uint8_t *in, pf_vec *v) {
    const float scale = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(pf_load_u16(in))));
    from_i8(load128(in + 2), load128(in + 18), scale, v);
}

PF_INLINE void from_mxfp4(const uint8_t *in, pf_vec *v) {
    const __m128i low = _mm_set1_epi8(15), codes = load128(in + 1);
    from_i8(_mm_shuffle_epi8(e2m1_table(), _mm_and_si128(codes, low)),
            _mm_shuffle_epi8(e2m1_table(), _mm_and_si128(_mm_srli_epi16(codes, 4), low)),
            0.5f * pf_e8m0_to_f32(in[0]), v);
}

PF_INLINE void from_idx_fp4(const uint8_t *in, float scale, pf_vec *v) {
    const __m128i low = _mm_set1_epi8(15), codes = load128(in);
    const __m128i even = _mm_shuffle_epi8(e2m1_table(), _mm_and_si128(codes, low));
    const __m128i odd = _mm_shuffle_epi8(e2m1_table(), _mm_and_si128(_mm_srli_epi16(codes, 4), low));
    from_i8(_mm_unpacklo_epi8(even, odd), _mm_unpackhi_epi8(even, odd), scale, v);
}

/* ---- Integers of INT_ROWS rows ------------------------------------------------------------------------------ */

/* A block's weights transposed: w[i] holds columns 4i .. 4i+3 of every row in the row's lane. */
typedef struct int_block {
    pf_ivec w[8];
    pf_vec scale;
} int_block;

/* 16 bytes of each row from `at` on, transposed to four vectors. */
PF_INLINE void load_transposed(const uint8_t *const *rows, int64_t at, pf_ivec *out) {
    pf_ivec v[4];
    for (int j = 0; j < 4; ++j) v[j] = rows_16bytes(rows + j, at);
    const pf_ivec t0 = pf_ivec_low32(v[0], v[1]), t1 = pf_ivec_high32(v[0], v[1]);
    const pf_ivec t2 = pf_ivec_low32(v[2], v[3]), t3 = pf_ivec_high32(v[2], v[3]);
    out[0] = pf_ivec_low64(t0, t2);
    out[1] = pf_ivec_high64(t0, t2);
    out[2] = pf_ivec_low64(t1, t3);
    out[3] = pf_ivec_high64(t1, t3);
}

PF_INLINE pf_ivec broadcast4(const uint8_t *act) {
    int32_t four;
    memcpy(&four, act, sizeof four);
    return pf_ivec_set1(four);
}

/* PF_Q16_BASE hi + lo. */
PF_INLINE pf_ivec join_planes(pf_ivec hi, pf_ivec lo) {
    return pf_ivec_add(pf_ivec_sub(pf_ivec_left(hi, 8), pf_ivec_left(hi, 1)), lo);
}

/* int8 weights as they are. */
PF_INLINE int_block load_i8(const uint8_t *const *rows, int64_t b) {
    const int64_t at = b * Q8_0_BYTES;
    int_block block;
    load_transposed(rows, at + 2, block.w);
    load_transposed(rows, at + 18, block.w + 4);
    block.scale = rows_halves(rows, at);
    return block;
}

/* 2^(e - 128), NaN for 255. */
PF_INLINE pf_vec half_e8m0(pf_ivec e) {
    const pf_ivec bits = pf_ivec_max(pf_ivec_left(e, 23), pf_ivec_set1(0x00400000));
    const pf_vec v = pf_vec_mul(pf_vec_of_bits(bits), pf_vec_set1(0.5f));
    return pf_vec_fma(v, pf_vec_zero(), v); /* infinity, which is what 255 has become, to NaN */
}

/* Weights are held as 12 + w, without a sign. */
PF_INLINE int_block load_mxfp4(const uint8_t *const *rows, int64_t b) {
    const int64_t at = b * MXFP4_BYTES;
    const pf_ivec table = pf_ivec_table(_mm_add_epi8(e2m1_table(), _mm_set1_epi8(12)));
    int_block block;
    pf_ivec codes[4];
    load_transposed(rows, at + 1, codes);
    for (int i = 0; i < 4; ++i) {
        block.w[i] = pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[i]));
        block.w[i + 4] = pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[i]));
    }
    block.scale = half_e8m0(rows_bytes(rows, at));
    return block;
}

#endif
