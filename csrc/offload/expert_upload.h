/* Routed experts on their way to the device for one chunk of tokens, where a layer is computed on the device and its
 * experts are in the host's memory.
 *
 * The experts that the chunk chose go there in pieces, ascending, an expert's three matrices together, through two
 * slots: while the device computes with the piece in one of them, the next is copied into the other, and the one after
 * that from the file's pages into page-locked memory, by the pool's threads. A slot is memory of the device and as much
 * of the host's; page-locking the mapped file itself would not work everywhere.
 *
 * An upload is the model's, and serves the step that holds the device (pf_link_lock). */
#ifndef PF_OFFLOAD_EXPERT_UPLOAD_H
#define PF_OFFLOAD_EXPERT_UPLOAD_H

#include "arch/config.h"
#include "arch/weights.h"
#include "backend/link.h"
#include "offload/upload_choice.h"

typedef struct pf_expert_upload pf_expert_upload;

typedef struct pf_upload_counts {
    uint64_t on_device, on_host; /* layers of chunks that were long enough, by where their experts were computed */
    uint64_t bytes;              /* sent */
} pf_upload_counts;

/* Without its memory yet, so that placements can be planned with it. always: see pf_upload_choice. NULL when out of
 * memory. */
pf_expert_upload *pf_expert_upload_new(const pf_config *config, const pf_weights *weights, bool always);
/* Bytes that it takes of the device's memory, and as many page-locked ones of the host's. */
uint64_t pf_expert_upload_bytes(const pf_expert_upload *upload);
/* Takes them. False, with nothing taken, when there are too few. With the device held. */
bool pf_expert_upload_take(pf_expert_upload *upload, pf_link *link);
/* Frees them; with the device held. NULL is allowed. */
void pf_expert_upload_delete(pf_expert_upload *upload);

/* Whether chunks of n tokens are sent experts at all; upload may be NULL. */
bool pf_expert_upload_may(const pf_expert_upload *upload, int64_t n);
/* Decides for a layer of a chunk of n tokens, which chose the experts chosen [n, A], in the host's memory. True: they
 * are to be sent, by the next call of pf_expert_upload_run(). */
bool pf_expert_upload_pays(pf_expert_upload *upload, const pf_layer_weights *layer, const int32_t *chosen, int64_t n);
/* Sends them, the threads of the host's pool filling the slots, and queues the `experts` operation of each piece on the
 * device, which ex is of, with the piece's range and weights in place of those of args. CANCELLED before any piece. Notes
 * the time from `begun` (pf_clock_seconds()) on. */
pf_status pf_expert_upload_run(pf_expert_upload *upload, pf_exec *ex, pf_pool *pool, const pf_layer_weights *layer,
                               const pf_experts_args *args, double begun);
/* The same of a layer that the host computed, where pf_expert_upload_may(). */
void pf_expert_upload_note_host(pf_expert_upload *upload, int64_t n, double begun);

pf_upload_counts pf_expert_upload_counts(const pf_expert_upload *upload); /* any thread */

#endif
