/* What a step chooses, noted in or taken from the caller's memory (pf_choices): which routed experts, and which compressed
 * rows the indexer keeps. On the host's side only. */
#ifndef PF_STEP_CHOICES_H
#define PF_STEP_CHOICES_H

#include "step/step.h"

/* Whether what is held for n tokens from `position` on can have been chosen by this network: experts that it has, each
 * once a token, and as many rows as the indexer keeps, ascending, of those that a token sees. ARGUMENT says where not. */
pf_status pf_choices_check(const pf_choices *choices, const pf_network *net, int64_t position, int64_t n, pf_error *err);

/* [n, A] held for a layer, as route takes a table; NULL: none are. */
const int32_t *pf_choices_held_experts(const pf_step *s, int32_t layer);
void pf_choices_note_experts(const pf_step *s, int32_t layer, const int32_t *chosen);

/* As topk writes them, where they are held; else false. */
bool pf_choices_take_rows(const pf_step *s, int32_t layer, int32_t *select, int32_t *select_n);
void pf_choices_note_rows(const pf_step *s, int32_t layer, const int32_t *select, const int32_t *select_n);

#endif
