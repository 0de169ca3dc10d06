/* The network, as in the report: embed into N equal streams, layers of mHC(attention) and mHC(MoE), head. Everything
 * about speed lives in the backend. */
#include "model/step.h"

static pf_mhc_shape mhc_shape(const pf_config *c) {
    return (pf_mhc_shape){.n_stream = c->n_stream, .sinkhorn_iters = c->sinkhorn_iters, .n_embd = c->n_embd,
                          .norm_eps = c->norm_eps, .hc_eps = c->hc_eps};
}

/* One mHC site (2.2): what the block reads and how it is written back. */
typedef struct site_run {
    float *x;          /* [n, D] block input after its norm */
    float *y;          /* [n, D] block output */
    float *post, *comb; /* [n, N], [n, N N] */
} site_run;

static pf_status enter_site(const pf_step *s, int32_t layer, const pf_mhc_site *site, const float *norm,
                            const float *streams, const char *tap_in, const char *tap_norm, site_run *out) {
    const pf_config *c = &s->net->config;
    const pf_mhc_shape shape = mhc_shape(c);
    const int64_t width = c->n_embd, n_stream = c->n_stream;
    PF_SCRATCH(float, x, s, s->n * width);
    PF_SCRATCH(float, y, s, s->n * width);
    PF_SCRATCH(float, post, s, s->n * n_stream);
    PF_SCRATCH(float, comb, s, s->n * n_stream * n_stream);
    PF_TRY(s->ex->backend->mhc_pre(s->ex, &shape, site, streams, s->n, x, post, comb));
    pf_step_tap(s, tap_in, layer, x, width);
    PF_TRY(s->ex->backend->rms_norm(s->ex, x, s->n, width, norm, c->norm_eps, x));
    pf_step_tap(s, tap_norm, layer, x, width);
    *out = (site_run){x, y, post, comb};
    return PF_OK;
}

static pf_status leave_site(const pf_step *s, int32_t layer, const site_run *run, float *streams, const char *tap_out,
                            const char *tap_streams) {
    const pf_config *c = &s->net->config;
    const pf_mhc_shape shape = mhc_shape(c);
    pf_step_tap(s, tap_out, layer, run->y, c->n_embd);
    PF_TRY(s->ex->backend->mhc_post(s->ex, &shape, run->y, run->post, run->comb, s->n, streams));
    pf_step_tap(s, tap_streams, layer, streams, (int64_t)c->n_stream * c->n_embd);
    return PF_OK;
}

pf_status pf_layer(const pf_step *s, int32_t layer, const pf_layer_weights *w, float *streams) {
    const size_t mark = pf_arena_mark(s->ex->arena);
    site_run run;
    PF_TRY(enter_site(s, layer, &w->hc_attn, w->attn.norm, streams, "attn_in", "attn_norm", &run));
    PF_TRY(pf_attention(s, layer, w->ratio, &w->attn, run.x, run.y));
    PF_TRY(leave_site(s, layer, &run, streams, "attn_out", "attn_X"));
    pf_arena_reset(s->ex->arena, mark);

    PF_TRY(enter_site(s, layer, &w->hc_ffn, w->moe.norm, streams, "ffn_in", "ffn_norm", &run));
    PF_TRY(pf_moe(s, layer, w, run.x, run.y));
    PF_TRY(leave_site(s, layer, &run, streams, "ffn_out", "ffn_X"));
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}

pf_status pf_layer_rows(const pf_step *s, int32_t layer, const pf_layer_weights *w, const float *streams) {
    site_run run;
    PF_TRY(enter_site(s, layer, &w->hc_attn, w->attn.norm, streams, "attn_in", "attn_norm", &run));
    return pf_attention_rows(s, layer, w->ratio, &w->attn, run.x);
}

pf_status pf_head(const pf_step *s, const pf_mhc_site *mix, const float *norm, const float *streams, int64_t n_out,
                  float *logits) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_mhc_shape shape = mhc_shape(c);
    const int64_t width = c->n_embd, skip = s->n - n_out;
    pf_step last = *s; /* taps see the tokens whose logits are asked for */
    last.n = n_out;
    last.position += skip;
    PF_SCRATCH(float, x, s, n_out * width);
    PF_TRY(be->mhc_head(s->ex, &shape, mix, streams + skip * c->n_stream * width, n_out, x));
    pf_step_tap(&last, "head_in", -1, x, width);
    PF_TRY(be->rms_norm(s->ex, x, n_out, width, norm, c->norm_eps, x));
    pf_step_tap(&last, "head_norm", -1, x, width);
    PF_TRY(be->linear(s->ex, &s->net->weights.head, x, width, n_out, logits, c->n_vocab));
    pf_step_tap(&last, "logits", -1, logits, c->n_vocab);
    return PF_OK;
}

pf_status pf_forward(const pf_step *s, int64_t n_out, float *logits) {
    const pf_config *c = &s->net->config;
    const pf_weights *w = &s->net->weights;
    const int64_t stream_floats = (int64_t)c->n_stream * c->n_embd;
    PF_SCRATCH(float, streams, s, s->n * stream_floats);
    PF_TRY(s->ex->backend->embed(s->ex, &w->embed, s->tokens, s->n, c->n_stream, streams));
    pf_step_tap(s, "embed", -1, streams, stream_floats);
    for (int32_t l = 0; l < c->n_layer; ++l) PF_TRY(pf_layer(s, l, &w->layers[l], streams));
    if (w->mtp.present) PF_TRY(pf_mtp_follow(s, streams));
    return n_out > 0 ? pf_head(s, &w->head_mix, w->norm, streams, n_out, logits) : PF_OK;
}
