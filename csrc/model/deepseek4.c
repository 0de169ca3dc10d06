/* The network, as in the report: embed into N equal streams, layers of mHC(attention) and mHC(MoE), head. Everything
 * about speed lives in the backend. */
#include "model/deepseek4.h"

#include "base/arith.h"
#include "model/draft_head.h"
#include "step/recording.h"

#include <string.h>

enum { HEAD_ROWS = 32 }; /* whose logits are in scratch at once, where several shares ask for some */

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

pf_status pf_project_vocabulary(const pf_step *s, const float *x, int64_t n_out, float *logits) {
    if (s->draft_head != NULL) return pf_draft_head_logits(s, s->draft_head, x, n_out, logits);
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

/* Reports rows x [n_out, width] of a side, which are those that logits are asked for. */
static void tap_outputs(const pf_step *s, const char *name, const float *x, int64_t width) {
    for (PF_EACH_SHARE(s, share)) {
        pf_share_tap(s, share, name, -1, share->position + share->n - share->n_out, x, share->n_out, width);
        x += share->n_out * width;
    }
}

/* Logits of rows x [n_out, D], which several shares asked for, on the host: the head is read once for all of them, or for
 * as many as there is scratch for at once. */
static pf_status project_for_shares(const pf_step *s, const float *x, int64_t n_out) {
    const int64_t n_vocab = s->net->config.n_vocab, most = pf_min_i64(n_out, HEAD_ROWS);
    const pf_share *share = pf_step_next(s, NULL);
    int64_t row = 0; /* of the share's */
    PF_SCRATCH(float, logits, s, most * n_vocab);
    for (int64_t begin = 0; begin < n_out; begin += most) {
        const int64_t n = pf_min_i64(most, n_out - begin);
        PF_TRY(pf_project_vocabulary(s, x + begin * s->net->config.n_embd, n, logits));
        for (int64_t i = 0; i < n; ++i, ++row) {
            for (; row == share->n_out; row = 0) share = pf_step_next(s, share);
            memcpy(share->logits + row * n_vocab, logits + i * n_vocab, (size_t)n_vocab * sizeof *logits);
        }
    }
    return PF_OK;
}

pf_status pf_head(const pf_step *s, const pf_mhc_site *mix, const float *norm, const float *streams) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_mhc_shape shape = mhc_shape(c);
    const int64_t width = c->n_embd;
    int64_t n_out = 0, at = 0;
    for (PF_EACH_SHARE(s, share)) n_out += share->n_out;
    if (n_out == 0) return PF_OK;
    PF_SCRATCH(float, x, s, n_out * width);
    for (PF_EACH_SHARE(s, share)) {
        const int64_t skip = share->n - share->n_out;
        if (share->n_out == 0) continue;
        PF_TRY(be->mhc_head(s->ex, &shape, mix, streams + (share->first + skip) * c->n_stream * width, share->n_out,
                            x + at * width));
        at += share->n_out;
    }
    tap_outputs(s, "head_in", x, width);
    PF_TRY(be->rms_norm(s->ex, x, n_out, width, norm, c->norm_eps, x));
    tap_outputs(s, "head_norm", x, width);
    if (s->n_share == 1) PF_TRY(pf_project_vocabulary(s, x, n_out, s->shares->logits));
    else PF_TRY(project_for_shares(s, x, n_out));
    for (PF_EACH_SHARE(s, share)) {
        pf_share_tap(s->host, share, "logits", -1, share->position + share->n - share->n_out, share->logits, share->n_out,
                     c->n_vocab);
    }
    return PF_OK;
}

pf_status pf_head_input(const pf_step *s, const pf_mhc_site *mix, const float *streams, int64_t n, float *x) {
    const pf_mhc_shape shape = mhc_shape(&s->net->config);
    return s->ex->backend->mhc_head(s->ex, &shape, mix, streams, n, x);
}

/* What DSpark sees of a layer before the last, whose output is complete on its side. */
static pf_status note_output(const pf_step *at, int32_t layer, const float *streams) {
    if (!pf_dspark_wants(at, layer)) return PF_OK;
    PF_TRY(pf_piece_end(at)); /* it is copied to the host */
    PF_TRY(pf_dspark_note(at, layer, streams));
    return pf_piece_begin(at, layer + 1, PF_PIECE_LAYER);
}

