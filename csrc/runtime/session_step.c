/* Evaluating: what sessions bring to a step is checked, computed together as far as that goes, and settled one by one. */
#include "runtime/session.h"

#include "base/arith.h"
#include "base/memory.h"
#include "base/params.h"
#include "model/deepseek4.h"
#include "step/choices.h"

#include <stddef.h>
#include <string.h>

_Static_assert(PF_STEP_WAITING <= PF_COMPRESS_BLOCK, "what waits fits into the frontiers' slack");

/* A caller's share on its way. */
typedef struct work {
    pf_step_share given; /* as far as this library knows it */
    pf_error *error;     /* the caller's */
    int64_t n_out;       /* rows of logits */
} work;

static bool take_cancel(pf_session *session) { return atomic_exchange(&session->cancel, 0) != 0; }

/* One line for the failures that carry no message of their own, and the cancel request taken when it was heard. */
static pf_status finish(pf_session *session, pf_status status, pf_error *err) {
    if (status == PF_ERR_CANCELLED) {
        atomic_store(&session->cancel, 0);
        return pf_fail(err, status, "cancelled");
    }
    if (status == PF_ERR_MEMORY) {
        return pf_fail(err, status, "out of memory while evaluating: use a smaller chunk or context");
    }
    if (status == PF_ERR_INTERNAL) return pf_fail(err, status, "internal error while evaluating: please report it");
    return status;
}

/* ---- Checks ------------------------------------------------------------------------------------------------ */

/* Programs that name no device need not know of one. */
static pf_status send_weights(pf_session *session, pf_error *err) {
    for (uint64_t n_done = 1; n_done > 0;) {
        if (take_cancel(session)) return pf_fail(err, PF_ERR_CANCELLED, "cancelled");
        PF_TRY(pf_model_upload(session->model, &n_done, NULL, err));
    }
    return PF_OK;
}

static pf_status check_weights(pf_session *session, pf_error *err) {
    pf_model *model = session->model;
    if (model->transfer == NULL || atomic_load_explicit(&model->is_sent, memory_order_acquire)) return PF_OK;
    if (model->chose_device) return send_weights(session, err);
    return pf_fail(err, PF_ERR_ARGUMENT, "the device does not have its weights yet: call pf_model_upload first");
}

/* What a stage is given beside tokens, and what it gives. */
static pf_status check_streams(const pf_step_share *share, pf_error *err) {
    const pf_network *net = &share->session->model->net;
    const pf_layer_range range = net->weights.range;
    const bool has_head = pf_range_has_head(&net->config, range);
    const int64_t floats = share->n_tokens * net->config.n_stream * net->config.n_embd;
    if (range.first == 0 && share->streams_in != NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "layer 0 begins with the tokens' embeddings: give its stage no streams");
    }
    if (range.first > 0 && (share->streams_in == NULL || share->n_streams_in != floats)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "layers [%d, %d) go on with the streams of layer %d: %lld floats are needed, not "
                       "%lld", range.first, range.end, range.first - 1, (long long)floats,
                       (long long)(share->streams_in != NULL ? share->n_streams_in : 0));
    }
    if (has_head && share->streams_out != NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "the last layer's stage gives logits, and no streams");
    }
    if (!has_head && share->logits_mode != PF_LOGITS_NONE) {
        return pf_fail(err, PF_ERR_ARGUMENT, "layers [%d, %d) give streams: logits are those of the stage with the last layer",
                       range.first, range.end);
    }
    if (!has_head && (share->streams_out == NULL || share->streams_capacity < floats)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "layers [%d, %d) give %lld floats of streams, there is room for %lld", range.first,
                       range.end, (long long)floats, (long long)(share->streams_out != NULL ? share->streams_capacity : 0));
    }
    return PF_OK;
}

/* Rows of logits that are written for n tokens. */
static pf_status count_logits(const pf_session *session, int32_t mode, int64_t n, const float *logits, int64_t capacity,
                              int64_t *n_out, pf_error *err) {
    switch (mode) {
    case PF_LOGITS_NONE: *n_out = 0; break;
    case PF_LOGITS_LAST: *n_out = 1; break;
    case PF_LOGITS_ALL: *n_out = n; break;
    default: return pf_fail(err, PF_ERR_ARGUMENT, "logits mode %d is unknown", mode);
    }
    const int64_t n_vocab = session->model->net.config.n_vocab;
    if (*n_out > 0 && (logits == NULL || capacity / n_vocab < *n_out)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "room for %lld logits, %lld x %lld are written", (long long)capacity,
                       (long long)*n_out, (long long)n_vocab);
    }
    return PF_OK;
}

