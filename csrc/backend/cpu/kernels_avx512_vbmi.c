/* The AVX-512 kernels that gain from permutations of bytes (AVX-512 VBMI: Intel from Ice Lake, AMD from Zen 4 on). */
#include "backend/cpu/kernels.h"

#if (defined(__x86_64__) || defined(_M_X64)) && !defined(PF_SIMDE)

#define PF_VBMI
#include "backend/cpu/avx512_vectors.h"

#include "backend/cpu/gemm_int_tile.h"
#include "backend/cpu/vector_fp4.h"

void pf_kernels_avx512_vbmi_init(pf_cpu_kernels *k) {
    set_int_entries(k);
    k->fp4_tile = fp4_tile;
    k->fp4_dots = fp4_dots;
}

#endif
