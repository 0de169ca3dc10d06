/* Sizes of the block formats. */
#ifndef PF_BACKEND_CPU_BLOCKS_H
#define PF_BACKEND_CPU_BLOCKS_H

enum {
    BLOCK = 32,       /* values of a Q8_0 or MXFP4 block, and of a block of quantised activations */
    Q8_0_BYTES = 34,  /* half-float scale, 32 int8 */
    MXFP4_BYTES = 17, /* e8m0 scale, 16 bytes of e2m1 pairs: value j in the low, j + 16 in the high nibble */
    IDX_GROUP = 32,   /* values of an index row that share a scale; value 2j in the low, 2j + 1 in the high nibble */
    KV_GROUP = 64     /* values of an FP8 cache row that share a scale */
};

#endif
