/* AVX2 vectors for kernels_avx2.c and kernels_avxvnni.c: the definitions that the headers of loops ask for, with AVX-VNNI's
 * sums of products where the file is compiled for them (PF_AVX_VNNI). */
#ifndef PF_BACKEND_CPU_AVX2_VECTORS_H
#define PF_BACKEND_CPU_AVX2_VECTORS_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/x86_intrinsics.h"

#include <string.h>

#define PF_INT_WORDS /* products of 16 bits need fewer instructions here than two of 8 */

/* ---- Floats ------------------------------------------------------------------------------------------------ */

typedef __m256 pf_vec;
enum { PF_VEC_LANES = 8, PF_VECS = 4, TILE_TOKENS = 3, SUM_VECS = 2, FP4_HEADS = 3 };
enum { Q16_ROWS = 1, Q8_ROWS = 1 };
static inline __m256 pf_vec_zero(void) { return _mm256_setzero_ps(); }
static inline __m256 pf_vec_load(const float *p) { return _mm256_loadu_ps(p); }
static inline __m256i first_lanes(int64_t n) {
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32((int32_t)(n < 8 ? n : 8)), index);
}
static inline __m256 pf_vec_load_part(const float *p, int64_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
static inline void pf_vec_store(float *p, __m256 v) { _mm256_storeu_ps(p, v); }
static inline void pf_vec_store_part(float *p, __m256 v, int64_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
static inline __m256 pf_vec_set1(float v) { return _mm256_set1_ps(v); }
static inline __m256 pf_vec_add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
static inline __m256 pf_vec_sub(__m256 a, __m256 b) { return _mm256_sub_ps(a, b); }
static inline __m256 pf_vec_max(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
static inline __m256 pf_vec_min(__m256 a, __m256 b) { return _mm256_min_ps(a, b); }
static inline __m256 pf_vec_div(__m256 a, __m256 b) { return _mm256_div_ps(a, b); }
static inline unsigned pf_vec_not_below(__m256 v, float limit) {
    return (unsigned)_mm256_movemask_ps(_mm256_cmp_ps(v, _mm256_set1_ps(limit), _CMP_NLT_UQ));
}
static inline __m256 pf_vec_zero_below(__m256 v, __m256 x, float limit) {
    return _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(limit), _CMP_LT_OQ), v);
}
static inline __m256 pf_vec_mul(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
static inline __m256 pf_vec_fma(__m256 a, __m256 b, __m256 c) { return _mm256_fmadd_ps(a, b, c); }
static inline float pf_vec_sum(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline void pf_vec_sum4(const __m256 *v, float *out) {
    const __m256 s = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1)));
}

/* ---- 32 columns of each format to floats --------------------------------------------------------------------- */

PF_INLINE void from_f32(const uint8_t *in, __m256 *v) {
    for (int j = 0; j < 4; ++j) v[j] = _mm256_loadu_ps((const float *)(const void *)(in + 32 * j));
}

PF_INLINE void from_f16(const uint8_t *in, __m256 *v) {
    for (int j = 0; j < 4; ++j) v[j] = _mm256_cvtph_ps(load128(in + 16 * j));
}

PF_INLINE void from_bf16(const uint8_t *in, __m256 *v) {
    for (int j = 0; j < 4; ++j) {
        const __m256i bits = _mm256_cvtepu16_epi32(load128(in + 16 * j));
        v[j] = _mm256_castsi256_ps(_mm256_slli_epi32(bits, 16));
    }
}

/* An e4m3 code moved into a half float reads as the value times 2^-8, except for NaN. */
PF_INLINE void from_e4m3(const uint8_t *in, float scale, __m256 *v) {
    if (e4m3_is_odd(in, scale)) {
        float plain[32];
        for (int i = 0; i < 32; ++i) plain[i] = pf_e4m3_to_f32(in[i]) * scale;
        from_f32((const uint8_t *)plain, v);
        return;
    }
    const __m256 vscale = _mm256_set1_ps(256.0f * scale);
    for (int j = 0; j < 2; ++j) {
        /* Sign extension leaves the sign in bits 15 and 14, above the magnitude. */
        const __m256i code = _mm256_cvtepi8_epi16(load128(in + 16 * j));
        const __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((int16_t)0xbf80));
        v[2 * j] = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)), vscale);
        v[2 * j + 1] = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)), vscale);
    }
}

/* int8 times scale. */
PF_INLINE void from_i8(__m128i low, __m128i high, float scale, __m256 *v) {
    const __m256 vscale = _mm256_set1_ps(scale);
    const __m128i eight[4] = {low, _mm_srli_si128(low, 8), high, _mm_srli_si128(high, 8)};
    for (int j = 0; j < 4; ++j) v[j] = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight[j])), vscale);
}

