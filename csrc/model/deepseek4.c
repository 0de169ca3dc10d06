/* The network, as in the report: embed into N equal streams, layers of mHC(attention) and mHC(MoE), head. Everything
 * about speed lives in the backend. */
#include "model/deepseek4.h"

#include "step/recording.h"

static pf_mhc_shape mhc_shape(const pf_config *c) {
    return (pf_mhc_shape){.n_stream = c->n_stream, .sinkhorn_iters = c->sinkhorn_iters, .n_embd = c->n_embd,
                          .norm_eps = c->norm_eps, .hc_eps = c->hc_eps};
}

/* One site of manifold-constrained hyper-connections, mHC: what the block reads and how it is written back. */
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
    const pf_step_mark mark = pf_step_set_mark(s);
    site_run run;
    PF_TRY(enter_site(s, layer, &w->hc_attn, w->attn.norm, streams, "attn_in", "attn_norm", &run));
    PF_TRY(pf_attention(s, layer, w->ratio, &w->attn, run.x, run.y));
    PF_TRY(leave_site(s, layer, &run, streams, "attn_out", "attn_X"));
    pf_step_reset(s, mark);

    PF_TRY(enter_site(s, layer, &w->hc_ffn, w->moe.norm, streams, "ffn_in", "ffn_norm", &run));
    PF_TRY(pf_moe(s, layer, w, run.x, run.y));
    PF_TRY(leave_site(s, layer, &run, streams, "ffn_out", "ffn_X"));
    pf_step_reset(s, mark);
    return PF_OK;
}

pf_status pf_layer_rows(const pf_step *s, int32_t layer, const pf_layer_weights *w, const float *streams) {
    site_run run;
    PF_TRY(enter_site(s, layer, &w->hc_attn, w->attn.norm, streams, "attn_in", "attn_norm", &run));
    return pf_attention_rows(s, layer, w->ratio, &w->attn, run.x);
}

/* logits [n_out, vocab], on the host, of x [n_out, D] on the step's side. */
static pf_status project_vocabulary(const pf_step *s, const float *x, int64_t n_out, float *logits) {
    const pf_config *c = &s->net->config;
    const pf_step *side = pf_step_side(s, s->net->weights.head_on_device);
    const size_t bytes = (size_t)(n_out * c->n_vocab) * sizeof(float);
    void *input;
    float *output = logits;
    PF_TRY(pf_step_carry(s, side, x, (size_t)(n_out * c->n_embd) * sizeof *x, &input));
    if (side->link != NULL) {
        output = pf_arena_alloc(side->ex->arena, bytes);
        if (output == NULL) return PF_ERR_MEMORY;
    }
    PF_TRY(side->ex->backend->linear(side->ex, &s->net->weights.head, input, c->n_embd, n_out, output, c->n_vocab));
    PF_TRY(pf_piece_end(side));
    if (side->link == NULL || side->ex->dry) return PF_OK;
    return pf_link_download(side->link, logits, output, bytes);
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
    PF_TRY(project_vocabulary(s, x, n_out, logits));
    last.link = NULL; /* that is where the logits are */
    pf_step_tap(&last, "logits", -1, logits, c->n_vocab);
    return PF_OK;
}

pf_status pf_forward(const pf_step *s, int64_t n_out, float *logits) {
    const pf_config *c = &s->net->config;
    const pf_weights *w = &s->net->weights;
    const int64_t stream_floats = (int64_t)c->n_stream * c->n_embd;
    const size_t bytes = (size_t)(s->n * stream_floats) * sizeof(float);
    const pf_step *at = s; /* the side where the streams are */
    PF_SCRATCH(float, streams, s, s->n * stream_floats);
    void *moved = streams;
    PF_TRY(s->ex->backend->embed(s->ex, &w->embed, s->tokens, s->n, c->n_stream, streams));
    pf_step_tap(s, "embed", -1, streams, stream_floats);
    for (int32_t l = 0; l < c->n_layer; ++l) {
        const pf_step *side = pf_step_side(s, w->layers[l].on_device);
        PF_TRY(pf_step_carry(at, side, moved, bytes, &moved));
        if (side != at) PF_TRY(pf_piece_begin(side, l, PF_PIECE_LAYER));
        at = side;
        PF_TRY(pf_layer(at, l, &w->layers[l], moved));
    }
    if (n_out > 0) {
        const pf_step *head = pf_step_side(s, w->head_on_device);
        void *there;
        PF_TRY(pf_step_carry(at, head, moved, bytes, &there));
        PF_TRY(pf_head(head, &w->head_mix, w->norm, there, n_out, logits));
    }
    PF_TRY(pf_piece_end(at));
    if (!w->mtp.present) return PF_OK;
    void *on_host;
    PF_TRY(pf_step_carry(at, s, moved, bytes, &on_host));
    return pf_mtp_follow(s, on_host);
}
