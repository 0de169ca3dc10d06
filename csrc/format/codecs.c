/* Block codecs: the byte-level conversions between the checkpoint's formats (packed FP4, FP8 with 128 x 128 scales,
 * BF16) and GGUF's (MXFP4, Q8_0, BF16). Plain C; formats as in the GGUF specification and the OCP MX and FP8 papers.
 * Multi-byte values are little-endian in every format and on every machine this builds for. */
#include "pyflash.h"

#include "format/dtypes.h"

#include <math.h>
#include <string.h>

enum {
    MX_VALUES = 32,
    MX_PACKED = 16, /* bytes of 32 packed codes */
    MX_BYTES = 17,  /* e8m0 scale, then the codes */
    Q8_BYTES = 34,  /* f16 scale, then 32 int8 */
};

static float f32_from_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t f32_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* 2^(e - 127); byte 0 is the denormal 2^-127, byte 255 is NaN. */
static float e8m0_to_f32(uint8_t e)
{
    if (e == 0) {
        return f32_from_bits(0x00400000u);
    }
    return e == 255 ? f32_from_bits(0x7fc00000u) : f32_from_bits((uint32_t)e << 23);
}

/* ---- FP4 ---------------------------------------------------------------------------------------------------- */

#define LOW_NIBBLES UINT64_C(0x0f0f0f0f0f0f0f0f)

/* Bytes 0..3 of x to the even bytes of the result, zeros between. */
static uint64_t spread_bytes(uint64_t x)
{
    x &= UINT64_C(0xffffffff);
    x = (x | x << 16) & UINT64_C(0x0000ffff0000ffff);
    return (x | x << 8) & UINT64_C(0x00ff00ff00ff00ff);
}

/* The even bytes of x to bytes 0..3. */
static uint64_t gather_bytes(uint64_t x)
{
    x &= UINT64_C(0x00ff00ff00ff00ff);
    x = (x | x >> 8) & UINT64_C(0x0000ffff0000ffff);
    return (x | x >> 16) & UINT64_C(0xffffffff);
}

void pf_codec_fp4_to_mxfp4(const uint8_t *packed, const uint8_t *scales, int64_t n_blocks, uint8_t *out)
{
    for (int64_t i = 0; i < n_blocks; i++) {
        /* a holds values 0..15 and b values 16..31, two a byte; an output byte pairs value j with value j + 16. */
        uint64_t a, b;
        memcpy(&a, packed + i * MX_PACKED, 8);
        memcpy(&b, packed + i * MX_PACKED + 8, 8);
        const uint64_t even = (a & LOW_NIBBLES) | (b & LOW_NIBBLES) << 4;
        const uint64_t odd = (a >> 4 & LOW_NIBBLES) | (b & ~LOW_NIBBLES);
        const uint64_t lo = spread_bytes(even) | spread_bytes(odd) << 8;
        const uint64_t hi = spread_bytes(even >> 32) | spread_bytes(odd >> 32) << 8;
        uint8_t *block = out + i * MX_BYTES;
        block[0] = scales[i];
        memcpy(block + 1, &lo, 8);
        memcpy(block + 9, &hi, 8);
    }
}

void pf_codec_mxfp4_to_fp4(const uint8_t *blocks, int64_t n_blocks, uint8_t *packed, uint8_t *scales)
{
    for (int64_t i = 0; i < n_blocks; i++) {
        const uint8_t *block = blocks + i * MX_BYTES;
        uint64_t lo, hi;
        memcpy(&lo, block + 1, 8);
        memcpy(&hi, block + 9, 8);
        const uint64_t even = gather_bytes(lo) | gather_bytes(hi) << 32;
        const uint64_t odd = gather_bytes(lo >> 8) | gather_bytes(hi >> 8) << 32;
        const uint64_t a = (even & LOW_NIBBLES) | (odd & LOW_NIBBLES) << 4;
        const uint64_t b = (even >> 4 & LOW_NIBBLES) | (odd & ~LOW_NIBBLES);
        scales[i] = block[0];
        memcpy(packed + i * MX_PACKED, &a, 8);
        memcpy(packed + i * MX_PACKED + 8, &b, 8);
    }
}

static const float e2m1_values[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

void pf_codec_mxfp4_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out)
{
    for (int64_t i = 0; i < n_blocks; i++) {
        const uint8_t *block = blocks + i * MX_BYTES;
        const float scale = e8m0_to_f32(block[0]);
        float scaled[16];
        for (int c = 0; c < 16; c++) {
            scaled[c] = e2m1_values[c] * scale;
        }
        float *values = out + i * MX_VALUES;
        for (int j = 0; j < MX_PACKED; j++) {
            values[j] = scaled[block[1 + j] & 15];
            values[j + 16] = scaled[block[1 + j] >> 4];
        }
    }
}

/* ---- FP8 ---------------------------------------------------------------------------------------------------- */