/* ---- Integers ---------------------------------------------------------------------------------------------- */

typedef __m256i pf_ivec;
static inline __m256i pf_ivec_load(const uint8_t *p) { return load256(p); }
static inline void pf_ivec_store(uint8_t *p, __m256i v) { _mm256_storeu_si256((__m256i *)(void *)p, v); }
static inline __m256i pf_ivec_set1(int32_t v) { return _mm256_set1_epi32(v); }
static inline __m256i pf_ivec_add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
static inline __m256i pf_ivec_table(__m128i bytes) { return _mm256_broadcastsi128_si256(bytes); }
static inline __m256i pf_ivec_lookup(__m256i table, __m256i i) { return _mm256_shuffle_epi8(table, i); }
static inline __m256i pf_ivec_low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline __m256i pf_ivec_high_nibbles(__m256i v) { return pf_ivec_low_nibbles(_mm256_srli_epi16(v, 4)); }
PF_INLINE __m256i pf_ivec_left(__m256i v, unsigned n) { return _mm256_slli_epi32(v, (int)n); }
static inline __m256i pf_ivec_left_byte(__m256i v) { return _mm256_slli_epi16(v, 8); }
static inline __m256i pf_ivec_right_byte(__m256i v) { return _mm256_srai_epi16(v, 8); }
static inline __m256i pf_ivec_low_words(__m256i a, __m256i b) { return _mm256_unpacklo_epi32(a, b); }
static inline __m256i pf_ivec_high_words(__m256i a, __m256i b) { return _mm256_unpackhi_epi32(a, b); }
static inline __m256i pf_ivec_low_pairs(__m256i a, __m256i b) { return _mm256_unpacklo_epi64(a, b); }
static inline __m256i pf_ivec_high_pairs(__m256i a, __m256i b) { return _mm256_unpackhi_epi64(a, b); }
static inline __m256i pf_ivec_q8_0(__m256i v) { return v; }
static inline __m256 pf_vec_of_halves(const uint64_t *v) {
    return _mm256_cvtph_ps(_mm_set_epi64x((int64_t)v[1], (int64_t)v[0]));
}
static inline __m256 pf_vec_of_ints(__m256i v) { return _mm256_cvtepi32_ps(v); }
static inline __m256i pf_vec_round(__m256 v) { return _mm256_cvtps_epi32(v); }
static inline __m256 pf_vec_of_bits(__m256i v) { return _mm256_castsi256_ps(v); }

PF_INLINE __m256i blocks_16bytes(const uint8_t *at, int64_t stride, int n) {
    if (n < 2) return _mm256_inserti128_si256(_mm256_setzero_si256(), load128(at), 0);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(at)), load128(at + stride), 1);
}

/* Of 32 bytes from block 2k on, 128-bit lane j has the byte of block 2k + j at place j. */
PF_INLINE __m256i blocks_exponents(const uint8_t *at) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i v = _mm256_setzero_si256();
    PF_UNROLL for (int k = 0; k < 4; ++k) {
        const __m128i low = _mm_cmpeq_epi32(_mm_set1_epi32(k), _mm_setr_epi32(0, 1, 2, 3));
        const __m128i zeros = _mm_andnot_si128(_mm_and_si128(low, _mm_set1_epi32(0x00ff0000)), _mm_set1_epi8(-128));
        const __m256i places = _mm256_setr_m128i(zeros, _mm_or_si128(zeros, _mm_and_si128(low, _mm_set1_epi32(0x00010000))));
        v = _mm256_or_si256(v, _mm256_shuffle_epi8(load256(at + 2 * k * MXFP4_BYTES), places));
    }
    return _mm256_permutevar8x32_epi32(v, in_order);
}

#include "backend/cpu/x86_blocks.h"

/* Two sums a row, 16 bits each, of at most 16 * 144 + 48 * 144; the codes of the rows are PF_FP4_LARGEST too large. */
typedef __m256i fp4_sum;
static inline __m256i fp4_start(int32_t codes) {
    return _mm256_set1_epi16((int16_t)(-PF_FP4_LARGEST / 2 * codes));
}
static inline __m256i fp4_add(__m256i s, __m256i rows, __m256i q) {
    return _mm256_add_epi16(s, _mm256_maddubs_epi16(rows, q));
}
static inline __m256i fp4_total(__m256i s) { return _mm256_madd_epi16(s, _mm256_set1_epi16(1)); }

