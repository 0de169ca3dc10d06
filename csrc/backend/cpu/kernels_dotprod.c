/* NEON with the dot product instructions (ARMv8.2 and later): the integer products; all else is neon's. */
#include "backend/cpu/kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#define PF_NEON_DOT
#include "backend/cpu/neon_vectors.h"

#include "backend/cpu/neon_units.h"
#include "backend/cpu/vector_fp4.h"

void pf_kernels_dotprod_init(pf_cpu_kernels *k) {
    set_int_entries(k);
    set_unit_entries(k);
    k->fp4_tile = fp4_tile;
    k->fp4_dots = fp4_dots;
}

#endif
