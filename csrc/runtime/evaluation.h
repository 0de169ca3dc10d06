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

/* n tokens that the MTP block drafts behind the one of a step of one token, which stands behind the one at its share's
 * position: see pf_session_draft_tokens(). */
pf_status pf_evaluate_drafts(pf_evaluation *evaluation, int32_t token, int32_t n, int32_t *tokens, float *chances);

/* Scratch in bytes, on the host and on the device, of the longest step at the fullest context and of a draft. cache is
 * one of the session's shape; it is not touched. */
pf_status pf_measure_scratch(const pf_model *model, pf_cache *cache, uint64_t *host, uint64_t *device);

#endif
