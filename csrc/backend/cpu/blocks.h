/* Sizes of blocks, by short names: those of weights are the table's (format/types.h). */
#ifndef PF_BACKEND_CPU_BLOCKS_H
#define PF_BACKEND_CPU_BLOCKS_H

#include "backend/cpu/int_acts.h"
#include "format/dtypes.h"

enum {
    BLOCK = PF_INT_BLOCK, /* values of a block of quantised activations; and what vector loops take of any row at once */
    Q8_0_BYTES = PF_Q8_0_BYTES,   /* half-float scale, 32 int8 */
    MXFP4_BYTES = PF_MXFP4_BYTES, /* e8m0 scale, 16 bytes of e2m1 pairs: value j in the low, j + 16 in the high nibble */
    IDX_GROUP = 32,   /* values of an index row that share a scale; value 2j in the low, 2j + 1 in the high nibble */
    KV_GROUP = 64     /* values of an FP8 cache row that share a scale */
};

/* The integer products take a block of these with one of activations. */
_Static_assert((int)PF_Q8_0_VALUES == (int)BLOCK && (int)PF_MXFP4_VALUES == (int)BLOCK,
               "blocks of weights and activations differ");

#endif
