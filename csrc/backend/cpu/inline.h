/* What the compilers call forced inlining and unrolling. */
#ifndef PF_BACKEND_CPU_INLINE_H
#define PF_BACKEND_CPU_INLINE_H

/* For loops of a constant, small count whose arrays should live in registers, and for functions that take functions.
 * PF_KEEP_LOOP: for loops around those, whose passes gcc would otherwise mix until the registers are not enough. */
#if defined(__clang__)
#  define PF_UNROLL _Pragma("clang loop unroll(full)")
#  define PF_KEEP_LOOP _Pragma("clang loop unroll(disable)")
#  pragma clang diagnostic ignored "-Wpass-failed" /* some of the functions are also called with counts that vary */
#elif defined(__GNUC__)
#  define PF_UNROLL _Pragma("GCC unroll 16")
#  define PF_KEEP_LOOP _Pragma("GCC unroll 1")
#else
#  define PF_UNROLL
#  define PF_KEEP_LOOP
#endif
#if defined(_MSC_VER) && !defined(__clang__)
#  define PF_INLINE static __forceinline
#else
#  define PF_INLINE static inline __attribute__((always_inline))
#endif

#endif
