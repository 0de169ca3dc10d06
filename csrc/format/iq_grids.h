/* The grids of ggml's IQ formats: which points of a lattice their codes name. An entry packs the codes of its values, the
 * first one lowest. */
#ifndef PF_FORMAT_IQ_GRIDS_H
#define PF_FORMAT_IQ_GRIDS_H

#include <stdint.h>
#include <string.h>

extern const uint16_t pf_grid_iq1[2048];    /* 8 values of two bits: code - 1 */
extern const uint16_t pf_grid_iq2_xxs[256]; /* 8 values of two bits: 8, 25, 43 */
extern const uint16_t pf_grid_iq2_xs[512];
extern const uint16_t pf_grid_iq2_s[1024];
extern const uint16_t pf_grid_iq3_xxs[256]; /* 4 values of three bits: 4, 12, 20, 28, 36, 44, 52, 62 */
extern const uint16_t pf_grid_iq3_s[512];   /* 4 values of three bits: 2 code + 1 */

/* What the codes of IQ2_* and of IQ3_XXS stand for. No grid of IQ2 has the code 3. */
static const uint8_t pf_iq2_magnitudes[4] = {8, 25, 43, 0};
static const uint8_t pf_iq3_xxs_magnitudes[8] = {4, 12, 20, 28, 36, 44, 52, 62};

/* Signs and a scale of IQ2_XXS and IQ3_XXS. */
static inline uint32_t pf_load_iq_word(const uint8_t *p) {
    uint32_t word;
    memcpy(&word, p, sizeof word);
    return word;
}

/* Seven bits of signs; the eighth makes the number of negative values even. */
static inline uint32_t pf_iq_even_signs(uint32_t seven) {
    uint32_t parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return seven | (parity & 1u) << 7;
}

/* Of IQ4_NL and IQ4_XS, by code. */
static const int8_t pf_iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

#endif
