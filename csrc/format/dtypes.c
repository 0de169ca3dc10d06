#include "format/dtypes.h"

#include "base/arith.h"

#include <stddef.h>

static const pf_dtype_info pf_dtypes[] = {
    {PF_F32, "F32", 1, 4},   {PF_F16, "F16", 1, 2},      {PF_BF16, "BF16", 1, 2},
    {PF_Q8_0, "Q8_0", 32, 34}, {PF_MXFP4, "MXFP4", 32, 17}, {PF_I8, "I8", 1, 1},
    {PF_I32, "I32", 1, 4},   {PF_I64, "I64", 1, 8},      {PF_FP8, "FP8", 1, 1},
};

const pf_dtype_info *pf_dtype_lookup(uint32_t type) {
    for (size_t i = 0; i < sizeof pf_dtypes / sizeof pf_dtypes[0]; i++) {
        if ((uint32_t)pf_dtypes[i].type == type) return &pf_dtypes[i];
    }
    return NULL;
}

const char *pf_dtype_name(uint32_t type) {
    const pf_dtype_info *info = pf_dtype_lookup(type);
    return info ? info->name : "unknown";
}

bool pf_dtype_row_bytes(pf_dtype type, uint64_t n, uint64_t *out) {
    const pf_dtype_info *info = pf_dtype_lookup((uint32_t)type);
    if (!info || n % info->block_size != 0) return false;
    return pf_mul_u64(n / info->block_size, info->block_bytes, out);
}
