/* Kernels for AVX2, FMA and F16C. */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "backend/cpu/blocks.h"
#include "backend/cpu/x86_intrinsics.h"

#include <string.h>

/* ---- Floats ------------------------------------------------------------------------------------------------ */

typedef __m256 pf_vec;
enum { PF_VEC_LANES = 8, PF_VECS = 4, TILE_TOKENS = 3, SUM_VECS = 2, FP4_HEADS = 3 };
enum { Q16_ROWS_ALONE = 1, Q16_ROWS = 2, Q8_ROWS = 1 };
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
static inline __m256i pf_ivec_upper_bytes(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi16(-256)); }
PF_INLINE __m256i pf_ivec_left(__m256i v, int n) { return _mm256_slli_epi32(v, n); }
static inline __m256i pf_ivec_left_byte(__m256i v) { return _mm256_slli_epi16(v, 8); }
static inline __m256i pf_ivec_right_byte(__m256i v) { return _mm256_srai_epi16(v, 8); }
static inline __m256i pf_ivec_low_words(__m256i a, __m256i b) { return _mm256_unpacklo_epi32(a, b); }
static inline __m256i pf_ivec_high_words(__m256i a, __m256i b) { return _mm256_unpackhi_epi32(a, b); }
static inline __m256i pf_ivec_low_pairs(__m256i a, __m256i b) { return _mm256_unpacklo_epi64(a, b); }
static inline __m256i pf_ivec_high_pairs(__m256i a, __m256i b) { return _mm256_unpackhi_epi64(a, b); }
static inline __m256i pf_ivec_of_bytes(const uint64_t *v) {
    return _mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)v[0]));
}
static inline __m256i pf_ivec_q8_0(__m256i v) { return v; }
static inline __m256 pf_vec_of_halves(const uint64_t *v) {
    return _mm256_cvtph_ps(_mm_set_epi64x((int64_t)v[1], (int64_t)v[0]));
}
static inline __m256 pf_vec_of_ints(__m256i v) { return _mm256_cvtepi32_ps(v); }
static inline __m256i pf_vec_round(__m256 v) { return _mm256_cvtps_epi32(v); }
static inline __m256 pf_vec_of_bits(__m256i v) { return _mm256_castsi256_ps(v); }

PF_INLINE __m256i pf_ivec_dot4(const __m256i *w, const uint8_t *at, int64_t stride) {
    const __m256i a = _mm256_madd_epi16(w[0], load256(at)), b = _mm256_madd_epi16(w[1], load256(at + stride));
    const __m256i c = _mm256_madd_epi16(w[2], load256(at + 2 * stride));
    const __m256i d = _mm256_madd_epi16(w[3], load256(at + 3 * stride));
    return _mm256_add_epi32(_mm256_add_epi32(a, b), _mm256_add_epi32(c, d));
}

PF_INLINE __m256i blocks_16bytes(const uint8_t *at, int64_t stride, int n) {
    if (n < 2) return _mm256_inserti128_si256(_mm256_setzero_si256(), load128(at), 0);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(at)), load128(at + stride), 1);
}

PF_INLINE __m256 blocks_halves(const uint8_t *at, int64_t stride, int n) {
    const __m128i a = _mm_set1_epi16((int16_t)pf_load_u16(at));
    const __m128i b = n < 2 ? _mm_setzero_si128() : _mm_set1_epi16((int16_t)pf_load_u16(at + stride));
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(a, b));
}

PF_INLINE __m256i blocks_exponents(const uint8_t *at, int n) {
    /* One load has both: the second block's is byte 1 of the upper half. */
    const __m256i places = _mm256_setr_epi8(-1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0, -1, -1, -1, 0, -1,
                                            -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1, -1, -1, 1, -1);
    return _mm256_shuffle_epi8(n < 2 ? blocks_16bytes(at, 0, 1) : load256(at), places);
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

/* Sums of 16 columns, 16 bits each, pass their range on the way and end within it: 16 * 12 * 127. */
PF_INLINE __m256 dot_q8_mxfp4(const int_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part) {
    const uint8_t *at = q8_values(act, group, part);
    __m256i s = q8_sums(act, padded, group, part);
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w->w[i], load256(at + i * PF_Q8_QUADS)));
    }
    return _mm256_cvtepi32_ps(_mm256_madd_epi16(s, _mm256_set1_epi16(1)));
}

