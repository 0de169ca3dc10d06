/* What x86_super.h and vector_super.h ask for, of AVX-512: two super-blocks in a vector. */
#ifndef PF_BACKEND_CPU_AVX512_SUPER_H
#define PF_BACKEND_CPU_AVX512_SUPER_H

#include "backend/cpu/x86_blocks.h"

static inline __m512i pf_ivec_sub(__m512i a, __m512i b) { return _mm512_sub_epi32(a, b); }
static inline __m512i pf_ivec_mul(__m512i a, __m512i b) { return _mm512_mullo_epi32(a, b); }
static inline __m512i pf_ivec_add_bytes(__m512i a, __m512i b) { return _mm512_add_epi8(a, b); }
static inline __m512i pf_ivec_and(__m512i a, __m512i b) { return _mm512_and_si512(a, b); }
static inline __m512i pf_ivec_or(__m512i a, __m512i b) { return _mm512_or_si512(a, b); }
static inline __m512i pf_ivec_xor(__m512i a, __m512i b) { return _mm512_xor_si512(a, b); }
PF_INLINE __m512i pf_ivec_right(__m512i v, int n) { return _mm512_srli_epi32(v, (unsigned)n); }
PF_INLINE __m512i pf_ivec_right_signed(__m512i v, int n) { return _mm512_srai_epi32(v, (unsigned)n); }
PF_INLINE __m512i pf_ivec_right_words(__m512i v, int n) { return _mm512_srlv_epi16(v, _mm512_set1_epi16((int16_t)n)); }
static inline __m512i pf_ivec_right_each(__m512i v, __m512i n) { return _mm512_srlv_epi32(v, n); }
static inline __m512i pf_ivec_replicate(__m512i v, __m512i places) { return _mm512_shuffle_epi8(v, places); }
static inline __m512i pf_ivec_turned(__m512i v) { return _mm512_permutex_epi64(v, 0xd8); }
static inline __m512i pf_ivec_packed_words(__m512i a, __m512i b) { return _mm512_packus_epi16(a, b); }
static inline __m512i pf_ivec_even_lanes(__m512i a, __m512i b) {
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0x88));
}
static inline __m512i pf_ivec_odd_lanes(__m512i a, __m512i b) {
    return _mm512_castps_si512(_mm512_shuffle_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), 0xdd));
}

static inline __m512i pf_ivec_even_fours(__m512i a, __m512i b) { return _mm512_shuffle_i32x4(a, b, 0x88); }
static inline __m512i pf_ivec_odd_fours(__m512i a, __m512i b) { return _mm512_shuffle_i32x4(a, b, 0xdd); }
static inline __m512i pf_ivec_sub_bytes(__m512i a, __m512i b) { return _mm512_sub_epi8(a, b); }
static inline __m512i pf_ivec_mul_words(__m512i a, __m512i b) { return _mm512_mullo_epi16(a, b); }
static inline __m512i pf_ivec_of_vec(__m512 v) { return _mm512_castps_si512(v); }

static inline __m512i super_both(__m256i a, __m256i b) { return _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1); }
static inline __m512i super_load(const uint8_t *a, const uint8_t *b) { return super_both(load256(a), load256(b)); }
static inline __m512i super_pairs(const uint8_t *a, const uint8_t *b, int64_t apart) {
    const __m512i v = _mm512_inserti32x4(_mm512_castsi128_si512(load128(a)), load128(a + apart), 1);
    return _mm512_inserti32x4(_mm512_inserti32x4(v, load128(b), 2), load128(b + apart), 3);
}
static inline __m512i super_bytes(__m128i a, __m128i b) { return _mm512_cvtepu8_epi32(_mm_unpacklo_epi64(a, b)); }
static inline __m512i super_words(__m128i a, __m128i b) {
    return _mm512_cvtepu16_epi32(_mm256_inserti128_si256(_mm256_castsi128_si256(a), b, 1));
}
static inline __m512i super_set1(uint32_t a, uint32_t b) {
    return _mm512_mask_mov_epi32(_mm512_set1_epi32((int32_t)a), 0xff00, _mm512_set1_epi32((int32_t)b));
}
static inline __m512 super_floats(float a, float b) {
    return _mm512_mask_mov_ps(_mm512_set1_ps(a), 0xff00, _mm512_set1_ps(b));
}
static inline __m512 super_half(const uint8_t *a, const uint8_t *b) {
    const __m128i of_a = _mm_set1_epi16((int16_t)pf_load_u16(a)), of_b = _mm_set1_epi16((int16_t)pf_load_u16(b));
    return _mm512_cvtph_ps(_mm256_inserti128_si256(_mm256_castsi128_si256(of_a), of_b, 1));
}
static inline __m512 super_only(__m512 v, int n) { return n < 16 ? _mm512_maskz_mov_ps(lanes(n), v) : v; }
static inline __m512i super_each(int c0, int c1, int c2, int c3, int c4, int c5, int c6, int c7) {
    return _mm512_setr_epi32(c0, c1, c2, c3, c4, c5, c6, c7, c0, c1, c2, c3, c4, c5, c6, c7);
}

