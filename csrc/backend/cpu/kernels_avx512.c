/* Kernels for AVX-512 F, BW, DQ, VL and VNNI. */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "backend/cpu/avx512_vectors.h"

#include "backend/cpu/vector_ops.h"
#include "backend/cpu/x86_quantize.h"

void pf_kernels_avx512_init(pf_cpu_kernels *k) {
    set_vector_entries(k);
    k->q16_words = false;
    k->quantize_q16 = quantize_q16;
    k->quantize_q8 = quantize_q8;
}

#endif
