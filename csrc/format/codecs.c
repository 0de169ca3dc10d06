/* Block codecs: the byte-level conversions between the checkpoint's formats (packed FP4, FP8 with 128 x 128 scales,
 * BF16) and GGUF's (MXFP4, Q8_0, BF16). Plain C; formats as in the GGUF specification and the OCP MX and FP8 papers.
 * Multi-byte values are little-endian in every format and on every machine this builds for. */
#include "pyflash.h"

#include "format/dtypes.h"
#include "format/floats.h"

#include <math.h>
#include <string.h>

enum {
    MX_VALUES = PF_MXFP4_VALUES,
    MX_PACKED = MX_VALUES / 2,  /* bytes of a block's packed codes */
    MX_BYTES = PF_MXFP4_BYTES,  /* e8m0 scale, then the codes */
    Q8_VALUES = PF_Q8_0_VALUES,
    Q8_BYTES = PF_Q8_0_BYTES,   /* f16 scale, then int8 */
};

/* ---- FP4 ---------------------------------------------------------------------------------------------------- */

#define LOW_NIBBLES UINT64_C(0x0f0f0f0f0f0f0f0f)

/* Bytes 0..3 of x to the even bytes of the result, zeros between. */
static uint64_t spread_bytes(uint64_t x) {
    x &= UINT64_C(0xffffffff);
    x = (x | x << 16) & UINT64_C(0x0000ffff0000ffff);
    return (x | x << 8) & UINT64_C(0x00ff00ff00ff00ff);
}

/* The even bytes of x to bytes 0..3. */
static uint64_t gather_bytes(uint64_t x) {
    x &= UINT64_C(0x00ff00ff00ff00ff);
    x = (x | x >> 8) & UINT64_C(0x0000ffff0000ffff);
    return (x | x >> 16) & UINT64_C(0xffffffff);
}

void pf_codec_fp4_to_mxfp4(const uint8_t *packed, const uint8_t *scales, int64_t n_blocks, uint8_t *out) {
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

void pf_codec_mxfp4_to_fp4(const uint8_t *blocks, int64_t n_blocks, uint8_t *packed, uint8_t *scales) {
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

/* Unlike pf_decode_mxfp4(), which has ggml's values, this keeps the sign of a zero: what is written from it has the
 * checkpoint's bits. */
void pf_codec_mxfp4_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; i++) {
        const uint8_t *block = blocks + i * MX_BYTES;
        const float scale = pf_e8m0_to_f32(block[0]);
        float scaled[16];
        for (int c = 0; c < 16; c++) {
            scaled[c] = pf_e2m1_to_f32((uint32_t)c) * scale;
        }
        float *values = out + i * MX_VALUES;
        for (int j = 0; j < MX_PACKED; j++) {
            values[j] = scaled[block[1 + j] & 15];
            values[j + 16] = scaled[block[1 + j] >> 4];
        }
    }
}

/* ---- FP8 ---------------------------------------------------------------------------------------------------- */

void pf_codec_fp8_to_f32(const uint8_t *w, const void *scales, int32_t scale_f32, int64_t row0, int64_t n_rows,
                         int64_t cols, float *out) {
    float values[256];
    for (int c = 0; c < 256; c++) {
        values[c] = pf_e4m3_to_f32((uint8_t)c);
    }
    const int64_t blocks = (cols + PF_FP8_BLOCK - 1) / PF_FP8_BLOCK;
    for (int64_t row = 0; row < n_rows; row++) {
        const int64_t scale_row = (row0 + row) / PF_FP8_BLOCK * blocks;
        for (int64_t block = 0; block < blocks; block++) {
            float scale;
            if (scale_f32) {
                memcpy(&scale, (const uint8_t *)scales + (size_t)(scale_row + block) * sizeof scale, sizeof scale);
            } else {
                scale = pf_e8m0_to_f32(((const uint8_t *)scales)[scale_row + block]);
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

void pf_codec_f32_to_bf16(const float *in, int64_t n, uint16_t *out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = pf_f32_to_bf16(in[i]);
    }
}

void pf_codec_bf16_to_f32(const uint16_t *in, int64_t n, float *out) {
    for (int64_t i = 0; i < n; i++) {
        out[i] = pf_bf16_to_f32(in[i]);
    }
}

/* ---- Q8_0 --------------------------------------------------------------------------------------------------- */

void pf_codec_f32_to_q8_0(const float *in, int64_t n_blocks, uint8_t *out) {
    for (int64_t i = 0; i < n_blocks; i++) {
        const float *values = in + i * Q8_VALUES;
        uint8_t *block = out + i * Q8_BYTES;
        float amax = 0.0f;
        for (int j = 0; j < Q8_VALUES; j++) {
            const float magnitude = fabsf(values[j]);
            amax = amax > magnitude ? amax : magnitude;
        }
        const float d = amax / 127.0f;
        /* 1 / d overflows only where d is zero as f16 too. */
        const float inverse = d > 0x1p-128f ? 1.0f / d : 0.0f;
        const uint16_t half = pf_f32_to_f16(d);
        memcpy(block, &half, 2);
        int8_t codes[Q8_VALUES];
        for (int j = 0; j < Q8_VALUES; j++) {
            /* roundf() (halves away from zero) in a form compilers vectorise: exact for |x| < 2^22, because the
             * constant is the largest float below one half. */
            float x = values[j] * inverse;
            x = fabsf(x) < 128.0f ? x : 0.0f; /* NaN and infinite input must not reach the cast */
            const float half_away = copysignf(0x1.fffffep-2f, x);
            const int32_t rounded = (int32_t)(x + half_away);
            codes[j] = (int8_t)rounded;
        }
        memcpy(block + 2, codes, Q8_VALUES);
    }
}

void pf_codec_q8_0_to_f32(const uint8_t *blocks, int64_t n_blocks, float *out) {
    for (int64_t i = 0; i < n_blocks; i++) {
        const uint8_t *block = blocks + i * Q8_BYTES;
        uint16_t half;
        memcpy(&half, block, 2);
        const float d = pf_f16_to_f32(half);
        for (int j = 0; j < Q8_VALUES; j++) {
            int8_t code;
            memcpy(&code, block + 2 + j, 1);
            out[i * Q8_VALUES + j] = (float)code * d;
        }
    }
}
