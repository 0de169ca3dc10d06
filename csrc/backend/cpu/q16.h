/* Activations quantised for the integer kernels: 16 bits each, one scale a block of 32.
 *
 * d = max|x| / 32384, v = x/d rounded to nearest even. Eight bits would flip so many near-ties of routing and row
 * selection that most of the distance to float32 activations would come from there.
 *
 * A row of n values (a multiple of 32) is filled up with zeros to groups of 128, and holds the integers, then the scale
 * of every block four times, as floats. The integers lie as the processor's instructions take them:
 *   words   int16; of every group the even columns of the first halves (16 columns) of its four blocks, the odd ones,
 *           then the same of the second halves;
 *   planes  v = 254 hi + lo, |hi|, |lo| <= 127: all hi, then all lo, int8 each. ARM has no instruction that multiplies
 *           16-bit integers as fast as bytes.
 *
 * All sets quantise to the same integers, and an integer product is the same float on all of them. Weight integers are
 * the bytes of Q8_0, and 512 w for an MXFP4 value w. For column group l = j % 16 / 4 of block b, i is the exact sum of
 * four columns of the first half and four of the second, and s[b % 4][l] = fma((float)i, d_w d_a, s[b % 4][l]) with
 * every operation rounded once. The product is (t[0] + t[2]) + (t[1] + t[3]) with t[l] = (s[0][l] + s[2][l]) + (s[1][l]
 * + s[3][l]), for MXFP4 times 2^-9. An e8m0 scale of 2^-127 counts as zero here, and NaN as infinity: d_w has the bits
 * e << 23. */
#ifndef PF_BACKEND_CPU_Q16_H
#define PF_BACKEND_CPU_Q16_H

#include <stdint.h>
#include <string.h>

enum { PF_Q16_BASE = 254, PF_Q16_MAX = 32384, PF_Q16_GROUP = 128, PF_Q16_BLOCK = 32, PF_Q16_SUMS = 16 };
#define PF_Q16_MXFP4_UNIT 0x1p-9f

#if defined(__aarch64__) || defined(_M_ARM64)
#  define PF_Q16_PLANES
#endif

static inline int64_t pf_q16_padded(int64_t n) { return (n + PF_Q16_GROUP - 1) / PF_Q16_GROUP * PF_Q16_GROUP; }
static inline int64_t pf_q16_bytes(int64_t n) { return pf_q16_padded(n) / 2 * 5; }
static inline const float *pf_q16_scales(const void *row, int64_t n) {
    return (const float *)(const void *)((const uint8_t *)row + 2 * pf_q16_padded(n));
}
static inline void pf_q16_put_scale(void *row, int64_t n, int64_t block, float d) {
    float *at = (float *)(void *)((uint8_t *)row + 2 * pf_q16_padded(n)) + 4 * block;
    for (int i = 0; i < 4; ++i) at[i] = d;
}

/* Where the words of a block's even first columns begin; the three other kinds follow PF_Q16_GROUP / 4 words apart. */
static inline int64_t pf_q16_words_of(int64_t block) { return block / 4 * PF_Q16_GROUP + block % 4 * 8; }

/* Value i of a row. For what need not be quick. */
static inline int32_t pf_q16_get(const void *row, int64_t n, int64_t i) {
#if defined(PF_Q16_PLANES)
    const int8_t *hi = row;
    return PF_Q16_BASE * hi[i] + hi[i + pf_q16_padded(n)];
#else
    const int64_t j = i % PF_Q16_BLOCK, kind = j / 16 * 2 + j % 2;
    int16_t v;
    (void)n;
    memcpy(&v, (const uint8_t *)row + 2 * (pf_q16_words_of(i / PF_Q16_BLOCK) + kind * 32 + j % 16 / 2), sizeof v);
    return v;
#endif
}

static inline void pf_q16_put(void *row, int64_t n, int64_t i, int32_t v, int32_t hi) {
#if defined(PF_Q16_PLANES)
    ((int8_t *)row)[i] = (int8_t)hi;
    ((int8_t *)row)[i + pf_q16_padded(n)] = (int8_t)(v - PF_Q16_BASE * hi);
#else
    const int64_t j = i % PF_Q16_BLOCK, kind = j / 16 * 2 + j % 2;
    const int16_t word = (int16_t)v;
    (void)n;
    (void)hi;
    memcpy((uint8_t *)row + 2 * (pf_q16_words_of(i / PF_Q16_BLOCK) + kind * 32 + j % 16 / 2), &word, sizeof word);
#endif
}

/* Writes the zeros behind a row's n values. */
static inline void pf_q16_pad(void *row, int64_t n) {
    for (int64_t i = n; i < pf_q16_padded(n); ++i) {
        pf_q16_put(row, n, i, 0, 0);
        if (i % PF_Q16_BLOCK == 0) pf_q16_put_scale(row, n, i / PF_Q16_BLOCK, 0.0f);
    }
}

#endif
