#include "step/choices.h"

#include "base/arith.h"

#include <string.h>

static bool holds(const pf_choices *choices) { return choices != NULL && choices->mode == PF_CHOICES_HOLD; }
static bool notes(const pf_choices *choices) { return choices != NULL && choices->mode == PF_CHOICES_NOTE; }

/* [A] of the token at a position. */
static int32_t *experts_at(const pf_choices *choices, const pf_network *net, int32_t layer, int64_t position) {
    return choices->experts + (layer * choices->n_position + position) * net->config.n_expert_used;
}

/* [index_topk] of the token at a position, of a layer with an indexer. */
static int32_t *rows_at(const pf_choices *choices, const pf_network *net, int32_t layer, int64_t position) {
    int64_t before = 0;
    for (int32_t l = 0; l < layer; ++l) before += net->config.ratio[l] == PF_RATIO_CSA;
    return choices->rows + (before * choices->n_position + position) * net->config.index_topk;
}

static int32_t kept_rows(const pf_network *net, int64_t position) {
    return (int32_t)pf_min_i64((position + 1) / PF_RATIO_CSA, net->config.index_topk);
}

static bool are_experts(const int32_t *ids, int32_t n, int32_t n_expert) {
    for (int32_t i = 0; i < n; ++i) {
        if (ids[i] < 0 || ids[i] >= n_expert) return false;
        for (int32_t j = 0; j < i; ++j) {
            if (ids[j] == ids[i]) return false;
        }
    }
    return true;
}

static bool are_rows(const int32_t *rows, int32_t n, int64_t n_visible) {
    int64_t least = 0;
    for (int32_t i = 0; i < n; ++i) {
        if (rows[i] < least || rows[i] >= n_visible) return false;
        least = rows[i] + 1;
    }
    return true;
}

static pf_status check_token(const pf_choices *choices, const pf_network *net, int64_t position, pf_error *err) {
    const pf_config *c = &net->config;
    for (int32_t l = net->weights.range.first; l < net->weights.range.end; ++l) {
        const pf_layer_weights *layer = &net->weights.layers[l];
        if (!layer->hash && !are_experts(experts_at(choices, net, l, position), c->n_expert_used, c->n_expert)) {
            return pf_fail(err, PF_ERR_ARGUMENT, "the experts held for layer %d at position %lld cannot be this model's: "
                                                 "note them again", l, (long long)position);
        }
        if (choices->rows == NULL || layer->ratio != PF_RATIO_CSA) continue;
        if (!are_rows(rows_at(choices, net, l, position), kept_rows(net, position), (position + 1) / PF_RATIO_CSA)) {
            return pf_fail(err, PF_ERR_ARGUMENT, "the rows held for layer %d at position %lld cannot be this model's: note "
                                                 "them again", l, (long long)position);
        }
    }
    return PF_OK;
}

pf_status pf_choices_check(const pf_choices *choices, const pf_network *net, int64_t position, int64_t n, pf_error *err) {
    if (n > choices->n_position - position) {
        return pf_fail(err, PF_ERR_ARGUMENT, "choices of %lld positions, and the step ends at %lld: give room for more",
                       (long long)choices->n_position, (long long)(position + n));
    }
    for (int64_t p = position; p < position + n && holds(choices); ++p) PF_TRY(check_token(choices, net, p, err));
    return PF_OK;
}

const int32_t *pf_choices_held_experts(const pf_step *s, int32_t layer) {
    return holds(s->choices) ? experts_at(s->choices, s->net, layer, s->shares->position) : NULL;
}

void pf_choices_note_experts(const pf_step *s, int32_t layer, const int32_t *chosen) {
    if (!notes(s->choices)) return;
    memcpy(experts_at(s->choices, s->net, layer, s->shares->position), chosen,
           (size_t)(s->n * s->net->config.n_expert_used) * sizeof *chosen);
}

bool pf_choices_take_rows(const pf_step *s, int32_t layer, int32_t *select, int32_t *select_n) {
    if (!holds(s->choices) || s->choices->rows == NULL) return false;
    memcpy(select, rows_at(s->choices, s->net, layer, s->shares->position),
           (size_t)(s->n * s->net->config.index_topk) * sizeof *select);
    for (int64_t t = 0; t < s->n; ++t) select_n[t] = kept_rows(s->net, s->shares->position + t);
    return true;
}

void pf_choices_note_rows(const pf_step *s, int32_t layer, const int32_t *select, const int32_t *select_n) {
    if (!notes(s->choices) || s->choices->rows == NULL) return;
    const int64_t k = s->net->config.index_topk;
    int32_t *to = rows_at(s->choices, s->net, layer, s->shares->position);
    for (int64_t t = 0; t < s->n; ++t) memcpy(to + t * k, select + t * k, (size_t)select_n[t] * sizeof *select);
}
