/* The block formats for NEON: 128 weights at a time as signed bytes in the order of their columns, and the scales of the
 * blocks of 32 that they are, as int_acts.h and int_blocks.h have them. Layouts stand at the decoders (format/blocks_*.c).
 *
 * A unit of a row is eight blocks: a super-block, or eight of Q8_0 and MXFP4; a part is four of them. A type has
 *     values_<type>(at, part, n, w): w[2b] and w[2b + 1] are block 4 part + b of the unit at `at`; the first n are there,
 *         nothing behind them is read, and the others are zero;
 *     scales_<type>(at, part, n, v): what vector_super.h says of these blocks, in lane b; zero for those that are not there.
 * n is 4 with super-blocks. `part` is a constant. */
#ifndef PF_BACKEND_CPU_NEON_VALUES_H
#define PF_BACKEND_CPU_NEON_VALUES_H

#include "backend/cpu/grid_bytes.h"
#include "backend/cpu/int_blocks.h"
#include "backend/cpu/neon_vectors.h"
#include "format/iq_grids.h"

enum { PART = 4 /* blocks */ };

/* ---- Bytes ------------------------------------------------------------------------------------------------- */

/* By a constant, which these take as a variable. */
#if defined(_MSC_VER) && !defined(__clang__)
PF_INLINE uint8x16_t bytes_right(uint8x16_t v, int n) { return vshlq_u8(v, vdupq_n_s8((int8_t)-n)); }
PF_INLINE uint32x4_t lanes_right(uint32x4_t v, int n) { return vshlq_u32(v, vdupq_n_s32(-n)); }
#else
PF_INLINE uint8x16_t bytes_right(uint8x16_t v, int n) { return v >> vdupq_n_u8((uint8_t)n); }
PF_INLINE uint32x4_t lanes_right(uint32x4_t v, int n) { return v >> vdupq_n_u32((uint32_t)n); }
#endif
PF_INLINE uint8x16_t bytes_field(uint8x16_t v, int at, int bits) {
    return vandq_u8(bytes_right(v, at), vdupq_n_u8((uint8_t)((1 << bits) - 1)));
}
PF_INLINE uint32x4_t lanes_field(uint32x4_t v, int at, int bits) {
    return vandq_u32(lanes_right(v, at), vdupq_n_u32((1u << bits) - 1u));
}
PF_INLINE uint32x4_t lanes_right_each(uint32x4_t v, int c0, int c1, int c2, int c3) {
    const int32_t by[4] = {-c0, -c1, -c2, -c3};
    return vshlq_u32(v, vld1q_s32(by));
}
PF_INLINE int32x4_t signed_lanes(uint32x4_t v) { return vreinterpretq_s32_u32(v); }

static inline uint32_t load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}
/* Four bytes, or four words, to lanes. */
PF_INLINE uint32x4_t lanes_of_bytes(uint32_t four) {
    return vmovl_u16(vget_low_u16(vmovl_u8(vcreate_u8(four))));
}
PF_INLINE uint32x4_t lanes_of_words(const uint8_t *p) { return vmovl_u16(vreinterpret_u16_u8(vld1_u8(p))); }

/* ---- Scales ------------------------------------------------------------------------------------------------ */

PF_INLINE float32x4_t half_everywhere(const uint8_t *at) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(pf_load_u16(at))));
}
PF_INLINE float32x4_t scales_times(const uint8_t *half, float unit, int32x4_t s) {
    return vmulq_f32(vmulq_n_f32(half_everywhere(half), unit), vcvtq_f32_s32(s));
}
/* 2 s + 1 */
PF_INLINE int32x4_t odd_lanes(uint32x4_t s) { return vaddq_s32(signed_lanes(vshlq_n_u32(s, 1)), vdupq_n_s32(1)); }
/* Scales of halves in the nibbles of four bytes. */
PF_INLINE void nibble_scales(const uint8_t *at, int_weights *v) {
    const uint32x4_t both = lanes_of_bytes(load32(at));
    v->c[0] = odd_lanes(lanes_field(both, 0, 4));
    v->c[1] = odd_lanes(lanes_right(both, 4));
}

/* ---- Q8_0 and MXFP4 ---------------------------------------------------------------------------------------- */

