/* Activations quantised to integers, for the integer kernels: with 16 bits each (q16, for `fast`) or 8 (q8, for `int8`),
 * one scale a block of 32.
 *
 * v = x / d rounded to nearest even, with d = max|x| / 32384 for q16, max|x| / 127 for q8. Processors multiply bytes
 * best, so the 16-bit integers are two planes of them: v = 254 hi + lo, |hi|, |lo| <= 127. q8 has one plane, v itself.
 * Eight bits flip so many near-ties of routing and row selection that most of the distance to float32 activations comes
 * from there (docs/accuracy.md).
 *
 * Where bytes multiply poorly (AVX2), q16 is words instead (pf_cpu_kernels.q16_words): in the place of four bytes of the
 * first plane columns 0 and 2, in that of the second columns 1 and 3, and no sums.
 *
 * A row of n values (a multiple of 32) is filled up with zeros to groups of 512, which are 16 blocks, and holds
 *   every plane's integers, int8: of every group the columns 0 to 3 of its 16 blocks, then their columns 4 to 7, and so
 *           on, so that a 32-bit lane of a vector belongs to one block;
 *   the scale of every block, float;
 *   of every plane two int16 a block: -16 times the sums of its columns j with j % 4 < 2, and of the others. x86
 *           multiplies unsigned with signed bytes; this takes back what adding 16 to every weight has added.
 *
 * All sets quantise to the same integers, and an integer product is the same float on all of them. Weight integers are
 * the bytes of Q8_0, and 2 w for an MXFP4 value w. Of block b, i is the exact sum of its 32 products with v, and
 * s[b % 16] = fma((float)i, d_w d_a, s[b % 16]) with every operation rounded once. The product is
 * (t[0] + t[2]) + (t[1] + t[3]) with t[l] = (s[l] + s[l + 8]) + (s[l + 4] + s[l + 12]), for MXFP4 halved. An e8m0 scale
 * of 2^-127 counts as zero here, and NaN as infinity: d_w has the bits e << 23.
 *
 * Types of super-blocks (int_blocks.h) have small integer scales inside, which are exact in d_w or in i:
 *   a scale for every 32 columns: d_w is the super-block's scale times it;
 *   for every 16: i = c[0] i[0] + c[1] i[1], of the halves' sums and scales, and d_w is the super-block's scale;
 *   for every 16, where that might pass 32 bits (Q6_K): one fma after the other, of i[0] with d c[0], and of i[1];
 *   minimums besides: then also fma((float)j, -dmin d_a, s) with j = m[0] S[0] + m[1] S[1], S[h] the sum of a half's v.
 * They are multiplied with q16 only, whose rows end in these sums: of every group the first halves' of its 16 blocks, and
 * then the second halves', int32. */
#ifndef PF_BACKEND_CPU_INT_ACTS_H
#define PF_BACKEND_CPU_INT_ACTS_H

#include <stdint.h>
#include <string.h>

enum {
    PF_INT_BLOCK = 32,
    PF_INT_BLOCKS = 16, /* of a group */
    PF_INT_GROUP = PF_INT_BLOCK * PF_INT_BLOCKS,
    PF_INT_SUMS = 16,
    PF_INT_QUADS = 4 * PF_INT_BLOCKS, /* bytes from four columns of a group's blocks to the next four */
    PF_INT_BIAS = 16,
    PF_INT_BASE = 254,  /* of the planes */
    PF_Q16_PLANES = 2, PF_Q16_MAX = 32384,
    PF_Q8_PLANES = 1, PF_Q8_MAX = 127
};
#define PF_INT_MXFP4_UNIT 0.5f

static inline int64_t pf_int_padded(int64_t n) { return (n + PF_INT_GROUP - 1) / PF_INT_GROUP * PF_INT_GROUP; }
/* Bytes of a row's scales, and of one plane's sums. */
static inline int64_t pf_int_scale_bytes(int64_t n) { return pf_int_padded(n) / PF_INT_BLOCK * 4; }
static inline int64_t pf_int_row_bytes(int planes, int64_t n) {
    const int64_t halves = planes == PF_Q16_PLANES ? 2 * pf_int_scale_bytes(n) : 0;
    return planes * pf_int_padded(n) + (1 + planes) * pf_int_scale_bytes(n) + halves;
}
static inline const float *pf_int_scales(const void *row, int planes, int64_t n) {
    return (const float *)(const void *)((const uint8_t *)row + planes * pf_int_padded(n));
}
/* Two int16 a block. */
static inline const uint8_t *pf_int_sums(const void *row, int planes, int64_t n, int plane) {
    return (const uint8_t *)row + planes * pf_int_padded(n) + (1 + plane) * pf_int_scale_bytes(n);
}

