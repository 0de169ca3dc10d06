/* A small copy of the output head to draft with: fewer rows, in 4 bits. A draft that it gets wrong is a draft that is not
 * kept, so nothing depends on it but how soon a text is there. */
#ifndef PF_MODEL_DRAFT_HEAD_H
#define PF_MODEL_DRAFT_HEAD_H

#include "step/step.h"

typedef struct pf_draft_head pf_draft_head;

/* What a copy of n_rows rows takes; 0 where none is worth making, or can be: a small vocabulary, a head that a device has. */
uint64_t pf_draft_head_bytes(const pf_network *net, int64_t n_rows);
/* The copy. A vocabulary's first tokens are its most frequent ones, because pairs are merged in that order, and its last ones
 * those with a meaning of their own: the rows are of both. Reads them once. MEMORY. */
pf_status pf_draft_head_new(pf_exec *ex, const pf_network *net, int64_t n_rows, pf_draft_head **out);
void pf_draft_head_delete(pf_draft_head *head); /* NULL is allowed */

/* The tokens that have rows: [0, first) and [last, vocab). All of them where head is NULL. */
typedef struct pf_draft_rows {
    int64_t first, last;
} pf_draft_rows;
pf_draft_rows pf_draft_head_rows(const pf_draft_head *head, int64_t n_vocab);

/* logits [n, vocab] of x [n, D], both the host's; minus infinity for tokens that have no row. */
pf_status pf_draft_head_logits(const pf_step *s, const pf_draft_head *head, const float *x, int64_t n, float *logits);

#endif
