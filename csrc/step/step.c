#include "step/step.h"

#include <math.h>
#include <string.h>

pf_status pf_step_carry(const pf_step *from, const pf_step *to, const void *x, size_t bytes, void **out) {
    if (from->link == to->link) {
        *out = (void *)(uintptr_t)x;
        return PF_OK;
    }
    void *there = pf_arena_alloc(to->ex->arena, bytes);
    if (there == NULL) return PF_ERR_MEMORY;
    *out = there;
    if (to->ex->dry) return PF_OK;
    return to->link != NULL ? pf_link_upload(to->link, there, x, bytes) : pf_link_download(from->link, there, x, bytes);
}

pf_step_mark pf_step_set_mark(const pf_step *s) {
    return (pf_step_mark){pf_arena_mark(s->ex->arena), pf_arena_mark(s->host->ex->arena)};
}

void pf_step_reset(const pf_step *s, pf_step_mark mark) {
    pf_arena_reset(s->ex->arena, mark.own);
    if (s->link != NULL) pf_arena_reset(s->host->ex->arena, mark.host);
}

void pf_rope_fill(const double *freq, int64_t half, int64_t first, int64_t stride, int64_t n, float *cosines,
                  float *sines) {
    for (int64_t t = 0; t < n; ++t) {
        for (int64_t i = 0; i < half; ++i) {
            const double angle = (double)(first + t * stride) * freq[i];
            cosines[t * half + i] = (float)cos(angle);
            sines[t * half + i] = (float)sin(angle);
        }
    }
}

/* cosines [n, half], then sines [n, half], of the host's memory as a table on the step's side. */
static pf_status carry_table(const pf_step *s, const float *cosines, int64_t n, pf_rope_table *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    void *there;
    PF_TRY(pf_step_carry(s->host, s, cosines, (size_t)(2 * n * half) * sizeof *cosines, &there));
    const float *table = there;
    *out = (pf_rope_table){table, table + n * half, half};
    return PF_OK;
}

pf_status pf_step_rope(const pf_step *s, const double *freq, int64_t first, int64_t stride, int64_t n,
                       pf_rope_table *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    PF_SCRATCH(float, cosines, s->host, 2 * n * half);
    if (!s->ex->dry) pf_rope_fill(freq, half, first, stride, n, cosines, cosines + n * half);
    return carry_table(s, cosines, n, out);
}

/* The same of every row's position. */
static pf_status rope_of_rows(const pf_step *s, const double *freq, pf_rope_table *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    PF_SCRATCH(float, cosines, s->host, 2 * s->n * half);
    for (PF_EACH_SHARE(s, share)) {
        float *own = cosines + share->first * half;
        if (!s->ex->dry) pf_rope_fill(freq, half, share->position, 1, share->n, own, own + s->n * half);
    }
    return carry_table(s, cosines, s->n, out);
}

pf_status pf_step_prepare(pf_step *s) {
    PF_TRY(rope_of_rows(s, s->net->rope_freq, &s->rope));
    return rope_of_rows(s, s->net->rope_freq_compressed, &s->rope_compressed);
}

static bool is_cancelled(const pf_share *share) {
    return share->cancel != NULL && atomic_load_explicit(share->cancel, memory_order_relaxed) != 0;
}

pf_status pf_step_drop_cancelled(pf_step *s, float *streams, int64_t width) {
    bool any = false;
    for (PF_EACH_SHARE(s, share)) any = any || is_cancelled(share);
    if (!any) return PF_OK;
    PF_SCRATCH(int32_t, tokens, s, s->n);
    int64_t n = 0;
    for (pf_share *share = s->shares; share < s->shares + s->n_share; ++share) {
        if (is_cancelled(share)) share->n = share->n_out = 0;
        memmove(streams + n * width, streams + share->first * width, (size_t)(share->n * width) * sizeof *streams);
        memcpy(tokens + n, s->tokens + share->first, (size_t)share->n * sizeof *tokens);
        share->first = n;
        n += share->n;
    }
    s->tokens = tokens;
    s->n = n;
    return n > 0 ? pf_step_prepare(s) : PF_ERR_CANCELLED;
}

void pf_step_hash_experts(const pf_step *s, const pf_moe_weights *w, int32_t *chosen) {
    const int64_t n_used = s->net->config.n_expert_used;
    for (int64_t t = 0; t < s->n && !s->ex->dry; ++t) {
        memcpy(chosen + t * n_used, w->token_table + (int64_t)s->tokens[t] * n_used, (size_t)n_used * sizeof *chosen);
    }
}

/* Of one token in one layer. */
static pf_status check_entry(const pf_config *c, int32_t layer, const int32_t *entry, int32_t token, pf_error *err) {
    for (int32_t i = 0; i < c->n_expert_used; ++i) {
        if (entry[i] >= 0 && entry[i] < c->n_expert) continue;
        return pf_fail(err, PF_ERR_FORMAT, "blk.%d.ffn_gate_tid2eid names expert %d of %d for token %d: convert again",
                       layer, entry[i], c->n_expert, token);
    }
    return PF_OK;
}

pf_status pf_check_hash_experts(const pf_network *net, const int32_t *tokens, int64_t n, pf_error *err) {
    const pf_config *c = &net->config;
    for (int32_t l = net->weights.range.first; l < net->weights.range.end; ++l) {
        const pf_layer_weights *w = &net->weights.layers[l];
        for (int64_t t = 0; t < n && w->hash; ++t) {
            const int32_t *entry = w->moe.token_table + (int64_t)tokens[t] * c->n_expert_used;
            PF_TRY(check_entry(c, l, entry, tokens[t], err));
        }
    }
    return PF_OK;
}

/* One value of a tap, from wherever it lies. */
static void report(const pf_step *s, const pf_share *share, const char *name, int32_t layer, int64_t position,
                   const void *data, int64_t width, bool is_int) {
    if (share->tap == NULL) return;
    const pf_step_mark mark = pf_step_set_mark(s);
    void *values;
    if (pf_step_carry(s, s->host, data, (size_t)width * 4, &values) == PF_OK) {
        share->tap(share->tap_user, name, layer, position, values, width, is_int);
    }
    pf_step_reset(s, mark);
}

void pf_share_tap(const pf_step *s, const pf_share *share, const char *name, int32_t layer, int64_t position,
                  const float *data, int64_t n, int64_t width) {
    if (share->tap == NULL) return;
    for (int64_t t = 0; t < n; ++t) report(s, share, name, layer, position + t, data + t * width, width, false);
}

void pf_share_tap_ints(const pf_step *s, const pf_share *share, const char *name, int32_t layer, int64_t position,
                       const int32_t *data, int64_t width) {
    report(s, share, name, layer, position, data, width, true);
}

void pf_step_tap(const pf_step *s, const char *name, int32_t layer, const float *data, int64_t width) {
    for (PF_EACH_SHARE(s, share)) {
        pf_share_tap(s, share, name, layer, share->position, data + share->first * width, share->n, width);
    }
}
