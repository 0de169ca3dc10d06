/* Kernels for AVX2, FMA and F16C. */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "backend/cpu/x86_intrinsics.h"

#include <string.h>

/* ---- Floats ------------------------------------------------------------------------------------------------ */

typedef __m256 pf_vec;
enum { PF_VEC_LANES = 8, PF_VECS = 4, TILE_TOKENS = 3, INT_ROWS = 8, SUM_VECS = 2 };
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
static inline __m256i pf_ivec_set1(int32_t v) { return _mm256_set1_epi32(v); }
static inline __m256i pf_ivec_add(__m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
static inline __m256i pf_ivec_sub(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
static inline __m256i pf_ivec_max(__m256i a, __m256i b) { return _mm256_max_epi32(a, b); }
static inline __m256i pf_ivec_low32(__m256i a, __m256i b) { return _mm256_unpacklo_epi32(a, b); }
static inline __m256i pf_ivec_high32(__m256i a, __m256i b) { return _mm256_unpackhi_epi32(a, b); }
static inline __m256i pf_ivec_low64(__m256i a, __m256i b) { return _mm256_unpacklo_epi64(a, b); }
static inline __m256i pf_ivec_high64(__m256i a, __m256i b) { return _mm256_unpackhi_epi64(a, b); }
static inline __m256i pf_ivec_table(__m128i bytes) { return _mm256_broadcastsi128_si256(bytes); }
static inline __m256i pf_ivec_lookup(__m256i table, __m256i i) { return _mm256_shuffle_epi8(table, i); }
static inline __m256i pf_ivec_low_nibbles(__m256i v) { return _mm256_and_si256(v, _mm256_set1_epi8(15)); }
static inline __m256i pf_ivec_high_nibbles(__m256i v) { return pf_ivec_low_nibbles(_mm256_srli_epi16(v, 4)); }
PF_INLINE __m256i pf_ivec_left(__m256i v, int n) { return _mm256_slli_epi32(v, n); }
static inline __m256 pf_vec_of_ints(__m256i v) { return _mm256_cvtepi32_ps(v); }
static inline __m256i pf_vec_round(__m256 v) { return _mm256_cvtps_epi32(v); }
static inline __m256 pf_vec_of_bits(__m256i v) { return _mm256_castsi256_ps(v); }

PF_INLINE __m256i rows_16bytes(const uint8_t *const *rows, int64_t at) {
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(rows[0] + at)), load128(rows[4] + at), 1);
}

/* Two chains of insertions each. */
PF_INLINE __m256 rows_halves(const uint8_t *const *rows, int64_t at) {
    __m128i a = _mm_cvtsi32_si128(pf_load_u16(rows[0] + at)), b = _mm_cvtsi32_si128(pf_load_u16(rows[4] + at));
    a = _mm_insert_epi16(a, pf_load_u16(rows[1] + at), 1);
    b = _mm_insert_epi16(b, pf_load_u16(rows[5] + at), 1);
    a = _mm_insert_epi16(a, pf_load_u16(rows[2] + at), 2);
    b = _mm_insert_epi16(b, pf_load_u16(rows[6] + at), 2);
    a = _mm_insert_epi16(a, pf_load_u16(rows[3] + at), 3);
    b = _mm_insert_epi16(b, pf_load_u16(rows[7] + at), 3);
    return _mm256_cvtph_ps(_mm_unpacklo_epi64(a, b));
}

PF_INLINE __m256i rows_bytes(const uint8_t *const *rows, int64_t at) {
    __m128i a = _mm_cvtsi32_si128(rows[0][at]), b = _mm_cvtsi32_si128(rows[4][at]);
    a = _mm_insert_epi8(a, rows[1][at], 1);
    b = _mm_insert_epi8(b, rows[5][at], 1);
    a = _mm_insert_epi8(a, rows[2][at], 2);
    b = _mm_insert_epi8(b, rows[6][at], 2);
    a = _mm_insert_epi8(a, rows[3][at], 3);
    b = _mm_insert_epi8(b, rows[7][at], 3);
    return _mm256_cvtepu8_epi32(_mm_unpacklo_epi32(a, b));
}

#include "backend/cpu/x86_blocks.h"

PF_INLINE int_block load_q8_0(const uint8_t *const *rows, int64_t b) { return load_i8(rows, b); }

