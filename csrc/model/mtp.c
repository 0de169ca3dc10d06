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

/* Final streams of n tokens from a position on: into the cache's ring from `streams`, or back. */
static void copy_streams(const pf_step *s, const pf_share *share, int64_t position, int64_t n, float *streams, bool to_ring) {
    const size_t floats = (size_t)share->cache->stream_floats;
    for (int64_t t = 0; t < n && !s->ex->dry; ++t) {
        float *slot = stream_slot(share->cache, position + t), *row = streams + (size_t)t * floats;
        memcpy(to_ring ? slot : row, to_ring ? row : slot, floats * sizeof *streams);
    }
}

/* The shares' positions whose successor is one of the step's tokens, with these: *lag is a step over them. Older ones than
 * window and rollback reach are not read. */
static pf_status lag_behind(const pf_step *s, pf_step *lag) {
    const int64_t reach = s->net->config.window + PF_ROLLBACK;
    PF_SCRATCH(pf_share, shares, s, s->n_share);
    PF_SCRATCH(int32_t, tokens, s, s->n);
    *lag = *s;
    lag->shares = shares;
    lag->n_share = lag->n = 0;
    lag->tokens = tokens;
    for (PF_EACH_SHARE(s, share)) {
        const int64_t end = share->position + share->n - 1;
        const int64_t first = pf_max_i64(share->cache->draft_begin, share->position - 1); /* whose streams are there */
        const int64_t begin = pf_max_i64(first, end - reach);
        if (end <= begin) continue;
        shares[lag->n_share++] = (pf_share){.cache = share->cache, .first = lag->n, .n = end - begin, .position = begin};
        if (!s->ex->dry) {
            memcpy(tokens + lag->n, s->tokens + share->first + (begin + 1 - share->position),
                   (size_t)(end - begin) * sizeof *tokens);
        }
        lag->n += end - begin;
    }
    return PF_OK;
}

pf_status pf_mtp_follow(const pf_step *s, float *streams) {
    const pf_config *c = &s->net->config;
    const pf_mtp_weights *w = &s->net->weights.mtp;
    const int64_t floats = (int64_t)c->n_stream * c->n_embd;
    const size_t mark = pf_arena_mark(s->ex->arena);
    pf_step lag;
    for (PF_EACH_SHARE(s, share)) {
        copy_streams(s, share, share->position, share->n, streams + share->first * floats, true);
    }
    PF_TRY(lag_behind(s, &lag));
    if (lag.n == 0) return PF_OK;
    PF_TRY(pf_step_prepare(&lag));
    PF_SCRATCH(float, hidden, s, lag.n * floats);
    PF_SCRATCH(float, inner, s, lag.n * floats);
    for (PF_EACH_SHARE(&lag, share)) {
        copy_streams(s, share, share->position, share->n, hidden + share->first * floats, false);
    }
    PF_TRY(enter(&lag, w, hidden, inner));
    PF_TRY(pf_layer_rows(&lag, c->n_layer, &w->layer, inner));
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}

pf_status pf_mtp_draft(pf_step *s, float *streams, bool chained) {
    const pf_config *c = &s->net->config;
    const pf_mtp_weights *w = &s->net->weights.mtp;
    const size_t mark = pf_arena_mark(s->ex->arena);
    PF_TRY(pf_step_prepare(s));
    PF_SCRATCH(float, hidden, s, s->shares->cache->stream_floats);
    if (!chained) copy_streams(s, s->shares, s->shares->position, 1, hidden, false);
    else if (!s->ex->dry) memcpy(hidden, streams, (size_t)s->shares->cache->stream_floats * sizeof *streams);
    PF_TRY(enter(s, w, hidden, streams));
    PF_TRY(pf_layer(s, c->n_layer, &w->layer, streams));
    PF_TRY(pf_head(s, &w->head_mix, w->norm, streams));
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}
