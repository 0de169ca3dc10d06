/* Eight floats at a time, for the searches of the quantisers. Every operation is one rounding a lane, and nothing is
 * summed across lanes, so that all machines find the same. */
#ifndef PF_QUANTIZE_LANES_H
#define PF_QUANTIZE_LANES_H

#include <stdint.h>

enum { PF_LANES = 8 };

#if defined(__AVX2__)

#include <immintrin.h>

typedef __m256 pf_lanes;

static inline pf_lanes lanes_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void lanes_store(float *p, pf_lanes v) { _mm256_storeu_ps(p, v); }
static inline pf_lanes lanes_set1(float x) { return _mm256_set1_ps(x); }
static inline pf_lanes lanes_add(pf_lanes a, pf_lanes b) { return _mm256_add_ps(a, b); }
static inline pf_lanes lanes_sub(pf_lanes a, pf_lanes b) { return _mm256_sub_ps(a, b); }
static inline pf_lanes lanes_mul(pf_lanes a, pf_lanes b) { return _mm256_mul_ps(a, b); }
static inline pf_lanes lanes_min(pf_lanes a, pf_lanes b) { return _mm256_min_ps(a, b); }
static inline pf_lanes lanes_max(pf_lanes a, pf_lanes b) { return _mm256_max_ps(a, b); }
/* Bit l: lane l of both is equal. */
static inline uint32_t lanes_equal(pf_lanes a, pf_lanes b) {
    return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ));
}
static inline float lanes_least(pf_lanes v) {
    __m128 m = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_min_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_min_ss(m, _mm_shuffle_ps(m, m, 1)));
}

#elif defined(__aarch64__) || defined(_M_ARM64)

#include <arm_neon.h>

typedef struct pf_lanes {
    float32x4_t low, high;
} pf_lanes;

static inline pf_lanes lanes_load(const float *p) { return (pf_lanes){vld1q_f32(p), vld1q_f32(p + 4)}; }
static inline void lanes_store(float *p, pf_lanes v) {
    vst1q_f32(p, v.low);
    vst1q_f32(p + 4, v.high);
}
static inline pf_lanes lanes_set1(float x) { return (pf_lanes){vdupq_n_f32(x), vdupq_n_f32(x)}; }
static inline pf_lanes lanes_add(pf_lanes a, pf_lanes b) {
    return (pf_lanes){vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
}
static inline pf_lanes lanes_sub(pf_lanes a, pf_lanes b) {
    return (pf_lanes){vsubq_f32(a.low, b.low), vsubq_f32(a.high, b.high)};
}
static inline pf_lanes lanes_mul(pf_lanes a, pf_lanes b) {
    return (pf_lanes){vmulq_f32(a.low, b.low), vmulq_f32(a.high, b.high)};
}
static inline pf_lanes lanes_min(pf_lanes a, pf_lanes b) {
    return (pf_lanes){vminq_f32(a.low, b.low), vminq_f32(a.high, b.high)};
}
static inline pf_lanes lanes_max(pf_lanes a, pf_lanes b) {
    return (pf_lanes){vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)};
}
static inline uint32_t lanes_equal(pf_lanes a, pf_lanes b) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(vceqq_f32(a.low, b.low), bits)) |
           vaddvq_u32(vandq_u32(vceqq_f32(a.high, b.high), bits)) << 4;
}
static inline float lanes_least(pf_lanes v) { return vminvq_f32(vminq_f32(v.low, v.high)); }

#else

typedef struct pf_lanes {
    float at[PF_LANES];
} pf_lanes;

#define PF_LANEWISE(name, expression)                             \
    static inline pf_lanes name(pf_lanes a, pf_lanes b) {         \
        for (int l = 0; l < PF_LANES; ++l) a.at[l] = expression;  \
        return a;                                                 \
    }
PF_LANEWISE(lanes_add, a.at[l] + b.at[l])
PF_LANEWISE(lanes_sub, a.at[l] - b.at[l])
PF_LANEWISE(lanes_mul, a.at[l] * b.at[l])
PF_LANEWISE(lanes_min, a.at[l] < b.at[l] ? a.at[l] : b.at[l])
PF_LANEWISE(lanes_max, a.at[l] > b.at[l] ? a.at[l] : b.at[l])
#undef PF_LANEWISE

static inline pf_lanes lanes_load(const float *p) {
    pf_lanes v;
    for (int l = 0; l < PF_LANES; ++l) v.at[l] = p[l];
    return v;
}
static inline void lanes_store(float *p, pf_lanes v) {
    for (int l = 0; l < PF_LANES; ++l) p[l] = v.at[l];
}
static inline pf_lanes lanes_set1(float x) {
    pf_lanes v;
    for (int l = 0; l < PF_LANES; ++l) v.at[l] = x;
    return v;
}
static inline uint32_t lanes_equal(pf_lanes a, pf_lanes b) {
    uint32_t bits = 0;
    for (int l = 0; l < PF_LANES; ++l) bits |= (uint32_t)(a.at[l] == b.at[l]) << l;
    return bits;
}
static inline float lanes_least(pf_lanes v) {
    float least = v.at[0];
    for (int l = 1; l < PF_LANES; ++l) least = v.at[l] < least ? v.at[l] : least;
    return least;
}

#endif

/* The number of the lowest bit that is set, 0 for none. */
static inline int lowest_bit(uint32_t bits) {
#if defined(__GNUC__)
    return bits != 0 ? __builtin_ctz(bits) : 0;
#elif defined(_MSC_VER)
    unsigned long at;
    return _BitScanForward(&at, bits) ? (int)at : 0;
#else
    int at = 0;
    for (; bits != 0 && (bits & 1u) == 0; bits >>= 1) ++at;
    return at;
#endif
}

/* The nearest integers, of values below 2^22 in size. */
static inline pf_lanes lanes_round(pf_lanes v) {
    const pf_lanes shift = lanes_set1(0x1.8p23f);
    return lanes_sub(lanes_add(v, shift), shift);
}

#endif
