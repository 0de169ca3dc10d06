#include "offload/hot_choice.h"

#include <math.h>

/* A newcomer's lead: in proportion, and in uses, since chance makes small counts differ by much. */
static const float lead = 1.5f, lead_uses = 2.0f;
static const double largest_unit = 1e12; /* before all counts are scaled down: far from a float's limits */

pf_hot_choice pf_hot_choice_of(float *uses, int32_t n) { return (pf_hot_choice){.n = n, .uses = uses, .unit = 1.0}; }

void pf_hot_fade(pf_hot_choice *c, int64_t n_token) {
    c->unit *= exp((double)n_token / (double)PF_HOT_FADING);
    if (c->unit < largest_unit) return;
    for (int32_t i = 0; i < c->n; ++i) c->uses[i] = (float)(c->uses[i] / c->unit);
    c->unit = 1.0;
}

void pf_hot_use(pf_hot_choice *c, int32_t index) { c->uses[index] += (float)c->unit; }

bool pf_hot_replaces(const pf_hot_choice *c, int32_t newcomer, int32_t old) {
    return c->uses[newcomer] > lead * c->uses[old] + lead_uses * (float)c->unit;
}

int32_t pf_hot_least_used(const pf_hot_choice *c, const int32_t *owners, int32_t n_slot) {
    int32_t least = -1;
    for (int32_t slot = 0; slot < n_slot; ++slot) {
        if (owners[slot] < 0) continue;
        if (least < 0 || c->uses[owners[slot]] < c->uses[owners[least]]) least = slot;
    }
    return least;
}
