/* The one table of tensor element types: number, name, values a block, bytes a block, and what this build does with them.
 *
 * A row here is all that names, sizes, error messages, the GGUF reader, the GPU's code and Python's converter know of a
 * type; docs/kernels.md ("Where a new weight type goes") says what else it takes to compute with one. Numbers, names and
 * blocks are ggml's as they stand in GGUF files, but for FP8.
 *
 * X(name, number, values, bytes, uses), uses of PF_TYPE_* (pyflash.h). C and C++. */
#ifndef PF_FORMAT_TYPES_H
#define PF_FORMAT_TYPES_H

#include "format/foreign_types.h"

/* Matrices of these are computed with: every kernel set has an entry for each (backend/cpu/kernels.h), and a device says
 * which it has. FP8 is no type of a file: an I8 tensor of a native file that holds e4m3 bytes, with a scale per 128 x 128
 * block beside it. */
#define PF_WEIGHT_TYPES(X)                                                \
    X(F32, 0, 1, 4, PF_TYPE_WRITTEN)                                      \
    X(F16, 1, 1, 2, 0)                                                    \
    X(BF16, 30, 1, 2, PF_TYPE_WRITTEN)                                    \
    X(Q8_0, 8, 32, 34, PF_TYPE_INTEGER | PF_TYPE_WRITTEN)                 \
    X(MXFP4, 39, 32, 17, PF_TYPE_INTEGER | PF_TYPE_WRITTEN)               \
    X(FP8, 1000, 1, 1, PF_TYPE_OWN)                                       \
    X(Q4_0, 2, 32, 18, 0)                                                 \
    X(Q4_1, 3, 32, 20, 0)                                                 \
    X(Q5_0, 6, 32, 22, 0)                                                 \
    X(Q5_1, 7, 32, 24, 0)                                                 \
    X(Q2_K, 10, 256, 84, PF_TYPE_INTEGER)                                 \
    X(Q3_K, 11, 256, 110, PF_TYPE_INTEGER)                                \
    X(Q4_K, 12, 256, 144, PF_TYPE_INTEGER)                                \
    X(Q5_K, 13, 256, 176, PF_TYPE_INTEGER)                                \
    X(Q6_K, 14, 256, 210, PF_TYPE_INTEGER)                                \
    X(IQ2_XXS, 16, 256, 66, PF_TYPE_INTEGER)                              \
    X(IQ2_XS, 17, 256, 74, PF_TYPE_INTEGER)                               \
    X(IQ3_XXS, 18, 256, 98, PF_TYPE_INTEGER)                              \
    X(IQ1_S, 19, 256, 50, PF_TYPE_INTEGER)                                \
    X(IQ4_NL, 20, 32, 18, 0)                                              \
    X(IQ3_S, 21, 256, 110, PF_TYPE_INTEGER)                               \
    X(IQ2_S, 22, 256, 82, PF_TYPE_INTEGER)                                \
    X(IQ4_XS, 23, 256, 136, PF_TYPE_INTEGER)                              \
    X(IQ1_M, 29, 256, 56, PF_TYPE_INTEGER)                                \
    X(TQ1_0, 34, 256, 54, 0)                                              \
    X(TQ2_0, 35, 256, 66, 0)                                              \
    X(NVFP4, 40, 64, 36, 0)                                               \
    X(Q1_0, 41, 128, 18, 0)                                               \
    X(Q2_0, 42, 64, 18, 0)

/* Known by name and size only. Of these, norms, tables and native bytes have some (arch/weights.c). */
#define PF_OTHER_TYPES(X)                                                 \
    X(Q8_1, 9, 32, 40, 0)                                                 \
    X(Q8_K, 15, 256, 292, 0)                                              \
    X(I8, 24, 1, 1, PF_TYPE_WRITTEN)                                      \
    X(I16, 25, 1, 2, 0)                                                   \
    X(I32, 26, 1, 4, PF_TYPE_WRITTEN)                                     \
    X(I64, 27, 1, 8, PF_TYPE_WRITTEN)                                     \
    X(F64, 28, 1, 8, 0)

/* What ggml had and has removed: named in messages, and read by nobody. */
#define PF_REMOVED_TYPES(X)                                               \
    X(Q4_2, 4, 0, 0, PF_TYPE_REMOVED)                                     \
    X(Q4_3, 5, 0, 0, PF_TYPE_REMOVED)                                     \
    X(Q4_0_4_4, 31, 0, 0, PF_TYPE_REMOVED)                                \
    X(Q4_0_4_8, 32, 0, 0, PF_TYPE_REMOVED)                                \
    X(Q4_0_8_8, 33, 0, 0, PF_TYPE_REMOVED)                                \
    X(IQ4_NL_4_4, 36, 0, 0, PF_TYPE_REMOVED)                              \
    X(IQ4_NL_4_8, 37, 0, 0, PF_TYPE_REMOVED)                              \
    X(IQ4_NL_8_8, 38, 0, 0, PF_TYPE_REMOVED)

#define PF_TYPES(X) PF_WEIGHT_TYPES(X) PF_OTHER_TYPES(X) PF_REMOVED_TYPES(X) PF_FOREIGN_TYPES(X)

#endif