PF_INLINE void values_q8_0(const uint8_t *at, int part, int n, int8x16_t *w) {
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        const uint8_t *in = at + (PART * part + b) * Q8_0_BYTES + 2;
        PF_UNROLL for (int h = 0; h < 2; ++h) {
            w[2 * b + h] = b < n ? vreinterpretq_s8_u8(vld1q_u8(in + 16 * h)) : vdupq_n_s8(0);
        }
    }
}
PF_INLINE void scales_q8_0(const uint8_t *at, int part, int n, int_weights *v) {
    uint64_t halves = 0;
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        if (b < n) halves |= (uint64_t)pf_load_u16(at + (PART * part + b) * Q8_0_BYTES) << 16 * b;
    }
    v->scale = vcvt_f32_f16(vreinterpret_f16_u64(vcreate_u64(halves)));
}

PF_INLINE void values_mxfp4(const uint8_t *at, int part, int n, int8x16_t *w) {
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        w[2 * b] = w[2 * b + 1] = vdupq_n_s8(0);
        if (b < n) e2m1_nibbles(at + (PART * part + b) * MXFP4_BYTES + 1, &w[2 * b], &w[2 * b + 1]);
    }
}
PF_INLINE void scales_mxfp4(const uint8_t *at, int part, int n, int_weights *v) {
    uint64_t exponents[2] = {0, 0};
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        if (b < n) exponents[b / 2] |= (uint64_t)at[(PART * part + b) * MXFP4_BYTES] << (32 * (b % 2) + 23);
    }
    v->scale = vreinterpretq_f32_u64(vcombine_u64(vcreate_u64(exponents[0]), vcreate_u64(exponents[1])));
}

/* ---- K formats --------------------------------------------------------------------------------------------- */

PF_INLINE void values_q2_k(const uint8_t *at, int part, int n, int8x16_t *w) {
    (void)n;
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        const uint8x16_t codes = vld1q_u8(at + 16 + 32 * part + 16 * h);
        PF_UNROLL for (int b = 0; b < PART; ++b) w[2 * b + h] = vreinterpretq_s8_u8(bytes_field(codes, 2 * b, 2));
    }
}
PF_INLINE void scales_q2_k(const uint8_t *at, int part, int n, int_weights *v) {
    const uint32x4_t both = lanes_of_words(at + 8 * part);
    (void)n;
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        v->c[h] = signed_lanes(lanes_field(both, 8 * h, 4));
        v->m[h] = signed_lanes(lanes_field(both, 8 * h + 4, 4));
    }
    v->scale = half_everywhere(at + 80);
    v->min_scale = vnegq_f32(half_everywhere(at + 82));
}

PF_INLINE void values_q3_k(const uint8_t *at, int part, int n, int8x16_t *w) {
    (void)n;
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        const uint8x16_t codes = vld1q_u8(at + 32 + 32 * part + 16 * h), third = vld1q_u8(at + 16 * h);
        PF_UNROLL for (int b = 0; b < PART; ++b) {
            const uint8x16_t bit = bytes_field(third, PART * part + b, 1);
            const uint8x16_t code = vorrq_u8(bytes_field(codes, 2 * b, 2), vshlq_n_u8(bit, 2));
            w[2 * b + h] = vreinterpretq_s8_u8(vsubq_u8(code, vdupq_n_u8(4)));
        }
    }
}
/* Eight bytes: low nibbles of parts' scales in the one or the other nibble, two bits above them in four times four bytes. */
PF_INLINE void scales_q3_k(const uint8_t *at, int part, int n, int_weights *v) {
    const uint64x1_t low = vreinterpret_u64_u8(vld1_u8(at + 96)), high = vreinterpret_u64_u32(vdup_n_u32(load32(at + 104)));
    const int32_t pairs[2] = {-4 * part, -4 * part - 2};
    const uint8x8_t nibble = vand_u8(vreinterpret_u8_u64(vshl_u64(low, vdup_n_s64(-4 * part))), vdup_n_u8(15));
    const uint32x2_t above = vshl_u32(vreinterpret_u32_u64(high), vld1_s32(pairs));
    const uint8x8_t two = vand_u8(vreinterpret_u8_u32(above), vdup_n_u8(3));
    const uint16x4_t words = vreinterpret_u16_u8(vorr_u8(nibble, vshl_n_u8(two, 4)));
    const uint32x4_t both = vmovl_u16(words);
    (void)n;
    PF_UNROLL for (int h = 0; h < 2; ++h) v->c[h] = vsubq_s32(signed_lanes(lanes_field(both, 8 * h, 8)), vdupq_n_s32(32));
    v->scale = half_everywhere(at + 108);
}

