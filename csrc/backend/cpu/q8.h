/* Activations quantised to 8 bits for the integer kernels, one scale a block of 32: half the bytes of q16.h, and
 * products that take about half the instructions.
 *
 * d = max|x| / 127, v = x/d rounded to nearest even.
 *
 * A row of n values (a multiple of 32) is filled up with zeros to groups of 512, which are 16 blocks, and holds
 *   the integers, int8: of every group the columns 0 to 3 of its 16 blocks, then their columns 4 to 7, and so on, so
 *           that a 32-bit lane of a vector belongs to one block;
 *   the scale of every block, float;
 *   two int16 a block: -16 times the sums of its columns j with j % 4 < 2, and of the others. x86 multiplies unsigned
 *           with signed bytes; this takes back what adding 16 to every weight has added.
 *
 * All sets quantise to the same integers, and an integer product is the same float on all of them. Weight integers are
 * the bytes of Q8_0, and 2 w for an MXFP4 value w. Of block b, i is the exact sum of its 32 products, and
 * s[b % 16] = fma((float)i, d_w d_a, s[b % 16]) with every operation rounded once. The product is
 * (t[0] + t[2]) + (t[1] + t[3]) with t[l] = (s[l] + s[l + 8]) + (s[l + 4] + s[l + 12]), for MXFP4 halved. d_w as in
 * q16.h. */
#ifndef PF_BACKEND_CPU_Q8_H
#define PF_BACKEND_CPU_Q8_H

#include <stdint.h>
#include <string.h>

enum { PF_Q8_MAX = 127, PF_Q8_GROUP = 512, PF_Q8_BLOCK = 32, PF_Q8_BLOCKS = 16, PF_Q8_SUMS = 16, PF_Q8_BIAS = 16 };
#define PF_Q8_MXFP4_UNIT 0.5f

static inline int64_t pf_q8_padded(int64_t n) { return (n + PF_Q8_GROUP - 1) / PF_Q8_GROUP * PF_Q8_GROUP; }
static inline int64_t pf_q8_bytes(int64_t n) { return pf_q8_padded(n) / 4 * 5; }
static inline const float *pf_q8_scales(const void *row, int64_t n) {
    return (const float *)(const void *)((const uint8_t *)row + pf_q8_padded(n));
}

/* Where the first four columns of a block lie; the next ones follow PF_Q8_QUADS bytes apart. */
enum { PF_Q8_QUADS = 4 * PF_Q8_BLOCKS };
static inline int64_t pf_q8_place(int64_t block) {
    return block / PF_Q8_BLOCKS * PF_Q8_GROUP + block % PF_Q8_BLOCKS * 4;
}

/* Value i of a row. For what need not be quick. */
static inline int32_t pf_q8_get(const void *row, int64_t i) {
    const int64_t j = i % PF_Q8_BLOCK;
    return ((const int8_t *)row)[pf_q8_place(i / PF_Q8_BLOCK) + j / 4 * PF_Q8_QUADS + j % 4];
}

/* A whole block: its integers in order, their scale, and both sums times -PF_Q8_BIAS. */
static inline void pf_q8_put(void *row, int64_t n, int64_t block, const int8_t *v, float d, const int16_t *sums) {
    uint8_t *at = (uint8_t *)row + pf_q8_place(block), *scales = (uint8_t *)row + pf_q8_padded(n);
    for (int quad = 0; quad < PF_Q8_BLOCK / 4; ++quad) memcpy(at + quad * PF_Q8_QUADS, v + 4 * quad, 4);
    memcpy(scales + 4 * block, &d, sizeof d);
    memcpy(scales + pf_q8_padded(n) / 8 + 4 * block, sums, 2 * sizeof *sums);
}

/* Writes the zeros behind a row's n values. */
static inline void pf_q8_pad(void *row, int64_t n) {
    static const int8_t zeros[PF_Q8_BLOCK];
    static const int16_t no_sums[2];
    for (int64_t block = n / PF_Q8_BLOCK; block < pf_q8_padded(n) / PF_Q8_BLOCK; ++block) {
        pf_q8_put(row, n, block, zeros, 0.0f, no_sums);
    }
}

#endif