/* The layers over streams, which lie on *side, and where they lie then. */
static pf_status run_layers(pf_step *s, void **streams, const pf_step **side) {
    const pf_config *c = &s->net->config;
    const pf_weights *w = &s->net->weights;
    const int64_t width = (int64_t)c->n_stream * c->n_embd;
    const pf_step *at = s;
    for (int32_t l = w->range.first; l < w->range.end; ++l) {
        const pf_step *next = pf_step_side(s, w->layers[l].on_device);
        if (s->n_share > 1) PF_TRY(pf_step_drop_cancelled(s, *streams, width));
        PF_TRY(pf_step_carry(at, next, *streams, (size_t)(s->n * width) * sizeof(float), streams));
        if (next != at) PF_TRY(pf_piece_begin(next, l, PF_PIECE_LAYER));
        at = next;
        PF_TRY(pf_layer(at, l, &w->layers[l], *streams));
        if (l < c->n_layer - 1) PF_TRY(note_output(at, l, *streams));
    }
    *side = at;
    return s->n_share > 1 ? pf_step_drop_cancelled(s, *streams, width) : PF_OK;
}

/* The streams [n, N D] that the layers begin with: the tokens' embeddings, or in a later stage what the one before made. */
static pf_status take_streams(const pf_step *s, float *streams) {
    const pf_config *c = &s->net->config;
    const int64_t width = (int64_t)c->n_stream * c->n_embd;
    if (s->net->weights.range.first == 0) {
        PF_TRY(s->ex->backend->embed(s->ex, &s->net->weights.embed, s->tokens, s->n, c->n_stream, streams));
        pf_step_tap(s, "embed", -1, streams, width);
        return PF_OK;
    }
    for (PF_EACH_SHARE(s, share)) {
        if (s->ex->dry) break;
        memcpy(streams + share->first * width, share->streams_in, (size_t)(share->n * width) * sizeof *streams);
    }
    return PF_OK;
}

/* What the next stage begins with. */
static void hand_on_streams(const pf_step *s, const float *streams) {
    const int64_t width = (int64_t)s->net->config.n_stream * s->net->config.n_embd;
    for (PF_EACH_SHARE(s, share)) {
        if (s->ex->dry) break;
        memcpy(share->streams_out, streams + share->first * width, (size_t)(share->n * width) * sizeof *streams);
    }
}

pf_status pf_forward(pf_step *s) {
    const pf_config *c = &s->net->config;
    const pf_weights *w = &s->net->weights;
    const int64_t stream_floats = (int64_t)c->n_stream * c->n_embd;
    const pf_step *at = s; /* the side where the streams are */
    PF_SCRATCH(float, streams, s, s->n * stream_floats);
    void *moved = streams;
    bool has_logits = false;
    if (w->dspark.config.n_stage > 0) PF_TRY(pf_dspark_begin(s));
    PF_TRY(take_streams(s, streams));
    PF_TRY(run_layers(s, &moved, &at));
    if (!pf_range_has_head(c, w->range)) { /* stages are computed on the host */
        hand_on_streams(s, moved);
        return PF_OK;
    }
    const size_t bytes = (size_t)(s->n * stream_floats) * sizeof(float);
    for (PF_EACH_SHARE(s, share)) has_logits = has_logits || share->n_out > 0;
    if (has_logits) {
        const pf_step *head = pf_step_side(s, w->head_on_device);
        void *there;
        PF_TRY(pf_step_carry(at, head, moved, bytes, &there));
        PF_TRY(pf_head(head, &w->head_mix, w->norm, there));
    }
    PF_TRY(pf_piece_end(at));
    if (w->dspark.config.n_stage > 0) {
        PF_TRY(pf_dspark_note(at, c->n_layer - 1, moved));
        return pf_dspark_follow(s);
    }
    if (!w->mtp.present) return PF_OK;
    void *on_host;
    PF_TRY(pf_step_carry(at, s, moved, bytes, &on_host));
    return pf_mtp_follow(s, on_host);
}
