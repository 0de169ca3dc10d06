/* Tensor element types by number, from the one table of them (format/types.h). C and C++. */
#ifndef PF_FORMAT_DTYPES_H
#define PF_FORMAT_DTYPES_H

#include "format/types.h"

#include <stdbool.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

/* PF_Q8_0 and so on: the type's number. */
#define PF_TYPE_NUMBER(name, number, values, bytes, uses) PF_##name = number,
typedef enum pf_dtype { PF_TYPES(PF_TYPE_NUMBER) } pf_dtype;
#undef PF_TYPE_NUMBER

/* PF_Q8_0_VALUES and PF_Q8_0_BYTES, of a block. */
#define PF_TYPE_SIZES(name, number, values, bytes, uses) PF_##name##_VALUES = values, PF_##name##_BYTES = bytes,
enum { PF_TYPES(PF_TYPE_SIZES) };
#undef PF_TYPE_SIZES

/* PF_W_Q8_0 and so on: the types that matrices are computed with, counted from 0. */
#define PF_TYPE_KIND(name, number, values, bytes, uses) PF_W_##name,
enum { PF_WEIGHT_TYPES(PF_TYPE_KIND) PF_W_COUNT };
#undef PF_TYPE_KIND

#define PF_ALL_WEIGHT_KINDS ((UINT64_C(1) << PF_W_COUNT) - 1)

/* -1 for a type that no matrix is computed with. */
static inline int pf_weight_kind(pf_dtype type) {
    switch ((int)type) {
#define PF_TYPE_CASE(name, number, values, bytes, uses) case PF_##name: return PF_W_##name;
        PF_WEIGHT_TYPES(PF_TYPE_CASE)
#undef PF_TYPE_CASE
    default: return -1;
    }
}

typedef struct pf_dtype_info {
    pf_dtype type;
    const char *name;     /* "MXFP4" */
    uint32_t block_size;  /* values a block; 0: a removed type, or another program's own */
    uint32_t block_bytes; /* bytes a block */
    uint32_t uses;        /* PF_TYPE_* */
} pf_dtype_info;

#define PF_FP8_BLOCK 128 /* rows and columns that share one FP8 scale */

/* By place in the table, removed ones too; NULL past the end. */
const pf_dtype_info *pf_dtype_at(int32_t index);
/* NULL for a number whose blocks are not in the table. */
const pf_dtype_info *pf_dtype_lookup(uint32_t type);
/* The same for a number of a file: NULL also for this project's own marks. */
const pf_dtype_info *pf_dtype_of_file(uint32_t type);

#define PF_DTYPE_NAME_BYTES 48
/* A file's type for messages: its name, "ik_llama.cpp's IQ2_KS (145)", or "77 (unknown)". Returns `out`. */
const char *pf_dtype_name(uint32_t type, char out[PF_DTYPE_NAME_BYTES]);
/* What to do about a type whose blocks are not in the table, as a message ends. */
const char *pf_dtype_way_out(uint32_t type);

/* Bytes of a row of n values; false when n is no multiple of the block or on overflow. */
bool pf_dtype_row_bytes(pf_dtype type, uint64_t n, uint64_t *out);

#if defined(__cplusplus)
}
#endif

#endif
