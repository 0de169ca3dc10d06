/* AVX-512 vectors for kernels_avx512.c and kernels_avx512_vbmi.c: the definitions that the headers of loops ask for, with
 * byte permutations where the file is compiled for them (PF_VBMI). */
#ifndef PF_BACKEND_CPU_AVX512_VECTORS_H
#define PF_BACKEND_CPU_AVX512_VECTORS_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/x86_intrinsics.h"

#include <string.h>

/* ---- Floats ------------------------------------------------------------------------------------------------ */

/* The first n of 16 lanes; all for n >= 16. */
static inline __mmask16 lanes(int64_t n) { return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u); }

typedef __m512 pf_vec;
enum { PF_VEC_LANES = 16, PF_VECS = 2, TILE_TOKENS = 6, SUM_VECS = 4, FP4_HEADS = 4 };
enum { Q16_ROWS = 2, Q8_ROWS = 2 };
static inline __m512 pf_vec_zero(void) { return _mm512_setzero_ps(); }
static inline __m512 pf_vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline __m512 pf_vec_load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
static inline void pf_vec_store(float *p, __m512 v) { _mm512_storeu_ps(p, v); }
static inline void pf_vec_store_part(float *p, __m512 v, int64_t n) { _mm512_mask_storeu_ps(p, lanes(n), v); }
static inline __m512 pf_vec_set1(float v) { return _mm512_set1_ps(v); }
static inline __m512 pf_vec_add(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }
static inline __m512 pf_vec_sub(__m512 a, __m512 b) { return _mm512_sub_ps(a, b); }
static inline __m512 pf_vec_max(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
static inline __m512 pf_vec_min(__m512 a, __m512 b) { return _mm512_min_ps(a, b); }
static inline __m512 pf_vec_div(__m512 a, __m512 b) { return _mm512_div_ps(a, b); }
static inline unsigned pf_vec_not_below(__m512 v, float limit) {
    return 0xffffu & ~(unsigned)_mm512_cmp_ps_mask(v, _mm512_set1_ps(limit), _CMP_LT_OQ);
}
static inline __m512 pf_vec_zero_below(__m512 v, __m512 x, float limit) {
    return _mm512_maskz_mov_ps((__mmask16)~_mm512_cmp_ps_mask(x, _mm512_set1_ps(limit), _CMP_LT_OQ), v);
}
static inline __m512 pf_vec_mul(__m512 a, __m512 b) { return _mm512_mul_ps(a, b); }
static inline __m512 pf_vec_fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
static inline float pf_vec_sum(__m512 v) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256(v), high);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline __m256 halves_sum(__m512 v) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    return _mm256_add_ps(_mm512_castps512_ps256(v), high);
}
static inline void pf_vec_sum4(const __m512 *v, float *out) {
    const __m256 low = _mm256_hadd_ps(halves_sum(v[0]), halves_sum(v[1]));
    const __m256 s = _mm256_hadd_ps(low, _mm256_hadd_ps(halves_sum(v[2]), halves_sum(v[3])));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

/* ---- 32 columns of each format to floats --------------------------------------------------------------------- */

PF_INLINE void from_f32(const uint8_t *in, __m512 *v) {
    for (int j = 0; j < 2; ++j) v[j] = _mm512_loadu_ps((const float *)(const void *)(in + 64 * j));
}

PF_INLINE void from_f16(const uint8_t *in, __m512 *v) {
    for (int j = 0; j < 2; ++j) v[j] = _mm512_cvtph_ps(load256(in + 32 * j));
}

PF_INLINE void from_bf16(const uint8_t *in, __m512 *v) {
    for (int j = 0; j < 2; ++j) {
        v[j] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(in + 32 * j)), 16));
    }
}

/* An e4m3 code moved into a half float reads as the value times 2^-8, except for NaN. */
PF_INLINE void from_e4m3(const uint8_t *in, float scale, __m512 *v) {
    if (e4m3_is_odd(in, scale)) {
        float plain[32];
        for (int i = 0; i < 32; ++i) plain[i] = pf_e4m3_to_f32(in[i]) * scale;
        from_f32((const uint8_t *)plain, v);
        return;
    }
    const __m512 vscale = _mm512_set1_ps(256.0f * scale);
    /* Sign extension leaves the sign in bits 15 and 14, above the magnitude. */
    const __m512i code = _mm512_cvtepi8_epi16(load256(in));
    const __m512i half = _mm512_and_si512(_mm512_slli_epi16(code, 7), _mm512_set1_epi16((int16_t)0xbf80));
    v[0] = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(half)), vscale);
    v[1] = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)), vscale);
}

