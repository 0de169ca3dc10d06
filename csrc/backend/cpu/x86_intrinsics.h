/* The intrinsics of the x86 kernel files: the compiler's, or with PF_SIMDE the SIMDe emulation of tests/backend (a test
 * build that runs the AVX-512 kernels on a machine without AVX-512). */
#ifndef PF_BACKEND_CPU_X86_INTRINSICS_H
#define PF_BACKEND_CPU_X86_INTRINSICS_H

#if defined(PF_SIMDE)
#  include "simde_avx512.h"
#else
#  include <immintrin.h>
#endif

#endif
