/* The loops for AVX2; compiled with its flags. */
#define PF_LOOPS pf_grid_loops_avx2
#include "quantize/grid_loops_impl.h"
