/* The multi-token-prediction block: from the final streams at position t and the token at t+1, logits for t+2. */
#include "model/deepseek4.h"

#include "base/arith.h"

#include <string.h>

static float *stream_slot(const pf_cache *cache, int64_t position) {
    return cache->streams + position % cache->stream_ring * cache->stream_floats;
}

/* x[k] = e_proj RMSNorm(embed[next]; enorm) + h_proj RMSNorm(X[k]; hnorm), for s->n tokens whose successors are
 * s->tokens. hidden [n, N D] are the main model's final streams, and are overwritten. */
static pf_status enter(const pf_step *s, const pf_mtp_weights *w, float *hidden, float *streams) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const int64_t width = c->n_embd, rows = s->n * c->n_stream;
    PF_SCRATCH(float, embedded, s, rows * width); /* repeated for every stream */
    PF_TRY(be->embed(s->ex, &s->net->weights.embed, s->tokens, s->n, c->n_stream, embedded));
    PF_TRY(be->rms_norm(s->ex, embedded, rows, width, w->e_norm, c->norm_eps, embedded));
    PF_TRY(be->rms_norm(s->ex, hidden, rows, width, w->h_norm, c->norm_eps, hidden));
    if (!w->joined) {
        PF_TRY(be->linear(s->ex, &w->e_proj, embedded, width, rows, streams, width));
        PF_TRY(be->linear(s->ex, &w->h_proj, hidden, width, rows, embedded, width));
        return be->add(s->ex, streams, embedded, rows * width);
    }
    /* e_proj | h_proj as one matrix over [embedding | hidden] */
    PF_SCRATCH(float, joined, s, rows * 2 * width);
    for (int64_t r = 0; r < rows && !s->ex->dry; ++r) {
        memcpy(joined + r * 2 * width, embedded + r * width, (size_t)width * sizeof(float));
        memcpy(joined + (r * 2 + 1) * width, hidden + r * width, (size_t)width * sizeof(float));
    }
    return be->linear(s->ex, &w->eh_proj, joined, 2 * width, rows, streams, width);
}

pf_status pf_mtp_follow(const pf_step *s, const float *streams) {
    const pf_config *c = &s->net->config;
    const pf_mtp_weights *w = &s->net->weights.mtp;
    pf_cache *cache = s->cache;
    const size_t floats = (size_t)cache->stream_floats, mark = pf_arena_mark(s->ex->arena);
    for (int64_t t = 0; t < s->n && !s->ex->dry; ++t) {
        memcpy(stream_slot(cache, s->position + t), streams + (size_t)t * floats, floats * sizeof(float));
    }
    /* Positions whose successor is one of the step's tokens; older ones than window and rollback reach are not read. */
    const int64_t end = s->position + s->n - 1;
    const int64_t begin = pf_max_i64(pf_max_i64(0, s->position - 1), end - c->window - PF_ROLLBACK);
    if (end <= begin) return PF_OK;
    pf_step lag = *s;
    lag.tap = NULL;
    lag.n = end - begin;
    lag.position = begin;
    lag.tokens = s->tokens + (begin + 1 - s->position);
    PF_TRY(pf_step_prepare(&lag));
    PF_SCRATCH(float, hidden, s, lag.n * cache->stream_floats);
    PF_SCRATCH(float, inner, s, lag.n * cache->stream_floats);
    for (int64_t t = 0; t < lag.n && !s->ex->dry; ++t) {
        memcpy(hidden + (size_t)t * floats, stream_slot(cache, begin + t), floats * sizeof(float));
    }
    PF_TRY(enter(&lag, w, hidden, inner));
    PF_TRY(pf_layer_rows(&lag, c->n_layer, &w->layer, inner));
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}

pf_status pf_mtp_draft(pf_step *s, int32_t next, float *logits) {
    const pf_config *c = &s->net->config;
    const pf_mtp_weights *w = &s->net->weights.mtp;
    const pf_cache *cache = s->cache;
    s->n = 1;
    s->position = cache->position - 1;
    s->tokens = &next;
    PF_TRY(pf_step_prepare(s));
    PF_SCRATCH(float, hidden, s, cache->stream_floats);
    PF_SCRATCH(float, inner, s, cache->stream_floats);
    if (!s->ex->dry) {
        memcpy(hidden, stream_slot(cache, s->position), (size_t)cache->stream_floats * sizeof(float));
    }
    PF_TRY(enter(s, w, hidden, inner));
    PF_TRY(pf_layer(s, c->n_layer, &w->layer, inner));
    return pf_head(s, &w->head_mix, w->norm, inner, 1, logits);
}
