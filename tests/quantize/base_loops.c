/* The quantisers' loops of any machine, and no others: what search_loops.c chooses where there is no AVX2. */
#define PF_LOOPS pf_search_loops_base
#include "quantize/search_loops_impl.h"

const pf_search_loops *pf_search_loops_best(void) { return &pf_search_loops_base; }
