/* Tables that the forward pass takes as float32, where a file stores them in another type. */
#ifndef PF_ARCH_WIDEN_H
#define PF_ARCH_WIDEN_H

#include "base/status.h"
#include "format/gguf.h"

/* Copies that were made, one after the other; owned. */
typedef struct pf_widened {
    struct pf_widened_table *first;
    uint64_t bytes; /* of all floats */
} pf_widened;

/* Whether a tensor of that type can be widened; F32 need not be. */
bool pf_can_widen(uint32_t type);
/* The values of a tensor that can be, in order; NULL when memory is out. */
const float *pf_widen(pf_widened *all, const pf_gguf_tensor *tensor);
void pf_widened_free(pf_widened *all);

#endif
