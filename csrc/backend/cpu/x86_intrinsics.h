/* The intrinsics of the x86 kernel files: the compiler's, or with PF_SIMDE the SIMDe emulation of tests/backend (a test
 * build that runs the AVX-512 kernels on a machine without AVX-512). */
#ifndef PF_BACKEND_CPU_X86_INTRINSICS_H
#define PF_BACKEND_CPU_X86_INTRINSICS_H

#if defined(PF_SIMDE)
#  include "simde_avx512.h"
#else
#  include <immintrin.h>
#endif

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

#endif