/* Of a row of q16: bytes from its beginning to its halves' sums; and where those of a block stand in them, the second half's
 * PF_INT_BLOCKS further. */
static inline int64_t pf_int_halves_at(int64_t n) {
    return PF_Q16_PLANES * pf_int_padded(n) + (1 + PF_Q16_PLANES) * pf_int_scale_bytes(n);
}
static inline int64_t pf_int_half_place(int64_t block) {
    return block / PF_INT_BLOCKS * (2 * PF_INT_BLOCKS) + block % PF_INT_BLOCKS;
}
static inline void pf_int_put_halves(void *row, int64_t n, int64_t block, int32_t first, int32_t second) {
    uint8_t *at = (uint8_t *)row + pf_int_halves_at(n) + 4 * pf_int_half_place(block);
    memcpy(at, &first, sizeof first);
    memcpy(at + 4 * PF_INT_BLOCKS, &second, sizeof second);
}

/* Where the first four columns of a block lie in a plane. */
static inline int64_t pf_int_place(int64_t block) {
    return block / PF_INT_BLOCKS * PF_INT_GROUP + block % PF_INT_BLOCKS * 4;
}

/* Value i of a row. For what need not be quick. */
static inline int32_t pf_int_get(const void *row, int planes, int64_t n, int64_t i) {
    const int64_t j = i % PF_INT_BLOCK;
    const int8_t *at = (const int8_t *)row + pf_int_place(i / PF_INT_BLOCK) + j / 4 * PF_INT_QUADS + j % 4;
    return planes == 1 ? at[0] : PF_INT_BASE * at[0] + at[pf_int_padded(n)];
}

/* The same of a row of words. */
static inline int32_t pf_int_get_word(const void *row, int64_t n, int64_t i) {
    const int64_t j = i % PF_INT_BLOCK, place = pf_int_place(i / PF_INT_BLOCK) + j / 4 * PF_INT_QUADS + j % 4 / 2 * 2;
    int16_t v;
    memcpy(&v, (const uint8_t *)row + place + j % 2 * pf_int_padded(n), sizeof v);
    return v;
}

/* A block of a plane: its integers in order, and both sums times -PF_INT_BIAS. */
static inline void pf_int_put(void *row, int planes, int64_t n, int64_t block, int plane, const int8_t *v,
                              const int16_t *sums) {
    uint8_t *at = (uint8_t *)row + plane * pf_int_padded(n) + pf_int_place(block);
    for (int quad = 0; quad < PF_INT_BLOCK / 4; ++quad) memcpy(at + quad * PF_INT_QUADS, v + 4 * quad, 4);
    uint8_t *to = (uint8_t *)row + (pf_int_sums(row, planes, n, plane) - (const uint8_t *)row) + 4 * block;
    memcpy(to, sums, 2 * sizeof *sums);
}
static inline void pf_int_put_scale(void *row, int planes, int64_t n, int64_t block, float d) {
    memcpy((uint8_t *)row + planes * pf_int_padded(n) + 4 * block, &d, sizeof d);
}

/* Writes the zeros behind a row's n values. */
static inline void pf_int_pad(void *row, int planes, int64_t n) {
    static const int8_t zeros[PF_INT_BLOCK] = {0};
    static const int16_t no_sums[2] = {0};
    for (int64_t block = n / PF_INT_BLOCK; block < pf_int_padded(n) / PF_INT_BLOCK; ++block) {
        for (int plane = 0; plane < planes; ++plane) pf_int_put(row, planes, n, block, plane, zeros, no_sums);
        pf_int_put_scale(row, planes, n, block, 0.0f);
        if (planes == PF_Q16_PLANES) pf_int_put_halves(row, n, block, 0, 0);
    }
}

#endif