/* int8 times scale. */
PF_INLINE void from_i8(__m128i low, __m128i high, float scale, __m512 *v) {
    const __m512 vscale = _mm512_set1_ps(scale);
    v[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)), vscale);
    v[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)), vscale);
}

/* ---- Integers ---------------------------------------------------------------------------------------------- */

typedef __m512i pf_ivec;
static inline __m512i pf_ivec_load(const uint8_t *p) { return _mm512_loadu_si512((const void *)p); }
static inline void pf_ivec_store(uint8_t *p, __m512i v) { _mm512_storeu_si512((void *)p, v); }
static inline __m512i pf_ivec_set1(int32_t v) { return _mm512_set1_epi32(v); }
static inline __m512i pf_ivec_add(__m512i a, __m512i b) { return _mm512_add_epi32(a, b); }
static inline __m512i pf_ivec_table(__m128i bytes) { return _mm512_broadcast_i32x4(bytes); }
#if defined(PF_VBMI) /* looks at the six low bits of an index and finds every value four times: nothing to mask */
static inline __m512i pf_ivec_lookup(__m512i table, __m512i i) { return _mm512_permutexvar_epi8(i, table); }
static inline __m512i pf_ivec_low_nibbles(__m512i v) { return v; }
static inline __m512i pf_ivec_high_nibbles(__m512i v) { return _mm512_srli_epi16(v, 4); }
#else
static inline __m512i pf_ivec_lookup(__m512i table, __m512i i) { return _mm512_shuffle_epi8(table, i); }
static inline __m512i pf_ivec_low_nibbles(__m512i v) { return _mm512_and_si512(v, _mm512_set1_epi8(15)); }
static inline __m512i pf_ivec_high_nibbles(__m512i v) { return pf_ivec_low_nibbles(_mm512_srli_epi16(v, 4)); }
#endif
PF_INLINE __m512i pf_ivec_left(__m512i v, unsigned n) { return _mm512_slli_epi32(v, n); }
static inline __m512i pf_ivec_low_words(__m512i a, __m512i b) { return _mm512_unpacklo_epi32(a, b); }
static inline __m512i pf_ivec_high_words(__m512i a, __m512i b) { return _mm512_unpackhi_epi32(a, b); }
static inline __m512i pf_ivec_low_pairs(__m512i a, __m512i b) { return _mm512_unpacklo_epi64(a, b); }
static inline __m512i pf_ivec_high_pairs(__m512i a, __m512i b) { return _mm512_unpackhi_epi64(a, b); }
/* Unsigned, 128 more. */
static inline __m512i pf_ivec_q8_0(__m512i v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
static inline __m512 pf_vec_of_halves(const uint64_t *v) {
    return _mm512_cvtph_ps(_mm256_set_epi64x((int64_t)v[3], (int64_t)v[2], (int64_t)v[1], (int64_t)v[0]));
}
static inline __m512 pf_vec_of_ints(__m512i v) { return _mm512_cvtepi32_ps(v); }
static inline __m512i pf_vec_round(__m512 v) { return _mm512_cvtps_epi32(v); }
static inline __m512 pf_vec_of_bits(__m512i v) { return _mm512_castsi512_ps(v); }

PF_INLINE __m512i blocks_16bytes(const uint8_t *at, int64_t stride, int n) {
    __m512i v = _mm512_inserti32x4(_mm512_setzero_si512(), load128(at), 0);
    if (n > 1) v = _mm512_inserti32x4(v, load128(at + stride), 1);
    if (n > 2) v = _mm512_inserti32x4(v, load128(at + 2 * stride), 2);
    if (n > 3) v = _mm512_inserti32x4(v, load128(at + 3 * stride), 3);
    return v;
}

#if defined(PF_VBMI)
#define PF_OWN_MXFP4
/* 16 MXFP4 blocks: codes[k] has bytes 4k to 4k + 3 of every block's codes, a lane a block. Returns the bytes that the blocks
 * begin with, times 2^16.
 *
 * Of four blocks, which are 68 bytes, 64 are all but the last four codes: a permutation turns them to 15 of the 16 words,
 * with the beginnings as the 16th. */
PF_INLINE __m512i blocks_mxfp4(const uint8_t *at, __m512i *codes) {
    enum { B = MXFP4_BYTES, FOUR = 4 * MXFP4_BYTES, LAST = FOUR - 4 };
#define WORD(at) ((at) | ((at) + 1) << 8 | ((at) + 2) << 16 | ((at) + 3) << 24)
    const __m512i words = _mm512_setr_epi32(
        WORD(1), WORD(B + 1), WORD(2 * B + 1), WORD(3 * B + 1), WORD(5), WORD(B + 5), WORD(2 * B + 5), WORD(3 * B + 5),
        WORD(9), WORD(B + 9), WORD(2 * B + 9), WORD(3 * B + 9), WORD(13), WORD(B + 13), WORD(2 * B + 13),
        B << 8 | 2 * B << 16 | 3 * B << 24);
#undef WORD
    const __m512i beginnings = _mm512_broadcast_i32x4(
        _mm_setr_epi32((int)0x800c8080u, (int)0x800d8080u, (int)0x800e8080u, (int)0x800f8080u));
    __m512i four[4];
    PF_UNROLL for (int i = 0; i < 4; ++i) four[i] = _mm512_permutexvar_epi8(words, pf_ivec_load(at + i * FOUR));
    const __m512i low = _mm512_shuffle_i32x4(four[0], four[1], 0x44), high = _mm512_shuffle_i32x4(four[0], four[1], 0xee);
    const __m512i low2 = _mm512_shuffle_i32x4(four[2], four[3], 0x44), high2 = _mm512_shuffle_i32x4(four[2], four[3], 0xee);
    codes[0] = _mm512_shuffle_i32x4(low, low2, 0x88);
    codes[1] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    codes[2] = _mm512_shuffle_i32x4(high, high2, 0x88);
    const __m512i last = _mm512_shuffle_i32x4(high, high2, 0xdd);
    codes[3] = last;
    PF_UNROLL for (int i = 0; i < 4; ++i) {
        const int lane = 4 * i + 3;
        codes[3] = _mm512_mask_loadu_epi32(codes[3], (__mmask16)(1u << lane), at + i * FOUR + LAST - 4 * lane);
    }
    return _mm512_shuffle_epi8(last, beginnings);
}
#else
/* Of 64 bytes from block 4k on, 128-bit lane j has the byte of block 4k + j at place j. */
PF_INLINE __m512i blocks_exponents(const uint8_t *at) {
    const __m512i places = _mm512_shuffle_epi8(_mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0), _mm512_setzero_si512());
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i v = _mm512_setzero_si512();
    PF_UNROLL for (int k = 0; k < 4; ++k) {
        const __m512i four = pf_ivec_load(at + 4 * k * MXFP4_BYTES);
        v = _mm512_mask_shuffle_epi8(v, UINT64_C(0x0004000400040004) << 4 * k, four, places);
    }
    return _mm512_permutexvar_epi32(in_order, v);
}
#endif

