/* What a routed expert consists of, for those that bring some experts of a layer into other memory. */
#ifndef PF_OFFLOAD_EXPERT_PARTS_H
#define PF_OFFLOAD_EXPERT_PARTS_H

#include "arch/weights.h"

enum { PF_EXPERT_PARTS = 6 };

/* A matrix or its scales, of all experts of a layer one after the other. */
typedef struct pf_expert_part {
    const uint8_t *from;
    uint64_t bytes; /* of one expert; 0: no such part */
    uint64_t at;    /* in the other memory: there too experts follow each other, part by part */
} pf_expert_part;

/* Data and scales of gate, up and down. */
void pf_expert_parts_of(const pf_moe_weights *w, pf_expert_part out[PF_EXPERT_PARTS]);
/* Of one expert, all parts together. */
uint64_t pf_expert_parts_bytes(const pf_expert_part *parts);
/* Places the parts for n experts; the bytes that these take. */
uint64_t pf_expert_parts_place(pf_expert_part *parts, int32_t n);
/* gate, up and down, as they lie in `memory`. */
void pf_expert_parts_there(const pf_moe_weights *w, const pf_expert_part *parts, const uint8_t *memory,
                           pf_weight out[3]);

#endif
