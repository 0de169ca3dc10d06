#include "arch/widen.h"

#include "base/memory.h"
#include "format/blocks.h"
#include "format/dtypes.h"
#include "format/floats.h"

typedef struct pf_widened_table {
    struct pf_widened_table *next;
    float values[];
} pf_widened_table;

bool pf_can_widen(uint32_t type) { return type == PF_F16 || type == PF_BF16 || pf_block_decoder(type) != NULL; }

const float *pf_widen(pf_widened *all, const pf_gguf_tensor *tensor) {
    const pf_dtype_info *info = pf_dtype_lookup(tensor->type);
    const int64_t n_blocks = (int64_t)(tensor->bytes / info->block_bytes), n = n_blocks * info->block_size;
    pf_widened_table *table = pf_calloc(1, sizeof *table + (size_t)n * sizeof(float));
    if (table == NULL) return NULL;
    if (tensor->type == PF_F16) {
        for (int64_t i = 0; i < n; ++i) table->values[i] = pf_f16_to_f32(pf_load_u16(tensor->data + 2 * i));
    } else if (tensor->type == PF_BF16) {
        for (int64_t i = 0; i < n; ++i) table->values[i] = pf_bf16_to_f32(pf_load_u16(tensor->data + 2 * i));
    } else {
        pf_block_decoder(tensor->type)(tensor->data, n_blocks, table->values);
    }
    table->next = all->first;
    all->first = table;
    all->bytes += (uint64_t)n * sizeof(float);
    return table->values;
}

void pf_widened_free(pf_widened *all) {
    while (all->first != NULL) {
        pf_widened_table *next = all->first->next;
        pf_free(all->first);
        all->first = next;
    }
    all->bytes = 0;
}
