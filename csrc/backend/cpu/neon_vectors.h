/* NEON vectors for kernels_neon.c and kernels_neon_dot.c: the definitions that gemm_q16_tile.h asks for, with the dot
 * product instructions where the file is compiled for them (PF_NEON_DOT). */
#ifndef PF_BACKEND_CPU_NEON_VECTORS_H
#define PF_BACKEND_CPU_NEON_VECTORS_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "format/floats.h"

#include <arm_neon.h>
#include <string.h>

typedef float32x4_t pf_vec;
typedef int32x4_t pf_ivec;
enum { PF_VEC_LANES = 4, PF_VECS = 8, TILE_TOKENS = 5, INT_ROWS = 4, SUM_VECS = 4 };
PF_INLINE float32x4_t pf_vec_zero(void) { return vdupq_n_f32(0.0f); }
PF_INLINE float32x4_t pf_vec_set1(float v) { return vdupq_n_f32(v); }
PF_INLINE float32x4_t pf_vec_load(const float *p) { return vld1q_f32(p); }
PF_INLINE float32x4_t pf_vec_load_part(const float *p, int64_t n) {
    float v[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t i = 0; i < 4 && i < n; ++i) v[i] = p[i];
    return vld1q_f32(v);
}
PF_INLINE void pf_vec_store(float *p, float32x4_t v) { vst1q_f32(p, v); }
PF_INLINE void pf_vec_store_part(float *p, float32x4_t v, int64_t n) {
    float lanes[4];
    vst1q_f32(lanes, v);
    for (int64_t i = 0; i < 4 && i < n; ++i) p[i] = lanes[i];
}
PF_INLINE float32x4_t pf_vec_add(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
PF_INLINE float32x4_t pf_vec_mul(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
PF_INLINE float32x4_t pf_vec_fma(float32x4_t a, float32x4_t b, float32x4_t c) { return vfmaq_f32(c, a, b); }
PF_INLINE float pf_vec_sum(float32x4_t v) { return vaddvq_f32(v); }
PF_INLINE float32x4_t pf_vec_of_ints(int32x4_t v) { return vcvtq_f32_s32(v); }
PF_INLINE float32x4_t pf_vec_sub(float32x4_t a, float32x4_t b) { return vsubq_f32(a, b); }
PF_INLINE float32x4_t pf_vec_max(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
PF_INLINE float32x4_t pf_vec_min(float32x4_t a, float32x4_t b) { return vbslq_f32(vcltq_f32(a, b), a, b); }
PF_INLINE float32x4_t pf_vec_div(float32x4_t a, float32x4_t b) { return vdivq_f32(a, b); }
PF_INLINE unsigned pf_vec_not_below(float32x4_t v, float limit) {
    static const uint32_t bits[4] = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(vld1q_u32(bits), vcltq_f32(v, vdupq_n_f32(limit))));
}
PF_INLINE float32x4_t pf_vec_zero_below(float32x4_t v, float32x4_t x, float limit) {
    return vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v), vcltq_f32(x, vdupq_n_f32(limit))));
}
PF_INLINE void pf_vec_sum4(const float32x4_t *v, float *out) {
    vst1q_f32(out, vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3])));
}
PF_INLINE int32x4_t pf_vec_round(float32x4_t v) { return vcvtnq_s32_f32(v); }
PF_INLINE float32x4_t pf_vec_of_bits(int32x4_t v) { return vreinterpretq_f32_s32(v); }
PF_INLINE int32x4_t pf_ivec_set1(int32_t v) { return vdupq_n_s32(v); }
PF_INLINE int32x4_t pf_ivec_add(int32x4_t a, int32x4_t b) { return vaddq_s32(a, b); }
PF_INLINE int32x4_t pf_ivec_left(int32x4_t v, int n) { return vshlq_s32(v, vdupq_n_s32(n)); }

