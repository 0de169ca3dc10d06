/* DSpark: from what some of the model's layers put out, a block of tokens at once, each then corrected by the one before.
 *
 * Every token of the timeline leaves one window row in each stage, made of the layers' outputs alone. A draft is a pass of
 * the stages over a block: the token that was picked last, and noise for those behind it. Its rows see each other, and the
 * timeline's last ones, the same for all of them; they are written behind the timeline's end, where what comes next goes. */
#include "model/deepseek4.h"

#include "base/arith.h"
#include "model/draft_head.h"

#include <math.h>
#include <string.h>

/* Tokens whose rows a later draft may see: older ones are out of every window that can be returned to. */
static int64_t reach(const pf_step *s) { return s->net->config.window + PF_ROLLBACK; }

static int64_t feature_floats(const pf_step *s) {
    return (int64_t)s->net->weights.dspark.config.n_target * s->net->config.n_embd;
}

pf_status pf_dspark_begin(pf_step *s) {
    for (pf_share *share = s->shares; share < s->shares + s->n_share; ++share) {
        share->n_feature = pf_min_i64(share->n, reach(s));
        PF_SCRATCH(float, features, s, share->n_feature * feature_floats(s));
        share->features = features;
    }
    return PF_OK;
}

/* The mean of each token's streams [n, N D] into a column of its features. */
static void take_means(const pf_config *c, const float *streams, int64_t n, float *features, int64_t ld) {
    const int64_t width = c->n_embd;
    const float scale = 1.0f / (float)c->n_stream;
    for (int64_t t = 0; t < n; ++t, streams += c->n_stream * width, features += ld) {
        for (int64_t d = 0; d < width; ++d) {
            float sum = 0.0f;
            for (int64_t k = 0; k < c->n_stream; ++k) sum += streams[k * width + d];
            features[d] = sum * scale;
        }
    }
}

pf_status pf_dspark_note(const pf_step *s, int32_t layer, const float *streams) {
    const pf_config *c = &s->net->config;
    const pf_dspark_config *d = &s->net->weights.dspark.config;
    const int64_t floats = (int64_t)c->n_stream * c->n_embd;
    for (int32_t i = 0; i < d->n_target; ++i) {
        if (d->target[i] != layer) continue;
        for (PF_EACH_SHARE(s, share)) {
            const int64_t n = share->n_feature;
            const pf_step_mark mark = pf_step_set_mark(s);
            void *there;
            PF_TRY(pf_step_carry(s, s->host, streams + (share->first + share->n - n) * floats,
                                 (size_t)(n * floats) * sizeof *streams, &there));
            if (!s->host->ex->dry) take_means(c, there, n, share->features + i * c->n_embd, feature_floats(s));
            pf_step_reset(s, mark);
        }
    }
    return PF_OK;
}

bool pf_dspark_wants(const pf_step *s, int32_t layer) {
    const pf_dspark_config *d = &s->net->weights.dspark.config;
    for (int32_t i = 0; i < d->n_target && d->n_stage > 0; ++i) {
        if (d->target[i] == layer) return true;
    }
    return false;
}

/* The tokens that there are features of, as a step over them, and these in one piece. */
static pf_status gather(const pf_step *s, pf_step *out, const float **features) {
    PF_SCRATCH(pf_share, shares, s, s->n_share);
    *out = *s;
    out->shares = shares;
    out->n_share = out->n = 0;
    for (PF_EACH_SHARE(s, share)) {
        pf_share *own = &shares[out->n_share++];
        *own = *share;
        own->first = out->n;
        own->n = share->n_feature;
        own->position = share->position + share->n - share->n_feature;
        out->n += own->n;
    }
    *features = shares->features;
    if (out->n_share == 1) return PF_OK;
    PF_SCRATCH(float, all, s, out->n * feature_floats(s));
    for (const pf_share *share = shares; share < shares + out->n_share && !s->ex->dry; ++share) {
        memcpy(all + share->first * feature_floats(s), share->features,
               (size_t)(share->n * feature_floats(s)) * sizeof *all);
    }
    *features = all;
    return PF_OK;
}

