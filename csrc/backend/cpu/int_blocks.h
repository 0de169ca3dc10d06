/* Blocks of 32 columns of the types of super-blocks as integers and scales, for what need not be quick: the reference of
 * the products that int_acts.h defines. */
#ifndef PF_BACKEND_CPU_INT_BLOCKS_H
#define PF_BACKEND_CPU_INT_BLOCKS_H

#include <stdint.h>

/* What scales of a super-block's parts are multiplied into. */
typedef enum pf_int_scaling {
    PF_SCALES_OF_BLOCKS, /* into the float scale, one for 32 columns */
    PF_SCALES_IN_SUMS,   /* into the integer sums, one for 16 columns */
    PF_SCALES_OF_HALVES  /* into float scales, one for 16 columns */
} pf_int_scaling;

/* Every such type, how functions are called after it, its scaling, and whether it has minimums. */
#define PF_SUPER_TYPES(X)                        \
    X(Q2_K, q2_k, PF_SCALES_IN_SUMS, 1)          \
    X(Q3_K, q3_k, PF_SCALES_IN_SUMS, 0)          \
    X(Q4_K, q4_k, PF_SCALES_OF_BLOCKS, 1)        \
    X(Q5_K, q5_k, PF_SCALES_OF_BLOCKS, 1)        \
    X(Q6_K, q6_k, PF_SCALES_OF_HALVES, 0)        \
    X(IQ1_S, iq1_s, PF_SCALES_OF_BLOCKS, 0)      \
    X(IQ1_M, iq1_m, PF_SCALES_IN_SUMS, 0)        \
    X(IQ2_XXS, iq2_xxs, PF_SCALES_OF_BLOCKS, 0)  \
    X(IQ2_XS, iq2_xs, PF_SCALES_IN_SUMS, 0)      \
    X(IQ2_S, iq2_s, PF_SCALES_IN_SUMS, 0)        \
    X(IQ3_XXS, iq3_xxs, PF_SCALES_OF_BLOCKS, 0)  \
    X(IQ3_S, iq3_s, PF_SCALES_OF_BLOCKS, 0)      \
    X(IQ4_XS, iq4_xs, PF_SCALES_OF_BLOCKS, 0)

enum { PF_SUPER_BLOCKS = 8 }; /* blocks of 32 in a super-block */

/* A weight is w d c - dmin m with the d, c and m of its half. What the type does not have is 1 among the scales, 0 among the
 * minimums; d of both halves is the same but with PF_SCALES_OF_HALVES. */
typedef struct pf_int_block {
    int32_t w[32];
    float d[2], dmin;
    int32_t c[2], m[2];
} pf_int_block;

/* Block b of a row. */
typedef void (*pf_int_block_fn)(const uint8_t *row, int64_t b, pf_int_block *out);

#define PF_INT_BLOCK_FN(type, lower, scaling, has_minimums) \
    void pf_int_block_##lower(const uint8_t *row, int64_t b, pf_int_block *out);
PF_SUPER_TYPES(PF_INT_BLOCK_FN)
#undef PF_INT_BLOCK_FN

#endif
