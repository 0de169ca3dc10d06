/* Integer products for AVX-VNNI (Intel without AVX-512, from Alder Lake on; AMD from Zen 5 on); all else is AVX2's. */
#include "backend/cpu/kernels.h"

#if (defined(__x86_64__) || defined(_M_X64)) && defined(PF_HAS_AVX_VNNI)

#define PF_AVX_VNNI
#include "backend/cpu/avx2_vectors.h"

#include "backend/cpu/avx2_one_entries.h"
#include "backend/cpu/x86_panels.h"

void pf_kernels_avxvnni_init(pf_cpu_kernels *k) {
    set_int_entries(k);
    set_one_entries(k);
    set_panel_entries(k);
}

#endif
