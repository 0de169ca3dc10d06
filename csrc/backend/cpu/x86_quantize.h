/* Quantised activations (int_acts.h) by 256-bit registers, for both x86 kernel files; PF_INT_WORDS: q16 as words. */
#ifndef PF_BACKEND_CPU_X86_QUANTIZE_H
#define PF_BACKEND_CPU_X86_QUANTIZE_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/int_acts.h"
#include "backend/cpu/x86_intrinsics.h"

static inline float max_f32_bits(__m256i v) {
    __m128i s = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_max_epi32(s, _mm_shuffle_epi32(s, 0xb1));
    return _mm_cvtss_f32(_mm_castsi128_ps(s));
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

/* The sums of both halves of a block to their places. */
PF_INLINE void put_halves(uint8_t *row, int64_t n, int64_t block, const __m256i *q) {
    const __m256i both = _mm256_hadd_epi32(_mm256_add_epi32(q[0], q[1]), _mm256_add_epi32(q[2], q[3]));
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
    s = _mm_hadd_epi32(s, s);
    pf_int_put_halves(row, n, block, _mm_cvtsi128_si32(s), _mm_extract_epi32(s, 1));
}

/* A plane's integers of a block to their places. */
PF_INLINE void put_plane(uint8_t *row, int planes, int64_t n, int64_t block, int plane, const __m256i *q) {
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
    const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(PF_INT_BIAS), packed);
    __m128i s = _mm_add_epi16(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    int8_t bytes[BLOCK];
    int16_t sums[2];
    s = _mm_add_epi16(s, _mm_shuffle_epi32(s, 0x4e));
    s = _mm_sub_epi16(_mm_setzero_si128(), _mm_add_epi16(s, _mm_shuffle_epi32(s, 0xb1)));
    const int32_t both = _mm_cvtsi128_si32(s);
    memcpy(sums, &both, sizeof both);
    _mm256_storeu_si256((__m256i *)(void *)bytes, _mm256_permutevar8x32_epi32(packed, order));
    pf_int_put(row, planes, n, block, plane, bytes, sums);
}

#if defined(PF_INT_WORDS)

static void quantize_q16(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    const __m256i apart = _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15,
                                           0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        __m256i q[4];
        pf_int_put_scale(row, PF_Q16_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q16_MAX, q));
        put_halves(row, n, b, q);
        for (int half = 0; half < 2; ++half) {
            /* 128-bit halves: columns 0 to 3 and 8 to 11; 4 to 7 and 12 to 15; each its even ones, then its odd ones. */
            const __m256i words = _mm256_shuffle_epi8(_mm256_packs_epi32(q[2 * half], q[2 * half + 1]), apart);
            uint64_t four[4];
            _mm256_storeu_si256((__m256i *)(void *)four, words);
            for (int quad = 0; quad < 4; ++quad) {
                const uint64_t *from = four + (quad % 2 ? 2 : 0);
                const uint32_t even = (uint32_t)(from[0] >> (quad < 2 ? 0 : 32));
                const uint32_t odd = (uint32_t)(from[1] >> (quad < 2 ? 0 : 32));
                uint8_t *to = row + pf_int_place(b) + (4 * half + quad) * PF_INT_QUADS;
                memcpy(to, &even, sizeof even);
                memcpy(to + pf_int_padded(n), &odd, sizeof odd);
            }
        }
    }
    if (end == n) pf_int_pad(row, PF_Q16_PLANES, n);
}

#else

static void quantize_q16(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        __m256i q[4], hi[4];
        pf_int_put_scale(row, PF_Q16_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q16_MAX, q));
        put_halves(row, n, b, q);
        for (int i = 0; i < 4; ++i) {
            const __m256 share = _mm256_mul_ps(_mm256_cvtepi32_ps(q[i]), _mm256_set1_ps(1.0f / (float)PF_INT_BASE));
            hi[i] = _mm256_cvtps_epi32(share);
            q[i] = _mm256_sub_epi32(q[i], _mm256_mullo_epi32(hi[i], _mm256_set1_epi32(PF_INT_BASE)));
        }
        put_plane(row, PF_Q16_PLANES, n, b, 0, hi);
        put_plane(row, PF_Q16_PLANES, n, b, 1, q);
    }
    if (end == n) pf_int_pad(row, PF_Q16_PLANES, n);
}

#endif

static void quantize_q8(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        __m256i q[4];
        pf_int_put_scale(row, PF_Q8_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q8_MAX, q));
        put_plane(row, PF_Q8_PLANES, n, b, 0, q);
    }
    if (end == n) pf_int_pad(row, PF_Q8_PLANES, n);
}

#endif
