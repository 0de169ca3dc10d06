#include "format/dtypes.h"

#include "base/arith.h"
#include "base/params.h"
#include "pyflash.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>

#define WEIGHT_ROW(name, number, values, bytes, uses) {PF_##name, #name, values, bytes, (uses) | PF_TYPE_WEIGHT},
#define OTHER_ROW(name, number, values, bytes, uses) {PF_##name, #name, values, bytes, uses},
static const pf_dtype_info table[] = {PF_WEIGHT_TYPES(WEIGHT_ROW) PF_OTHER_TYPES(OTHER_ROW) PF_REMOVED_TYPES(OTHER_ROW)
                                      PF_FOREIGN_TYPES(OTHER_ROW)};
enum { N_TYPE = sizeof table / sizeof table[0] };

const pf_dtype_info *pf_dtype_at(int32_t index) { return index >= 0 && index < N_TYPE ? &table[index] : NULL; }

static const pf_dtype_info *find(uint32_t type) {
    for (int32_t i = 0; i < N_TYPE; i++) {
        if ((uint32_t)table[i].type == type) return &table[i];
    }
    return NULL;
}

const pf_dtype_info *pf_dtype_lookup(uint32_t type) {
    const pf_dtype_info *info = find(type);
    return info && info->block_size > 0 ? info : NULL;
}

const pf_dtype_info *pf_dtype_of_file(uint32_t type) {
    const pf_dtype_info *info = pf_dtype_lookup(type);
    return info && !(info->uses & PF_TYPE_OWN) ? info : NULL;
}

const char *pf_dtype_name(uint32_t type, char out[PF_DTYPE_NAME_BYTES]) {
    const pf_dtype_info *info = find(type);
    if (info && (info->uses & PF_TYPE_FOREIGN)) {
        (void)snprintf(out, PF_DTYPE_NAME_BYTES, "ik_llama.cpp's %s (%" PRIu32 ")", info->name, type);
    } else if (info && !(info->uses & PF_TYPE_OWN)) {
        (void)snprintf(out, PF_DTYPE_NAME_BYTES, "%s", info->name);
    } else {
        (void)snprintf(out, PF_DTYPE_NAME_BYTES, "%" PRIu32 " (unknown)", type);
    }
    return out;
}

const char *pf_dtype_way_out(uint32_t type) {
    const pf_dtype_info *info = find(type);
    if (info && (info->uses & PF_TYPE_FOREIGN)) {
        return "take a file in llama.cpp's types, or convert this one with ik_llama.cpp's llama-quantize";
    }
    if (info && (info->uses & PF_TYPE_REMOVED)) return "ggml has removed it, so take a newer file";
    return "update pyflash, or take another file";
}

bool pf_dtype_row_bytes(pf_dtype type, uint64_t n, uint64_t *out) {
    const pf_dtype_info *info = pf_dtype_lookup((uint32_t)type);
    if (!info || n % info->block_size != 0) return false;
    return pf_mul_u64(n / info->block_size, info->block_bytes, out);
}

int32_t pf_type_get_info(int32_t index, pf_type_info *info) {
    const pf_dtype_info *row = pf_dtype_at(index);
    if (!row) return 0;
    const pf_type_info full = {.number = (uint32_t)row->type, .block_size = row->block_size,
                               .block_bytes = row->block_bytes, .uses = row->uses, .name = row->name};
    return pf_params_give(info, &full, sizeof full);
}
