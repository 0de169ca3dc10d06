/* Mixture of experts: hash or score routing, routed experts, shared expert. */
#include "model/deepseek4.h"

#include "base/arith.h"
#include "base/clock.h"
#include "step/choices.h"
#include "step/recording.h"

#include <string.h>

/* On the step's side. */
static pf_status look_up_experts(const pf_step *s, int32_t layer, const pf_moe_weights *w, const int32_t **out) {
    const int64_t n_used = s->net->config.n_expert_used;
    if (s->frame != NULL) {
        *out = pf_frame_experts(s, layer);
        return PF_OK;
    }
    PF_SCRATCH(int32_t, chosen, s->host, s->n * n_used);
    PF_TRY(pf_step_hash_experts(s, layer, w, chosen));
    void *there;
    PF_TRY(pf_step_carry(s->host, s, chosen, (size_t)(s->n * n_used) * sizeof *chosen, &there));
    *out = there;
    return PF_OK;
}

/* The experts that the step's tokens chose, ascending, into scratch. */
static pf_status distinct_experts(const pf_step *s, const int32_t *chosen, int32_t **out, int64_t *n_out) {
    const pf_config *c = &s->net->config;
    PF_SCRATCH(bool, is_chosen, s, c->n_expert);
    PF_SCRATCH(int32_t, ids, s, c->n_expert);
    *n_out = 0;
    if (s->ex->dry) return PF_OK;
    memset(is_chosen, 0, (size_t)c->n_expert * sizeof *is_chosen);
    for (int64_t i = 0; i < s->n * c->n_expert_used; ++i) is_chosen[chosen[i]] = true;
    for (int32_t e = 0; e < c->n_expert; ++e) {
        if (is_chosen[e]) ids[(*n_out)++] = e;
    }
    *out = ids;
    return PF_OK;
}

/* Has the batch of experts that begins at `begin` read. */
static void want_batch(const pf_step *s, int32_t layer, const int32_t *experts, int64_t n, int64_t begin) {
    const int64_t end = pf_min_i64(n, begin + pf_expert_stream_batch(s->net->experts, layer));
    if (begin < end) pf_expert_stream_want(s->net->experts, s->ex->pool, layer, experts + begin, end - begin);
}

/* Batch by batch; while one computes, the next is read. The first has been asked for already. */
static pf_status streamed_experts(const pf_step *s, int32_t layer, const int32_t *experts, int64_t n,
                                  pf_experts_args *args) {
    const int64_t batch = pf_expert_stream_batch(s->net->experts, layer);
    for (int64_t begin = 0; begin < n; begin += batch) {
        const int64_t end = pf_min_i64(n, begin + batch);
        want_batch(s, layer, experts, n, end);
        args->expert_begin = experts[begin];
        args->expert_end = experts[end - 1] + 1;
        PF_TRY(s->ex->backend->experts(s->ex, args));
    }
    return PF_OK;
}

/* bytes of x from the step's side in scratch of the host's. */
static pf_status to_host(const pf_step *s, const void *x, size_t bytes, void **out) {
    return pf_step_carry(s, s->host, x, bytes, out);
}

/* What the host needs beside the chosen experts; the sum that it writes there begins with zero. */
static pf_status bring_to_host(const pf_step *s, pf_experts_args *args) {
    const size_t n_pair = (size_t)(args->n_token * args->n_used), n_x = (size_t)(args->n_token * s->net->config.n_embd);
    void *x, *weight;
    PF_TRY(to_host(s, args->x, n_x * sizeof *args->x, &x));
    PF_TRY(to_host(s, args->weight, n_pair * sizeof *args->weight, &weight));
    PF_SCRATCH(float, out, s->host, n_x);
    if (!s->ex->dry) memset(out, 0, n_x * sizeof *out);
    args->x = x;
    args->weight = weight;
    args->out = out;
    return PF_OK;
}

/* The shared expert: y [n, D], written. */
static pf_status shared_expert(const pf_step *s, const pf_layer_weights *lw, const float *x, float *y) {
    const pf_backend *be = s->ex->backend;
    const pf_moe_weights *w = &lw->moe;
    const int64_t n = s->n, width = s->net->config.n_embd, ff = s->net->config.n_ff;
    PF_SCRATCH(float, gate, s, n * ff);
    PF_SCRATCH(float, up, s, n * ff);
    PF_TRY(be->linear(s->ex, &w->shared_gate, x, width, n, gate, ff));
    PF_TRY(be->linear(s->ex, &w->shared_up, x, width, n, up, ff));
    PF_TRY(be->swiglu(s->ex, gate, up, n * ff, lw->limit_shared, gate));
    return be->linear(s->ex, &w->shared_down, gate, ff, n, y, width);
}

/* Both kinds of experts of a layer: the shared one on the step's side, from x into y, with the routed ones of `held`
 * (NULL: none); those of args, with what they need, on `side`. The shared one comes first, since routed ones that are
 * not in memory are read while it computes. Beside another side's it is a piece of its own. */
static pf_status both_experts(const pf_step *s, const pf_step *side, int32_t layer, const pf_layer_weights *lw,
                              const float *x, float *y, const pf_experts_args *held, pf_experts_args *args) {
    int32_t *wanted = NULL;
    int64_t n_wanted = 0;
    if (args != NULL && side->net->experts != NULL && side->link == NULL) {
        PF_TRY(distinct_experts(side, args->chosen, &wanted, &n_wanted));
        want_batch(side, layer, wanted, n_wanted, 0);
    }
    if (side != s) PF_TRY(pf_piece_begin(s, layer, PF_PIECE_SHARED));
    PF_TRY(shared_expert(s, lw, x, y));
    if (side != s) PF_TRY(pf_piece_end(s));
    if (held != NULL) PF_TRY(s->ex->backend->experts(s->ex, held));
    if (args == NULL) return PF_OK;
    if (wanted != NULL) return streamed_experts(side, layer, wanted, n_wanted, args);
    return side->ex->backend->experts(side->ex, args);
}

