/* Decoders of the IQ formats with grids: super-blocks of 256 values. A code names eight (IQ1, IQ2) or four (IQ3)
 * magnitudes at once, signs lie beside them, and every 16 or 32 values have a small scale of their own. */
#include "format/blocks.h"

#include "format/floats.h"
#include "format/iq_grids.h"

#include <stdbool.h>
#include <stddef.h>

/* 8 values of a grid of IQ2, times scale; a set bit makes a value negative. */
static void iq2_values(uint32_t entry, uint32_t signs, float scale, float *out) {
    for (int j = 0; j < 8; ++j) {
        const float value = scale * (float)pf_iq2_magnitudes[entry >> 2 * j & 3];
        out[j] = signs >> j & 1 ? -value : value;
    }
}

static void iq3_values(const uint8_t *magnitudes, uint32_t entry, uint32_t signs, float scale, float *out) {
    for (int j = 0; j < 4; ++j) {
        const uint32_t code = entry >> 3 * j & 7;
        const float value = scale * (float)(magnitudes != NULL ? magnitudes[code] : 2 * code + 1);
        out[j] = signs >> j & 1 ? -value : value;
    }
}

/* f16 d; for every 32 values four grid bytes, then four times seven bits of signs and a scale of four bits. */
void pf_decode_iq2_xxs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 66) {
        const float d = pf_load_f16(blocks);
        for (const uint8_t *part = blocks + 2; part < blocks + 66; part += 8) {
            const uint32_t word = pf_load_iq_word(part + 4);
            const float scale = d * (0.5f + (float)(word >> 28)) * 0.25f;
            for (int k = 0; k < 4; ++k, out += 8) {
                iq2_values(pf_grid_iq2_xxs[part[k]], pf_iq_even_signs(word >> 7 * k & 127u), scale, out);
            }
        }
    }
}

/* f16 d; 32 words of nine grid bits and seven bits of signs; eight bytes of two scales, one for every 16 values. */
void pf_decode_iq2_xs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 74) {
        const float d = pf_load_f16(blocks);
        for (int k = 0; k < 32; ++k, out += 8) {
            const uint32_t word = pf_load_u16(blocks + 2 + 2 * k);
            const int s = blocks[66 + k / 4] >> (k % 4 < 2 ? 0 : 4) & 15;
            iq2_values(pf_grid_iq2_xs[word & 511u], pf_iq_even_signs(word >> 9), d * (0.5f + (float)s) * 0.25f, out);
        }
    }
}

/* f16 d; 32 grid bytes; 32 bytes of signs; eight bytes of the grid's high pairs of bits; eight bytes of scales. */
void pf_decode_iq2_s(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 82) {
        const float d = pf_load_f16(blocks);
        for (int k = 0; k < 32; ++k, out += 8) {
            const uint32_t place = blocks[2 + k] | (uint32_t)(blocks[66 + k / 4] >> 2 * (k % 4) & 3) << 8;
            const int s = blocks[74 + k / 4] >> (k % 4 < 2 ? 0 : 4) & 15;
            iq2_values(pf_grid_iq2_s[place], blocks[34 + k], d * (0.5f + (float)s) * 0.25f, out);
        }
    }
}

/* f16 d; 64 grid bytes; for every 32 values four times seven bits of signs and a scale of four bits. */
void pf_decode_iq3_xxs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 98) {
        const float d = pf_load_f16(blocks);
        for (int part = 0; part < 8; ++part) {
            const uint32_t word = pf_load_iq_word(blocks + 66 + 4 * part);
            const float scale = d * (0.5f + (float)(word >> 28)) * 0.5f;
            for (int k = 0; k < 8; ++k, out += 4) {
                const uint32_t signs = pf_iq_even_signs(word >> 7 * (k / 2) & 127u) >> 4 * (k % 2);
                iq3_values(pf_iq3_xxs_magnitudes, pf_grid_iq3_xxs[blocks[2 + 8 * part + k]], signs, scale, out);
            }
        }
    }
}

/* f16 d; 64 grid bytes; eight bytes of the grid's ninth bits; 32 bytes of signs; four bytes of two scales. */
void pf_decode_iq3_s(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 110) {
        const float d = pf_load_f16(blocks);
        for (int k = 0; k < 64; ++k, out += 4) {
            const uint32_t place = blocks[2 + k] | (uint32_t)(blocks[66 + k / 8] >> k % 8 & 1) << 8;
            const int s = blocks[106 + k / 16] >> (k % 16 < 8 ? 0 : 4) & 15;
            iq3_values(NULL, pf_grid_iq3_s[place], blocks[74 + k / 2] >> 4 * (k % 2), d * (float)(1 + 2 * s), out);
        }
    }
}

/* 8 values of the grid of IQ1, each moved by an eighth. */
static void iq1_values(uint32_t place, bool down, float scale, float *out) {
    const float delta = down ? -0.125f : 0.125f;
    for (int j = 0; j < 8; ++j) out[j] = scale * ((float)((int)(pf_grid_iq1[place] >> 2 * j & 3) - 1) + delta);
}

/* f16 d; 32 grid bytes; eight words of four times three high grid bits, a scale of three bits, and the direction. */
void pf_decode_iq1_s(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 50) {
        const float d = pf_load_f16(blocks);
        for (int k = 0; k < 32; ++k, out += 8) {
            const uint32_t word = pf_load_u16(blocks + 34 + 2 * (k / 4));
            const float scale = d * (float)(2 * (word >> 12 & 7) + 1);
            iq1_values(blocks[2 + k] | (word >> 3 * (k % 4) & 7) << 8, (word & 0x8000u) != 0, scale, out);
        }
    }
}

/* 32 grid bytes; 16 bytes of two times three high grid bits and a direction; four words of four scales of three bits, one
 * for every 16 values, whose highest nibbles are the f16 d, its lowest first. */
void pf_decode_iq1_m(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 56) {
        uint32_t half = 0;
        for (int k = 0; k < 4; ++k) half |= (uint32_t)(pf_load_u16(blocks + 48 + 2 * k) >> 12) << 4 * k;
        const float d = pf_f16_to_f32((uint16_t)half);
        for (int k = 0; k < 32; ++k, out += 8) {
            const uint32_t high = blocks[32 + k / 2] >> 4 * (k % 2) & 15u;
            const uint32_t s = pf_load_u16(blocks + 48 + 2 * (k / 8)) >> 3 * (k / 2 % 4) & 7u;
            iq1_values(blocks[k] | (high & 7u) << 8, (high & 8u) != 0, d * (float)(2 * s + 1), out);
        }
    }
}