PF_INLINE __m256i dot_q8_0(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t act_sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *const planes[2] = {hi, lo};
    __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
    (void)act_sum;
    for (int i = 0; i < 8; ++i) {
        const __m256i size = _mm256_abs_epi8(block->w[i]);
        for (int p = 0; p < 2; ++p) {
            /* |w| times a with w's sign: pairs stay below 2 * 128 * 127, so nothing saturates. */
            const __m256i a = _mm256_sign_epi8(broadcast4(planes[p] + 4 * i), block->w[i]);
            sum[p] = _mm256_add_epi32(sum[p], _mm256_madd_epi16(_mm256_maddubs_epi16(size, a), ones));
        }
    }
    return join_planes(sum[0], sum[1]);
}

PF_INLINE __m256i dot_mxfp4(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t act_sum) {
    const __m256i ones = _mm256_set1_epi16(1);
    const uint8_t *const planes[2] = {hi, lo};
    __m256i sum[2];
    for (int p = 0; p < 2; ++p) {
        __m256i s[2];
        for (int half = 0; half < 2; ++half) {
            /* Four pairs stay below 4 * 2 * 24 * 127 in 16 bits. */
            s[half] = _mm256_maddubs_epi16(block->w[4 * half], broadcast4(planes[p] + 16 * half));
            for (int i = 1; i < 4; ++i) {
                const __m256i a = broadcast4(planes[p] + 16 * half + 4 * i);
                s[half] = _mm256_add_epi16(s[half], _mm256_maddubs_epi16(block->w[4 * half + i], a));
            }
        }
        sum[p] = _mm256_add_epi32(_mm256_madd_epi16(s[0], ones), _mm256_madd_epi16(s[1], ones));
    }
    return _mm256_sub_epi32(join_planes(sum[0], sum[1]), _mm256_set1_epi32(12 * act_sum));
}

#include "backend/cpu/vector_ops.h"

/* ---- Quantised activations --------------------------------------------------------------------------------- */

static inline int32_t sum_i32(__m256i v) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}

static inline float max_f32_bits(__m256i v) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(s));
}

/* 32 integers within a byte's range, as bytes in order. */
static inline void store_bytes(uint8_t *out, const __m256i *q) {
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256((__m256i *)(void *)out, _mm256_permutevar8x32_epi32(bytes, order));
}

static void quantize_q16(const float *x, int64_t n, uint8_t *out) {
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff), base = _mm256_set1_epi32(PF_Q16_BASE);
    const __m256 low = _mm256_set1_ps(-(float)PF_Q16_MAX), high = _mm256_set1_ps((float)PF_Q16_MAX);
    const __m256 per_base = _mm256_set1_ps(1.0f / (float)PF_Q16_BASE);
    float *scales = (float *)(void *)(out + 2 * n);
    int32_t *sums = (int32_t *)(void *)(out + 2 * n + n / BLOCK * 4);
    for (int64_t b = 0; b < n / BLOCK; ++b, x += BLOCK, out += BLOCK) {
        __m256 v[4];
        __m256i hi[4], lo[4], sum = _mm256_setzero_si256(), amax = _mm256_setzero_si256();
        for (int i = 0; i < 4; ++i) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            amax = _mm256_max_epi32(amax, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        const float d = max_f32_bits(amax) / (float)PF_Q16_MAX;
        scales[b] = d;
        if (d == 0.0f) {
            memset(out, 0, BLOCK);
            memset(out + n, 0, BLOCK);
            sums[b] = 0;
            continue;
        }
        for (int i = 0; i < 4; ++i) {
            /* In this order of operands a NaN becomes the lowest value, as in the scalar kernel. */
            v[i] = _mm256_min_ps(_mm256_max_ps(_mm256_div_ps(v[i], _mm256_set1_ps(d)), low), high);
            const __m256i q = _mm256_cvtps_epi32(v[i]);
            hi[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_cvtepi32_ps(q), per_base));
            lo[i] = _mm256_sub_epi32(q, _mm256_mullo_epi32(hi[i], base));
            sum = _mm256_add_epi32(sum, q);
        }
        sums[b] = sum_i32(sum);
        store_bytes(out, hi);
        store_bytes(out + n, lo);
    }
}

/* ---- Table ------------------------------------------------------------------------------------------------- */

void pf_kernels_avx2_init(pf_cpu_kernels *k) {
    *k = (pf_cpu_kernels){
        .name = "avx2",
        PF_VECTOR_ENTRIES,
        .quantize_q16 = quantize_q16,
    };
}

#endif
