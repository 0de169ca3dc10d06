/* Blocks of the types of super-blocks as integers and scales. Layouts stand at the decoders, format/blocks_k.c, blocks_iq.c
 * and blocks_small.c. */
#include "backend/cpu/int_blocks.h"

#include "format/dtypes.h"
#include "format/floats.h"
#include "format/iq_grids.h"

#include <stdbool.h>
#include <string.h>

static int32_t negated(int32_t v, uint32_t negative) { return negative & 1u ? -v : v; }

static pf_int_block block_of(float d) {
    return (pf_int_block){.d = {d, d}, .c = {1, 1}};
}

/* ---- K formats --------------------------------------------------------------------------------------------- */

void pf_int_block_q2_k(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_Q2_K_BYTES, *codes = in + 16 + b % 8 / 4 * 32;
    *out = block_of(pf_load_f16(in + 80));
    out->dmin = pf_load_f16(in + 82);
    for (int j = 0; j < 32; ++j) out->w[j] = codes[j] >> b % 4 * 2 & 3;
    for (int h = 0; h < 2; ++h) {
        const uint8_t both = in[b % 8 * 2 + h];
        out->c[h] = both & 15;
        out->m[h] = both >> 4;
    }
}

void pf_int_block_q3_k(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_Q3_K_BYTES, *codes = in + 32 + b % 8 / 4 * 32, *packed = in + 96;
    *out = block_of(pf_load_f16(in + 108));
    for (int j = 0; j < 32; ++j) out->w[j] = (codes[j] >> b % 4 * 2 & 3) - (in[j] >> b % 8 & 1 ? 0 : 4);
    for (int h = 0; h < 2; ++h) {
        const int part = (int)(b % 8 * 2) + h;
        const int low = packed[part % 8] >> 4 * (part / 8) & 15, high = packed[8 + part % 4] >> 2 * (part / 4) & 3;
        out->c[h] = (low | high << 4) - 32;
    }
}

/* Q4_K and Q5_K. */
static void q45_k(const uint8_t *in, int part, const uint8_t *codes, const uint8_t *fifth, pf_int_block *out) {
    const uint8_t *packed = in + 4;
    const int k = part % 4;
    const int scale = part < 4 ? packed[k] & 63 : (packed[8 + k] & 15) | (packed[k] >> 6) << 4;
    const int minimum = part < 4 ? packed[4 + k] & 63 : packed[8 + k] >> 4 | (packed[4 + k] >> 6) << 4;
    *out = block_of(pf_load_f16(in) * (float)scale);
    out->dmin = pf_load_f16(in + 2);
    out->m[0] = out->m[1] = minimum;
    for (int j = 0; j < 32; ++j) {
        out->w[j] = (codes[32 * (part / 2) + j] >> 4 * (part % 2) & 15) | (fifth ? (fifth[j] >> part & 1) << 4 : 0);
    }
}

void pf_int_block_q4_k(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_Q4_K_BYTES;
    q45_k(in, (int)(b % 8), in + 16, NULL, out);
}
void pf_int_block_q5_k(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_Q5_K_BYTES;
    q45_k(in, (int)(b % 8), in + 48, in + 16, out);
}

void pf_int_block_q6_k(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_Q6_K_BYTES;
    const int part = (int)(b % 8);
    const uint8_t *low = in + 64 * (part / 4) + 32 * (part % 2), *high = in + 128 + 32 * (part / 4);
    *out = block_of(pf_load_f16(in + 208));
    for (int h = 0; h < 2; ++h) out->d[h] *= (float)(int8_t)in[192 + 2 * part + h];
    for (int j = 0; j < 32; ++j) {
        out->w[j] = ((low[j] >> part % 4 / 2 * 4 & 15) | (high[j] >> part % 4 * 2 & 3) << 4) - 32;
    }
}

/* ---- IQ formats -------------------------------------------------------------------------------------------- */

/* Eight of IQ2, or four of IQ3; a set bit makes a value negative. */
static void iq2_values(uint32_t entry, uint32_t signs, int32_t *w) {
    for (int j = 0; j < 8; ++j) w[j] = negated(pf_iq2_magnitudes[entry >> 2 * j & 3], signs >> j);
}
static void iq3_values(const uint8_t *magnitudes, uint32_t entry, uint32_t signs, int32_t *w) {
    for (int j = 0; j < 4; ++j) {
        const uint32_t code = entry >> 3 * j & 7;
        w[j] = negated(magnitudes != NULL ? magnitudes[code] : (int32_t)(2 * code + 1), signs >> j);
    }
}
/* In eighths. */
static void iq1_values(uint32_t place, bool down, int32_t *w) {
    for (int j = 0; j < 8; ++j) w[j] = 8 * ((int32_t)(pf_grid_iq1[place] >> 2 * j & 3) - 1) + (down ? -1 : 1);
}

