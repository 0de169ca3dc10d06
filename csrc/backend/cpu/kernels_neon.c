/* Kernels for NEON as every 64-bit ARM processor has it. */
#include "backend/cpu/kernels.h"

#if defined(__aarch64__) || defined(_M_ARM64)

#include "backend/cpu/neon_vectors.h"

#include <stdbool.h>

/* ---- 32 columns of each format to floats --------------------------------------------------------------------- */

PF_INLINE float32x4_t of_halves(uint16x4_t v) { return vcvt_f32_f16(vreinterpret_f16_u16(v)); }
/* Unaligned; a vector of bytes is loaded wherever it lies. */
PF_INLINE uint16x8_t load_u16s(const uint8_t *in) { return vreinterpretq_u16_u8(vld1q_u8(in)); }

PF_INLINE void from_f32(const uint8_t *in, float32x4_t *v) {
    for (int j = 0; j < 8; ++j) v[j] = vreinterpretq_f32_u8(vld1q_u8(in + 16 * j));
}

PF_INLINE void from_f16(const uint8_t *in, float32x4_t *v) {
    for (int j = 0; j < 4; ++j) {
        const uint16x8_t halves = load_u16s(in + 16 * j);
        v[2 * j] = of_halves(vget_low_u16(halves));
        v[2 * j + 1] = of_halves(vget_high_u16(halves));
    }
}

PF_INLINE void from_bf16(const uint8_t *in, float32x4_t *v) {
    for (int j = 0; j < 4; ++j) {
        const uint16x8_t bits = load_u16s(in + 16 * j);
        v[2 * j] = vreinterpretq_f32_u32(vshll_n_u16(vget_low_u16(bits), 16));
        v[2 * j + 1] = vreinterpretq_f32_u32(vshll_n_u16(vget_high_u16(bits), 16));
    }
}

/* int8 times scale. */
PF_INLINE void from_i8(int8x16_t low, int8x16_t high, float scale, float32x4_t *v) {
    const int8x8_t eight[4] = {vget_low_s8(low), vget_high_s8(low), vget_low_s8(high), vget_high_s8(high)};
    for (int j = 0; j < 4; ++j) {
        const int16x8_t wide = vmovl_s8(eight[j]);
        v[2 * j] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), scale);
        v[2 * j + 1] = vmulq_n_f32(vcvtq_f32_s32(vmovl_s16(vget_high_s16(wide))), scale);
    }
}

/* Whether 32 e4m3 codes hold a NaN, or 2^8 scale may overflow: cases left to scalar. */
PF_INLINE bool e4m3_is_odd(uint8x16_t a, uint8x16_t b, float scale) {
    const uint8x16_t nan = vdupq_n_u8(0x7f);
    const uint8x16_t largest = vmaxq_u8(vandq_u8(a, nan), vandq_u8(b, nan));
    return !(scale < 0x1p119f && scale > -0x1p119f) || vmaxvq_u8(largest) == 0x7f;
}

/* An e4m3 code moved into a half float reads as the value times 2^-8, except for NaN. */
PF_INLINE void from_e4m3(const uint8_t *in, float scale, float32x4_t *v) {
    const uint8x16_t codes[2] = {vld1q_u8(in), vld1q_u8(in + 16)};
    if (e4m3_is_odd(codes[0], codes[1], scale)) {
        float plain[32];
        for (int i = 0; i < 32; ++i) plain[i] = pf_e4m3_to_f32(in[i]) * scale;
        from_f32((const uint8_t *)plain, v);
        return;
    }
    for (int j = 0; j < 4; ++j) {
        /* Sign extension leaves the sign in bits 15 and 14, above the magnitude. */
        const int8x16_t sixteen = vreinterpretq_s8_u8(codes[j / 2]);
        const int16x8_t code = vmovl_s8(j % 2 ? vget_high_s8(sixteen) : vget_low_s8(sixteen));
        const uint16x8_t half = vandq_u16(vreinterpretq_u16_s16(vshlq_n_s16(code, 7)), vdupq_n_u16(0xbf80));
        v[2 * j] = vmulq_n_f32(of_halves(vget_low_u16(half)), 256.0f * scale);
        v[2 * j + 1] = vmulq_n_f32(of_halves(vget_high_u16(half)), 256.0f * scale);
    }
}

PF_INLINE void from_q8_0(const uint8_t *in, float32x4_t *v) {
    const float scale = vgetq_lane_f32(of_halves(vdup_n_u16(pf_load_u16(in))), 0);
    from_i8(vreinterpretq_s8_u8(vld1q_u8(in + 2)), vreinterpretq_s8_u8(vld1q_u8(in + 18)), scale, v);
}

