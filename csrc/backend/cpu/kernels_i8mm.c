/* NEON with the matrix instructions for bytes too (ARMv8.6, Apple from M2 on): products of q16; all else is dotprod's. */
#include "backend/cpu/kernels.h"

#if (defined(__aarch64__) || defined(_M_ARM64)) && defined(PF_HAS_I8MM)

#define PF_NEON_DOT
#define PF_NEON_I8MM
#include "backend/cpu/neon_units.h"

void pf_kernels_i8mm_init(pf_cpu_kernels *k) { set_unit_entries(k); }

#endif
