/* The parts of the forward pass, each on the side of the step that it is given. */
#ifndef PF_MODEL_DEEPSEEK4_H
#define PF_MODEL_DEEPSEEK4_H

#include "step/step.h"

/* attention.c: y [n, D] = Attention(x [n, D]), x after the norm. Extends the layer's cache. */
pf_status pf_attention(const pf_step *s, int32_t layer, int32_t ratio, const pf_attention_weights *w, const float *x,
                       float *y);
/* The part of it that only fills the window rows, for blocks whose output nobody reads. */
pf_status pf_attention_rows(const pf_step *s, int32_t layer, int32_t ratio, const pf_attention_weights *w,
                            const float *x);

/* moe.c: y [n, D] = MoE(x [n, D]), x after the norm. */
pf_status pf_moe(const pf_step *s, int32_t layer, const pf_layer_weights *w, const float *x, float *y);

/* deepseek4.c */

/* One layer over streams [n, N D], in place; `layer` is its place in the cache. */
pf_status pf_layer(const pf_step *s, int32_t layer, const pf_layer_weights *w, float *streams);
/* Only the layer's window rows, which is all that later tokens need of it. */
pf_status pf_layer_rows(const pf_step *s, int32_t layer, const pf_layer_weights *w, const float *streams);
/* Streams [n, N D] to the logits that the shares ask for. mix, norm and streams are on the step's side. */
pf_status pf_head(const pf_step *s, const pf_mhc_site *mix, const float *norm, const float *streams);
/* Of it: x [n, D] before the norm of streams' [., N D] first n tokens, on the step's side; and logits [n_out, vocab], on the
 * host, of x [n_out, D] on the step's side. */
pf_status pf_head_input(const pf_step *s, const pf_mhc_site *mix, const float *streams, int64_t n, float *x);
pf_status pf_project_vocabulary(const pf_step *s, const float *x, int64_t n_out, float *logits);
/* The network, or a stage's layers of it, begun on the host's side: extends the caches by the shares' tokens (the caller
 * commits) and writes their logits, or the streams for the next stage. Both sides have been prepared. In a step of several
 * shares those of cancelled sessions lose their rows between two layers, and the others go on. */
pf_status pf_forward(pf_step *s);

/* mtp.c */

/* Brings the MTP block's window rows up to the step: they need each token's successor, so they lag by one. streams are
 * the step's final streams. */
pf_status pf_mtp_follow(const pf_step *s, float *streams);
/* The logits that a step of one token asks for, of the MTP block: the token is what stands behind the one at the share's
 * position. streams [N D] become the block's own; chained: they are those that it goes on from, of the draft before this
 * one, and not the model's, which the cache has for what was evaluated. Writes the position's window row. */
pf_status pf_mtp_draft(pf_step *s, float *streams, bool chained);

/* dspark.c */

/* Room for what the stages see of the step's tokens, into the shares. */
pf_status pf_dspark_begin(pf_step *s);
/* Whether they see a layer's output, and taking it: streams [n, N D] on the step's side. */
bool pf_dspark_wants(const pf_step *s, int32_t layer);
pf_status pf_dspark_note(const pf_step *s, int32_t layer, const float *streams);
/* The stages' window rows of the step's tokens, of what was taken. On the host's side. */
pf_status pf_dspark_follow(const pf_step *s);
/* A draft: a step of one share, whose tokens are a block that begins at the timeline's end. Of the first n of its rows the
 * input of the head's norm, hidden [n, D], and logits [n, vocab], before they are corrected. Writes the block's rows. */
pf_status pf_dspark_draft(pf_step *s, int64_t n, float *hidden, float *logits);
/* Corrects one row's logits [vocab] by the token before it. *chance: how likely the likeliest one is kept, where the file has
 * a head for that; else it stays as it was. */
pf_status pf_dspark_correct(const pf_step *s, int32_t previous, const float *hidden, float *logits, float *chance);

#endif