#if defined(PF_AVX_VNNI)
PF_INLINE __m256i pf_ivec_add_pairs(__m256i s, __m256i a, __m256i b) { return _mm256_dpwssd_avx_epi32(s, a, b); }

PF_INLINE __m256 plane_mxfp4(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    __m256i s = _mm256_madd_epi16(load256(sums), _mm256_set1_epi16(1));
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        s = _mm256_dpbusd_avx_epi32(s, w->w[i], load256(values + i * PF_INT_QUADS));
    }
    return _mm256_cvtepi32_ps(s);
}

PF_INLINE __m256 plane_q8_0(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    __m256i s = _mm256_setzero_si256();
    (void)sums;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const __m256i with_sign = _mm256_sign_epi8(load256(values + i * PF_INT_QUADS), w->w[i]);
        s = _mm256_dpbusd_avx_epi32(s, _mm256_abs_epi8(w->w[i]), with_sign);
    }
    return _mm256_cvtepi32_ps(s);
}
#else
PF_INLINE __m256i pf_ivec_add_pairs(__m256i s, __m256i a, __m256i b) { return _mm256_add_epi32(s, _mm256_madd_epi16(a, b)); }

/* Sums of 16 columns, 16 bits each, pass their range on the way and end within it: 16 * 12 * 127. */
PF_INLINE __m256 plane_mxfp4(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    __m256i s = load256(sums);
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w->w[i], load256(values + i * PF_INT_QUADS)));
    }
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(s, _mm256_set1_epi16(1)));
}

/* Pairs stay below 2 * 128 * 127 in 16 bits. */
PF_INLINE __m256 plane_q8_0(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    __m256i s = _mm256_setzero_si256();
    (void)sums;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const __m256i with_sign = _mm256_sign_epi8(load256(values + i * PF_INT_QUADS), w->w[i]);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w->w[i]), with_sign);
        s = _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return _mm256_cvtepi32_ps(s);
}
#endif

#define PF_SUPER
#include "backend/cpu/avx2_super.h"

/* Keeps gcc from reordering sums until the registers are not enough. */
#if defined(__GNUC__) && !defined(__clang__)
#  define VEC_HOLD(v) __asm__("" : "+x"(v))
#else
#  define VEC_HOLD(v) (void)(v)
#endif

/* Eight blocks times 16-bit activations. Words are made where they are used: 16 vectors of them would not fit. */
enum { WORD_TOKENS = 2 };
PF_INLINE void word_products(const int_weights *w, const uint8_t *const *even, int64_t odd, int n, __m256 *out) {
    __m256i s[WORD_TOKENS];
    PF_UNROLL for (int t = 0; t < n; ++t) s[t] = _mm256_setzero_si256();
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const __m256i even_words = pf_ivec_right_byte(pf_ivec_left_byte(w->w[i])), odd_words = pf_ivec_right_byte(w->w[i]);
        PF_UNROLL for (int t = 0; t < n; ++t) {
            const uint8_t *at = even[t] + i * PF_INT_QUADS;
            s[t] = pf_ivec_add_pairs(s[t], even_words, load256(at));
            s[t] = pf_ivec_add_pairs(s[t], odd_words, load256(at + odd));
            VEC_HOLD(s[t]);
        }
    }
    PF_UNROLL for (int t = 0; t < n; ++t) out[t] = _mm256_cvtepi32_ps(s[t]);
}

static inline float int_total(const __m256 *s) {
    const __m256 v = _mm256_add_ps(s[0], s[1]);
    const __m128 t = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 u = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(u, _mm_movehdup_ps(u)));
}

/* ---- Tiles (gemm_panel.h) ------------------------------------------------------------------------------------ */

#define PANEL_TOKENS 4
enum { PANEL_FROM = 5, PANEL_SUPER_FROM = 3 };

#define PANEL_HOLD(v) VEC_HOLD(v)

PF_INLINE __m256i rows_16bytes(const uint8_t *const *row, int64_t at) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(row[0] + at)), load128(row[4] + at), 1);
}
static inline __m256i pf_ivec_even_words(__m256i v) { return _mm256_maddubs_epi16(_mm256_set1_epi16(1), v); }
static inline __m256i pf_ivec_odd_words(__m256i v) { return _mm256_srai_epi16(v, 8); }

PF_INLINE void panel_pairs(const uint8_t *row, int64_t padded, int64_t group, int quad, int32_t *even, int32_t *odd) {
    const uint8_t *at = row + group * PF_INT_GROUP + quad * PF_INT_QUADS;
    memcpy(even, at, PF_INT_QUADS);
    memcpy(odd, at + padded, PF_INT_QUADS);
}

#endif