#if defined(PF_VBMI)
#  define PF_OWN_GRIDS
#  include "backend/cpu/avx512_grids.h"
#else
PF_INLINE __m512i super_of_64(const uint64_t *v) {
    return super_both(_mm256_setr_epi64x((int64_t)v[0], (int64_t)v[1], (int64_t)v[2], (int64_t)v[3]),
                      _mm256_setr_epi64x((int64_t)v[4], (int64_t)v[5], (int64_t)v[6], (int64_t)v[7]));
}
PF_INLINE __m256i eight_of_32(const uint32_t *v) {
    return _mm256_setr_epi32((int32_t)v[0], (int32_t)v[1], (int32_t)v[2], (int32_t)v[3], (int32_t)v[4], (int32_t)v[5],
                             (int32_t)v[6], (int32_t)v[7]);
}
PF_INLINE __m512i super_of_32(const uint32_t *v) { return super_both(eight_of_32(v), eight_of_32(v + 8)); }
#endif
PF_INLINE __m512i with_signs(__m512i magnitudes, __m512i signs, __m512i bits, int8_t bias) {
    const __m512i middle = _mm512_set1_epi8(bias);
    return _mm512_mask_sub_epi8(_mm512_add_epi8(magnitudes, middle), _mm512_test_epi8_mask(signs, bits), middle, magnitudes);
}

/* Lanes of 32 bits of two vectors: `first` of the first four of a, and so on, `step` from one vector to the next. */
PF_INLINE void super_spread(__m512i a, __m512i b, __m512i first, __m512i *v) {
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        v[q] = _mm512_permutex2var_epi32(a, _mm512_add_epi32(first, _mm512_set1_epi32(q)), b);
    }
}
PF_INLINE void rows_of_one(const uint8_t *a, const uint8_t *b, __m512i *v) {
    const __m512i both = super_load(a, b), first = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 8, 8, 8, 8, 8, 8, 8, 8);
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        v[q] = _mm512_permutexvar_epi32(_mm512_add_epi32(first, _mm512_set1_epi32(q)), both);
    }
}
PF_INLINE void rows_of_two(const uint8_t *a, const uint8_t *b, __m512i *v) {
    const __m512i first = _mm512_setr_epi32(0, 0, 0, 0, 8, 8, 8, 8, 16, 16, 16, 16, 24, 24, 24, 24);
    const __m512i of_a = pf_ivec_load(a), of_b = pf_ivec_load(b);
    super_spread(of_a, of_b, first, v);
    super_spread(of_a, of_b, _mm512_add_epi32(first, _mm512_set1_epi32(4)), v + 4);
}
PF_INLINE void super_four_rows(const uint8_t *a, const uint8_t *b, __m512i first, __m512i *v) {
    const __m512i of_a[2] = {pf_ivec_load(a), pf_ivec_load(a + 64)}, of_b[2] = {pf_ivec_load(b), pf_ivec_load(b + 64)};
    super_spread(_mm512_shuffle_i32x4(of_a[0], of_a[1], 0x88), _mm512_shuffle_i32x4(of_b[0], of_b[1], 0x88), first, v);
    super_spread(_mm512_shuffle_i32x4(of_a[0], of_a[1], 0xdd), _mm512_shuffle_i32x4(of_b[0], of_b[1], 0xdd), first, v + 4);
}
PF_INLINE void rows_of_four(const uint8_t *a, const uint8_t *b, __m512i *v) {
    super_four_rows(a, b, _mm512_setr_epi32(0, 0, 4, 4, 8, 8, 12, 12, 16, 16, 20, 20, 24, 24, 28, 28), v);
}
PF_INLINE void rows_in_pairs(const uint8_t *a, const uint8_t *b, __m512i *v) {
    super_four_rows(a, b, _mm512_setr_epi32(0, 4, 0, 4, 8, 12, 8, 12, 16, 20, 16, 20, 24, 28, 24, 28), v);
}

#include "backend/cpu/x86_super.h"

PF_INLINE __m512i half_products(const int_weights *w, const uint8_t *values, int64_t padded, int half) {
    __m512i plane[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
    PF_UNROLL for (int i = 0; i < 4; ++i) {
        const uint8_t *at = values + (4 * half + i) * PF_INT_QUADS;
        plane[0] = _mm512_dpbusd_epi32(plane[0], w->w[4 * half + i], pf_ivec_load(at));
        plane[1] = _mm512_dpbusd_epi32(plane[1], w->w[4 * half + i], pf_ivec_load(at + padded));
    }
    return _mm512_add_epi32(_mm512_mullo_epi32(plane[0], _mm512_set1_epi32(PF_INT_BASE)), plane[1]);
}

#endif
