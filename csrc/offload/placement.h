/* What of a model lies on a device: whole layers from some layer on, the routed experts of some of them, and the head.
 *
 * The order is llama.cpp's: layers go to the device from the last one down, the head first of all; routed experts from
 * the last layer down. The embedding, the hash layers' tables and the MTP block stay on the host. */
#ifndef PF_OFFLOAD_PLACEMENT_H
#define PF_OFFLOAD_PLACEMENT_H

#include "arch/weights.h"
#include "backend/link.h"

typedef struct pf_placement {
    int32_t first_layer;   /* this layer and later ones are on the device; n_layer: none */
    int32_t first_experts; /* and the routed experts of this layer and later ones; >= first_layer */
    bool head;
} pf_placement;

/* Bytes of weights that a placement brings to the device. */
uint64_t pf_placement_bytes(const pf_config *config, const pf_weights *weights, const pf_placement *placement);

/* UNSUPPORTED, with nothing changed, where one of the weights that a placement brings to the device has a type that the
 * device's table does not take: names it. */
pf_status pf_placement_check(const pf_config *config, const pf_weights *weights, const pf_placement *placement,
                             const pf_backend *backend, pf_error *err);

/* The most that can be there, for the types that the device's table takes: first_layer and first_experts each by itself.
 * *lacking: bits PF_W_* of the types in the way. */
pf_placement pf_placement_most(const pf_config *config, const pf_weights *weights, const pf_backend *backend,
                               uint64_t *lacking);

/* Sets the weights' flags by which the forward pass chooses sides; pointers stay. */
void pf_placement_mark(const pf_config *config, pf_weights *weights, const pf_placement *placement);

/* Weights on their way to a device. */
typedef struct pf_transfer pf_transfer;

/* Takes the device's memory, and lets the weights point into it, though nothing is there before pf_transfer_step() has
 * been called to the end. MEMORY, with nothing changed, when the device has too little. */
pf_status pf_transfer_new(pf_link *link, const pf_config *config, pf_weights *weights, const pf_placement *placement,
                          pf_transfer **out, pf_error *err);
void pf_transfer_delete(pf_transfer *transfer); /* frees the memory; NULL is allowed */
/* Sends some bytes: *n_done tells how many, 0 once all are there. */
pf_status pf_transfer_step(pf_transfer *transfer, uint64_t *n_done);
uint64_t pf_transfer_total(const pf_transfer *transfer); /* bytes of weights, without what alignment adds */
bool pf_transfer_done(const pf_transfer *transfer);

#endif
