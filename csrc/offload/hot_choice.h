/* Which routed experts are worth a place in a device's spare memory: those used most, of late.
 *
 * Every use counts, and counts fade, so that a conversation which turns to something else is followed after a few hundred
 * tokens. (What is in a host's memory when the file is larger, expert_stream.h, goes by recency instead: there a missing
 * expert has to come anyway, and so displaces another one every time. Here nothing has to come.) */
#ifndef PF_OFFLOAD_HOT_CHOICE_H
#define PF_OFFLOAD_HOT_CHOICE_H

#include <stdbool.h>
#include <stdint.h>

enum { PF_HOT_FADING = 512 }; /* tokens after which a use counts 1/e */

/* Experts are counted by index, over all layers. */
typedef struct pf_hot_choice {
    int32_t n;
    float *uses;  /* [n] faded, in units of `unit` */
    double unit;  /* what a use counts now: instead of all counts fading, later ones weigh more */
} pf_hot_choice;

/* uses: n zeros. */
pf_hot_choice pf_hot_choice_of(float *uses, int32_t n);
/* n tokens have gone by. */
void pf_hot_fade(pf_hot_choice *choice, int64_t n_token);
void pf_hot_use(pf_hot_choice *choice, int32_t index);
/* Whether an expert is used clearly more than one that would have to go, so that two of the same use take no turns. */
bool pf_hot_replaces(const pf_hot_choice *choice, int32_t newcomer, int32_t old);
/* The slot whose owner, an index, is used least; -1 without owners. Negative owners are passed over. */
int32_t pf_hot_least_used(const pf_hot_choice *choice, const int32_t *owners, int32_t n_slot);

#endif