PF_INLINE void pf_prefetch(const uint8_t *at) {
#if defined(_MSC_VER) && !defined(__clang__)
    __prefetch(at);
#else
    __builtin_prefetch(at);
#endif
}

/* ---- Blocks ------------------------------------------------------------------------------------------------ */

/* The two groups of 16 values that 16 bytes of e2m1 pairs hold, doubled: low nibbles, then high ones. */
PF_INLINE void e2m1_nibbles(const uint8_t *in, int8x16_t *low, int8x16_t *high) {
    const int8x16_t table = vld1q_s8(pf_e2m1_doubled);
    const uint8x16_t codes = vld1q_u8(in);
    *low = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
    *high = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
}

/* One block of INT_ROWS rows, row by row. */
typedef struct int_block {
    int8x16_t w[INT_ROWS][2];
    float32x4_t scale;
} int_block;

PF_INLINE int_block load_q8_0(const uint8_t *const *rows, int64_t b) {
    int_block block;
    uint16_t d[INT_ROWS];
    for (int r = 0; r < INT_ROWS; ++r) {
        const uint8_t *in = rows[r] + b * Q8_0_BYTES;
        d[r] = pf_load_u16(in);
        block.w[r][0] = vreinterpretq_s8_u8(vld1q_u8(in + 2));
        block.w[r][1] = vreinterpretq_s8_u8(vld1q_u8(in + 18));
    }
    block.scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(d)));
    return block;
}

PF_INLINE int_block load_mxfp4(const uint8_t *const *rows, int64_t b) {
    int_block block;
    float d[INT_ROWS];
    for (int r = 0; r < INT_ROWS; ++r) {
        const uint8_t *in = rows[r] + b * MXFP4_BYTES;
        d[r] = 0.5f * pf_e8m0_to_f32(in[0]);
        e2m1_nibbles(in + 1, &block.w[r][0], &block.w[r][1]);
    }
    block.scale = vld1q_f32(d);
    return block;
}

/* Sums of 32 products in four parts. */
PF_INLINE int32x4_t row_parts(const int8x16_t *w, int8x16_t a0, int8x16_t a1) {
#if defined(PF_NEON_DOT)
    return vdotq_s32(vdotq_s32(vdupq_n_s32(0), w[0], a0), w[1], a1);
#else
    /* Pairs stay below 2 * 128 * 127 in 16 bits. */
    int16x8_t pairs[2];
    pairs[0] = vmlal_s8(vmull_s8(vget_low_s8(w[0]), vget_low_s8(a0)), vget_high_s8(w[0]), vget_high_s8(a0));
    pairs[1] = vmlal_s8(vmull_s8(vget_low_s8(w[1]), vget_low_s8(a1)), vget_high_s8(w[1]), vget_high_s8(a1));
    return vpadalq_s16(vpaddlq_s16(pairs[0]), pairs[1]);
#endif
}

PF_INLINE int8x16_t load_plane(const uint8_t *act) { return vreinterpretq_s8_u8(vld1q_u8(act)); }

PF_INLINE int32x4_t dot_signed(const int_block *block, const uint8_t *hi, const uint8_t *lo) {
    const int8x16_t h0 = load_plane(hi), h1 = load_plane(hi + 16), l0 = load_plane(lo), l1 = load_plane(lo + 16);
    int32x4_t parts[INT_ROWS];
    PF_UNROLL for (int r = 0; r < INT_ROWS; ++r) {
        parts[r] = vmlaq_n_s32(row_parts(block->w[r], l0, l1), row_parts(block->w[r], h0, h1), PF_Q16_BASE);
    }
    return vpaddq_s32(vpaddq_s32(parts[0], parts[1]), vpaddq_s32(parts[2], parts[3]));
}

PF_INLINE int32x4_t dot_q8_0(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t act_sum) {
    (void)act_sum;
    return dot_signed(block, hi, lo);
}

PF_INLINE int32x4_t dot_mxfp4(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t act_sum) {
    (void)act_sum;
    return dot_signed(block, hi, lo);
}

#endif
