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

pf_status pf_step_rope(const pf_step *s, const double *freq, int64_t first, int64_t stride, int64_t n,
                       pf_rope_table *out) {
    const int64_t half = s->net->config.rope_dim / 2;
    PF_SCRATCH(float, cosines, s->host, 2 * n * half);
    float *sines = cosines + n * half;
    if (!s->ex->dry) pf_rope_fill(freq, half, first, stride, n, cosines, sines);
    void *table;
    PF_TRY(pf_step_carry(s->host, s, cosines, (size_t)(2 * n * half) * sizeof(float), &table));
    cosines = table;
    *out = (pf_rope_table){cosines, cosines + n * half, half};
    return PF_OK;
}

pf_status pf_step_prepare(pf_step *s) {
    PF_TRY(pf_step_rope(s, s->net->rope_freq, s->position, 1, s->n, &s->rope));
    return pf_step_rope(s, s->net->rope_freq_compressed, s->position, 1, s->n, &s->rope_compressed);
}

pf_status pf_step_hash_experts(const pf_step *s, int32_t layer, const pf_moe_weights *w, int32_t *chosen) {
    const pf_config *c = &s->net->config;
    const int64_t n_used = c->n_expert_used;
    for (int64_t t = 0; t < s->n && !s->ex->dry; ++t) {
        const int32_t *entry = w->token_table + (int64_t)s->tokens[t] * n_used;
        for (int32_t i = 0; i < n_used; ++i) {
            if (entry[i] < 0 || entry[i] >= c->n_expert) {
                return pf_fail(s->err, PF_ERR_FORMAT,
                               "blk.%d.ffn_gate_tid2eid names expert %d of %d for token %d: convert again",
                               layer, entry[i], c->n_expert, s->tokens[t]);
            }
        }
        memcpy(chosen + t * n_used, entry, (size_t)n_used * sizeof *chosen);
    }
    return PF_OK;
}

/* One value of a tap, from wherever it lies. */
static void report(const pf_step *s, const char *name, int32_t layer, int64_t position, const void *data,
                   int64_t width, bool is_int) {
    if (s->tap == NULL) return;
    const pf_step_mark mark = pf_step_set_mark(s);
    void *values;
    if (pf_step_carry(s, s->host, data, (size_t)width * 4, &values) == PF_OK) {
        s->tap(s->tap_user, name, layer, position, values, width, is_int);
    }
    pf_step_reset(s, mark);
}

void pf_step_tap_row(const pf_step *s, const char *name, int32_t layer, int64_t position, const float *data,
                     int64_t width) {
    report(s, name, layer, position, data, width, false);
}

void pf_step_tap(const pf_step *s, const char *name, int32_t layer, const float *data, int64_t width) {
    if (s->tap == NULL) return;
    for (int64_t t = 0; t < s->n; ++t) pf_step_tap_row(s, name, layer, s->position + t, data + t * width, width);
}

void pf_step_tap_ints(const pf_step *s, const char *name, int32_t layer, int64_t token, const int32_t *data,
                      int64_t width) {
    report(s, name, layer, s->position + token, data, width, true);
}
