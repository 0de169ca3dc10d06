/* The intrinsics of the x86 kernel files, and helpers of 128 and 256 bits that both use. The intrinsics are the
 * compiler's, or with PF_SIMDE the SIMDe emulation of tests/backend (a test build that runs the AVX-512 kernels on a
 * machine without AVX-512). */
#ifndef PF_BACKEND_CPU_X86_INTRINSICS_H
#define PF_BACKEND_CPU_X86_INTRINSICS_H

#if defined(PF_SIMDE)
#  include "simde_avx512.h"
#else
#  include <immintrin.h>
#endif

#include "backend/cpu/inline.h"

#include "format/floats.h"

#include <stdbool.h>
#include <stdint.h>

static inline __m128i load64(const uint8_t *p) { return _mm_loadl_epi64((const __m128i *)(const void *)p); }
static inline __m128i load128(const uint8_t *p) { return _mm_loadu_si128((const __m128i *)(const void *)p); }
static inline __m256i load256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

static inline __m128i e2m1_table(void) { return load128((const uint8_t *)pf_e2m1_doubled); }

/* Forced inline: gcc drops a call to a function that only prefetches. */
PF_INLINE void pf_prefetch(const uint8_t *at) { _mm_prefetch((const char *)at, _MM_HINT_T0); }
/* Into the outer caches only. */
PF_INLINE void pf_prefetch_outer(const uint8_t *at) { _mm_prefetch((const char *)at, _MM_HINT_T1); }

/* Keeps the compiler from joining words into vectors, which takes it several times the instructions. */
static inline uint32_t opaque(uint32_t v) {
#if defined(__GNUC__)
    __asm__("" : "+r"(v));
#endif
    return v;
}

/* Whether 32 e4m3 codes hold a NaN, or 2^8 scale may overflow: cases that the vector conversions leave to scalar. */
PF_INLINE bool e4m3_is_odd(const uint8_t *codes, float scale) {
    const __m256i signless = _mm256_or_si256(load256(codes), _mm256_set1_epi8(-128));
    const __m256i nan = _mm256_cmpeq_epi8(signless, _mm256_set1_epi8(-1));
    return !(scale < 0x1p119f && scale > -0x1p119f) || _mm256_movemask_epi8(nan) != 0;
}

#endif
