/* The two sides of one evaluation (step/step.h), made from a model and what a session brings. */
#ifndef PF_RUNTIME_EVALUATION_H
#define PF_RUNTIME_EVALUATION_H

#include "runtime/model.h"

typedef struct pf_arenas {
    pf_arena *host, *device; /* device: NULL without one */
} pf_arenas;

typedef struct pf_evaluation {
    pf_exec host_exec, device_exec;
    pf_step host, device;
} pf_evaluation;

/* Fills *out, which must stay where it is, for the shares' tokens [n of all of them]; sets their `first`. tokens may be NULL
 * where nothing is computed. With a device there is one share. */
void pf_evaluation_init(pf_evaluation *out, const pf_model *model, pf_arenas arenas, pf_share *shares, int64_t n_share,
                        const int32_t *tokens, pf_error *err);

/* pf_step_prepare() and pf_forward(). */
pf_status pf_evaluate(pf_evaluation *evaluation);

/* Drafts that the model's drafter makes behind `token`, which will stand at the end of a session's timeline.
 * pf_draft_begin() makes the evaluation, of one share, whose cache and what else belongs to a session are set. Of n tokens,
 * one after the other, see pf_session_draft_tokens(); or the logits [vocab] of the first. */
typedef struct pf_draft {
    pf_share share;
    pf_evaluation evaluation;
    int32_t tokens[PF_MAX_DRAFT_BLOCK]; /* of the step */
} pf_draft;
void pf_draft_begin(pf_draft *draft, const pf_model *model, pf_arenas arenas, int32_t token, pf_error *err);
pf_status pf_draft_tokens(pf_draft *draft, int32_t n, int32_t *tokens, float *chances);
pf_status pf_draft_logits(pf_draft *draft, float *logits);

/* Scratch in bytes, on the host and on the device, of the longest step at the fullest context and of a draft. cache is
 * one of the session's shape; it is not touched. */
pf_status pf_measure_scratch(const pf_model *model, pf_cache *cache, uint64_t *host, uint64_t *device);

#endif