/* Pairs stay below 2 * 128 * 127 in 16 bits. */
PF_INLINE __m256 dot_q8_q8_0(const int_weights *w, const uint8_t *act, int64_t padded, int64_t group, int part) {
    const uint8_t *at = q8_values(act, group, part);
    __m256i s = _mm256_setzero_si256();
    (void)padded;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const __m256i with_sign = _mm256_sign_epi8(load256(at + i * PF_Q8_QUADS), w->w[i]);
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w->w[i]), with_sign);
        s = _mm256_add_epi32(s, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    return _mm256_cvtepi32_ps(s);
}

static inline float int_total(const __m256 *s) {
    const __m256 v = _mm256_add_ps(s[0], s[1]);
    const __m128 t = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 u = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(u, _mm_movehdup_ps(u)));
}

#include "backend/cpu/vector_ops.h"

/* ---- Quantised activations --------------------------------------------------------------------------------- */

static inline float max_f32_bits(__m256i v) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(s));
}

/* 16 columns of integers, as words: the even ones and the odd ones to places of their own. */
static inline void store_words(uint8_t *even, uint8_t *odd, __m256i low, __m256i high) {
    const __m256i pairs = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
    const __m256i apart = _mm256_permute4x64_epi64(_mm256_shuffle_epi8(words, pairs), 0xd8);
    _mm_storeu_si128((__m128i *)(void *)even, _mm256_castsi256_si128(apart));
    _mm_storeu_si128((__m128i *)(void *)odd, _mm256_extracti128_si256(apart, 1));
}

/* The integers of a block, and its scale. */
PF_INLINE float quantize_block(const float *x, float most, __m256i *q) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    const __m256 low = _mm256_set1_ps(-most), high = _mm256_set1_ps(most);
    __m256 v[4];
    __m256i amax = _mm256_setzero_si256();
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        amax = _mm256_max_epi32(amax, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
    }
    const float d = max_f32_bits(amax) / most;
    for (int i = 0; i < 4; ++i) {
        /* In this order of operands a NaN becomes the lowest value, as in the scalar kernel. */
        v[i] = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(v[i], _mm256_set1_ps(d)), low), high);
        q[i] = d == 0.0f ? _mm256_setzero_si256() : _mm256_cvtps_epi32(v[i]);
    }
    return d;
}

static void quantize_q16(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        __m256i q[4];
        pf_q16_put_scale(row, n, b, quantize_block(x + b * BLOCK, (float)PF_Q16_MAX, q));
        uint8_t *out = row + 2 * pf_q16_words_of(b);
        store_words(out, out + PF_Q16_GROUP / 2, q[0], q[1]);
        store_words(out + PF_Q16_GROUP, out + PF_Q16_GROUP / 2 * 3, q[2], q[3]);
    }
    if (end == n) pf_q16_pad(row, n);
}

static void quantize_q8(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        __m256i q[4];
        int8_t bytes[BLOCK];
        int16_t sums[2];
        const float d = quantize_block(x + b * BLOCK, (float)PF_Q8_MAX, q);
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        _mm256_storeu_si256((__m256i *)(void *)bytes, _mm256_permutevar8x32_epi32(packed, order));
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(PF_Q8_BIAS), packed);
        __m128i s = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
        s = _mm_sub_epi16(_mm_setzero_si128(), _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1)));
        const int32_t both = _mm_cvtsi128_si32(s);
        memcpy(sums, &both, sizeof both);
        pf_q8_put(row, n, b, bytes, d, sums);
    }
    if (end == n) pf_q8_pad(row, n);
}

/* ---- Table ------------------------------------------------------------------------------------------------- */

void pf_kernels_avx2_init(pf_cpu_kernels *k) {
    *k = (pf_cpu_kernels){
        .name = "avx2",
        PF_VECTOR_ENTRIES,
        .quantize_q16 = quantize_q16,
        .quantize_q8 = quantize_q8,
    };
}

#endif
