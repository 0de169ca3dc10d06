/* The intrinsics of the x86 kernel files: the compiler's, or with PF_SIMDE the SIMDe emulation of tests/backend (a test
 * build that runs the AVX-512 kernels on a machine without AVX-512). */
#ifndef PF_BACKEND_CPU_X86_INTRINSICS_H
#define PF_BACKEND_CPU_X86_INTRINSICS_H

#if defined(PF_SIMDE)
#  include "simde_avx512.h"
#else
#  include <immintrin.h>
#endif

#include <stdbool.h>
#include <stdint.h>

/* For loops of a constant, small count whose arrays should live in registers, and for functions that take functions. */
#if defined(__clang__)
#  define PF_UNROLL _Pragma("clang loop unroll(full)")
#elif defined(__GNUC__)
#  define PF_UNROLL _Pragma("GCC unroll 16")
#else
#  define PF_UNROLL
#endif
#if defined(_MSC_VER)
#  define PF_INLINE static __forceinline
#else
#  define PF_INLINE static inline __attribute__((always_inline))
#endif

/* Whether 32 e4m3 codes hold a NaN, or 2^8 scale may overflow: cases that the vector conversions leave to scalar. */
PF_INLINE bool e4m3_is_odd(const uint8_t *codes, float scale) {
    const __m256i v = _mm256_loadu_si256((const __m256i *)(const void *)codes);
    const __m256i nan = _mm256_cmpeq_epi8(_mm256_or_si256(v, _mm256_set1_epi8(-128)), _mm256_set1_epi8(-1));
    return !(scale < 0x1p119f && scale > -0x1p119f) || _mm256_movemask_epi8(nan) != 0;
}

#endif