PF_INLINE void from_mxfp4(const uint8_t *in, float32x4_t *v) {
    int8x16_t low, high;
    e2m1_nibbles(in + 1, &low, &high);
    from_i8(low, high, 0.5f * pf_e8m0_to_f32(in[0]), v);
}

PF_INLINE void from_idx_fp4(const uint8_t *in, float scale, float32x4_t *v) {
    int8x16_t even, odd;
    e2m1_nibbles(in, &even, &odd);
    from_i8(vzip1q_s8(even, odd), vzip2q_s8(even, odd), scale, v);
}

#include "backend/cpu/neon_units.h"
#include "backend/cpu/vector_ops.h"

/* ---- Quantised activations --------------------------------------------------------------------------------- */

/* The integers of a block, and its scale. */
PF_INLINE float quantize_block(const float *x, float most, int32x4_t *q) {
    float32x4_t v[8];
    uint32x4_t amax = vdupq_n_u32(0);
    for (int i = 0; i < 8; ++i) {
        v[i] = vld1q_f32(x + 4 * i);
        amax = vmaxq_u32(amax, vandq_u32(vreinterpretq_u32_f32(v[i]), vdupq_n_u32(0x7fffffffu)));
    }
    const float d = pf_f32_from_bits(vmaxvq_u32(amax)) / most;
    for (int i = 0; i < 8; ++i) {
        /* These take the number where the other is a NaN, which so becomes the lowest value as in scalar. */
        const float32x4_t low = vmaxnmq_f32(vdivq_f32(v[i], vdupq_n_f32(d)), vdupq_n_f32(-most));
        const int32x4_t rounded = vcvtnq_s32_f32(vminnmq_f32(low, vdupq_n_f32(most)));
        q[i] = d == 0.0f ? vdupq_n_s32(0) : rounded;
    }
    return d;
}

/* 16 integers within a byte's range, as bytes in order. */
PF_INLINE void store_bytes(uint8_t *out, const int32x4_t *q) {
    const int16x8_t low = vcombine_s16(vmovn_s32(q[0]), vmovn_s32(q[1]));
    const int16x8_t high = vcombine_s16(vmovn_s32(q[2]), vmovn_s32(q[3]));
    vst1q_u8(out, vreinterpretq_u8_s8(vcombine_s8(vmovn_s16(low), vmovn_s16(high))));
}

/* A plane's integers of a block to their places. */
PF_INLINE void put_plane(uint8_t *row, int planes, int64_t n, int64_t block, int plane, const int32x4_t *q) {
    int32x4_t sums = vdupq_n_s32(0);
    int8_t bytes[BLOCK];
    int16_t both[4];
    for (int half = 0; half < 2; ++half) store_bytes((uint8_t *)bytes + 16 * half, q + 4 * half);
    for (int i = 0; i < 8; ++i) sums = vmlsq_n_s32(sums, q[i], PF_INT_BIAS);
    vst1_s16(both, vmovn_s32(vpaddq_s32(sums, sums)));
    pf_int_put(row, planes, n, block, plane, bytes, both);
}

static void quantize_q16(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    const float per_base = 1.0f / (float)PF_INT_BASE;
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        int32x4_t q[8], hi[8];
        pf_int_put_scale(row, PF_Q16_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q16_MAX, q));
        pf_int_put_halves(row, n, b, vaddvq_s32(vaddq_s32(vaddq_s32(q[0], q[1]), vaddq_s32(q[2], q[3]))),
                          vaddvq_s32(vaddq_s32(vaddq_s32(q[4], q[5]), vaddq_s32(q[6], q[7]))));
        for (int i = 0; i < 8; ++i) {
            hi[i] = vcvtnq_s32_f32(vmulq_n_f32(vcvtq_f32_s32(q[i]), per_base));
            q[i] = vmlsq_n_s32(q[i], hi[i], PF_INT_BASE);
        }
        put_plane(row, PF_Q16_PLANES, n, b, 0, hi);
        put_plane(row, PF_Q16_PLANES, n, b, 1, q);
    }
    if (end == n) pf_int_pad(row, PF_Q16_PLANES, n);
}

static void quantize_q8(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        int32x4_t q[8];
        pf_int_put_scale(row, PF_Q8_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q8_MAX, q));
        put_plane(row, PF_Q8_PLANES, n, b, 0, q);
    }
    if (end == n) pf_int_pad(row, PF_Q8_PLANES, n);
}

/* ---- Table ------------------------------------------------------------------------------------------------- */

void pf_kernels_neon_init(pf_cpu_kernels *k) {
    pf_grids_fill();
    set_vector_entries(k);
    set_unit_entries(k);
    k->q16_words = false;
    k->quantize_q16 = quantize_q16;
    k->quantize_q8 = quantize_q8;
}

#endif
