/* The loops for any machine (with NEON on 64-bit ARM), and which ones to take. */
#define PF_LOOPS pf_search_loops_base
#include "quantize/search_loops_impl.h"

#include "pyflash.h"

#include <string.h>

const pf_search_loops *pf_search_loops_best(void) {
#if defined(__x86_64__) || defined(_M_X64)
    const char *name;
    for (int32_t k = 0; (name = pf_cpu_isa_name(k)) != NULL; ++k) {
        if (strcmp(name, "avx2") == 0 && pf_cpu_isa_problem(k) == NULL) return &pf_search_loops_avx2;
    }
#endif
    return &pf_search_loops_base;
}