/* Four times 16 bytes of nibbles: blocks 0 and 1, 2 and 3. */
PF_INLINE void nibbles_of_64(const uint8_t *in, uint8x16_t *w) {
    PF_UNROLL for (int i = 0; i < 4; ++i) {
        const uint8x16_t codes = vld1q_u8(in + 16 * i);
        w[i / 2 * 4 + i % 2] = bytes_field(codes, 0, 4);
        w[i / 2 * 4 + i % 2 + 2] = bytes_right(codes, 4);
    }
}
PF_INLINE void values_q4_k(const uint8_t *at, int part, int n, int8x16_t *w) {
    uint8x16_t v[8];
    (void)n;
    nibbles_of_64(at + 16 + 64 * part, v);
    PF_UNROLL for (int i = 0; i < 8; ++i) w[i] = vreinterpretq_s8_u8(v[i]);
}
PF_INLINE void values_q5_k(const uint8_t *at, int part, int n, int8x16_t *w) {
    uint8x16_t v[8];
    (void)n;
    nibbles_of_64(at + 48 + 64 * part, v);
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        const uint8x16_t fifth = vld1q_u8(at + 16 + 16 * h);
        PF_UNROLL for (int b = 0; b < PART; ++b) {
            const uint8x16_t bit = vshlq_n_u8(bytes_field(fifth, PART * part + b, 1), 4);
            w[2 * b + h] = vreinterpretq_s8_u8(vorrq_u8(v[2 * b + h], bit));
        }
    }
}
/* Of Q4_K and Q5_K. */
PF_INLINE void scales_q45_k(const uint8_t *at, int part, int_weights *v) {
    const uint32_t scales = load32(at + 4), minimums = load32(at + 8), rest = load32(at + 12);
    const uint32_t nibbles = 0x0f0f0f0fu, pairs = 0x03030303u, six = 0x3f3f3f3fu;
    const uint32_t s = part == 0 ? scales & six : (rest & nibbles) | (scales >> 6 & pairs) << 4;
    const uint32_t m = part == 0 ? minimums & six : (rest >> 4 & nibbles) | (minimums >> 6 & pairs) << 4;
    v->scale = vmulq_f32(vcvtq_f32_u32(lanes_of_bytes(s)), half_everywhere(at));
    v->m[0] = signed_lanes(lanes_of_bytes(m));
    v->min_scale = vnegq_f32(half_everywhere(at + 2));
}
PF_INLINE void scales_q4_k(const uint8_t *at, int part, int n, int_weights *v) { (void)n, scales_q45_k(at, part, v); }
PF_INLINE void scales_q5_k(const uint8_t *at, int part, int n, int_weights *v) { (void)n, scales_q45_k(at, part, v); }

PF_INLINE void values_q6_k(const uint8_t *at, int part, int n, int8x16_t *w) {
    (void)n;
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        const uint8x16_t high = vld1q_u8(at + 128 + 32 * part + 16 * h);
        PF_UNROLL for (int b = 0; b < PART; ++b) {
            const uint8x16_t low = vld1q_u8(at + 64 * part + 32 * (b % 2) + 16 * h);
            const uint8x16_t two = vshlq_n_u8(bytes_field(high, 2 * b, 2), 4);
            const uint8x16_t code = vorrq_u8(two, b < 2 ? bytes_field(low, 0, 4) : bytes_right(low, 4));
            w[2 * b + h] = vreinterpretq_s8_u8(vsubq_u8(code, vdupq_n_u8(32)));
        }
    }
}
PF_INLINE void scales_q6_k(const uint8_t *at, int part, int n, int_weights *v) {
    const int16x4_t both = vreinterpret_s16_u8(vld1_u8(at + 192 + 8 * part));
    const float32x4_t d = half_everywhere(at + 208);
    (void)n;
    v->scale = vmulq_f32(d, vcvtq_f32_s32(vmovl_s16(vshr_n_s16(vshl_n_s16(both, 8), 8))));
    v->half_scale = vmulq_f32(d, vcvtq_f32_s32(vmovl_s16(vshr_n_s16(both, 8))));
}

/* ---- IQ formats -------------------------------------------------------------------------------------------- */

