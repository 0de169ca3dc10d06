/* Mixture of experts: hash or score routing, routed experts, shared expert. */
#include "model/recording.h"

#include "base/arith.h"

#include <string.h>

pf_status pf_hash_experts(const pf_step *s, int32_t layer, const pf_moe_weights *w, int32_t *chosen) {
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

/* On the step's side. */
static pf_status look_up_experts(const pf_step *s, int32_t layer, const pf_moe_weights *w, int32_t **out) {
    const int64_t n_used = s->net->config.n_expert_used;
    if (s->frame != NULL) {
        *out = pf_frame_experts(s, layer);
        return PF_OK;
    }
    PF_SCRATCH(int32_t, chosen, s->host, s->n * n_used);
    PF_TRY(pf_hash_experts(s, layer, w, chosen));
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

/* What the experts of a layer need, brought to the host; the sum they write there begins with zero. */
static pf_status bring_to_host(const pf_step *s, pf_experts_args *args) {
    const int64_t width = s->net->config.n_embd;
    const size_t n_pair = (size_t)(args->n_token * args->n_used), n_x = (size_t)(args->n_token * width);
    void *x, *chosen, *weight;
    PF_TRY(pf_step_carry(s, s->host, args->x, n_x * sizeof *args->x, &x));
    PF_TRY(pf_step_carry(s, s->host, args->chosen, n_pair * sizeof *args->chosen, &chosen));
    PF_TRY(pf_step_carry(s, s->host, args->weight, n_pair * sizeof *args->weight, &weight));
    PF_SCRATCH(float, out, s->host, n_x);
    if (!s->ex->dry) memset(out, 0, n_x * sizeof *out);
    args->x = x;
    args->chosen = chosen;
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

pf_status pf_moe(const pf_step *s, int32_t layer, const pf_layer_weights *lw, const float *x, float *y) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_moe_weights *w = &lw->moe;
    const int64_t n = s->n, width = c->n_embd, n_expert = c->n_expert, n_used = c->n_expert_used;
    const pf_step *side = pf_step_side(s, lw->experts_on_device); /* of the routed experts */
    const bool away = side->link != s->link;

    PF_SCRATCH(float, logits, s, n * n_expert);
    PF_SCRATCH(float, scores, s, n * n_expert);
    PF_SCRATCH(int32_t, chosen, s, n * n_used);
    PF_SCRATCH(float, weight, s, n * n_used);
    int32_t *table = NULL;
    PF_TRY(be->linear(s->ex, &w->router, x, width, n, logits, n_expert));
    if (lw->hash) PF_TRY(look_up_experts(s, layer, w, &table));
    const pf_route_args route = {
        .logits = logits, .bias = w->router_bias, .table = table, .n_token = n, .n_expert = n_expert,
        .n_used = n_used, .scale = c->expert_scale, .scores = scores, .chosen = chosen, .weight = weight,
    };
    PF_TRY(be->route(s->ex, &route));
    pf_step_tap(s, "router", layer, scores, n_expert);
    for (int64_t t = 0; t < n; ++t) pf_step_tap_ints(s, "experts", layer, t, chosen + t * n_used, n_used);
    pf_step_tap(s, "expert_w", layer, weight, n_used);

    pf_experts_args experts = {
        .gate = &w->gate, .up = &w->up, .down = &w->down, .x = x, .chosen = chosen, .weight = weight, .n_token = n,
        .n_used = n_used, .expert_end = c->n_expert, .limit = lw->limit_routed, .out = y,
    };
    if (away) PF_TRY(bring_to_host(s, &experts)); /* before the shared expert is queued, so that both run at once */
    int32_t *wanted = NULL;
    int64_t n_wanted = 0;
    if (s->net->experts != NULL && side->link == NULL) {
        PF_TRY(distinct_experts(side, experts.chosen, &wanted, &n_wanted));
        want_batch(side, layer, wanted, n_wanted, 0); /* is read while the shared expert computes */
    }
    PF_TRY(shared_expert(s, lw, x, y));
    if (wanted != NULL) {
        PF_TRY(streamed_experts(side, layer, wanted, n_wanted, &experts));
    } else {
        PF_TRY(side->ex->backend->experts(side->ex, &experts));
    }
    if (!away) return PF_OK;
    void *routed;
    PF_TRY(pf_step_carry(side, s, experts.out, (size_t)(n * width) * sizeof(float), &routed));
    return be->add(s->ex, y, routed, n * width);
}
