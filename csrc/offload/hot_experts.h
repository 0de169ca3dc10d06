/* The most used routed experts in a device's spare memory, where a layer is computed on the device and its experts are in
 * the host's memory.
 *
 * Experts lie there in slots, any layer's in any slot. In a step of few tokens the device computes those of the chosen
 * experts that are held, and the host, at the same time, the others; the two sums are added. Which ones are held follows
 * the tokens (hot_choice.h): an expert that was missing goes, in slices, into a slot that is free or whose expert is used
 * clearly less, a bounded number of bytes a step. The pool's threads copy a slice from the file's pages into page-locked
 * memory while the device computes what comes before the experts; from there it goes to the device in the background. An
 * expert is held from when all of it has come, and nothing waits for that.
 *
 * They are the model's, and serve the step that holds the device (pf_link_lock). */
#ifndef PF_OFFLOAD_HOT_EXPERTS_H
#define PF_OFFLOAD_HOT_EXPERTS_H

#include "arch/config.h"
#include "arch/weights.h"
#include "backend/link.h"

typedef struct pf_hot_experts pf_hot_experts;

enum { PF_HOT_MOST = 31 }; /* tokens of a step in which they are used: longer ones are sent their experts as a whole */

typedef struct pf_hot_counts {
    uint64_t hits, misses; /* (token, expert) pairs of such steps, by whether the expert was held */
    uint64_t brought, replaced; /* experts that came, and those that went for them */
    uint64_t bytes;        /* sent */
    uint64_t slots;
} pf_hot_counts;

/* For the layers that the weights' flags say (pf_placement_mark), without its memory yet, so that placements can be
 * planned with it. NULL when out of memory. */
pf_hot_experts *pf_hot_experts_new(const pf_config *config, const pf_weights *weights);
/* Takes as many slots as `bytes` of the device's memory are enough for; false when that is none. */
bool pf_hot_experts_fit(pf_hot_experts *hot, uint64_t bytes);
/* Bytes that these take. */
uint64_t pf_hot_experts_bytes(const pf_hot_experts *hot);
/* Takes them. False, with nothing taken, when there are too few, also page-locked ones of the host. With the device
 * held. */
bool pf_hot_experts_take(pf_hot_experts *hot, pf_link *link);
/* Frees them: no expert is held any more, for ever. False when there were none; hot may be NULL. With the device held. */
bool pf_hot_experts_give_back(pf_hot_experts *hot);
void pf_hot_experts_delete(pf_hot_experts *hot); /* with the device held; NULL is allowed */

/* Whether they are used in a layer, in steps of n tokens; hot may be NULL. */
bool pf_hot_experts_may(const pf_hot_experts *hot, int32_t layer, int64_t n);
/* Sends the next slice, if one is due. While the device computes: the threads of the host's pool copy. */
pf_status pf_hot_experts_advance(pf_hot_experts *hot, pf_pool *pool);
/* Notes what a layer's n tokens chose, [n, A], in the host's memory, and decides what comes next. */
pf_status pf_hot_experts_note(pf_hot_experts *hot, int32_t layer, const int32_t *chosen, int64_t n);
/* Parts the experts between both sides: lets args of the device use those held, the matrices being put in w, and args of
 * the host the others. Says by *on_device and *on_host which side has any, and counts. Where pf_hot_experts_may(). */
void pf_hot_experts_part(pf_hot_experts *hot, int32_t layer, const int32_t *chosen, int64_t n, pf_weight w[3],
                         pf_experts_args *device, pf_experts_args *host, bool *on_device, bool *on_host);

pf_hot_counts pf_hot_experts_counts(const pf_hot_experts *hot); /* any thread */

#endif
