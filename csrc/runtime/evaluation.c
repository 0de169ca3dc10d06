#include "runtime/evaluation.h"

#include "base/arith.h"
#include "base/memory.h"
#include "model/deepseek4.h"
#include "model/draft_head.h"
#include "runtime/logits.h"
#include "step/recording.h"

/* More than any scratch, of the device's memory that does not exist: one block makes an arena's peak exact. */
static const size_t plenty = SIZE_MAX / 4;

void pf_evaluation_init(pf_evaluation *out, const pf_model *model, pf_arenas arenas, pf_share *shares, int64_t n_share,
                        const int32_t *tokens, pf_error *err) {
    const pf_link *link = model->link;
    int64_t n = 0;
    for (int64_t i = 0; i < n_share; ++i) {
        shares[i].first = n;
        n += shares[i].n;
    }
    /* Where there are several, their cancelled ones are looked for between layers. */
    out->host_exec = (pf_exec){.backend = model->backend, .pool = model->pool, .arena = arenas.host,
                               .cancel = n_share == 1 ? shares->cancel : NULL,
                               .exact = model->precision == PF_PRECISION_EXACT,
                               .int8 = model->precision == PF_PRECISION_INT8};
    out->device_exec = out->host_exec;
    out->device_exec.arena = arenas.device;
    out->device_exec.pool = NULL;
    if (link != NULL) out->device_exec.backend = pf_link_backend(link);
    out->host = (pf_step){.net = &model->net, .ex = &out->host_exec, .host = &out->host,
                          .device = link != NULL ? &out->device : NULL, .err = err, .shares = shares, .n_share = n_share,
                          .tokens = tokens, .n = n};
    out->device = out->host;
    out->device.ex = &out->device_exec;
    out->device.link = model->link;
}

pf_status pf_evaluate(pf_evaluation *evaluation) {
    PF_TRY(pf_step_prepare(&evaluation->host));
    if (evaluation->host.device != NULL) {
        if (pf_frame_suits(&evaluation->device)) {
            return pf_frame_run(&evaluation->device, &evaluation->host, pf_forward);
        }
        PF_TRY(pf_step_prepare(&evaluation->device));
    }
    return pf_forward(&evaluation->host);
}

/* A step of n tokens at the end of the context; *out for what comes after it. */
static pf_status step_dry(const pf_model *model, pf_share *share, pf_arenas arenas, const int32_t *tokens, int64_t n,
                          pf_evaluation *out) {
    *share = (pf_share){.cache = share->cache, .n = n, .position = share->cache->n_ctx - n, .n_out = 1};
    pf_evaluation_init(out, model, arenas, share, 1, tokens, NULL);
    out->host_exec.dry = true;
    out->device_exec.dry = true;
    pf_arena_reset(arenas.host, 0);
    pf_arena_reset(arenas.device, 0);
    return pf_evaluate(out);
}

/* The likeliest token by logits, and its probability. */
static pf_status pick_likeliest(const float *logits, int64_t n_vocab, int32_t *token, float *chance, pf_error *err) {
    PF_TRY(pf_logits_highest(logits, n_vocab, token, err));
    *chance = (float)pf_exp_nonpositive(-pf_logits_log_total(logits, n_vocab, logits[*token]));
    return PF_OK;
}

/* The likeliest token that a draft may be of. */
static pf_status pick_drafted(const pf_step *s, const float *logits, int32_t *token) {
    const int64_t n_vocab = s->net->config.n_vocab;
    const pf_draft_rows rows = pf_draft_head_rows(s->draft_head, n_vocab);
    int32_t late;
    PF_TRY(pf_logits_highest(logits, rows.first, token, s->err));
    if (rows.last == n_vocab) return PF_OK;
    PF_TRY(pf_logits_highest(logits + rows.last, n_vocab - rows.last, &late, s->err));
    late += (int32_t)rows.last;
    if (logits[late] > logits[*token]) *token = late;
    return PF_OK;
}

/* ---- Drafts ------------------------------------------------------------------------------------------------- */

void pf_draft_begin(pf_draft *draft, const pf_model *model, pf_arenas arenas, int32_t token, pf_error *err) {
    const pf_dspark_config *dspark = &model->net.weights.dspark.config;
    pf_share *share = &draft->share;
    const int64_t position = share->cache->position, window = model->net.config.window;
    const int64_t known = position - share->cache->draft_begin; /* tokens */
    draft->tokens[0] = token;
    if (dspark->n_stage > 0) {
        for (int32_t i = 1; i < dspark->block; ++i) draft->tokens[i] = dspark->noise_token;
        share->n = dspark->block;
        share->position = position;
        share->is_block = true;
        share->context = pf_min_i64(window, known);
    } else { /* from the last token's streams */
        share->n = share->n_out = 1;
        share->position = position - 1;
        share->context = pf_min_i64(window, known);
    }
    pf_evaluation_init(&draft->evaluation, model, arenas, share, 1, draft->tokens, err);
}