/* What a share names, beside the shares before it. */
static pf_status check_session(const work *works, int64_t i, pf_error *err) {
    const pf_session *session = works[i].given.session;
    if (session == NULL || works[i].given.tokens == NULL || works[i].given.n_tokens < 1) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_step_eval: each share needs a session and at least one token");
    }
    if ((works[i].given.flags & ~(PF_STEP_KEEP | PF_STEP_WHOLE)) != 0) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_step_eval: flags 0x%x are unknown", (unsigned)works[i].given.flags);
    }
    for (int64_t j = 0; j < i; ++j) {
        const pf_session *other = works[j].given.session;
        if (other == NULL) continue;
        if (other == session) {
            return pf_fail(err, PF_ERR_ARGUMENT, "pf_step_eval: a session twice in one step: give it one share");
        }
        if (other->model != session->model) {
            return pf_fail(err, PF_ERR_ARGUMENT, "pf_step_eval: sessions of several models: take a step for each model");
        }
    }
    return pf_session_check_kept(session, err);
}

static pf_status check_share(work *works, int64_t i, pf_error *err) {
    work *w = &works[i];
    PF_TRY(check_session(works, i, err));
    pf_session *session = w->given.session;
    const pf_cache *cache = &session->cache;
    const int64_t n = w->given.n_tokens;
    if (n > cache->n_chunk) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%lld tokens in one step: at most %d, the session's chunk", (long long)n,
                       cache->n_chunk);
    }
    if ((w->given.flags & (PF_STEP_KEEP | PF_STEP_WHOLE)) == 0 && n > PF_STEP_WAITING) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%lld tokens in one step, of which %d can wait to be kept: set PF_STEP_KEEP",
                       (long long)n, PF_STEP_WAITING);
    }
    PF_TRY(check_streams(&w->given, err));
    PF_TRY(count_logits(session, w->given.logits_mode, n, w->given.logits, w->given.logits_capacity, &w->n_out, err));
    PF_TRY(pf_session_check_tokens(session, w->given.tokens, n, err));
    PF_TRY(pf_check_hash_experts(&session->model->net, w->given.tokens, n, err));
    PF_TRY(check_weights(session, err));
    if (n > cache->n_ctx - cache->position) {
        return pf_fail(err, PF_ERR_CONTEXT_FULL,
                       "the context of %lld tokens is full at %lld: open a session with a larger one",
                       (long long)cache->n_ctx, (long long)cache->position);
    }
    if (session->has_choices) PF_TRY(pf_choices_check(&session->choices, &session->model->net, cache->position, n, err));
    return take_cancel(session) ? pf_fail(err, PF_ERR_CANCELLED, "cancelled") : PF_OK;
}

/* ---- Computing --------------------------------------------------------------------------------------------- */

static void reset(pf_arenas arenas) {
    pf_arena_reset(arenas.host, 0);
    if (arenas.device != NULL) pf_arena_reset(arenas.device, 0);
}

/* The forward pass of shares whose tokens follow each other in `tokens`. What cancelled ones lose is told by shares[i].n. */
static pf_status forward(work *const *group, int64_t n_share, pf_share *shares, const int32_t *tokens, pf_arenas arenas,
                         pf_error *err) {
    const pf_session *first = group[0]->given.session;
    pf_evaluation evaluation;
    for (int64_t i = 0; i < n_share; ++i) {
        pf_session *session = group[i]->given.session;
        shares[i] = (pf_share){.cache = &session->cache, .n = group[i]->given.n_tokens,
                               .position = session->cache.position, .n_out = group[i]->n_out,
                               .logits = group[i]->given.logits, .streams_in = group[i]->given.streams_in,
                               .streams_out = group[i]->given.streams_out, .cancel = &session->cancel, .tap = session->tap,
                               .tap_user = session->tap_user};
    }
    pf_evaluation_init(&evaluation, first->model, arenas, shares, n_share, tokens, err);
    evaluation.device.recorder = first->recorder;
    if (first->collector != NULL) evaluation.host_exec.backend = pf_collector_backend(first->collector);
    if (first->has_choices) evaluation.host.choices = &first->choices;
    for (int64_t i = 0; i < n_share; ++i) {
        const pf_profiler *profiler = group[i]->given.session->profiler;
        if (profiler != NULL) evaluation.host_exec.backend = pf_profiler_backend(profiler);
    }
    return pf_evaluate(&evaluation);
}