void pf_int_block_iq2_xxs(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ2_XXS_BYTES, *part = in + 2 + b % 8 * 8;
    const uint32_t word = pf_load_iq_word(part + 4);
    *out = block_of(pf_load_f16(in) * 0.125f * (float)(2 * (word >> 28) + 1));
    for (int k = 0; k < 4; ++k) {
        iq2_values(pf_grid_iq2_xxs[part[k]], pf_iq_even_signs(word >> 7 * k & 127u), out->w + 8 * k);
    }
}

void pf_int_block_iq2_xs(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ2_XS_BYTES;
    *out = block_of(pf_load_f16(in) * 0.125f);
    for (int k = 0; k < 4; ++k) {
        const uint32_t word = pf_load_u16(in + 2 + 8 * (b % 8) + 2 * k);
        iq2_values(pf_grid_iq2_xs[word & 511u], pf_iq_even_signs(word >> 9), out->w + 8 * k);
    }
    for (int h = 0; h < 2; ++h) out->c[h] = 2 * (in[66 + b % 8] >> 4 * h & 15) + 1;
}

void pf_int_block_iq2_s(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ2_S_BYTES;
    *out = block_of(pf_load_f16(in) * 0.125f);
    for (int k = 0; k < 4; ++k) {
        const int64_t at = 4 * (b % 8) + k;
        const uint32_t place = in[2 + at] | (uint32_t)(in[66 + b % 8] >> 2 * k & 3) << 8;
        iq2_values(pf_grid_iq2_s[place], in[34 + at], out->w + 8 * k);
    }
    for (int h = 0; h < 2; ++h) out->c[h] = 2 * (in[74 + b % 8] >> 4 * h & 15) + 1;
}

void pf_int_block_iq3_xxs(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ3_XXS_BYTES;
    const uint32_t word = pf_load_iq_word(in + 66 + 4 * (b % 8));
    *out = block_of(pf_load_f16(in) * 0.25f * (float)(2 * (word >> 28) + 1));
    for (int k = 0; k < 8; ++k) {
        const uint32_t signs = pf_iq_even_signs(word >> 7 * (k / 2) & 127u) >> 4 * (k % 2);
        iq3_values(pf_iq3_xxs_magnitudes, pf_grid_iq3_xxs[in[2 + 8 * (b % 8) + k]], signs, out->w + 4 * k);
    }
}

void pf_int_block_iq3_s(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ3_S_BYTES;
    *out = block_of(pf_load_f16(in) * (float)(1 + 2 * (in[106 + b % 8 / 2] >> 4 * (b % 2) & 15)));
    for (int k = 0; k < 8; ++k) {
        const uint32_t place = in[2 + 8 * (b % 8) + k] | (uint32_t)(in[66 + b % 8] >> k & 1) << 8;
        iq3_values(NULL, pf_grid_iq3_s[place], (uint32_t)in[74 + 4 * (b % 8) + k / 2] >> 4 * (k % 2), out->w + 4 * k);
    }
}

void pf_int_block_iq1_s(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ1_S_BYTES;
    const uint32_t word = pf_load_u16(in + 34 + 2 * (b % 8));
    *out = block_of(pf_load_f16(in) * 0.125f * (float)(2 * (word >> 12 & 7) + 1));
    for (int k = 0; k < 4; ++k) {
        iq1_values(in[2 + 4 * (b % 8) + k] | (word >> 3 * k & 7) << 8, (word & 0x8000u) != 0, out->w + 8 * k);
    }
}

void pf_int_block_iq1_m(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ1_M_BYTES;
    uint32_t half = 0;
    for (int k = 0; k < 4; ++k) half |= (uint32_t)(pf_load_u16(in + 48 + 2 * k) >> 12) << 4 * k;
    *out = block_of(pf_f16_to_f32((uint16_t)half) * 0.125f);
    for (int k = 0; k < 4; ++k) {
        const uint32_t high = in[32 + 2 * (b % 8) + k / 2] >> 4 * (k % 2) & 15u;
        iq1_values(in[4 * (b % 8) + k] | (high & 7u) << 8, (high & 8u) != 0, out->w + 8 * k);
    }
    const uint32_t scales = (uint32_t)pf_load_u16(in + 48 + b % 8 / 2 * 2) >> b % 2 * 6;
    for (int h = 0; h < 2; ++h) out->c[h] = (int32_t)(2 * (scales >> 3 * h & 7) + 1);
}

void pf_int_block_iq4_xs(const uint8_t *row, int64_t b, pf_int_block *out) {
    const uint8_t *in = row + b / 8 * PF_IQ4_XS_BYTES, *codes = in + 8 + 16 * (b % 8);
    const int low = in[4 + b % 8 / 2] >> 4 * (b % 2) & 15, high = pf_load_u16(in + 2) >> 2 * (b % 8) & 3;
    *out = block_of(pf_load_f16(in) * (float)((low | high << 4) - 32));
    for (int j = 0; j < 16; ++j) {
        out->w[j] = pf_iq4_values[codes[j] & 15];
        out->w[j + 16] = pf_iq4_values[codes[j] >> 4];
    }
}
