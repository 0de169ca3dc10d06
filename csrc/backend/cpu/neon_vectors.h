/* NEON vectors for the kernels_neon files: the definitions that gemm_int_tile.h and vector_fp4.h ask for, with the dot
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
enum { PF_VEC_LANES = 4, PF_VECS = 8, TILE_TOKENS = 5, SUM_VECS = 4, FP4_HEADS = 4 };
enum { Q8_ROWS = 2 };
#define PF_OWN_Q16 /* neon_units.h */
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
PF_INLINE int32x4_t pf_ivec_sub(int32x4_t a, int32x4_t b) { return vsubq_s32(a, b); }
PF_INLINE int32x4_t pf_ivec_mul(int32x4_t a, int32x4_t b) { return vmulq_s32(a, b); }
PF_INLINE int32x4_t pf_ivec_left(int32x4_t v, int n) { return vshlq_s32(v, vdupq_n_s32(n)); }

PF_INLINE void pf_prefetch(const uint8_t *at) {
#if defined(_MSC_VER) && !defined(__clang__)
    __prefetch(at);
#else
    __builtin_prefetch(at);
#endif
}

/* ---- Blocks ------------------------------------------------------------------------------------------------ */

/* The values that 16 bytes of e2m1 pairs hold, doubled: of the low nibbles, and of the high ones. */
PF_INLINE void e2m1_values(uint8x16_t codes, int8x16_t *low, int8x16_t *high) {
    const int8x16_t table = vld1q_s8(pf_e2m1_doubled);
    *low = vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15)));
    *high = vqtbl1q_s8(table, vshrq_n_u8(codes, 4));
}
PF_INLINE void e2m1_nibbles(const uint8_t *in, int8x16_t *low, int8x16_t *high) {
    e2m1_values(vld1q_u8(in), low, high);
}

/* Four blocks: for q8 a 32-bit lane each, columns 0 to 3, 4 to 7, ...; for q16 as neon_units.h says, with what
 * vector_super.h says of the scales of super-blocks. */
typedef struct int_weights {
    int8x16_t w[8];
    float32x4_t scale, half_scale, min_scale;
    int32x4_t c[2], m[2];
} int_weights;

/* The 16 bytes at `at` of each of n blocks, `stride` apart: vector k has bytes 4k to 4k + 3 of block l in lane l, zeros
 * for blocks that are not there. */
PF_INLINE void blocks_quads(const uint8_t *at, int64_t stride, int n, uint8x16_t *out) {
    uint32x4_t v[4];
    uint64x2_t pairs[4];
    PF_UNROLL for (int j = 0; j < 4; ++j) {
        v[j] = vreinterpretq_u32_u8(j < n ? vld1q_u8(at + j * stride) : vdupq_n_u8(0));
    }
    PF_UNROLL for (int j = 0; j < 2; ++j) {
        pairs[2 * j] = vreinterpretq_u64_u32(vzip1q_u32(v[2 * j], v[2 * j + 1]));
        pairs[2 * j + 1] = vreinterpretq_u64_u32(vzip2q_u32(v[2 * j], v[2 * j + 1]));
    }
    PF_UNROLL for (int j = 0; j < 2; ++j) {
        out[2 * j] = vreinterpretq_u8_u64(vzip1q_u64(pairs[j], pairs[j + 2]));
        out[2 * j + 1] = vreinterpretq_u8_u64(vzip2q_u64(pairs[j], pairs[j + 2]));
    }
}

PF_INLINE int_weights load_q8_0(const uint8_t *at, int n) {
    uint64_t halves = 0;
    uint8x16_t quads[8];
    int_weights v;
    for (int half = 0; half < 2; ++half) blocks_quads(at + 2 + 16 * half, Q8_0_BYTES, n, quads + 4 * half);
    PF_UNROLL for (int i = 0; i < 8; ++i) v.w[i] = vreinterpretq_s8_u8(quads[i]);
    PF_UNROLL for (int b = 0; b < 4; ++b) {
        if (b < n) halves |= (uint64_t)pf_load_u16(at + b * Q8_0_BYTES) << 16 * b;
    }
    v.scale = vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(halves)));
    return v;
}

PF_INLINE int_weights load_mxfp4(const uint8_t *at, int n) {
    uint64_t exponents[2] = {0, 0};
    uint8x16_t codes[4];
    int_weights v;
    blocks_quads(at + 1, MXFP4_BYTES, n, codes);
    PF_UNROLL for (int i = 0; i < 4; ++i) e2m1_values(codes[i], &v.w[i], &v.w[i + 4]);
    PF_UNROLL for (int b = 0; b < 4; ++b) {
        if (b < n) exponents[b / 2] |= (uint64_t)at[b * MXFP4_BYTES] << (32 * (b % 2) + 23);
    }
    v.scale = vreinterpretq_f32_u64(vcombine_u64(vcreate_u64(exponents[0]), vcreate_u64(exponents[1])));
    return v;
}

