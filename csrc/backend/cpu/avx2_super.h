/* What x86_super.h and vector_super.h ask for, of AVX2: a super-block in a vector. */
#ifndef PF_BACKEND_CPU_AVX2_SUPER_H
#define PF_BACKEND_CPU_AVX2_SUPER_H

#include "backend/cpu/x86_blocks.h"

static inline __m256i pf_ivec_sub(__m256i a, __m256i b) { return _mm256_sub_epi32(a, b); }
static inline __m256i pf_ivec_mul(__m256i a, __m256i b) { return _mm256_mullo_epi32(a, b); }
static inline __m256i pf_ivec_add_bytes(__m256i a, __m256i b) { return _mm256_add_epi8(a, b); }
static inline __m256i pf_ivec_and(__m256i a, __m256i b) { return _mm256_and_si256(a, b); }
static inline __m256i pf_ivec_or(__m256i a, __m256i b) { return _mm256_or_si256(a, b); }
static inline __m256i pf_ivec_xor(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
PF_INLINE __m256i pf_ivec_right(__m256i v, int n) { return _mm256_srli_epi32(v, n); }
PF_INLINE __m256i pf_ivec_right_signed(__m256i v, int n) { return _mm256_srai_epi32(v, n); }
PF_INLINE __m256i pf_ivec_right_words(__m256i v, int n) { return _mm256_srli_epi16(v, n); }
static inline __m256i pf_ivec_right_each(__m256i v, __m256i n) { return _mm256_srlv_epi32(v, n); }
static inline __m256i pf_ivec_replicate(__m256i v, __m256i places) { return _mm256_shuffle_epi8(v, places); }
static inline __m256i pf_ivec_turned(__m256i v) { return _mm256_permute4x64_epi64(v, 0xd8); }
static inline __m256i pf_ivec_packed_words(__m256i a, __m256i b) { return _mm256_packus_epi16(a, b); }
static inline __m256i pf_ivec_even_lanes(__m256i a, __m256i b) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0x88));
}
static inline __m256i pf_ivec_odd_lanes(__m256i a, __m256i b) {
    return _mm256_castps_si256(_mm256_shuffle_ps(_mm256_castsi256_ps(a), _mm256_castsi256_ps(b), 0xdd));
}

static inline __m256i pf_ivec_even_fours(__m256i a, __m256i b) { return _mm256_permute2x128_si256(a, b, 0x20); }
static inline __m256i pf_ivec_odd_fours(__m256i a, __m256i b) { return _mm256_permute2x128_si256(a, b, 0x31); }
static inline __m256i pf_ivec_sub_bytes(__m256i a, __m256i b) { return _mm256_sub_epi8(a, b); }
static inline __m256i pf_ivec_mul_words(__m256i a, __m256i b) { return _mm256_mullo_epi16(a, b); }
static inline __m256i pf_ivec_of_vec(__m256 v) { return _mm256_castps_si256(v); }

static inline __m256i super_load(const uint8_t *a, const uint8_t *b) { return (void)b, load256(a); }
static inline __m256i super_pairs(const uint8_t *a, const uint8_t *b, int64_t apart) {
    (void)b;
    return _mm256_inserti128_si256(_mm256_castsi128_si256(load128(a)), load128(a + apart), 1);
}
static inline __m256i super_bytes(__m128i a, __m128i b) { return (void)b, _mm256_cvtepu8_epi32(a); }
static inline __m256i super_words(__m128i a, __m128i b) { return (void)b, _mm256_cvtepu16_epi32(a); }
static inline __m256i super_set1(uint32_t a, uint32_t b) { return (void)b, _mm256_set1_epi32((int32_t)a); }
static inline __m256 super_floats(float a, float b) { return (void)b, _mm256_set1_ps(a); }
static inline __m256 super_half(const uint8_t *a, const uint8_t *b) {
    (void)b;
    return _mm256_cvtph_ps(_mm_set1_epi16((int16_t)pf_load_u16(a)));
}
static inline __m256 super_only(__m256 v, int n) { return (void)n, v; }
static inline __m256i super_each(int c0, int c1, int c2, int c3, int c4, int c5, int c6, int c7) {
    return _mm256_setr_epi32(c0, c1, c2, c3, c4, c5, c6, c7);
}

