/* Rows that least squares has made too short get their length back. */
#ifndef PF_QUANTIZE_LENGTH_H
#define PF_QUANTIZE_LENGTH_H

#include "pyflash.h"

/* Multiplies the scales of a quantised row, so that sum(h x y) is sum(h x x) for the row's values x [n_cols] and what its
 * blocks decode to, y, but for the rounding of scales to half floats; h: importance [n_cols], NULL: all the same. The codes
 * stay. A type that pf_codec_quantize() writes. */
void pf_restore_length(uint32_t type, const float *x, const float *importance, int64_t n_cols, uint8_t *blocks);

#endif