/* Columns 4 i to 4 i + 3 of four blocks. */
PF_INLINE int8x16_t plane_quads(const uint8_t *values, int i) {
    return vreinterpretq_s8_u8(vld1q_u8(values + i * PF_INT_QUADS));
}

/* Weights are signed here, so nobody needs the planes' own sums. */
#if defined(PF_NEON_DOT)
PF_INLINE float32x4_t plane(const int8x16_t *w, const uint8_t *values) {
    /* Two chains, for one token has few sums in flight. */
    int32x4_t a = vdupq_n_s32(0), b = a;
    PF_UNROLL for (int i = 0; i < 8; i += 2) {
        a = vdotq_s32(a, w[i], plane_quads(values, i));
        b = vdotq_s32(b, w[i + 1], plane_quads(values, i + 1));
    }
    return vcvtq_f32_s32(vaddq_s32(a, b));
}
PF_INLINE float32x4_t plane_q8_0(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    (void)sums;
    return plane(w->w, values);
}
PF_INLINE float32x4_t plane_mxfp4(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    (void)sums;
    return plane(w->w, values);
}
#else
/* Two products stay within 2 * 128 * 127 in 16 bits, three would not. */
PF_INLINE float32x4_t plane_q8_0(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    int32x4_t low = vdupq_n_s32(0), high = low; /* two blocks each */
    (void)sums;
    PF_UNROLL for (int i = 0; i < 8; i += 2) {
        const int8x16_t w0 = w->w[i], w1 = w->w[i + 1], a0 = plane_quads(values, i), a1 = plane_quads(values, i + 1);
        const int16x8_t s = vmull_s8(vget_low_s8(w0), vget_low_s8(a0)), t = vmull_high_s8(w0, a0);
        low = vpadalq_s16(low, vmlal_s8(s, vget_low_s8(w1), vget_low_s8(a1)));
        high = vpadalq_s16(high, vmlal_high_s8(t, w1, a1));
    }
    return vcvtq_f32_s32(vpaddq_s32(low, high));
}
/* Sixteen products stay within 16 * 12 * 127. */
PF_INLINE float32x4_t plane_mxfp4(const int_weights *w, const uint8_t *values, const uint8_t *sums) {
    int16x8_t low = vdupq_n_s16(0), high = low; /* two blocks each */
    (void)sums;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const int8x16_t a = plane_quads(values, i);
        low = vmlal_s8(low, vget_low_s8(w->w[i]), vget_low_s8(a));
        high = vmlal_high_s8(high, w->w[i], a);
    }
    return vcvtq_f32_s32(vpaddlq_s16(vpaddq_s16(low, high)));
}
#endif

PF_INLINE float int_total(const float32x4_t *s) {
    const float32x4_t t = vaddq_f32(vaddq_f32(s[0], s[2]), vaddq_f32(s[1], s[3]));
    const float32x2_t u = vadd_f32(vget_low_f32(t), vget_high_f32(t));
    return vget_lane_f32(u, 0) + vget_lane_f32(u, 1);
}

/* ---- FP4 index rows, for vector_fp4.h ---------------------------------------------------------------------- */

typedef int8x16_t fp4_bytes;
PF_INLINE int8x16_t fp4_load(const uint8_t *p) { return vreinterpretq_s8_u8(vld1q_u8(p)); }
PF_INLINE int8x16_t fp4_quad(const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
}

#if defined(PF_NEON_DOT)
typedef int32x4_t fp4_sum;
PF_INLINE int32x4_t fp4_start(int32_t codes) { return (void)codes, vdupq_n_s32(0); }
PF_INLINE int32x4_t fp4_add(int32x4_t s, int8x16_t rows, int8x16_t q) { return vdotq_s32(s, rows, q); }
PF_INLINE int32x4_t fp4_total(int32x4_t s) { return s; }
#else
/* Two sums a row, 16 bits each. */
typedef int16x8_t fp4_sum;
PF_INLINE int16x8_t fp4_start(int32_t codes) { return (void)codes, vdupq_n_s16(0); }
PF_INLINE int16x8_t fp4_add(int16x8_t s, int8x16_t rows, int8x16_t q) {
    const int16x8_t low = vmull_s8(vget_low_s8(rows), vget_low_s8(q));
    return vaddq_s16(s, vpaddq_s16(low, vmull_s8(vget_high_s8(rows), vget_high_s8(q))));
}
PF_INLINE int32x4_t fp4_total(int16x8_t s) { return vpaddlq_s16(s); }
#endif

PF_INLINE void fp4_expand(const uint8_t *codes, uint8_t *even, uint8_t *odd) {
    int8x16_t low, high;
    e2m1_nibbles(codes, &low, &high);
    vst1q_u8(even, vreinterpretq_u8_s8(low));
    vst1q_u8(odd, vreinterpretq_u8_s8(high));
}

#endif
