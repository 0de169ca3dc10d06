/* Routed experts of a file that is larger than memory.
 *
 * The weights stay mapped, so nothing else changes: whoever uses an expert finds it, if need be by waiting for the
 * disk. What this adds is order. Experts are read ahead as a whole once they are chosen, all of a layer at the same
 * time, instead of page by page as they are touched; and when those in memory exceed a budget, the ones that were not
 * used for the longest time go, instead of whatever the system takes, which would soon be the weights that every token
 * needs. */
#ifndef PF_OFFLOAD_EXPERT_STREAM_H
#define PF_OFFLOAD_EXPERT_STREAM_H

#include "arch/config.h"
#include "arch/weights.h"

typedef struct pf_expert_stream pf_expert_stream;

typedef struct pf_expert_counts {
    uint64_t wanted, read; /* experts asked for, and those of them that were not in memory */
    uint64_t bytes_read;
} pf_expert_counts;

/* budget: bytes of expert weights kept in memory. One token's share of a layer is kept whatever the budget. */
pf_status pf_expert_stream_new(const pf_config *config, const pf_weights *weights, uint64_t budget,
                               pf_expert_stream **out, pf_error *err);
void pf_expert_stream_delete(pf_expert_stream *stream); /* NULL is allowed */

/* Bytes of all routed experts, but those on a device. */
uint64_t pf_expert_stream_total(const pf_config *config, const pf_weights *weights);

/* Ascending experts of a layer that are about to be used: begins reading the missing ones. Any thread. */
void pf_expert_stream_want(pf_expert_stream *stream, pf_pool *pool, int32_t layer, const int32_t *experts, int64_t n);
/* How many experts of a layer should be asked for at once, so that two such batches fit into the budget. */
int64_t pf_expert_stream_batch(const pf_expert_stream *stream, int32_t layer);
pf_expert_counts pf_expert_stream_counts(pf_expert_stream *stream);

#endif
