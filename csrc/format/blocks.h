/* Decoders of ggml's block formats: n_blocks blocks, one after the other, to floats. One function a type; each block
 * holds the number of values that pf_dtype_lookup() says.
 *
 * The order of operations is that of ggml's own decoders, so that the floats are the same to the bit wherever scales are
 * finite. Decoders touch nothing but their arguments, and any bytes are valid input. Names and layouts are ggml's; a
 * layout stands where it is read. */
#ifndef PF_FORMAT_BLOCKS_H
#define PF_FORMAT_BLOCKS_H

#include <stdint.h>

typedef void (*pf_decode_fn)(const uint8_t *blocks, int64_t n_blocks, float *out);

/* Every type of blocks that there is a decoder for, and how functions are called after it. X(type, lower case) */
#define PF_BLOCK_TYPES(X)                                                                                            \
    /* blocks_small.c: blocks of 32 to 256 with one scale, or one and a minimum. MXFP4's scale byte 255: NaN (OCP MX) */ \
    X(Q4_0, q4_0) X(Q4_1, q4_1) X(Q5_0, q5_0) X(Q5_1, q5_1) X(Q8_0, q8_0) X(Q1_0, q1_0) X(Q2_0, q2_0)                \
    X(TQ1_0, tq1_0) X(TQ2_0, tq2_0) X(MXFP4, mxfp4) X(NVFP4, nvfp4) X(IQ4_NL, iq4_nl) X(IQ4_XS, iq4_xs)              \
    /* blocks_k.c: super-blocks of 256 with a scale for every 16 or 32 values */                                     \
    X(Q2_K, q2_k) X(Q3_K, q3_k) X(Q4_K, q4_k) X(Q5_K, q5_k) X(Q6_K, q6_k)                                            \
    /* blocks_iq.c: super-blocks of 256 whose values are points of a grid */                                         \
    X(IQ1_S, iq1_s) X(IQ1_M, iq1_m) X(IQ2_XXS, iq2_xxs) X(IQ2_XS, iq2_xs) X(IQ2_S, iq2_s) X(IQ3_XXS, iq3_xxs)        \
    X(IQ3_S, iq3_s)

/* pf_decode_q4_0 and so on */
#define PF_BLOCK_DECODER(type, lower) void pf_decode_##lower(const uint8_t *blocks, int64_t n_blocks, float *out);
PF_BLOCK_TYPES(PF_BLOCK_DECODER)
#undef PF_BLOCK_DECODER

/* The decoder of a type by its number (format/dtypes.h); NULL for types without blocks, and unknown ones. */
pf_decode_fn pf_block_decoder(uint32_t type);

#endif