/* Eight values, twice; and four values, four times. */
PF_INLINE int8x16_t two_entries(const uint64_t *grid, uint32_t a, uint32_t b) {
    return vreinterpretq_s8_u64(vcombine_u64(vld1_u64(grid + a), vld1_u64(grid + b)));
}
PF_INLINE int8x16_t four_entries(const uint32_t *grid, uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    uint32x4_t v = vdupq_n_u32(0);
    v = vld1q_lane_u32(grid + a, v, 0);
    v = vld1q_lane_u32(grid + b, v, 1);
    v = vld1q_lane_u32(grid + c, v, 2);
    v = vld1q_lane_u32(grid + d, v, 3);
    return vreinterpretq_s8_u32(v);
}

/* Places in a grid whose lower bits are bytes at `low`, and whose upper ones, `mask`, each word of `high` has after a shift. */
PF_INLINE void put_places(const uint8_t *low, uint16x8_t high, int16x8_t shifts, uint16_t mask, uint16_t *places) {
    const uint16x8_t above = vandq_u16(vshlq_u16(high, shifts), vdupq_n_u16(mask));
    vst1q_u16(places, vorrq_u16(vmovl_u8(vld1_u8(low)), above));
}
/* The first of two words four times, then the second. */
PF_INLINE uint16x8_t four_times(uint32_t first, uint32_t second) {
    return vcombine_u16(vdup_n_u16((uint16_t)first), vdup_n_u16((uint16_t)second));
}
PF_INLINE int16x8_t shifts_of(int c0, int c1, int c2, int c3, int c4, int c5, int c6, int c7) {
    const int16_t by[8] = {(int16_t)c0, (int16_t)c1, (int16_t)c2, (int16_t)c3,
                           (int16_t)c4, (int16_t)c5, (int16_t)c6, (int16_t)c7};
    return vld1q_s16(by);
}

/* Bytes whose eighth bit makes the number of ones even; it is zero. */
PF_INLINE uint8x16_t even_signs(uint8x16_t seven) { return vorrq_u8(seven, vshlq_n_u8(vcntq_u8(seven), 7)); }
/* Four words of four times seven bits of signs, and a scale. */
PF_INLINE uint8x16_t seven_signs(uint32x4_t words) {
    uint32x4_t v = vandq_u32(words, vdupq_n_u32(0x7f));
    v = vorrq_u32(v, vandq_u32(vshlq_n_u32(words, 1), vdupq_n_u32(0x7f00)));
    v = vorrq_u32(v, vandq_u32(vshlq_n_u32(words, 2), vdupq_n_u32(0x7f0000)));
    v = vorrq_u32(v, vandq_u32(vshlq_n_u32(words, 3), vdupq_n_u32(0x7f000000)));
    return even_signs(vreinterpretq_u8_u32(v));
}
/* A set bit of 16 bytes makes a value of the part negative. */
PF_INLINE void put_signs(uint8x16_t signs, int8x16_t *w) {
    const uint8x16_t bits = vreinterpretq_u8_u64(vdupq_n_u64(0x8040201008040201u));
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const uint64_t at = 0x0101010101010101u;
        const uint8x16_t places = vcombine_u8(vcreate_u8((uint64_t)(2 * i) * at), vcreate_u8((uint64_t)(2 * i + 1) * at));
        const int8x16_t negative = vreinterpretq_s8_u8(vtstq_u8(vqtbl1q_u8(signs, places), bits));
        w[i] = vsubq_s8(veorq_s8(w[i], negative), negative);
    }
}
/* The second word of every eight bytes. */
PF_INLINE uint32x4_t odd_words(const uint8_t *at) {
    return vuzp2q_u32(vreinterpretq_u32_u8(vld1q_u8(at)), vreinterpretq_u32_u8(vld1q_u8(at + 16)));
}

PF_INLINE void values_iq2_xxs(const uint8_t *at, int part, int n, int8x16_t *w) {
    const uint8_t *in = at + 2 + 32 * part;
    (void)n;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const uint8_t *two = in + 8 * (i / 2) + 2 * (i % 2);
        w[i] = two_entries(pf_grids.iq2_xxs, two[0], two[1]);
    }
    put_signs(seven_signs(odd_words(in)), w);
}
PF_INLINE void scales_iq2_xxs(const uint8_t *at, int part, int n, int_weights *v) {
    (void)n;
    v->scale = scales_times(at, 0.125f, odd_lanes(lanes_right(odd_words(at + 2 + 32 * part), 28)));
}

