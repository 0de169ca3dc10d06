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
/* Streams to logits [n_out, vocab] of the last n_out tokens. mix, norm and streams are on the step's side, logits are the
 * host's. */
pf_status pf_head(const pf_step *s, const pf_mhc_site *mix, const float *norm, const float *streams, int64_t n_out,
                  float *logits);
/* The whole network, begun on the host's side: extends the cache by the step's tokens (the caller commits) and writes the
 * logits of the last n_out tokens, [n_out, vocab]. Both sides have been prepared. */
pf_status pf_forward(const pf_step *s, int64_t n_out, float *logits);

/* mtp.c */

/* Brings the MTP block's window rows up to the step: they need each token's successor, so they lag by one. streams are
 * the step's final streams. */
pf_status pf_mtp_follow(const pf_step *s, const float *streams);
/* Logits [vocab] of the MTP block for the cache's last token, followed by `next`. */
pf_status pf_mtp_draft(pf_step *s, int32_t next, float *logits);

#endif
