/* The one table of tensor element types: ggml's ids as they stand in GGUF files, and this project's native FP8. */
#ifndef PF_FORMAT_DTYPES_H
#define PF_FORMAT_DTYPES_H

#include <stdbool.h>
#include <stdint.h>

typedef enum pf_dtype {
    PF_F32 = 0,
    PF_F16 = 1,
    PF_Q8_0 = 8,
    PF_I8 = 24,
    PF_I32 = 26,
    PF_I64 = 27,
    PF_BF16 = 30,
    PF_MXFP4 = 39,
    /* Not a ggml id: an I8 tensor of a native file that holds e4m3 bytes with a scale per 128 x 128 block beside it. */
    PF_FP8 = 1000,
} pf_dtype;

typedef struct pf_dtype_info {
    pf_dtype type;
    const char *name;     /* "MXFP4" */
    uint32_t block_size;  /* elements a block */
    uint32_t block_bytes; /* bytes a block */
} pf_dtype_info;

#define PF_FP8_BLOCK 128 /* rows and columns that share one FP8 scale */

/* NULL for a type that is not in the table. */
const pf_dtype_info *pf_dtype_lookup(uint32_t type);
/* Like pf_dtype_lookup()->name, for messages; "type 12" kinds of unknown ids give "unknown". */
const char *pf_dtype_name(uint32_t type);
/* Bytes of a row of n elements; false when n is no multiple of the block or on overflow. */
bool pf_dtype_row_bytes(pf_dtype type, uint64_t n, uint64_t *out);

#endif
