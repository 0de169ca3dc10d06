/* Blocks of Q8_0, MXFP4 and index rows for the x86 kernel files: to floats, and as integers for gemm_q16_tile.h.
 *
 * The including file defines pf_vec, from_i8, pf_ivec of as many bits (pf_ivec_left: 32-bit lanes; _left_byte and,
 * arithmetic, _right_byte: 16-bit lanes by 8; _upper_bytes: of those lanes; _table, _lookup, _low_nibbles,
 * _high_nibbles of every byte; _dot4: four vectors of 16-bit integers times those `stride` bytes apart in memory, the
 * products of pairs added up; _load and _store of bytes anywhere), pf_vec_of_bits, _of_ints, and of the first n of the
 * consecutive blocks of a vector, 128 bits each and zero for others,
 *     blocks_16bytes: 16 bytes, `stride` apart;
 *     blocks_halves: the half float that a block begins with, in four lanes;
 *     blocks_exponents: the byte that an MXFP4 block begins with, times 2^16 in four lanes. */
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

/* ---- Integers ------------------------------------------------------------------------------------------------ */

/* Consecutive blocks of a row side by side, 128 bits each: int16 of the even columns of their first halves, of the odd
 * ones, and the same of the second halves. */
typedef struct q16_weights {
    pf_ivec w[4];
    pf_vec scale;
} q16_weights;

PF_INLINE q16_weights load_q8_0(const uint8_t *at, int n) {
    q16_weights v;
    for (int half = 0; half < 2; ++half) {
        const pf_ivec bytes = blocks_16bytes(at + 2 + 16 * half, Q8_0_BYTES, n);
        v.w[2 * half] = pf_ivec_right_byte(pf_ivec_left_byte(bytes));
        v.w[2 * half + 1] = pf_ivec_right_byte(bytes);
    }
    v.scale = blocks_halves(at, Q8_0_BYTES, n);
    return v;
}

/* The table holds 2 w; in the upper byte of a word it is 512 w. */
PF_INLINE q16_weights load_mxfp4(const uint8_t *at, int n) {
    const pf_ivec table = pf_ivec_table(e2m1_table());
    const pf_ivec codes = blocks_16bytes(at + 1, MXFP4_BYTES, n);
    const pf_ivec halves[2] = {pf_ivec_lookup(table, pf_ivec_low_nibbles(codes)),
                               pf_ivec_lookup(table, pf_ivec_high_nibbles(codes))};
    q16_weights v;
    for (int half = 0; half < 2; ++half) {
        v.w[2 * half] = pf_ivec_left_byte(halves[half]);
        v.w[2 * half + 1] = pf_ivec_upper_bytes(halves[half]);
    }
    v.scale = pf_vec_of_bits(pf_ivec_left(blocks_exponents(at, n), 7));
    return v;
}

/* Eight products a lane stay below 8 * 3072 * 32384 in 32 bits. */
PF_INLINE pf_vec dot_words(const q16_weights *w, const uint8_t *act, int64_t group, int part) {
    const uint8_t *at = act + group * (2 * PF_Q16_GROUP) + part * (4 * PF_VEC_LANES);
    return pf_vec_of_ints(pf_ivec_dot4(w->w, at, 2 * PF_Q16_GROUP / 4));
}
PF_INLINE pf_vec dot_q8_0(const q16_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part) {
    (void)padded;
    return dot_words(w, act, group, part);
}
PF_INLINE pf_vec dot_mxfp4(const q16_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part) {
    (void)padded;
    return dot_words(w, act, group, part);
}

/* ---- FP4 index rows, for vector_fp4.h ---------------------------------------------------------------------- */

typedef pf_ivec fp4_bytes;
PF_INLINE pf_ivec fp4_load(const uint8_t *p) { return pf_ivec_load(p); }
PF_INLINE pf_ivec fp4_quad(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return pf_ivec_set1(four);
}

PF_INLINE void fp4_expand(const uint8_t *codes, uint8_t *even, uint8_t *odd) {
    const pf_ivec table = pf_ivec_table(_mm_add_epi8(e2m1_table(), _mm_set1_epi8(PF_FP4_LARGEST)));
    const pf_ivec pairs = pf_ivec_load(codes);
    pf_ivec_store(even, pf_ivec_lookup(table, pf_ivec_low_nibbles(pairs)));
    pf_ivec_store(odd, pf_ivec_lookup(table, pf_ivec_high_nibbles(pairs)));
}

#endif
