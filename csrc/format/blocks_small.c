/* Decoders of block formats with one scale, or one and a minimum, for 16 to 256 values. */
#include "format/blocks.h"

#include "format/floats.h"
#include "format/iq_grids.h"

static uint32_t bits_at(const uint8_t *p) {
    uint32_t bits;
    memcpy(&bits, p, sizeof bits);
    return bits;
}

/* f16 d, 16 bytes: byte j has value j in its low nibble and value j + 16 in its high one. */
void pf_decode_q4_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 18, out += 32) {
        const float d = pf_load_f16(blocks);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * (float)((blocks[2 + j] & 15) - 8);
            out[j + 16] = d * (float)((blocks[2 + j] >> 4) - 8);
        }
    }
}

/* f16 d, f16 minimum, 16 bytes as in Q4_0. */
void pf_decode_q4_1(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 20, out += 32) {
        const float d = pf_load_f16(blocks), minimum = pf_load_f16(blocks + 2);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * (float)(blocks[4 + j] & 15) + minimum;
            out[j + 16] = d * (float)(blocks[4 + j] >> 4) + minimum;
        }
    }
}

/* f16 d, the fifth bits of the 32 values, 16 bytes as in Q4_0. */
void pf_decode_q5_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 22, out += 32) {
        const float d = pf_load_f16(blocks);
        const uint32_t high = bits_at(blocks + 2);
        for (int j = 0; j < 16; ++j) {
            const int low = blocks[6 + j];
            out[j] = d * (float)(((low & 15) | (int)(high >> j & 1) << 4) - 16);
            out[j + 16] = d * (float)(((low >> 4) | (int)(high >> (j + 16) & 1) << 4) - 16);
        }
    }
}

/* f16 d, f16 minimum, fifth bits and 16 bytes as in Q5_0. */
void pf_decode_q5_1(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 24, out += 32) {
        const float d = pf_load_f16(blocks), minimum = pf_load_f16(blocks + 2);
        const uint32_t high = bits_at(blocks + 4);
        for (int j = 0; j < 16; ++j) {
            const int low = blocks[8 + j];
            out[j] = d * (float)((low & 15) | (int)(high >> j & 1) << 4) + minimum;
            out[j + 16] = d * (float)((low >> 4) | (int)(high >> (j + 16) & 1) << 4) + minimum;
        }
    }
}

/* f16 d, 32 signed bytes. */
void pf_decode_q8_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 34, out += 32) {
        const float d = pf_load_f16(blocks);
        for (int j = 0; j < 32; ++j) out[j] = (float)(int8_t)blocks[2 + j] * d;
    }
}

/* f16 d, 128 bits, the lowest first: d or -d. */
void pf_decode_q1_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 18, out += 128) {
        const float d = pf_load_f16(blocks);
        for (int j = 0; j < 128; ++j) out[j] = blocks[2 + j / 8] >> j % 8 & 1 ? d : -d;
    }
}

/* f16 d, 64 codes of two bits, the lowest first: d (code - 1). */
void pf_decode_q2_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 18, out += 64) {
        const float d = pf_load_f16(blocks);
        for (int j = 0; j < 64; ++j) out[j] = (float)((blocks[2 + j / 4] >> 2 * (j % 4) & 3) - 1) * d;
    }
}

/* n bytes hold `digits` base-3 digits each, as fractions of 256: digit k of all bytes, then digit k + 1. */
static float *base3(const uint8_t *codes, int n, int digits, float d, float *out) {
    uint8_t power = 1;
    for (int k = 0; k < digits; ++k, power = (uint8_t)(3 * power)) {
        for (int j = 0; j < n; ++j) {
            const int shifted = (uint8_t)(codes[j] * power);
            *out++ = d * (float)((shifted * 3 >> 8) - 1);
        }
    }
    return out;
}

/* 48 bytes of five digits (32, then 16 of them), 4 bytes of four digits, f16 d. */
void pf_decode_tq1_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 54) {
        const float d = pf_load_f16(blocks + 52);
        out = base3(blocks, 32, 5, d, out);
        out = base3(blocks + 32, 16, 5, d, out);
        out = base3(blocks + 48, 4, 4, d, out);
    }
}

/* 64 bytes, of which 32 hold four values each, 32 apart; f16 d. */
void pf_decode_tq2_0(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 66) {
        const float d = pf_load_f16(blocks + 64);
        for (int half = 0; half < 64; half += 32) {
            for (int shift = 0; shift < 8; shift += 2) {
                for (int j = 0; j < 32; ++j) *out++ = d * (float)((blocks[half + j] >> shift & 3) - 1);
            }
        }
    }
}

/* e8m0 scale, 16 bytes of e2m1 codes as in Q4_0. */
void pf_decode_mxfp4(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 17, out += 32) {
        const float d = 0.5f * pf_e8m0_to_f32(blocks[0]);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * (float)pf_e2m1_doubled[blocks[1 + j] & 15];
            out[j + 16] = d * (float)pf_e2m1_doubled[blocks[1 + j] >> 4];
        }
    }
}

/* Half of an unsigned e4m3 number: codes are twice the e2m1 values. Bytes 0 and 127 are 0; the sign bit says nothing. */
static float nvfp4_scale(uint8_t code) {
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    if (code == 0 || code == 0x7f) return 0.0f;
    if (exponent == 0) return (float)mantissa * 0x1p-10f;
    return pf_f32_from_bits((uint32_t)(exponent - 8 + 127) << 23) * (1.0f + (float)mantissa / 8.0f);
}

/* Four scales, then for each of them 8 bytes: byte j has value j in its low nibble and value j + 8 in its high one. */
void pf_decode_nvfp4(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 36) {
        for (int part = 0; part < 4; ++part, out += 16) {
            const float d = nvfp4_scale(blocks[part]);
            const uint8_t *codes = blocks + 4 + 8 * part;
            for (int j = 0; j < 8; ++j) {
                out[j] = d * (float)pf_e2m1_doubled[codes[j] & 15];
                out[j + 8] = d * (float)pf_e2m1_doubled[codes[j] >> 4];
            }
        }
    }
}

/* f16 d, 16 bytes as in Q4_0, of places in a table. */
void pf_decode_iq4_nl(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 18, out += 32) {
        const float d = pf_load_f16(blocks);
        for (int j = 0; j < 16; ++j) {
            out[j] = d * (float)pf_iq4_values[blocks[2 + j] & 15];
            out[j + 16] = d * (float)pf_iq4_values[blocks[2 + j] >> 4];
        }
    }
}

/* f16 d, the high two bits of eight scales, their low four, then eight times 16 bytes as in IQ4_NL. */
void pf_decode_iq4_xs(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; ++i, blocks += 136) {
        const float d = pf_load_f16(blocks);
        const int high = pf_load_u16(blocks + 2);
        for (int part = 0; part < 8; ++part, out += 32) {
            const int low = blocks[4 + part / 2] >> 4 * (part % 2) & 15;
            const float scale = d * (float)((low | (high >> 2 * part & 3) << 4) - 32);
            const uint8_t *codes = blocks + 8 + 16 * part;
            for (int j = 0; j < 16; ++j) {
                out[j] = scale * (float)pf_iq4_values[codes[j] & 15];
                out[j + 16] = scale * (float)pf_iq4_values[codes[j] >> 4];
            }
        }
    }
}
