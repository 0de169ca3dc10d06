/* Kernels for AVX2, FMA and F16C. */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "backend/cpu/avx2_vectors.h"

#include "backend/cpu/avx2_one_entries.h"
#include "backend/cpu/vector_ops.h"
#include "backend/cpu/x86_panels.h"
#include "backend/cpu/x86_quantize.h"

void pf_kernels_avx2_init(pf_cpu_kernels *k) {
    pf_grids_fill();
    set_vector_entries(k);
    set_one_entries(k);
    set_panel_entries(k);
    k->q16_words = true;
    k->quantize_q16 = quantize_q16;
    k->quantize_q8 = quantize_q8;
}

#endif