/* e4m3 (fn): sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinities, 0x7f and 0xff are NaN. */
static float e4m3_to_f32(uint8_t code)
{
    const uint32_t sign = (uint32_t)(code & 0x80) << 24;
    const uint32_t exponent = code >> 3 & 15u;
    const uint32_t mantissa = code & 7u;
    if (exponent == 15 && mantissa == 7) {
        return f32_from_bits(sign | 0x7fc00000u);
    }
    if (exponent == 0) {
        const float value = (float)mantissa * 0x1p-9f;
        return sign ? -value : value;
    }
    return f32_from_bits(sign | (exponent + 120u) << 23 | mantissa << 20);
}

void pf_codec_fp8_to_f32(const uint8_t *w, const void *scales, int32_t scale_f32, int64_t row0, int64_t n_rows,
                         int64_t cols, float *out)
{
    float values[256];
    for (int c = 0; c < 256; c++) {
        values[c] = e4m3_to_f32((uint8_t)c);
    }
    const int64_t blocks = (cols + PF_FP8_BLOCK - 1) / PF_FP8_BLOCK;
    for (int64_t row = 0; row < n_rows; row++) {
        const int64_t scale_row = (row0 + row) / PF_FP8_BLOCK * blocks;
        for (int64_t block = 0; block < blocks; block++) {
            float scale;
            if (scale_f32) {
                memcpy(&scale, (const uint8_t *)scales + (size_t)(scale_row + block) * sizeof scale, sizeof scale);
            } else {
                scale = e8m0_to_f32(((const uint8_t *)scales)[scale_row + block]);
            }
            const int64_t begin = block * PF_FP8_BLOCK;
            const int64_t end = begin + PF_FP8_BLOCK < cols ? begin + PF_FP8_BLOCK : cols;
            for (int64_t i = row * cols + begin; i < row * cols + end; i++) {
                out[i] = values[w[i]] * scale;
            }
        }
    }
}

/* ---- BF16 --------------------------------------------------------------------------------------------------- */

void pf_codec_f32_to_bf16(const float *in, int64_t n, uint16_t *out)
{
    for (int64_t i = 0; i < n; i++) {
        const uint32_t bits = f32_bits(in[i]);
        const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
        const uint32_t quiet_nan = bits >> 16 | 0x40u;
        out[i] = (uint16_t)((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
    }
}

void pf_codec_bf16_to_f32(const uint16_t *in, int64_t n, float *out)
{
    for (int64_t i = 0; i < n; i++) {
        out[i] = f32_from_bits((uint32_t)in[i] << 16);
    }
}

/* ---- Q8_0 --------------------------------------------------------------------------------------------------- */

/* Round to nearest even; overflow to infinity. */
static uint16_t f32_to_f16(float value)
{
    const uint32_t bits = f32_bits(value);
    const uint32_t sign = bits >> 16 & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) {
        return (uint16_t)(sign | 0x7e00u);
    }
    if (magnitude >= 0x477ff000u) {
        return (uint16_t)(sign | 0x7c00u);
    }
    if (magnitude < 0x38800000u) {
        /* Below 2^-14: adding 0.5 leaves the denormal's 2^-24 units, rounded, in the low mantissa bits. */
        return (uint16_t)(sign | (f32_bits(f32_from_bits(magnitude) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

static float f16_to_f32(uint16_t half)
{
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 31u;
    const uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0) {
        const float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    return f32_from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | mantissa << 13);
}

void pf_codec_f32_to_q8_0(const float *in, int64_t n_blocks, uint8_t *out)
{
    for (int64_t i = 0; i < n_blocks; i++) {
        const float *values = in + i * MX_VALUES;
        uint8_t *block = out + i * Q8_BYTES;
        float amax = 0.0f;
        for (int j = 0; j < MX_VALUES; j++) {
            const float magnitude = fabsf(values[j]);
            amax = amax > magnitude ? amax : magnitude;
        }
        const float d = amax / 127.0f;
        /* 1 / d overflows only where d is zero as f16 too. */
        const float inverse = d > 0x1p-128f ? 1.0f / d : 0.0f;
        const uint16_t half = f32_to_f16(d);
        memcpy(block, &half, 2);
        int8_t codes[MX_VALUES];
        for (int j = 0; j < MX_VALUES; j++) {
            /* roundf() (halves away from zero) in a form compilers vectorise: exact for |x| < 2^22, because the
             * constant is the largest float below one half. */
            float x = values[j] * inverse;
            x = fabsf(x) < 128.0f ? x : 0.0f; /* NaN and infinite input must not reach the cast */
            const float half_away = copysignf(0x1.fffffep-2f, x);
            const int32_t rounded = (int32_t)(x + half_away);
            codes[j] = (int8_t)rounded;
        }
        memcpy(block + 2, codes, MX_VALUES);
    }
}

void pf_codec_q8_0_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out)
{
    for (int64_t i = 0; i < n_blocks; i++) {
        const uint8_t *block = blocks + i * Q8_BYTES;
        uint16_t half;
        memcpy(&half, block, 2);
        const float d = f16_to_f32(half);
        for (int j = 0; j < MX_VALUES; j++) {
            int8_t code;
            memcpy(&code, block + 2 + j, 1);
            out[i * MX_VALUES + j] = (float)code * d;
        }
    }
}