/* Ends what pf_cache_begin_write() began, and the call. */
static void settle(work *w, pf_status status) {
    pf_session *session = w->given.session;
    pf_cache *cache = &session->cache;
    const int64_t n = w->given.n_tokens;
    if (status != PF_OK) pf_cache_abort_write(cache, n);
    if (status != PF_OK && session->collector != NULL) pf_collector_note_failure(session->collector);
    status = finish(session, pf_session_leave(session, status, w->error), w->error);
    w->error->code = status;
    if (status != PF_OK) return;
    /* They may be the session's own, which were rolled back. */
    memmove(session->tokens + cache->position, w->given.tokens, (size_t)n * sizeof *w->given.tokens);
    if ((w->given.flags & PF_STEP_KEEP) != 0) pf_cache_commit_write(cache, n);
    else session->n_waiting = n;
}

static void run_alone(work *w) {
    pf_session *session = w->given.session;
    pf_share share;
    pf_status status = pf_session_enter(session, w->error);
    if (status != PF_OK) return;
    session->n_ahead = 0;
    pf_cache_begin_write(&session->cache, w->given.n_tokens);
    do { /* another time writes the same rows */
        status = forward(&w, 1, &share, w->given.tokens, session->arenas, w->error);
        reset(session->arenas);
    } while (status == PF_ERR_MEMORY && pf_session_make_room(session->model));
    settle(w, status);
}

/* Scratch of the session that has most: it has to hold the rows of all. */
static pf_arenas largest_arenas(work *const *group, int64_t n) {
    pf_arenas best = group[0]->given.session->arenas;
    for (int64_t i = 1; i < n; ++i) {
        const pf_arenas other = group[i]->given.session->arenas;
        if (pf_arena_capacity(other.host) > pf_arena_capacity(best.host)) best = other;
    }
    return best;
}

/* In scratch: the shares, and the tokens of all. */
static pf_status gather(work *const *group, int64_t n_share, pf_arena *arena, pf_share **shares, int32_t **tokens) {
    int64_t n = 0;
    for (int64_t i = 0; i < n_share; ++i) n += group[i]->given.n_tokens;
    *shares = pf_arena_alloc(arena, (size_t)n_share * sizeof **shares);
    *tokens = pf_arena_alloc(arena, (size_t)n * sizeof **tokens);
    if (*shares == NULL || *tokens == NULL) return PF_ERR_MEMORY;
    n = 0;
    for (int64_t i = 0; i < n_share; ++i) {
        memcpy(*tokens + n, group[i]->given.tokens, (size_t)group[i]->given.n_tokens * sizeof **tokens);
        n += group[i]->given.n_tokens;
    }
    return PF_OK;
}

/* Several sessions on the processor, in one forward pass. False when that failed, and nothing has changed: whose fault it
 * was each one's own pass will tell. */
static bool run_together(work *const *group, int64_t n) {
    const pf_arenas arenas = largest_arenas(group, n);
    pf_share *shares = NULL;
    int32_t *tokens = NULL;
    for (int64_t i = 0; i < n; ++i) {
        group[i]->given.session->n_ahead = 0;
        pf_cache_begin_write(&group[i]->given.session->cache, group[i]->given.n_tokens);
    }
    pf_status status = gather(group, n, arenas.host, &shares, &tokens);
    if (status == PF_OK) status = forward(group, n, shares, tokens, arenas, NULL);
    const bool done = status == PF_OK || status == PF_ERR_CANCELLED;
    for (int64_t i = 0; i < n; ++i) {
        pf_session *session = group[i]->given.session;
        if (!done) {
            pf_cache_abort_write(&session->cache, group[i]->given.n_tokens);
            (void)pf_session_leave(session, PF_OK, NULL);
            continue;
        }
        const bool cancelled = shares[i].n == 0 || atomic_load(&session->cancel) != 0;
        settle(group[i], cancelled ? PF_ERR_CANCELLED : PF_OK);
    }
    reset(arenas);
    return done;
}

/* Steps that other sessions' rows cannot be in: a device's, those that are collected, and those with choices. */
static bool is_for_itself(const pf_session *session) {
    return session->model->link != NULL || session->collector != NULL || session->has_choices;
}