PF_INLINE void values_iq2_xs(const uint8_t *at, int part, int n, int8x16_t *w) {
    const uint8_t *in = at + 2 + 32 * part;
    const uint16x8_t first = vreinterpretq_u16_u8(vld1q_u8(in)), second = vreinterpretq_u16_u8(vld1q_u8(in + 16));
    (void)n;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        w[i] = two_entries(pf_grids.iq2_xs, pf_load_u16(in + 4 * i) & 511u, pf_load_u16(in + 4 * i + 2) & 511u);
    }
    put_signs(even_signs(vcombine_u8(vmovn_u16(vshrq_n_u16(first, 9)), vmovn_u16(vshrq_n_u16(second, 9)))), w);
}
PF_INLINE void scales_iq2_xs(const uint8_t *at, int part, int n, int_weights *v) {
    (void)n;
    nibble_scales(at + 66 + 4 * part, v);
    v->scale = vmulq_n_f32(half_everywhere(at), 0.125f);
}

PF_INLINE void values_iq2_s(const uint8_t *at, int part, int n, int8x16_t *w) {
    const uint8_t *low = at + 2 + 16 * part, *high = at + 66 + PART * part;
    const int16x8_t shifts = shifts_of(8, 6, 4, 2, 8, 6, 4, 2);
    uint16_t places[16];
    (void)n;
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        put_places(low + 8 * i, four_times(high[2 * i], high[2 * i + 1]), shifts, 0x300, places + 8 * i);
    }
    PF_UNROLL for (int i = 0; i < 8; ++i) w[i] = two_entries(pf_grids.iq2_s, places[2 * i], places[2 * i + 1]);
    put_signs(vld1q_u8(at + 34 + 16 * part), w);
}
PF_INLINE void scales_iq2_s(const uint8_t *at, int part, int n, int_weights *v) {
    (void)n;
    nibble_scales(at + 74 + 4 * part, v);
    v->scale = vmulq_n_f32(half_everywhere(at), 0.125f);
}

PF_INLINE void values_iq3_xxs(const uint8_t *at, int part, int n, int8x16_t *w) {
    (void)n;
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const uint8_t *in = at + 2 + 32 * part + 4 * i;
        w[i] = four_entries(pf_grids.iq3_xxs, in[0], in[1], in[2], in[3]);
    }
    put_signs(seven_signs(vreinterpretq_u32_u8(vld1q_u8(at + 66 + 16 * part))), w);
}
PF_INLINE void scales_iq3_xxs(const uint8_t *at, int part, int n, int_weights *v) {
    const uint32x4_t words = vreinterpretq_u32_u8(vld1q_u8(at + 66 + 16 * part));
    (void)n;
    v->scale = scales_times(at, 0.25f, odd_lanes(lanes_right(words, 28)));
}

PF_INLINE void values_iq3_s(const uint8_t *at, int part, int n, int8x16_t *w) {
    const int16x8_t shifts = shifts_of(8, 7, 6, 5, 4, 3, 2, 1);
    uint16_t places[32];
    (void)n;
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        const uint16x8_t high = vdupq_n_u16(at[66 + PART * part + b]);
        put_places(at + 2 + 32 * part + 8 * b, high, shifts, 0x100, places + 8 * b);
    }
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const uint16_t *four = places + 4 * i;
        w[i] = four_entries(pf_grids.iq3_s, four[0], four[1], four[2], four[3]);
    }
    put_signs(vld1q_u8(at + 74 + 16 * part), w);
}
PF_INLINE void scales_iq3_s(const uint8_t *at, int part, int n, int_weights *v) {
    const uint32x4_t four = lanes_right_each(vdupq_n_u32(pf_load_u16(at + 106 + 2 * part)), 0, 4, 8, 12);
    (void)n;
    v->scale = scales_times(at, 1.0f, odd_lanes(lanes_field(four, 0, 4)));
}

/* In eighths: a grid's bytes are 16 more, and every eight of them move up or down by one. */
PF_INLINE void values_iq1_s(const uint8_t *at, int part, int n, int8x16_t *w) {
    const uint8_t *low = at + 2 + 16 * part, *high = at + 34 + 8 * part;
    const int16x8_t shifts = shifts_of(8, 5, 2, -1, 8, 5, 2, -1);
    uint16_t places[16];
    (void)n;
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        put_places(low + 8 * i, four_times(pf_load_u16(high + 4 * i), pf_load_u16(high + 4 * i + 2)), shifts, 0x700,
                   places + 8 * i);
    }
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const uint32_t down = high[i / 2 * 2 + 1] >> 7;
        const int8x16_t v = two_entries(pf_grids.iq1, places[2 * i], places[2 * i + 1]);
        w[i] = vaddq_s8(v, vdupq_n_s8((int8_t)(-15 - 2 * (int32_t)down)));
    }
}
PF_INLINE void scales_iq1_s(const uint8_t *at, int part, int n, int_weights *v) {
    (void)n;
    v->scale = scales_times(at, 0.125f, odd_lanes(lanes_field(lanes_of_words(at + 34 + 8 * part), 12, 3)));
}