pf_status pf_dspark_follow(const pf_step *s) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_dspark_weights *w = &s->net->weights.dspark;
    const size_t mark = pf_arena_mark(s->ex->arena);
    const float *features;
    pf_step own;
    PF_TRY(gather(s, &own, &features));
    PF_TRY(pf_step_prepare(&own));
    PF_SCRATCH(float, x, s, own.n * c->n_embd);
    PF_TRY(be->linear(s->ex, &w->main_proj, features, feature_floats(s), own.n, x, c->n_embd));
    PF_TRY(be->rms_norm(s->ex, x, own.n, c->n_embd, w->main_norm, c->norm_eps, x));
    pf_step_tap(&own, "draft_main", -1, x, c->n_embd);
    for (int32_t i = 0; i < w->config.n_stage; ++i) {
        PF_TRY(pf_attention_rows(&own, c->n_layer + i, 0, &w->stages[i].attn, x));
    }
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}

pf_status pf_dspark_draft(pf_step *s, int64_t n, float *hidden, float *logits) {
    const pf_config *c = &s->net->config;
    const pf_backend *be = s->ex->backend;
    const pf_dspark_weights *w = &s->net->weights.dspark;
    const size_t mark = pf_arena_mark(s->ex->arena);
    PF_TRY(pf_step_prepare(s));
    PF_SCRATCH(float, streams, s, s->n * c->n_stream * c->n_embd);
    PF_TRY(be->embed(s->ex, &s->net->weights.embed, s->tokens, s->n, c->n_stream, streams));
    for (int32_t i = 0; i < w->config.n_stage; ++i) PF_TRY(pf_layer(s, c->n_layer + i, &w->stages[i], streams));
    PF_TRY(pf_head_input(s, &w->head_mix, streams, n, hidden));
    PF_SCRATCH(float, x, s, n * c->n_embd);
    PF_TRY(be->rms_norm(s->ex, hidden, n, c->n_embd, w->norm, c->norm_eps, x));
    PF_TRY(pf_project_vocabulary(s, x, n, logits));
    for (int64_t i = 0; i < n; ++i) {
        const int64_t position = s->shares->position + i;
        pf_share_tap(s, s->shares, "draft_hidden", -1, position, hidden + i * c->n_embd, 1, c->n_embd);
        pf_share_tap(s, s->shares, "draft_logits", -1, position, logits + i * c->n_vocab, 1, c->n_vocab);
    }
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}

/* sigmoid(proj . [hidden | embedded]) */
static float confidence(const pf_dspark_weights *w, int64_t width, const float *hidden, const float *embedded) {
    double sum = 0.0;
    for (int64_t d = 0; d < width; ++d) sum += (double)w->confidence[d] * (double)hidden[d];
    for (int64_t r = 0; r < w->config.rank; ++r) sum += (double)w->confidence[width + r] * (double)embedded[r];
    return (float)(1.0 / (1.0 + exp(-sum)));
}

/* logits += markov_w2 . embedded, for tokens [begin, end). */
static pf_status add_correction(const pf_step *s, int64_t begin, int64_t end, const float *embedded, float *logits) {
    const pf_dspark_weights *w = &s->net->weights.dspark;
    if (begin == end) return PF_OK;
    const pf_weight rows = pf_weight_rows(&w->markov_w2, begin, end - begin);
    const size_t mark = pf_arena_mark(s->ex->arena);
    PF_SCRATCH(float, term, s, rows.rows);
    PF_TRY(s->ex->backend->linear(s->ex, &rows, embedded, w->config.rank, 1, term, rows.rows));
    PF_TRY(s->ex->backend->add(s->ex, logits + begin, term, rows.rows));
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}

pf_status pf_dspark_correct(const pf_step *s, int32_t previous, const float *hidden, float *logits, float *chance) {
    const pf_config *c = &s->net->config;
    const pf_dspark_weights *w = &s->net->weights.dspark;
    const pf_draft_rows rows = pf_draft_head_rows(s->draft_head, c->n_vocab);
    const size_t mark = pf_arena_mark(s->ex->arena);
    PF_SCRATCH(float, embedded, s, w->config.rank);
    PF_TRY(s->ex->backend->embed(s->ex, &w->markov_w1, &previous, 1, 1, embedded));
    PF_TRY(add_correction(s, 0, rows.first, embedded, logits));
    PF_TRY(add_correction(s, rows.last, c->n_vocab, embedded, logits));
    if (w->confidence != NULL && !s->ex->dry) *chance = confidence(w, c->n_embd, hidden, embedded);
    pf_arena_reset(s->ex->arena, mark);
    return PF_OK;
}
