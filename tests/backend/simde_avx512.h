/* AVX-512 and AVX-VNNI on a machine without them: SIMDe's emulation under the native names, and here what its 0.7.4 lacks,
 * built from AVX2. Found by csrc/backend/cpu/x86_intrinsics.h in builds with PF_SIMDE. */
#ifndef PF_TESTS_SIMDE_AVX512_H
#define PF_TESTS_SIMDE_AVX512_H

#if defined(__AVX512F__)
#  error "build the emulation without -mavx512*: it would run the processor's own instructions"
#endif

#define SIMDE_ENABLE_NATIVE_ALIASES
#if defined(__GNUC__)
#  pragma GCC diagnostic push
#  pragma GCC diagnostic ignored "-Wconversion"
#  pragma GCC diagnostic ignored "-Wsign-conversion"
#  pragma GCC diagnostic ignored "-Wshadow"
#  pragma GCC diagnostic ignored "-Wpragmas"
#  pragma GCC diagnostic ignored "-Wunknown-warning-option"
#  pragma GCC diagnostic ignored "-Wpsabi"
#endif
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>
#if defined(__GNUC__)
#  pragma GCC diagnostic pop
#endif

#include <string.h>

#define SHIM static inline __attribute__((unused))
#define _mm512_maskz_loadu_ps shim_maskz_loadu_ps
#define _mm512_mask_storeu_ps shim_mask_storeu_ps
#define _mm512_cvtph_ps shim_cvtph_ps
#define _mm512_cvtepi8_epi32 shim_cvtepi8_epi32
#define _mm512_cvtepu8_epi32 shim_cvtepu8_epi32
#define _mm512_cvtepu16_epi32 shim_cvtepu16_epi32
#define _mm512_cvtepi32_ps shim_cvtepi32_ps
#define _mm512_cvtps_epi32 shim_cvtps_epi32
#define _mm512_srai_epi32 shim_srai_epi32
#define _mm512_permutex_epi64 shim_permutex_epi64

SHIM __m512i shim_join(__m256i low, __m256i high) {
    return simde_mm512_inserti64x4(simde_mm512_castsi256_si512(low), high, 1);
}

SHIM __m256i shim_high(__m512i v) { return simde_mm512_extracti64x4_epi64(v, 1); }

SHIM __m512i shim_srai_epi32(__m512i v, int n) {
    const __m128i by = _mm_cvtsi32_si128(n);
    return shim_join(_mm256_sra_epi32(simde_mm512_castsi512_si256(v), by), _mm256_sra_epi32(shim_high(v), by));
}

/* Within each half. */
SHIM __m512i shim_permutex_epi64(__m512i v, int order) {
    int64_t from[8], to[8];
    memcpy(from, &v, sizeof from);
    for (int i = 0; i < 8; ++i) to[i] = from[i / 4 * 4 + (order >> i % 4 * 2 & 3)];
    memcpy(&v, to, sizeof v);
    return v;
}

SHIM __m512 shim_join_ps(__m256 low, __m256 high) {
    return simde_mm512_castsi512_ps(shim_join(_mm256_castps_si256(low), _mm256_castps_si256(high)));
}

/* Touches only the lanes of the mask, as the instruction does. */
SHIM __m512 shim_maskz_loadu_ps(__mmask16 mask, const void *from) {
    float v[16] = {0};
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) memcpy(&v[i], (const float *)from + i, sizeof v[i]);
    }
    return simde_mm512_loadu_ps(v);
}

SHIM void shim_mask_storeu_ps(void *to, __mmask16 mask, __m512 value) {
    float v[16];
    simde_mm512_storeu_ps(v, value);
    for (int i = 0; i < 16; ++i) {
        if (mask >> i & 1) memcpy((float *)to + i, &v[i], sizeof v[i]);
    }
}

SHIM __m512 shim_cvtph_ps(__m256i half) {
    return shim_join_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(half)),
                        _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)));
}

SHIM __m512i shim_cvtepi8_epi32(__m128i v) {
    return shim_join(_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8)));
}

SHIM __m512i shim_cvtepu8_epi32(__m128i v) {
    return shim_join(_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8)));
}

SHIM __m512i shim_cvtepu16_epi32(__m256i v) {
    return shim_join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(v)),
                     _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1)));
}

SHIM __m512 shim_cvtepi32_ps(__m512i v) {
    return shim_join_ps(_mm256_cvtepi32_ps(simde_mm512_castsi512_si256(v)), _mm256_cvtepi32_ps(shim_high(v)));
}

SHIM __m512i shim_cvtps_epi32(__m512 v) {
    const __m256 high = _mm256_castsi256_ps(shim_high(simde_mm512_castps_si512(v)));
    return shim_join(_mm256_cvtps_epi32(simde_mm512_castps512_ps256(v)), _mm256_cvtps_epi32(high));
}

#define _mm256_dpwssd_avx_epi32 shim_dpwssd
#define _mm256_dpbusd_avx_epi32 shim_dpbusd

SHIM __m256i shim_dpwssd(__m256i s, __m256i a, __m256i b) { return _mm256_add_epi32(s, _mm256_madd_epi16(a, b)); }

/* The bytes at even places of the words, unsigned of a and signed of b, then those at odd ones. */
SHIM __m256i shim_dpbusd(__m256i s, __m256i a, __m256i b) {
    const __m256i even_a = _mm256_and_si256(a, _mm256_set1_epi16(0xff)), odd_a = _mm256_srli_epi16(a, 8);
    const __m256i even_b = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8), odd_b = _mm256_srai_epi16(b, 8);
    return shim_dpwssd(shim_dpwssd(s, even_a, even_b), odd_a, odd_b);
}

#endif
