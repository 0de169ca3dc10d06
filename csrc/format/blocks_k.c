/* Decoders of the K formats: super-blocks of 256 values, a small integer scale for every 16 or 32 of them. */
#include "format/blocks.h"

#include "format/floats.h"

/* 16 bytes of a scale (low nibble) and a minimum (high nibble), 64 bytes of codes, f16 d, f16 dmin. 32 bytes hold 128
 * values, those with the same shift next to each other; all K formats of 2 and 3 bits have them so. */
void pf_decode_q2_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 84) {
        const float d = pf_load_f16(blocks + 80), dmin = pf_load_f16(blocks + 82);
        for (int part = 0; part < 16; ++part) {
            const float scale = d * (float)(blocks[part] & 15), minimum = dmin * (float)(blocks[part] >> 4);
            const uint8_t *codes = blocks + 16 + 32 * (part / 8) + 16 * (part % 2);
            const int shift = part / 2 % 4 * 2;
            for (int j = 0; j < 16; ++j) *out++ = scale * (float)(codes[j] >> shift & 3) - minimum;
        }
    }
}

/* Scale `part` of the 16 six-bit scales in 12 bytes: low nibbles in the first 8, high pairs of bits in the last 4. */
static int q3_k_scale(const uint8_t *packed, int part) {
    const int low = packed[part % 8] >> 4 * (part / 8) & 15, high = packed[8 + part % 4] >> 2 * (part / 4) & 3;
    return (low | high << 4) - 32;
}

/* 32 bytes of third bits (one: nothing is taken off, zero: 4), 64 bytes of codes, 12 bytes of scales, f16 d. */
void pf_decode_q3_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 110) {
        const float d = pf_load_f16(blocks + 108);
        for (int part = 0; part < 16; ++part) {
            const float scale = d * (float)q3_k_scale(blocks + 96, part);
            const uint8_t *high = blocks + 16 * (part % 2), *codes = blocks + 32 + 32 * (part / 8) + 16 * (part % 2);
            const int shift = part / 2 % 4 * 2;
            for (int j = 0; j < 16; ++j) {
                const int offset = high[j] >> part / 2 & 1 ? 0 : 4;
                *out++ = scale * (float)((codes[j] >> shift & 3) - offset);
            }
        }
    }
}

/* Scale and minimum `part` of eight of six bits each in 12 bytes. Those of the first four parts are the low six bits of
 * bytes 0 to 3 and 4 to 7; those of the others have their low nibbles in bytes 8 to 11 and their high bits above the
 * first ones'. */
static void q4_k_scale(const uint8_t *packed, int part, int *scale, int *minimum) {
    const int k = part % 4;
    if (part < 4) {
        *scale = packed[k] & 63;
        *minimum = packed[4 + k] & 63;
    } else {
        *scale = (packed[8 + k] & 15) | (packed[k] >> 6) << 4;
        *minimum = (packed[8 + k] >> 4) | (packed[4 + k] >> 6) << 4;
    }
}

/* f16 d, f16 dmin, 12 bytes of scales and minima, 128 bytes: of every 32, the low nibbles are 32 values and the high ones
 * the next 32. Q5_K has 32 bytes of fifth bits before them, bit `part` for the part. */
static void q45_k(const uint8_t *blocks, int64_t n_blocks, int64_t block_bytes, const int codes_at, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += block_bytes) {
        const float d = pf_load_f16(blocks), dmin = pf_load_f16(blocks + 2);
        for (int part = 0; part < 8; ++part) {
            int scale, minimum;
            q4_k_scale(blocks + 4, part, &scale, &minimum);
            const float by = d * (float)scale, less = dmin * (float)minimum;
            const uint8_t *codes = blocks + codes_at + 32 * (part / 2), *fifth = blocks + 16;
            for (int j = 0; j < 32; ++j) {
                const int high = codes_at == 16 ? 0 : (fifth[j] >> part & 1) << 4;
                *out++ = by * (float)((codes[j] >> 4 * (part % 2) & 15) | high) - less;
            }
        }
    }
}

void pf_decode_q4_k(const uint8_t *blocks, int64_t n_blocks, float *out) { q45_k(blocks, n_blocks, 144, 16, out); }
void pf_decode_q5_k(const uint8_t *blocks, int64_t n_blocks, float *out) { q45_k(blocks, n_blocks, 176, 48, out); }

/* 128 bytes of low nibbles, 64 of high pairs of bits, 16 signed scales, f16 d. 64 low bytes and 32 high ones are 128
 * values: four times 32, of which the nibbles of the first and third, and of the second and fourth, share bytes. */
void pf_decode_q6_k(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 210) {
        const float d = pf_load_f16(blocks + 208);
        const int8_t *scales = (const int8_t *)(blocks + 192);
        for (int part = 0; part < 8; ++part) {
            const uint8_t *low = blocks + 64 * (part / 4) + 32 * (part % 2), *high = blocks + 128 + 32 * (part / 4);
            const int low_shift = part % 4 / 2 * 4, high_shift = part % 4 * 2;
            for (int j = 0; j < 32; ++j) {
                const int code = (low[j] >> low_shift & 15) | (high[j] >> high_shift & 3) << 4;
                *out++ = d * (float)scales[2 * part + j / 16] * (float)(code - 32);
            }
        }
    }
}
