/* Decoding on a device as recordings: the operations of one token, recorded once and repeated for later tokens.
 *
 * What is recorded is the last part of the network: the layers from some layer on that are on the device together
 * with their routed experts, and the head. Nothing in between comes back to the host. A step of one token without a
 * tap takes this part in a frame: whatever differs from token to token lies in one piece of the device's memory, which
 * is sent before, and operations read positions from there. What differs otherwise is which operations there are, and
 * it decides which recording is meant: whether the token completes a compressed row of either ratio, whether the
 * indexer has to choose, and whether logits are wanted.
 *
 * Addresses that a recording holds are those of the weights, of the session's cache, and of scratch, which a session's
 * steps of one token take in the same order, and so at the same places. Should scratch move, recordings are dropped. */
#ifndef PF_MODEL_RECORDING_H
#define PF_MODEL_RECORDING_H

#include "model/step.h"

/* What of a token's step differs from position to position, in the device's memory. */
typedef struct pf_frame {
    const int64_t *counters;    /* [3]: the token's position, and the rows before it of ratio 4 and of ratio 128 */
    pf_rope_table rope, rope_compressed; /* of the token */
    pf_rope_table rope_rows[2]; /* of the row of ratio 4, and of ratio 128, that it belongs to */
    int32_t *experts;           /* [n_layer - first, A]: of hash layers */
    int32_t first;              /* layer */
} pf_frame;

/* A session's recordings. Whoever calls holds the link. */
typedef struct pf_recorder pf_recorder;
pf_recorder *pf_recorder_new(pf_link *link); /* NULL when out of memory */
void pf_recorder_delete(pf_recorder *recorder); /* while the memory that they use is there; NULL is allowed */

/* The first layer of the part that the step (of the host's side) takes in a frame; n_layer when there is none. */
int32_t pf_recorded_from(const pf_step *s);
/* Whether that is all of the device's part, so that nothing needs the tables that pf_step_prepare() sends there. */
bool pf_recorded_whole(const pf_step *s);
/* That part, and what pf_forward() does after it. at: where the streams [1, N D] are; s: the host's side. */
pf_status pf_forward_recorded(const pf_step *s, int32_t first, const pf_step *at, float *streams, int64_t n_out,
                              float *logits);

/* For the parts of a step that has a frame. */

/* What operations add to positions from now on: the number of rows of a ratio, or, with ratio 0, the position. Does
 * nothing without a frame. */
void pf_frame_count(const pf_step *s, int32_t ratio);
pf_rope_table pf_frame_row_rope(const pf_step *s, int32_t ratio);
/* [A] of a hash layer. */
int32_t *pf_frame_experts(const pf_step *s, int32_t layer);

#endif