/* Of 16 columns a byte of codes and two nibbles: three bits of a place, and whether its values move down. */
PF_INLINE void values_iq1_m(const uint8_t *at, int part, int n, int8x16_t *w) {
    const uint8x8_t high = vld1_u8(at + 32 + 8 * part);
    const uint8x16_t nibbles = vcombine_u8(vzip1_u8(vshl_n_u8(high, 4), high), vzip2_u8(vshl_n_u8(high, 4), high));
    const int8x16_t down = vreinterpretq_s8_u8(vcltzq_s8(vreinterpretq_s8_u8(nibbles)));
    const uint8x16_t moves = vreinterpretq_u8_s8(vaddq_s8(vaddq_s8(down, down), vdupq_n_s8(-15)));
    const int16x8_t shifts = shifts_of(8, 4, 8, 4, 8, 4, 8, 4);
    const uint8x16_t twice = vcombine_u8(vzip1_u8(high, high), vzip2_u8(high, high));
    uint16_t places[16];
    (void)n;
    put_places(at + 16 * part, vmovl_u8(vget_low_u8(twice)), shifts, 0x700, places);
    put_places(at + 16 * part + 8, vmovl_u8(vget_high_u8(twice)), shifts, 0x700, places + 8);
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        const uint64_t each = 0x0101010101010101u;
        const uint8x16_t own = vcombine_u8(vcreate_u8((uint64_t)(2 * i) * each), vcreate_u8((uint64_t)(2 * i + 1) * each));
        const int8x16_t v = two_entries(pf_grids.iq1, places[2 * i], places[2 * i + 1]);
        w[i] = vaddq_s8(v, vreinterpretq_s8_u8(vqtbl1q_u8(moves, own)));
    }
}
PF_INLINE void scales_iq1_m(const uint8_t *at, int part, int n, int_weights *v) {
    const uint64_t words = vget_lane_u64(vreinterpret_u64_u8(vld1_u8(at + 48)), 0), tops = words >> 12 & 0x000f000f000f000fu;
    const uint64_t half = (tops | tops >> 12 | tops >> 24 | tops >> 36) & 0xffffu;
    const uint32x4_t own = vdupq_n_u32((uint32_t)(words >> 32 * part));
    const uint32x4_t scales = lanes_right_each(own, 0, 6, 16, 22);
    (void)n;
    PF_UNROLL for (int h = 0; h < 2; ++h) v->c[h] = odd_lanes(lanes_field(scales, 3 * h, 3));
    v->scale = vmulq_n_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16((uint16_t)half))), 0.125f);
}

PF_INLINE void values_iq4_xs(const uint8_t *at, int part, int n, int8x16_t *w) {
    const int8x16_t table = vld1q_s8(pf_iq4_values);
    (void)n;
    PF_UNROLL for (int b = 0; b < PART; ++b) {
        const uint8x16_t codes = vld1q_u8(at + 8 + 64 * part + 16 * b);
        w[2 * b] = vqtbl1q_s8(table, bytes_field(codes, 0, 4));
        w[2 * b + 1] = vqtbl1q_s8(table, bytes_right(codes, 4));
    }
}
PF_INLINE void scales_iq4_xs(const uint8_t *at, int part, int n, int_weights *v) {
    const uint32x4_t low = lanes_right_each(vdupq_n_u32(pf_load_u16(at + 4 + 2 * part)), 0, 4, 8, 12);
    const uint32x4_t high = lanes_right_each(vdupq_n_u32((uint32_t)at[2 + part]), 0, 2, 4, 6);
    const uint32x4_t s = vorrq_u32(lanes_field(low, 0, 4), vshlq_n_u32(lanes_field(high, 0, 2), 4));
    (void)n;
    v->scale = scales_times(at, 1.0f, vsubq_s32(signed_lanes(s), vdupq_n_s32(32)));
}

#endif