static pf_status mtp_tokens(pf_draft *draft, int32_t n, int32_t *tokens, float *chances) {
    pf_step *s = &draft->evaluation.host;
    pf_share *share = &draft->share;
    const int64_t n_vocab = s->net->config.n_vocab, window = s->net->config.window;
    PF_SCRATCH(float, streams, s, share->cache->stream_floats);
    PF_SCRATCH(float, logits, s, n_vocab);
    share->logits = logits;
    for (int32_t i = 0; i < n; ++i, ++share->position, share->context = pf_min_i64(window, share->context + 1)) {
        PF_TRY(pf_mtp_draft(s, streams, i > 0));
        if (s->ex->dry) return PF_OK;
        PF_TRY(pick_likeliest(logits, n_vocab, draft->tokens, chances + i, s->err));
        tokens[i] = draft->tokens[0];
    }
    return PF_OK;
}

static pf_status dspark_tokens(pf_draft *draft, int32_t n, int32_t *tokens, float *chances) {
    pf_step *s = &draft->evaluation.host;
    const pf_config *c = &s->net->config;
    int32_t previous = draft->tokens[0];
    PF_SCRATCH(float, hidden, s, n * c->n_embd);
    PF_SCRATCH(float, logits, s, n * c->n_vocab);
    PF_TRY(pf_dspark_draft(s, n, hidden, logits));
    for (int32_t i = 0; i < n; ++i) {
        float *own = logits + i * c->n_vocab, chance = -1.0f;
        PF_TRY(pf_dspark_correct(s, previous, hidden + i * c->n_embd, own, &chance));
        if (s->ex->dry) return PF_OK;
        pf_share_tap(s, &draft->share, "draft_corrected", -1, draft->share.position + i, own, 1, c->n_vocab);
        if (chance < 0.0f) { /* it has no head that tells it */
            PF_TRY(pick_likeliest(own, c->n_vocab, &previous, &chance, s->err));
        } else {
            PF_TRY(pick_drafted(s, own, &previous));
        }
        chances[i] = chance;
        tokens[i] = previous;
    }
    return PF_OK;
}

pf_status pf_draft_tokens(pf_draft *draft, int32_t n, int32_t *tokens, float *chances) {
    return draft->share.is_block ? dspark_tokens(draft, n, tokens, chances) : mtp_tokens(draft, n, tokens, chances);
}

pf_status pf_draft_logits(pf_draft *draft, float *logits) {
    pf_step *s = &draft->evaluation.host;
    float chance = 0.0f;
    if (!draft->share.is_block) {
        PF_SCRATCH(float, streams, s, draft->share.cache->stream_floats);
        draft->share.logits = logits;
        return pf_mtp_draft(s, streams, false);
    }
    PF_SCRATCH(float, hidden, s, s->net->config.n_embd);
    PF_TRY(pf_dspark_draft(s, 1, hidden, logits));
    return pf_dspark_correct(s, draft->tokens[0], hidden, logits, &chance);
}

/* The longest one, wherever the cache stands. */
static pf_status draft_dry(const pf_model *model, pf_cache *cache, pf_arenas arenas) {
    pf_draft draft = {.share = {.cache = cache}};
    pf_draft_begin(&draft, model, arenas, 0, NULL);
    draft.evaluation.host_exec.dry = draft.evaluation.device_exec.dry = true;
    draft.share.context = model->net.config.window;
    draft.share.position = pf_max_i64(0, cache->n_ctx - draft.share.n);
    pf_arena_reset(arenas.host, 0);
    pf_arena_reset(arenas.device, 0);
    return pf_draft_tokens(&draft, pf_weights_draft_shape(&model->net.weights).block, NULL, NULL);
}

static pf_status run_dry(const pf_model *model, pf_cache *cache, pf_arenas arenas, const int32_t *tokens) {
    pf_evaluation evaluation;
    pf_share share = {.cache = cache};
    if (model->link != NULL) PF_TRY(step_dry(model, &share, arenas, tokens, 1, &evaluation)); /* not as longer ones */
    PF_TRY(step_dry(model, &share, arenas, tokens, cache->n_chunk, &evaluation));
    return pf_weights_draft_shape(&model->net.weights).n_layer > 0 ? draft_dry(model, cache, arenas) : PF_OK;
}

pf_status pf_measure_scratch(const pf_model *model, pf_cache *cache, uint64_t *host, uint64_t *device) {
    /* The host's operations write into some of their scratch even so. */
    const pf_arenas arenas = {pf_arena_new(), pf_arena_new_measuring()};
    int32_t *tokens = pf_calloc((size_t)cache->n_chunk, sizeof *tokens);
    pf_status status = PF_ERR_MEMORY;
    if (arenas.host != NULL && arenas.device != NULL && tokens != NULL && pf_arena_reserve(arenas.device, plenty)) {
        status = run_dry(model, cache, arenas, tokens);
    }
    if (status == PF_OK) { /* its peak is exact once it is one block, which it is from the second run on */
        pf_arena_reset(arenas.host, 0);
        pf_arena_forget_peak(arenas.host);
        status = run_dry(model, cache, arenas, tokens);
    }
    if (status == PF_OK) {
        *host = pf_arena_peak(arenas.host);
        *device = pf_arena_peak(arenas.device);
    }
    pf_free(tokens);
    pf_arena_delete(arenas.host);
    pf_arena_delete(arenas.device);
    return status;
}
