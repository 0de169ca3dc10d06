#include "offload/expert_parts.h"

enum { ALIGNMENT = 256 };

static void set_parts(const pf_weight *w, pf_expert_part *out) {
    const uint64_t blocks = (uint64_t)w->scale_rows * (uint64_t)w->scale_cols;
    out[0] = (pf_expert_part){.from = w->data, .bytes = (uint64_t)w->rows * (uint64_t)w->row_bytes};
    out[1] = (pf_expert_part){.from = w->scale};
    if (w->scale != NULL) out[1].bytes = blocks * (w->scale_f32 ? sizeof(float) : 1);
}

void pf_expert_parts_of(const pf_moe_weights *w, pf_expert_part out[PF_EXPERT_PARTS]) {
    set_parts(&w->gate, &out[0]);
    set_parts(&w->up, &out[2]);
    set_parts(&w->down, &out[4]);
}

uint64_t pf_expert_parts_bytes(const pf_expert_part *parts) {
    uint64_t sum = 0;
    for (int i = 0; i < PF_EXPERT_PARTS; ++i) sum += parts[i].bytes;
    return sum;
}

uint64_t pf_expert_parts_place(pf_expert_part *parts, int32_t n) {
    uint64_t at = 0;
    for (int i = 0; i < PF_EXPERT_PARTS; ++i) {
        parts[i].at = at;
        at += ((uint64_t)n * parts[i].bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    }
    return at;
}

void pf_expert_parts_there(const pf_moe_weights *w, const pf_expert_part *parts, const uint8_t *memory,
                           pf_weight out[3]) {
    const pf_weight *all[] = {&w->gate, &w->up, &w->down};
    for (int i = 0; i < 3; ++i) {
        out[i] = *all[i];
        out[i].data = memory + parts[2 * i].at;
        if (out[i].scale != NULL) out[i].scale = memory + parts[2 * i + 1].at;
    }
}
