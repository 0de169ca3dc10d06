/* The NEON kernels that gain from the dot product instructions (ARMv8.2 and later). */
#include "backend/cpu/kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#define PF_NEON_DOT
#include "backend/cpu/neon_vectors.h"

#include "backend/cpu/gemm_int_tile.h"
#include "backend/cpu/vector_fp4.h"

void pf_kernels_neon_dot_init(pf_cpu_kernels *k) {
    set_int_entries(k);
    k->fp4_tile = fp4_tile;
    k->fp4_dots = fp4_dots;
}

#endif
