/* The number formats of weights and cache rows on the device: the same values, and the same roundings, as
 * format/floats.h and backend/cpu/rows.c give. */
#ifndef PF_BACKEND_CUDA_FORMATS_CUH
#define PF_BACKEND_CUDA_FORMATS_CUH

#include "backend/backend.h"
#include "backend/cuda/device.cuh"

enum { PF_BLOCK = 32 /* values of an integer block */, PF_IDX_GROUP = 32, PF_KV_GROUP = 64 };
static_assert((int)PF_Q8_0_VALUES == (int)PF_BLOCK && (int)PF_MXFP4_VALUES == (int)PF_BLOCK,
              "blocks of weights and activations differ");

/* ---- Bytes ---- */

PF_DEV uint32_t pf_u16_at(const uint8_t *p) { return p[0] | (uint32_t)p[1] << 8; }
PF_DEV uint32_t pf_u32_at(const uint8_t *p) { return pf_u16_at(p) | pf_u16_at(p + 2) << 16; }

/* The four bytes at p, in one or two loads of words: none is read that has none of them. */
PF_DEV uint32_t pf_word_at(const uint8_t *p) {
    const uint32_t before = (uint32_t)((uintptr_t)p & 3u);
    const uint32_t *from = reinterpret_cast<const uint32_t *>(p - before);
    return before == 0 ? *from : __funnelshift_rc(from[0], from[1], 8u * before);
}

/* 4 n bytes from any address; one load where it is aligned to all of them. */
PF_DEV void pf_load_words(const uint8_t *p, uint32_t (&out)[4]) {
    if (pf_aligned(p, 16)) {
        const uint4 v = *reinterpret_cast<const uint4 *>(p);
        out[0] = v.x;
        out[1] = v.y;
        out[2] = v.z;
        out[3] = v.w;
    } else {
        for (int i = 0; i < 4; ++i) out[i] = pf_u32_at(p + 4 * i);
    }
}
PF_DEV void pf_load_words(const uint8_t *p, uint32_t (&out)[2]) {
    if (pf_aligned(p, 8)) {
        const uint2 v = *reinterpret_cast<const uint2 *>(p);
        out[0] = v.x;
        out[1] = v.y;
    } else {
        for (int i = 0; i < 2; ++i) out[i] = pf_u32_at(p + 4 * i);
    }
}
/* 8 floats. */
PF_DEV void pf_load_floats(const float *p, float (&out)[8]) {
    if (pf_aligned(p, 16)) {
        const float4 a = *reinterpret_cast<const float4 *>(p), b = *reinterpret_cast<const float4 *>(p + 4);
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    } else {
        for (int i = 0; i < 8; ++i) out[i] = p[i];
    }
}

/* ---- To float ---- */

PF_DEV float pf_of_bf16(uint32_t bits) { return __uint_as_float(bits << 16); }

