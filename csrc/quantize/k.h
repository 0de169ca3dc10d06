/* Quantisers of the K formats: Q2_K, Q4_K and Q5_K, whose values are d s q - dmin m, and Q3_K and Q6_K, d s q.
 *
 * A super-block is 256 values x with weights w >= 0, and sum w (x - y)^2 is made small: first each sub-block by itself, with
 * real numbers for its scale and minimum; then the super-block's d and dmin of several, each with the best integers near by
 * for every sub-block; then least squares for d and dmin, given all integers, and those anew, until nothing is gained.
 *
 * Results do not depend on the machine: see lanes.h. */
#ifndef PF_QUANTIZE_K_H
#define PF_QUANTIZE_K_H

#include "quantize/search_loops.h"

#include <stdbool.h>
#include <stdint.h>

bool pf_quantize_k_knows(uint32_t type);
/* x [256] and weights [256] >= 0, all finite, to one block of a type that it knows, by loops of this machine. */
void pf_quantize_k_block(uint32_t type, const pf_search_loops *loops, const float *x, const float *weights,
                         uint8_t *block);

#endif