#include "backend/cpu/x86_blocks.h"

#define PF_SUPER
#include "backend/cpu/avx512_super.h"

/* The codes of the rows are PF_FP4_LARGEST too large. */
typedef __m512i fp4_sum;
static inline __m512i fp4_start(int32_t codes) { return _mm512_set1_epi32(-PF_FP4_LARGEST * codes); }
static inline __m512i fp4_add(__m512i s, __m512i rows, __m512i q) { return _mm512_dpbusd_epi32(s, rows, q); }
static inline __m512i fp4_total(__m512i s) { return s; }

/* `biases`: what the weights are too large by, in PF_INT_BIAS. Two chains, for one token has few sums in flight. */
PF_INLINE __m512 plane(const __m512i *w, const uint8_t *at, const uint8_t *sums, int16_t biases) {
    __m512i a = _mm512_dpwssd_epi32(_mm512_setzero_si512(), pf_ivec_load(sums), _mm512_set1_epi16(biases));
    __m512i b = _mm512_setzero_si512();
    PF_UNROLL for (int i = 0; i < 8; i += 2) {
        a = _mm512_dpbusd_epi32(a, w[i], pf_ivec_load(at + i * PF_INT_QUADS));
        b = _mm512_dpbusd_epi32(b, w[i + 1], pf_ivec_load(at + (i + 1) * PF_INT_QUADS));
    }
    return _mm512_cvtepi32_ps(_mm512_add_epi32(a, b));
}
PF_INLINE __m512 plane_mxfp4(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    return plane(w->w, values, sums, 1);
}
PF_INLINE __m512 plane_q8_0(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    return plane(w->w, values, sums, 128 / PF_INT_BIAS);
}

static inline float int_total(const __m512 *s) {
    const __m256 v = halves_sum(s[0]);
    const __m128 t = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 u = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(u, _mm_movehdup_ps(u)));
}

#endif
