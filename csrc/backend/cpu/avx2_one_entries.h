/* All loops for one token on AVX2, put into the table of kernels. */
#ifndef PF_BACKEND_CPU_AVX2_ONE_ENTRIES_H
#define PF_BACKEND_CPU_AVX2_ONE_ENTRIES_H

#include "backend/cpu/avx2_one_iq.h"
#include "backend/cpu/avx2_one_k.h"

static inline void set_one_entries(pf_cpu_kernels *k) {
    k->gemm_q16[PF_W_Q8_0] = one_q16_q8_0;
    k->gemm_q16[PF_W_MXFP4] = one_q16_mxfp4;
    k->gemm_q16[PF_W_Q4_K] = one_q16_q4_k;
    k->gemm_q16[PF_W_Q5_K] = one_q16_q5_k;
    k->gemm_q16[PF_W_Q6_K] = one_q16_q6_k;
    k->gemm_q16[PF_W_Q2_K] = one_q16_q2_k;
    k->gemm_q16[PF_W_Q3_K] = one_q16_q3_k;
    k->gemm_q16[PF_W_IQ2_XXS] = one_q16_iq2_xxs;
    k->gemm_q16[PF_W_IQ2_XS] = one_q16_iq2_xs;
    k->gemm_q16[PF_W_IQ2_S] = one_q16_iq2_s;
    k->gemm_q16[PF_W_IQ3_XXS] = one_q16_iq3_xxs;
    k->gemm_q16[PF_W_IQ3_S] = one_q16_iq3_s;
    k->gemm_q16[PF_W_IQ1_S] = one_q16_iq1_s;
    k->gemm_q16[PF_W_IQ1_M] = one_q16_iq1_m;
    k->gemm_q16[PF_W_IQ4_XS] = one_q16_iq4_xs;
}

#endif