PF_DEV float pf_of_f16(uint32_t half) {
    const uint32_t sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
    if (magnitude >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
    /* As the bits of a float of which only the exponent's bias is wrong; denormals come out right too. */
    return __uint_as_float(sign | magnitude << 13) * 0x1p112f;
}

PF_DEV float pf_of_e4m3(uint32_t code) {
    const uint32_t sign = (code & 0x80u) << 24, magnitude = code & 0x7fu;
    if (magnitude == 0x7fu) return __uint_as_float(sign | 0x7fc00000u);
    return __uint_as_float(sign | magnitude << 20) * 0x1p120f;
}

PF_DEV float pf_of_e2m1(uint32_t code) { return __uint_as_float((code & 8u) << 28 | (code & 7u) << 22) * 0x1p126f; }

PF_DEV float pf_of_e8m0(uint32_t e) {
    if (e == 0) return __uint_as_float(0x00400000u);
    return __uint_as_float(e == 255 ? 0x7fc00000u : e << 23);
}

/* Of four e2m1 codes, in the low four nibbles of code, the doubled values. */
PF_DEV uint32_t pf_doubled_values(uint32_t code) {
    const uint32_t magnitude = code & 0x7777u;
    const uint32_t plus = __byte_perm(0x03020100u, 0x0c080604u, magnitude);
    const uint32_t minus = __byte_perm(0xfdfeff00u, 0xf4f8fafcu, magnitude);
    return __byte_perm(plus, minus, 0x3210u | (code & 0x8888u) >> 1);
}

/* ---- From float, to nearest even ---- */

PF_DEV uint32_t pf_to_bf16(float value) {
    const uint32_t bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bits >> 16 | 0x40u;
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

/* Saturating at the largest finite half. */
PF_DEV uint32_t pf_to_f16(float value) {
    const uint32_t bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7e00u;
    if (magnitude > 0x477fe000u) magnitude = 0x477fe000u; /* 65504 */
    if (magnitude < 0x38800000u) {
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u);
    }
    return sign | (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
}

/* Saturates at 448. */
PF_DEV uint32_t pf_to_e4m3(float value) {
    const uint32_t bits = __float_as_uint(value), sign = bits >> 24 & 0x80u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return sign | 0x7fu;
    if (magnitude > 0x43e00000u) magnitude = 0x43e00000u;
    if (magnitude < 0x3c800000u) {
        return sign | (__float_as_uint(__uint_as_float(magnitude) + 0x1p14f) - 0x46800000u);
    }
    magnitude += 0x7ffffu + (magnitude >> 20 & 1u);
    return sign | (magnitude - (120u << 23)) >> 20;
}

/* Saturates at 6; NaN becomes 6. */
PF_DEV uint32_t pf_to_e2m1(float value) {
    const uint32_t bits = __float_as_uint(value), sign = bits >> 28 & 8u;
    const float v = __uint_as_float(bits & 0x7fffffffu);
    uint32_t code = 7;
    if (v <= 5.0f) code = 6;
    if (v < 3.5f) code = 5;
    if (v <= 2.5f) code = 4;
    if (v < 1.75f) code = 3;
    if (v <= 1.25f) code = 2;
    if (v < 0.75f) code = 1;
    if (v <= 0.25f) code = 0;
    return sign | code;
}

PF_DEV uint32_t pf_magnitude(float x) { return __float_as_uint(x) & 0x7fffffffu; }

/* ceil(log2(amax / largest)) of a group whose largest magnitude has bits amax, which is at least floor; largest =
 * mantissa 2^exponent. */
PF_DEV int pf_scale_exponent(uint32_t amax, float floor, uint32_t mantissa_bits, int exponent) {
    const uint32_t least = __float_as_uint(floor), bits = amax > least ? amax : least;
    const int k = (int)(bits >> 23) - 127 - exponent;
    return (bits & 0x7fffffu) > mantissa_bits ? k + 1 : k;
}
PF_DEV int pf_fp8_exponent(uint32_t amax) { return pf_scale_exponent(amax, 1e-4f, 0x600000u, 8); }
PF_DEV int pf_fp4_exponent(uint32_t amax) { return pf_scale_exponent(amax, 0x1.8p-124f, 0x400000u, 2); }
PF_DEV float pf_power_of_two(int k) { return pf_of_e8m0((uint32_t)(k + 127) & 0xffu); }

/* ---- Pairs of bfloat16, the first in the low half ---- */

PF_DEV uint32_t pf_to_bf16_pair(float low, float high) {
#if defined(PF_CUDA_EMULATED)
    return pf_to_bf16(low) | pf_to_bf16(high) << 16;
#else
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#endif
}

/* Both times those of another pair. */
PF_DEV uint32_t pf_bf16_pair_times(uint32_t pair, uint32_t by) {
#if defined(PF_CUDA_EMULATED)
    return pf_to_bf16_pair(pf_of_bf16(pair & 0xffffu) * pf_of_bf16(by & 0xffffu),
                           pf_of_bf16(pair >> 16) * pf_of_bf16(by >> 16));
#else
    uint32_t product; /* there is a mul from sm_90 on only */
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(product) : "r"(pair), "r"(by), "r"(0x80008000u));
    return product;
#endif
}
/* Both times 2^120; exact for what comes from e4m3. */
PF_DEV uint32_t pf_bf16_pair_up(uint32_t pair) { return pf_bf16_pair_times(pair, 0x7b807b80u); }

/* Two floats as sums of PARTS bfloat16 each, three of which are all of a float's bits; part p of both is a pair. The
 * parts after an infinite one (whose difference is NaN) are any finite values: it says alone what a product is. */
template <int PARTS> PF_DEV void pf_cut_pair(float low, float high, uint32_t (&part)[PARTS]) {
PF_UNROLL
    for (int p = 0; p < PARTS; ++p) {
        const uint32_t pair = part[p] = pf_to_bf16_pair(low, high);
        low -= __uint_as_float(pair << 16);
        high -= __uint_as_float(pair & 0xffff0000u);
        if (p == 0) {
            low = fminf(low, 0x1p119f); /* what remains of a finite one is no more */
            high = fminf(high, 0x1p119f);
        }
    }
}

/* 8 e4m3 codes as pairs of codes 0 and 2, 1 and 3, 4 and 6, 5 and 7. A NaN among them makes the first one NaN, whichever
 * it is (it becomes some finite value): that is enough for a sum of products. */
PF_DEV uint4 pf_bf16_of_e4m3(uint32_t a, uint32_t b) {
    const uint32_t nan = (((a & 0x7f7f7f7fu) + 0x01010101u) | ((b & 0x7f7f7f7fu) + 0x01010101u)) & 0x80808080u;
    uint4 out;
    out.x = pf_bf16_pair_up((a << 4 & 0x07f007f0u) | (a << 8 & 0x80008000u));
    out.y = pf_bf16_pair_up((a >> 4 & 0x07f007f0u) | (a & 0x80008000u));
    out.z = pf_bf16_pair_up((b << 4 & 0x07f007f0u) | (b << 8 & 0x80008000u));
    out.w = pf_bf16_pair_up((b >> 4 & 0x07f007f0u) | (b & 0x80008000u));
    if (nan != 0) out.x |= 0x7fffu;
    return out;
}

/* ---- Weights ---- */

PF_DEV const uint8_t *pf_row_of(const pf_weight &w, int64_t matrix, int64_t row) {
    return w.data + (matrix * w.rows + row) * w.row_bytes;
}

/* PF_FP8: the scale of one column of a row. */
PF_DEV float pf_fp8_scale(const pf_weight &w, int64_t matrix, int64_t row, int64_t col) {
    const int64_t i = (matrix * w.scale_rows + (w.row0 + row) / PF_FP8_BLOCK) * w.scale_cols + col / PF_FP8_BLOCK;
    return w.scale_f32 ? __uint_as_float(pf_u32_at(w.scale + 4 * i)) : pf_of_e8m0(w.scale[i]);
}

/* One value, exactly. */
PF_DEV float pf_weight_value(const pf_weight &w, int64_t matrix, int64_t row, int64_t col) {
    const uint8_t *at = pf_row_of(w, matrix, row);
    const int j = (int)(col % PF_BLOCK);
    switch (w.type) {
    case PF_F32: return __uint_as_float(pf_u32_at(at + 4 * col));
    case PF_F16: return pf_of_f16(pf_u16_at(at + 2 * col));
    case PF_BF16: return pf_of_bf16(pf_u16_at(at + 2 * col));
    case PF_Q8_0:
        at += col / PF_BLOCK * PF_Q8_0_BYTES;
        return pf_of_f16(pf_u16_at(at)) * (float)(int8_t)at[2 + j];
    case PF_MXFP4:
        at += col / PF_BLOCK * PF_MXFP4_BYTES;
        return pf_of_e8m0(at[0]) * pf_of_e2m1(j < 16 ? at[1 + j] & 15u : (uint32_t)at[1 + j - 16] >> 4);
    case PF_FP8: return pf_fp8_scale(w, matrix, row, col) * pf_of_e4m3(at[col]);
    default: return __uint_as_float(0x7fc00000u); /* not here: refused when the model was placed */
    }
}

/* ---- Cache rows ---- */

PF_DEV uint8_t *pf_slot_of(const pf_rows &rows, int64_t index) {
    return rows.data + index % rows.capacity * rows.row_bytes;
}

PF_DEV float pf_row_value(const pf_rows &rows, const uint8_t *row, int i) {
    const int width = rows.width, plain = width - rows.rope;
    switch (rows.format) {
    case PF_ROW_F32: return __uint_as_float(pf_u32_at(row + 4 * i));
    case PF_ROW_F16: return pf_of_f16(pf_u16_at(row + 2 * i));
    case PF_ROW_KV_FP8:
        if (i < plain) return pf_of_e4m3(row[i]) * pf_of_e8m0(row[plain + i / PF_KV_GROUP]);
        return pf_of_bf16(pf_u16_at(row + plain + (plain + PF_KV_GROUP - 1) / PF_KV_GROUP + 2 * (i - plain)));
    case PF_ROW_IDX_FP4: {
        const uint32_t pair = row[i / 2];
        return pf_of_e2m1(i & 1 ? pair >> 4 : pair & 15u) * pf_of_e8m0(row[width / 2 + i / PF_IDX_GROUP]);
    }
    }
    return __uint_as_float(0x7fc00000u);
}

#endif