PF_INLINE __m256i super_of_64(const uint64_t *v) {
    return _mm256_setr_epi64x((int64_t)v[0], (int64_t)v[1], (int64_t)v[2], (int64_t)v[3]);
}
PF_INLINE __m256i super_of_32(const uint32_t *v) {
    return _mm256_setr_epi32((int32_t)v[0], (int32_t)v[1], (int32_t)v[2], (int32_t)v[3], (int32_t)v[4], (int32_t)v[5],
                             (int32_t)v[6], (int32_t)v[7]);
}
PF_INLINE __m256i with_signs(__m256i magnitudes, __m256i signs, __m256i bits, int8_t bias) {
    const __m256i negative = _mm256_cmpeq_epi8(_mm256_and_si256(signs, bits), bits);
    (void)bias; /* 0 */
    return _mm256_sub_epi8(_mm256_xor_si256(magnitudes, negative), negative);
}

PF_INLINE void rows_of_one(const uint8_t *a, const uint8_t *b, __m256i *v) {
    (void)b;
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        int32_t word;
        memcpy(&word, a + 4 * q, sizeof word);
        v[q] = _mm256_set1_epi32(word);
    }
}
PF_INLINE void rows_of_two(const uint8_t *a, const uint8_t *b, __m256i *v) {
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i both = super_pairs(a + 16 * i, b, 32);
        v[4 * i] = _mm256_shuffle_epi32(both, 0x00);
        v[4 * i + 1] = _mm256_shuffle_epi32(both, 0x55);
        v[4 * i + 2] = _mm256_shuffle_epi32(both, 0xaa);
        v[4 * i + 3] = _mm256_shuffle_epi32(both, 0xff);
    }
}
PF_INLINE void rows_of_four(const uint8_t *a, const uint8_t *b, __m256i *v) {
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i even = super_pairs(a + 16 * i, b, 64), odd = super_pairs(a + 32 + 16 * i, b, 64);
        const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
        v[4 * i] = _mm256_shuffle_epi32(low, 0x50);
        v[4 * i + 1] = _mm256_shuffle_epi32(low, 0xfa);
        v[4 * i + 2] = _mm256_shuffle_epi32(high, 0x50);
        v[4 * i + 3] = _mm256_shuffle_epi32(high, 0xfa);
    }
}
PF_INLINE void rows_in_pairs(const uint8_t *a, const uint8_t *b, __m256i *v) {
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i even = super_pairs(a + 16 * i, b, 64), odd = super_pairs(a + 32 + 16 * i, b, 64);
        const __m256i low = _mm256_unpacklo_epi32(even, odd), high = _mm256_unpackhi_epi32(even, odd);
        v[4 * i] = _mm256_unpacklo_epi64(low, low);
        v[4 * i + 1] = _mm256_unpackhi_epi64(low, low);
        v[4 * i + 2] = _mm256_unpacklo_epi64(high, high);
        v[4 * i + 3] = _mm256_unpackhi_epi64(high, high);
    }
}

#include "backend/cpu/x86_super.h"

PF_INLINE __m256i half_products(const int_weights *w, const uint8_t *values, int64_t padded, int half) {
    __m256i even = _mm256_setzero_si256(), odd = even;
    PF_UNROLL for (int i = 0; i < 4; ++i) {
        const uint8_t *at = values + (4 * half + i) * PF_INT_QUADS;
        even = pf_ivec_add_pairs(even, w->even[4 * half + i], load256(at));
        odd = pf_ivec_add_pairs(odd, w->odd[4 * half + i], load256(at + padded));
    }
    return _mm256_add_epi32(even, odd);
}

#endif
