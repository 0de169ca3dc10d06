/* The small float formats, one value at a time: f16, bf16, e4m3 (fn), e2m1 and e8m0, as in the OCP MX and FP8 papers.
 * Rounding is to nearest even throughout. */
#ifndef PF_FORMAT_FLOATS_H
#define PF_FORMAT_FLOATS_H

#include <stdint.h>
#include <string.h>

static inline float pf_f32_from_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t pf_f32_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline uint16_t pf_load_u16(const uint8_t *p) {
    uint16_t value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline float pf_load_f32(const uint8_t *p) {
    float value;
    memcpy(&value, p, sizeof value);
    return value;
}

static inline float pf_f16_to_f32(uint16_t half) {
    const uint32_t sign = (uint32_t)(half & 0x8000u) << 16;
    const uint32_t exponent = half >> 10 & 31u;
    const uint32_t mantissa = half & 0x3ffu;
    if (exponent == 0) {
        const float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    return pf_f32_from_bits(sign | (exponent == 31 ? 0x7f800000u : (exponent + 112u) << 23) | mantissa << 13);
}
static inline float pf_load_f16(const uint8_t *p) { return pf_f16_to_f32(pf_load_u16(p)); }

static inline uint16_t pf_f32_to_f16(float value) {
    const uint32_t bits = pf_f32_bits(value), magnitude = bits & 0x7fffffffu;
    const uint16_t sign = (uint16_t)(bits >> 16 & 0x8000u);
    if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
    if (magnitude >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to infinity */
    /* Below 2^-14 adding 0.5 leaves the denormal's units of 2^-24, rounded, in the low mantissa bits. */
    if (magnitude < 0x38800000u) {
        return (uint16_t)(sign | (pf_f32_bits(pf_f32_from_bits(magnitude) + 0.5f) - 0x3f000000u));
    }
    return (uint16_t)(sign | ((magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13));
}

static inline float pf_bf16_to_f32(uint16_t bits) { return pf_f32_from_bits((uint32_t)bits << 16); }

static inline uint16_t pf_f32_to_bf16(float value) {
    const uint32_t bits = pf_f32_bits(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (uint16_t)(bits >> 16 | 0x40u); /* stays a NaN */
    return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

/* Sign, 4 exponent bits of bias 7, 3 mantissa bits; no infinities, 0x7f and 0xff are NaN. */
static inline float pf_e4m3_to_f32(uint8_t code) {
    const uint32_t sign = (uint32_t)(code & 0x80u) << 24;
    const uint32_t magnitude = code & 0x7fu;
    if (magnitude == 0x7f) return pf_f32_from_bits(sign | 0x7fc00000u);
    if (magnitude < 8) {
        const float value = (float)magnitude * 0x1p-9f;
        return sign ? -value : value;
    }
    return pf_f32_from_bits(sign | ((magnitude << 20) + (120u << 23)));
}

/* Saturates at 448; NaN stays NaN. */
static inline uint8_t pf_f32_to_e4m3(float value) {
    const uint32_t bits = pf_f32_bits(value);
    const uint32_t sign = bits >> 24 & 0x80u;
    uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return (uint8_t)(sign | 0x7fu);
    if (magnitude > 0x43e00000u) magnitude = 0x43e00000u;
    if (magnitude < 0x3c800000u) {
        /* Below 2^-6: adding 2^14 leaves the value in units of 2^-9, rounded, in the low mantissa bits. */
        return (uint8_t)(sign | (pf_f32_bits(pf_f32_from_bits(magnitude) + 0x1p14f) - 0x46800000u));
    }
    magnitude += 0x7ffffu + (magnitude >> 20 & 1u);
    return (uint8_t)(sign | ((magnitude - (120u << 23)) >> 20));
}

/* Twice the magnitudes of e2m1: 0 .5 1 1.5 2 3 4 6, so that they are integers. */
static const int8_t pf_e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static inline float pf_e2m1_to_f32(uint32_t code) {
    const float magnitude = 0.5f * (float)pf_e2m1_doubled[code & 7u];
    return code & 8u ? -magnitude : magnitude;
}

/* Saturates at 6; NaN becomes 6. */
static inline uint32_t pf_f32_to_e2m1(float value) {
    const uint32_t bits = pf_f32_bits(value);
    const uint32_t sign = bits >> 28 & 8u;
    const float v = pf_f32_from_bits(bits & 0x7fffffffu);
    /* Halfway cases go to the even code. */
    if (v <= 0.25f) return sign;
    if (v < 0.75f) return sign | 1u;
    if (v <= 1.25f) return sign | 2u;
    if (v < 1.75f) return sign | 3u;
    if (v <= 2.5f) return sign | 4u;
    if (v < 3.5f) return sign | 5u;
    return v <= 5.0f ? sign | 6u : sign | 7u;
}

/* 2^(e - 127); byte 0 is the denormal 2^-127, byte 255 is NaN. */
static inline float pf_e8m0_to_f32(uint8_t e) {
    if (e == 0) return pf_f32_from_bits(0x00400000u);
    return pf_f32_from_bits(e == 255 ? 0x7fc00000u : (uint32_t)e << 23);
}

#endif
