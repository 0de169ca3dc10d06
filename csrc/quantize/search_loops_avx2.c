/* The loops for AVX2; compiled with its flags. */
#define PF_LOOPS pf_search_loops_avx2
#include "quantize/search_loops_impl.h"