/* Enters the sessions of a group; those that cannot drop out of it. Returns how many are left. */
static int64_t enter_all(work **group, int64_t n) {
    int64_t n_entered = 0;
    for (int64_t i = 0; i < n; ++i) {
        group[n_entered] = group[i];
        if (pf_session_enter(group[i]->given.session, group[i]->error) == PF_OK) ++n_entered;
    }
    return n_entered;
}

/* Those that have passed the checks. group has room for all. */
static void run_all(work *works, int64_t n, work **group) {
    int64_t n_group = 0;
    for (int64_t i = 0; i < n; ++i) {
        work *w = &works[i];
        if (w->error->code != PF_OK) continue;
        if (is_for_itself(w->given.session)) run_alone(w);
        else group[n_group++] = w;
    }
    if (n_group > 1) {
        n_group = enter_all(group, n_group);
        if (n_group == 0 || run_together(group, n_group)) return;
    }
    for (int64_t i = 0; i < n_group; ++i) run_alone(group[i]);
}

/* ---- The interface ----------------------------------------------------------------------------------------- */

enum { LEAST_SHARE = offsetof(pf_step_share, error) + sizeof(pf_error) };

static pf_step_share *share_at(pf_step_share *shares, int64_t i) {
    return (pf_step_share *)(void *)((uint8_t *)shares + i * (int64_t)shares->struct_size);
}

static pf_status run_step(pf_step_share *shares, int64_t n, work *works, work **group, pf_error *err) {
    for (int64_t i = 0; i < n; ++i) {
        pf_step_share *share = share_at(shares, i);
        works[i] = (work){.error = &share->error};
        (void)pf_params_take(&works[i].given, sizeof works[i].given, share);
        share->error = (pf_error){.code = PF_OK};
    }
    for (int64_t i = 0; i < n; ++i) works[i].error->code = check_share(works, i, works[i].error);
    run_all(works, n, group);
    for (int64_t i = 0; i < n; ++i) {
        if (works[i].error->code == PF_OK) continue;
        if (err != NULL) *err = *works[i].error;
        return works[i].error->code;
    }
    return PF_OK;
}

pf_status pf_step_eval(pf_step_share *shares, int32_t n_share, pf_error *err) {
    if (shares == NULL || n_share < 1) return pf_fail(err, PF_ERR_ARGUMENT, "pf_step_eval: at least one share is needed");
    for (int64_t i = 0; i < n_share; ++i) {
        if (shares->struct_size >= LEAST_SHARE && share_at(shares, i)->struct_size == shares->struct_size) continue;
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_step_eval: set every share's struct_size to sizeof(pf_step_share)");
    }
    if (n_share == 1) {
        work one, *alone = NULL;
        return run_step(shares, 1, &one, &alone, err);
    }
    work *works = pf_calloc((size_t)n_share, sizeof *works);
    work **group = pf_calloc((size_t)n_share, sizeof *group);
    pf_status status = PF_ERR_MEMORY;
    if (works != NULL && group != NULL) {
        status = run_step(shares, n_share, works, group, err);
    } else {
        for (int64_t i = 0; i < n_share; ++i) (void)pf_fail(&share_at(shares, i)->error, status, "out of memory for a step");
        (void)pf_fail(err, status, "out of memory for a step");
    }
    pf_free(works);
    pf_free(group);
    return status;
}

/* Of more tokens than lie within the rings' slack. */
static pf_status keep_whole(pf_session *session, int64_t n, pf_error *err) {
    if (n != 0 && n != session->n_waiting) {
        return pf_fail(err, PF_ERR_ARGUMENT, "cannot keep %lld of %lld tokens: of more than %d that wait keep all or none",
                       (long long)n, (long long)session->n_waiting, PF_STEP_WAITING);
    }
    if (n == 0) pf_cache_abort_write(&session->cache, session->n_waiting);
    else pf_cache_commit_write(&session->cache, n);
    session->n_waiting = session->n_ahead = 0;
    return PF_OK;
}

pf_status pf_session_keep(pf_session *session, int64_t n, pf_error *err) {
    if (n < 0 || n > session->n_waiting) {
        return pf_fail(err, PF_ERR_ARGUMENT, "cannot keep %lld tokens: %lld wait", (long long)n,
                       (long long)session->n_waiting);
    }
    if (session->n_waiting > PF_STEP_WAITING) return keep_whole(session, n, err);
    session->n_ahead = session->n_waiting - n;
    session->n_waiting = 0;
    pf_cache_commit_write(&session->cache, n); /* the rows beyond lie within the rings' slack, as an aborted step's do */
    return PF_OK;
}