/* Both shares of the routed experts: the device computes those that it holds, from args as they are, while the host
 * computes the others. chosen: the host's. */
static pf_status parted_experts(const pf_step *s, int32_t layer, const pf_layer_weights *lw, int32_t *chosen,
                                pf_experts_args *args) {
    pf_hot_experts *hot = s->net->hot;
    const float *x = args->x;
    float *y = args->out;
    pf_experts_args held = *args;
    pf_weight matrices[3];
    bool on_device = hot != NULL && s->ex->dry, on_host = true;
    void *routed;
    held.n_token = pf_min_i64(s->n, PF_HOT_MOST); /* in a dry run: the most that it may be */
    args->chosen = chosen;
    if (!s->ex->dry && pf_hot_experts_may(hot, layer, s->n)) {
        pf_hot_experts_part(hot, layer, chosen, s->n, matrices, &held, args, &on_device, &on_host);
    }
    if (on_host) PF_TRY(bring_to_host(s, args)); /* before the shared expert is queued, so that both run at once */
    PF_TRY(both_experts(s, s->host, layer, lw, x, y, on_device ? &held : NULL, on_host ? args : NULL));
    if (!on_host) return pf_piece_begin(s, layer, PF_PIECE_REST);
    PF_TRY(pf_step_carry(s->host, s, args->out, (size_t)(s->n * s->net->config.n_embd) * sizeof(float), &routed));
    PF_TRY(pf_piece_begin(s, layer, PF_PIECE_SUM));
    return s->ex->backend->add(s->ex, y, routed, s->n * s->net->config.n_embd);
}

/* The same of a layer on the device whose routed experts' weights are in the host's memory. The host computes these
 * meanwhile, but for those that the device holds, or the device everything, the weights being sent. */
static pf_status away_experts(const pf_step *s, int32_t layer, const pf_layer_weights *lw, pf_experts_args *args) {
    const double begun = pf_clock_seconds();
    const float *x = args->x;
    float *y = args->out;
    const bool may_send = pf_expert_upload_may(s->net->upload, s->n), is_hot = s->net->hot != NULL && !s->ex->dry;
    void *chosen;
    if (is_hot) PF_TRY(pf_hot_experts_advance(s->net->hot, s->host->ex->pool)); /* the device still computes what chooses */
    PF_TRY(to_host(s, args->chosen, (size_t)(s->n * args->n_used) * sizeof *args->chosen, &chosen));
    if (is_hot) PF_TRY(pf_hot_experts_note(s->net->hot, layer, chosen, s->n));
    if (may_send && (s->ex->dry || pf_expert_upload_pays(s->net->upload, lw, chosen, s->n))) {
        const pf_step_mark mark = pf_step_set_mark(s);
        PF_TRY(shared_expert(s, lw, x, y));
        if (!s->ex->dry) return pf_expert_upload_run(s->net->upload, s->ex, s->host->ex->pool, lw, args, begun);
        PF_TRY(s->ex->backend->experts(s->ex, args));
        pf_step_reset(s, mark);
    }
    PF_TRY(parted_experts(s, layer, lw, chosen, args));
    if (may_send && !s->ex->dry) pf_expert_upload_note_host(s->net->upload, s->n, begun);
    return PF_OK;
}

pf_status pf_moe(const pf_step *s, int32_t layer, const pf_layer_weights *lw, const float *x, float *y) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_moe_weights *w = &lw->moe;
    const int64_t n = s->n, width = c->n_embd, n_expert = c->n_expert, n_used = c->n_expert_used;

    PF_SCRATCH(float, logits, s, n * n_expert);
    PF_SCRATCH(float, scores, s, n * n_expert);
    PF_SCRATCH(int32_t, chosen, s, n * n_used);
    PF_SCRATCH(float, weight, s, n * n_used);
    const int32_t *table = NULL;
    PF_TRY(be->linear(s->ex, &w->router, x, width, n, logits, n_expert));
    if (lw->hash) PF_TRY(look_up_experts(s, layer, w, &table));
    else table = pf_choices_held_experts(s, layer); /* weighted by this model's own scores */
    const pf_route_args route = {
        .logits = logits, .bias = w->router_bias, .table = table, .n_token = n, .n_expert = n_expert,
        .n_used = n_used, .scale = c->expert_scale, .scores = scores, .chosen = chosen, .weight = weight,
    };
    PF_TRY(be->route(s->ex, &route));
    pf_choices_note_experts(s, layer, chosen);
    pf_step_tap(s, "router", layer, scores, n_expert);
    for (int64_t t = 0; t < n; ++t) pf_step_tap_ints(s, "experts", layer, t, chosen + t * n_used, n_used);
    pf_step_tap(s, "expert_w", layer, weight, n_used);

    pf_experts_args experts = {
        .gate = &w->gate, .up = &w->up, .down = &w->down, .x = x, .chosen = chosen, .weight = weight, .n_token = n,
        .n_used = n_used, .expert_end = c->n_expert, .limit = lw->limit_routed, .out = y,
    };
    if (lw->experts_on_device != lw->on_device) {
        PF_TRY(pf_piece_end(s)); /* the host needs what was chosen */
        return away_experts(s, layer, lw, &experts);
    }
    return both_experts(s, s, layer, lw, x, y, NULL, &experts);
}
