/* Decoding on a device as recordings: the operations of one token, recorded once and repeated for later tokens.
 *
 * A step of one token without a tap takes the device's part of the network in a frame: whatever differs from token to
 * token lies in one piece of the device's memory, which is sent before, and operations read positions from there. So
 * what differs otherwise is only which operations there are.
 *
 * Where routed experts are away, the host takes part in the middle. Between such points the operations are pieces: what
 * the code queues between pf_piece_begin() and pf_piece_end(). Where a piece begins, and what its layers do with this
 * token, says which recording is meant. A piece is launched plainly at first, recorded the second time, and from then
 * on replayed when it begins, while the code up to its end runs dry: it takes the same scratch, and queues nothing.
 *
 * Addresses that a recording holds are those of the weights, of the session's cache, of the frame, and of scratch,
 * which a session's steps of one token take in the same order, and so at the same places. Should scratch move,
 * recordings are dropped. */
#ifndef PF_STEP_RECORDING_H
#define PF_STEP_RECORDING_H

#include "step/step.h"

/* A session's recordings. Whoever calls holds the link. */
typedef struct pf_recorder pf_recorder;
pf_recorder *pf_recorder_new(pf_link *link, int32_t n_layer); /* NULL when out of memory */
void pf_recorder_delete(pf_recorder *recorder); /* while the memory that they use is there; NULL is allowed */

/* ---- The frame ---- */

/* What of a token's step differs from position to position, in the device's memory. */
typedef struct pf_frame {
    const int64_t *counters;    /* [3]: the token's position, and the rows before it of ratio 4 and of ratio 128 */
    pf_rope_table rope_rows[2]; /* of the row of ratio 4, and of ratio 128, that it belongs to */
    int32_t *experts;           /* [n_layer - first, A]: of hash layers */
    int32_t first;              /* layer on the device */
    bool with_logits;
} pf_frame;

/* Whether the step, the device's side of which s is, takes one. */
bool pf_frame_suits(const pf_step *s);
/* The forward pass (pf_forward), begun on the host's side. */
typedef pf_status (*pf_forward_fn)(pf_step *host);
/* pf_step_prepare() of that side, and the forward pass, in a frame. */
pf_status pf_frame_run(pf_step *s, pf_step *host, pf_forward_fn forward);

/* What operations add to positions from now on: the number of rows of a ratio, or, with ratio 0, the position. Does
 * nothing without a frame. */
void pf_frame_count(const pf_step *s, int32_t ratio);
/* For steps that have a frame. */
pf_rope_table pf_frame_row_rope(const pf_step *s, int32_t ratio);
int32_t *pf_frame_experts(const pf_step *s, int32_t layer); /* [A] of a hash layer */

/* ---- Pieces ---- */

/* Where a piece begins. All but the shared expert go on through the layers that follow, until one has chosen experts
 * that are away, or to the end. */
typedef enum pf_piece {
    PF_PIECE_LAYER,  /* a layer's begin */
    PF_PIECE_SHARED, /* the shared expert, beside the host's routed ones */
    PF_PIECE_SUM,    /* after these: the sum with what the host computed, */
    PF_PIECE_REST,   /* or without */
    PF_N_PIECE,
} pf_piece;

/* Between the two nothing is waited for and nothing copied from side to side. Both do nothing without a frame, and the
 * end where no piece has begun. An error ends a piece, too. */
pf_status pf_piece_begin(const pf_step *s, int32_t layer, pf_piece piece);
pf_status pf_piece_end(const pf_step *s);

#endif
