/* Blocks of Q8_0, MXFP4 and index rows for the x86 kernel files: to floats, and as integers for gemm_int_tile.h.
 *
 * The including file defines pf_vec, from_i8, pf_ivec of as many bits (pf_ivec_left: 32-bit lanes; _table, _lookup,
 * _low_nibbles, _high_nibbles of every byte; _load and _store of bytes anywhere; _low_words to _high_pairs: halves of
 * every 128 bits in turn; _q8_0: Q8_0's bytes as plane_q8_0 takes them; for PF_INT_WORDS _left_byte and, arithmetic,
 * _right_byte: 16-bit lanes by 8), pf_vec_of_bits, _of_halves, and
 *     blocks_16bytes: the 16 bytes, `stride` apart, of the first n of the consecutive blocks of a vector, n at least 1,
 *         128 bits each and zero for others;
 *     blocks_mxfp4: as some_mxfp4() below, of a whole vector of blocks; or, without PF_OWN_MXFP4, blocks_exponents: the
 *         bytes that a vector of MXFP4 blocks begins with, times 2^16. */
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

/* Consecutive blocks of a row, a 32-bit lane each: bytes of the columns 0 to 3, 4 to 7, ..., or words of 0 and 2, 4 and
 * 6, ..., and of 1 and 3, 5 and 7, ... */
typedef struct int_weights {
    pf_ivec w[8];
#if defined(PF_INT_WORDS)
    pf_ivec even[8], odd[8];
#endif
    pf_vec scale;
    /* Of super-blocks: vector_super.h. */
    pf_vec half_scale, min_scale;
    pf_ivec c[2], m[2];
} int_weights;

/* Of v[j], whose 128-bit lanes are 16 bytes of the lanes j, j + 4, ...: out[k] has bytes 4k to 4k + 3 of lane l in lane l. */
PF_INLINE void quads_of_16bytes(const pf_ivec *v, pf_ivec *out) {
    pf_ivec pairs[4];
    for (int j = 0; j < 2; ++j) {
        pairs[2 * j] = pf_ivec_low_words(v[2 * j], v[2 * j + 1]);
        pairs[2 * j + 1] = pf_ivec_high_words(v[2 * j], v[2 * j + 1]);
    }
    for (int j = 0; j < 2; ++j) {
        out[2 * j] = pf_ivec_low_pairs(pairs[j], pairs[j + 2]);
        out[2 * j + 1] = pf_ivec_high_pairs(pairs[j], pairs[j + 2]);
    }
}

/* The 16 bytes at `at` of each of n blocks, `stride` apart: vector k has bytes 4k to 4k + 3 of block l in lane l, zeros
 * for blocks that are not there. */
PF_INLINE void blocks_quads(const uint8_t *at, int64_t stride, int n, pf_ivec *out) {
    pf_ivec v[4];
    PF_UNROLL for (int j = 0; j < 4; ++j) {
        v[j] = n > j ? blocks_16bytes(at + j * stride, 4 * stride, (n - j + 3) / 4) : pf_ivec_set1(0);
    }
    quads_of_16bytes(v, out);
}

PF_INLINE pf_vec scales_q8_0(const uint8_t *at, int n) {
    uint64_t halves[PF_VEC_LANES / 4];
    PF_UNROLL for (int i = 0; i < PF_VEC_LANES / 4; ++i) {
        halves[i] = 0;
        PF_UNROLL for (int b = 0; b < 4; ++b) {
            if (4 * i + b < n) halves[i] |= (uint64_t)pf_load_u16(at + (4 * i + b) * Q8_0_BYTES) << 16 * b;
        }
    }
    return pf_vec_of_halves(halves);
}

PF_INLINE int_weights load_q8_0(const uint8_t *at, int n) {
    int_weights v;
    for (int half = 0; half < 2; ++half) blocks_quads(at + 2 + 16 * half, Q8_0_BYTES, n, v.w + 4 * half);
    PF_UNROLL for (int i = 0; i < 8; ++i) v.w[i] = pf_ivec_q8_0(v.w[i]);
    v.scale = scales_q8_0(at, n);
    return v;
}

/* n MXFP4 blocks: codes as blocks_quads() has them. Returns the bytes that they begin with, times 2^16. */
PF_INLINE pf_ivec some_mxfp4(const uint8_t *at, int n, pf_ivec *codes) {
    int32_t e[PF_VEC_LANES] = {0};
    blocks_quads(at + 1, MXFP4_BYTES, n, codes);
    for (int b = 0; b < n; ++b) e[b] = at[b * MXFP4_BYTES] << 16;
    return pf_ivec_load((const uint8_t *)e);
}

#if !defined(PF_OWN_MXFP4)
PF_INLINE pf_ivec blocks_mxfp4(const uint8_t *at, pf_ivec *codes) {
    blocks_quads(at + 1, MXFP4_BYTES, PF_VEC_LANES, codes);
    return blocks_exponents(at);
}
#endif

/* 2 w + bias. */
PF_INLINE int_weights load_mxfp4_and(const uint8_t *at, int n, int8_t bias) {
    const pf_ivec table = pf_ivec_table(_mm_add_epi8(e2m1_table(), _mm_set1_epi8(bias)));
    pf_ivec codes[4];
    int_weights v;
    v.scale = pf_vec_of_bits(pf_ivec_left(n == PF_VEC_LANES ? blocks_mxfp4(at, codes) : some_mxfp4(at, n, codes), 7));
    PF_UNROLL for (int i = 0; i < 4; ++i) {
        v.w[i] = pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[i]));
        v.w[i + 4] = pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[i]));
    }
    return v;
}
PF_INLINE int_weights load_mxfp4(const uint8_t *at, int n) { return load_mxfp4_and(at, n, PF_INT_BIAS); }

#if defined(PF_INT_WORDS)
PF_INLINE int_weights with_words(int_weights v) {
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        v.even[i] = pf_ivec_right_byte(pf_ivec_left_byte(v.w[i]));
        v.odd[i] = pf_ivec_right_byte(v.w[i]);
    }
    return v;
}
PF_INLINE int_weights load_words_q8_0(const uint8_t *at, int n) { return load_q8_0(at, n); }
PF_INLINE int_weights load_words_mxfp4(const uint8_t *at, int n) { return load_mxfp4_and(at, n, 0); }
#endif

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
