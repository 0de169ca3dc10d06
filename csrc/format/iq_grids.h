/* The grids of ggml's IQ formats: which points of a lattice their codes name. An entry packs the codes of its values, the
 * first one lowest. */
#ifndef PF_FORMAT_IQ_GRIDS_H
#define PF_FORMAT_IQ_GRIDS_H

#include <stdint.h>

extern const uint16_t pf_grid_iq1[2048];    /* 8 values of two bits: code - 1 */
extern const uint16_t pf_grid_iq2_xxs[256]; /* 8 values of two bits: 8, 25, 43 */
extern const uint16_t pf_grid_iq2_xs[512];
extern const uint16_t pf_grid_iq2_s[1024];
extern const uint16_t pf_grid_iq3_xxs[256]; /* 4 values of three bits: 4, 12, 20, 28, 36, 44, 52, 62 */
extern const uint16_t pf_grid_iq3_s[512];   /* 4 values of three bits: 2 code + 1 */

/* Of IQ4_NL and IQ4_XS, by code. */
static const int8_t pf_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

#endif
