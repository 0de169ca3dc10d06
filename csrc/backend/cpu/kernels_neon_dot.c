/* The NEON kernels that gain from the dot product instructions (ARMv8.2 and later). */
#include "backend/cpu/kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#define PF_NEON_DOT
#include "backend/cpu/neon_vectors.h"

#include "backend/cpu/gemm_int_tile.h"
#include "backend/cpu/vector_fp4.h"

void pf_kernels_neon_dot_init(pf_cpu_kernels *k) {
    k->gemm_q16[PF_W_Q8_0] = gemm_q16_q8_0;
    k->gemm_q16[PF_W_MXFP4] = gemm_q16_mxfp4;
    k->gemm_q8[PF_W_Q8_0] = gemm_q8_q8_0;
    k->gemm_q8[PF_W_MXFP4] = gemm_q8_mxfp4;
    k->fp4_tile = fp4_tile;
    k->fp4_dots = fp4_dots;
}

#endif