pf_status pf_session_advance(pf_session *session, int64_t n, pf_error *err) {
    if (n < 0 || n > session->n_ahead) {
        return pf_fail(err, PF_ERR_ARGUMENT, "cannot go on with %lld tokens: %lld are evaluated ahead", (long long)n,
                       (long long)session->n_ahead);
    }
    session->n_ahead -= n;
    pf_cache_commit_write(&session->cache, n);
    return PF_OK;
}

int64_t pf_session_ahead(const pf_session *session) { return session->n_ahead; }

int64_t pf_session_waiting(const pf_session *session) { return session->n_waiting; }

pf_status pf_session_eval(pf_session *session, const int32_t *tokens, int64_t n_tokens, int32_t logits_mode,
                          float *logits, int64_t logits_capacity, int64_t *n_done, pf_error *err) {
    if (tokens == NULL || n_tokens < 1 || n_done == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_eval: at least one token and n_done are needed");
    }
    const int64_t n = pf_min_i64(n_tokens, session->cache.n_chunk);
    const bool is_reached = logits_mode != PF_LOGITS_LAST || n == n_tokens;
    pf_step_share share = {.struct_size = sizeof share, .logits_mode = is_reached ? logits_mode : PF_LOGITS_NONE,
                           .session = session, .tokens = tokens, .n_tokens = n, .logits = logits,
                           .logits_capacity = logits_capacity, .flags = PF_STEP_KEEP};
    PF_TRY(pf_step_eval(&share, 1, err));
    *n_done = n;
    return PF_OK;
}

/* ---- Drafts ------------------------------------------------------------------------------------------------ */

/* A draft behind the session's last token: checked and begun. */
static pf_status begin_draft(pf_session *session, int32_t next_token, pf_draft *draft, pf_error *err) {
    const pf_cache *cache = &session->cache;
    if (!pf_range_has_head(&session->model->net.config, session->model->net.weights.range)) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "what drafts is in the stage with the last layer: draft there");
    }
    if (cache->drafts.n_layer == 0) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "the model was opened without an MTP block or DSpark stages to draft with: "
                                                "pyflash convert --mtp writes them");
    }
    if (cache->position <= cache->draft_begin) {
        return pf_fail(err, PF_ERR_ARGUMENT, "nothing to draft from: evaluate tokens first");
    }
    PF_TRY(pf_session_check_kept(session, err));
    PF_TRY(pf_session_check_tokens(session, &next_token, 1, err));
    PF_TRY(check_weights(session, err));
    if (take_cancel(session)) return pf_fail(err, PF_ERR_CANCELLED, "cancelled");
    PF_TRY(pf_session_enter(session, err));
    session->n_ahead = 0; /* what drafters keep of those is written over */
    draft->share = (pf_share){.cache = &session->cache, .cancel = &session->cancel, .tap = session->tap,
                              .tap_user = session->tap_user};
    pf_draft_begin(draft, session->model, session->arenas, next_token, err);
    return PF_OK;
}

static pf_status end_draft(pf_session *session, pf_status status, pf_error *err) {
    reset(session->arenas);
    return finish(session, pf_session_leave(session, status, err), err);
}

pf_status pf_session_draft(pf_session *session, int32_t next_token, float *logits, int64_t logits_capacity,
                           pf_error *err) {
    int64_t n_out = 0;
    pf_draft draft;
    PF_TRY(count_logits(session, PF_LOGITS_LAST, 1, logits, logits_capacity, &n_out, err));
    PF_TRY(begin_draft(session, next_token, &draft, err));
    return end_draft(session, pf_draft_logits(&draft, logits), err);
}

/* How many tokens a draft may have: of DSpark the block that it is trained for. */
static int32_t most_drafted(const pf_session *session) {
    const pf_draft_shape *drafts = &session->cache.drafts;
    return drafts->has_streams || drafts->n_layer == 0 ? session->cache.n_chunk : drafts->block;
}

pf_status pf_session_draft_tokens(pf_session *session, int32_t next_token, int32_t n, int32_t *tokens, float *chances,
                                  pf_error *err) {
    pf_draft draft;
    const int32_t most = most_drafted(session);
    if (tokens == NULL || chances == NULL || n < 1 || n > most) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_draft_tokens: tokens and chances are needed, for 1 to %d", most);
    }
    PF_TRY(begin_draft(session, next_token, &draft, err));
    draft.evaluation.host.draft_head = pf_model_draft_head(session->model);
    return end_draft(session, pf_draft_tokens(&draft, n, tokens, chances), err);
}
