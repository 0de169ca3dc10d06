#include "runtime/session.h"

#include "base/arith.h"
#include "base/fork.h"
#include "base/memory.h"
#include "base/params.h"
#include "text/align.h"

#include <string.h>

enum { DEFAULT_CONTEXT = 65536, DEFAULT_CHUNK = 512, MAX_CHUNK = 1 << 16 };
enum { DEFAULT_CHECKPOINTS = 8, MAX_CHECKPOINTS = 4096 };

static const size_t max_note = (size_t)256 << 20;

void pf_session_params_init(pf_session_params *params) {
    memset(params, 0, sizeof *params);
    params->struct_size = sizeof *params;
    params->n_checkpoint = DEFAULT_CHECKPOINTS;
}

pf_status pf_session_take_params(const pf_session_params *given, const pf_model *model, pf_session_params *out,
                                 pf_error *err) {
    const pf_config *config = &model->net.config;
    pf_session_params_init(out);
    if (!pf_params_take(out, sizeof *out, given)) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "session parameters without struct_size: call pf_session_params_init first");
    }
    if (out->n_ctx == 0) out->n_ctx = pf_min_i64(DEFAULT_CONTEXT, config->n_ctx_train);
    if (out->n_chunk == 0) out->n_chunk = DEFAULT_CHUNK;
    if (out->n_ctx < 1 || out->n_ctx > config->n_ctx_train) {
        return pf_fail(err, PF_ERR_ARGUMENT, "a context of %lld tokens: this model takes 1 to %lld",
                       (long long)out->n_ctx, (long long)config->n_ctx_train);
    }
    if (out->n_chunk < 1 || out->n_chunk > MAX_CHUNK) {
        return pf_fail(err, PF_ERR_ARGUMENT, "chunks of %d tokens: use 1 to %d", out->n_chunk, MAX_CHUNK);
    }
    out->n_chunk = (int32_t)pf_min_i64(out->n_chunk, out->n_ctx);
    if (out->cache_type < PF_CACHE_AUTO || out->cache_type > PF_CACHE_F32) {
        return pf_fail(err, PF_ERR_ARGUMENT,
                       "cache type %d is unknown: use 0 (auto), 1 (f16), 2 (reference) or 3 (f32)", out->cache_type);
    }
    if (out->n_checkpoint < 0 || out->n_checkpoint > MAX_CHECKPOINTS) {
        return pf_fail(err, PF_ERR_ARGUMENT, "%d checkpoints: use 0 to %d", out->n_checkpoint, MAX_CHECKPOINTS);
    }
    return PF_OK;
}

int32_t pf_cache_type_in_use(int32_t precision, int32_t cache_type) {
    if (cache_type != PF_CACHE_AUTO) return cache_type;
    return precision == PF_PRECISION_EXACT ? PF_CACHE_F32 : PF_CACHE_REFERENCE;
}

pf_cache_formats pf_choose_formats(int32_t precision, int32_t cache_type) {
    cache_type = pf_cache_type_in_use(precision, cache_type);
    if (cache_type == PF_CACHE_F32) return (pf_cache_formats){PF_ROW_F32, PF_ROW_F32};
    if (cache_type == PF_CACHE_F16) return (pf_cache_formats){PF_ROW_F16, PF_ROW_F16};
    return (pf_cache_formats){PF_ROW_KV_FP8, PF_ROW_IDX_FP4};
}

/* Whether the call that runs belongs to a thread of the process that this one was forked from. */
static bool is_cut_short(pf_session *session) {
    const unsigned running = atomic_load(&session->running);
    return running != 0 && running != pf_fork_generation() + 1;
}

pf_status pf_session_check_kept(const pf_session *session, pf_error *err) {
    if (session->n_waiting == 0) return PF_OK;
    return pf_fail(err, PF_ERR_ARGUMENT, "%lld tokens of a step wait to be kept: call pf_session_keep first",
                   (long long)session->n_waiting);
}

pf_status pf_session_enter(pf_session *session, pf_error *err) {
    pf_link *link = session->model->link;
    PF_TRY(pf_session_check_kept(session, err));
    if (is_cut_short(session)) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "the session was at work on another thread when this process was forked: "
                                                "open a new session, or open the model after forking");
    }
    if (link != NULL) {
        pf_link_lock(link);
        const pf_status status = pf_link_check(link, err);
        if (status != PF_OK) {
            pf_link_unlock(link);
            return status;
        }
    }
    atomic_store(&session->running, pf_fork_generation() + 1);
    return PF_OK;
}

pf_status pf_session_leave(pf_session *session, pf_status status, pf_error *err) {
    pf_link *link = session->model->link;
    atomic_store(&session->running, 0);
    if (link == NULL) return status;
    status = pf_link_finish(link, status, err);
    if (status == PF_OK) status = pf_link_check(link, err); /* what a part without a status of its own met */
    pf_link_unlock(link);
    return status;
}

/* All that a session has in memory. */
static pf_status open_parts(pf_session *session, const pf_session_params *params, pf_error *err) {
    const pf_model *model = session->model;
    const pf_cache_device device = {model->link, model->placement.first_layer};
    const pf_draft_shape drafts = pf_weights_draft_shape(&model->net.weights);
    PF_TRY(pf_cache_open(&model->net.config, model->net.weights.range, &drafts,
                         pf_choose_formats(model->precision, params->cache_type), params->n_ctx, params->n_chunk,
                         params->n_checkpoint, model->link != NULL ? &device : NULL, &session->cache, err));
    session->tokens = pf_region_alloc((size_t)params->n_ctx * sizeof(int32_t));
    if (session->tokens == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening a session");
    PF_TRY(pf_session_plan_buffers(session, err));
    if (model->link != NULL && (params->flags & PF_SESSION_UNRECORDED) == 0) {
        session->recorder = pf_recorder_new(model->link, model->net.config.n_layer);
        if (session->recorder == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening a session");
    }
    if ((params->flags & PF_SESSION_POISON) != 0) pf_cache_poison(&session->cache);
    return PF_OK;
}

bool pf_session_make_room(const pf_model *model) {
    if (!pf_hot_experts_give_back(model->net.hot)) return false;
    pf_log_line(&model->log, PF_LOG_INFO, "the memory of %s that held often used experts is needed for a session",
                pf_link_info(model->link)->name);
    return true;
}

static pf_status open_session(pf_model *model, const pf_session_params *params, pf_session **out, pf_error *err) {
    pf_session *session = pf_calloc(1, sizeof *session);
    if (session == NULL) return pf_fail(err, PF_ERR_MEMORY, "out of memory while opening a session");
    session->model = pf_model_retain(model);
    atomic_init(&session->cancel, 0);
    atomic_init(&session->running, 0);
    pf_status status = pf_session_enter(session, err);
    if (status == PF_OK) status = pf_session_leave(session, open_parts(session, params, err), err);
    if (status != PF_OK) {
        session->cache.n_ctx = params->n_ctx;
        pf_session_close(session);
        return status;
    }
    *out = session;
    return PF_OK;
}

pf_status pf_session_open(pf_model *model, const pf_session_params *given, pf_session **out, pf_error *err) {
    pf_session_params params;
    if (model == NULL || out == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_open: model and out are needed");
    PF_TRY(pf_session_take_params(given, model, &params, err));
    const pf_status status = open_session(model, &params, out, err);
    if (status != PF_ERR_MEMORY || model->link == NULL) return status;
    pf_link_lock(model->link);
    const bool has_room = pf_session_make_room(model);
    pf_link_unlock(model->link);
    return has_room ? open_session(model, &params, out, err) : status;
}

void pf_session_close(pf_session *session) {
    if (session == NULL || is_cut_short(session)) return; /* even its lists of memory may be half changed */
    pf_link *link = session->model->link;
    if (session->tokens != NULL) pf_region_free(session->tokens, (size_t)session->cache.n_ctx * sizeof(int32_t));
    if (link != NULL) pf_link_lock(link);
    pf_recorder_delete(session->recorder); /* before the memory that it works on */
    pf_cache_close(&session->cache);
    pf_arena_delete(session->arenas.device);
    if (link != NULL) pf_link_unlock(link);
    pf_arena_delete(session->arenas.host);
    pf_free(session->note);
    pf_session_forget_files(session);
    pf_model_release(session->model);
    pf_free(session);
}

int64_t pf_session_position(const pf_session *session) { return session->cache.position; }
int64_t pf_session_capacity(const pf_session *session) { return session->cache.n_ctx; }
int32_t pf_session_chunk(const pf_session *session) { return session->cache.n_chunk; }
const int32_t *pf_session_tokens(const pf_session *session) { return session->tokens; }
int64_t pf_session_rollback_limit(const pf_session *session) { return pf_cache_rollback_limit(&session->cache); }

void pf_session_cancel(pf_session *session) { atomic_store(&session->cancel, 1); }

void pf_session_set_tap(pf_session *session, pf_tap_fn fn, void *user) {
    session->tap = fn;
    session->tap_user = user;
}

pf_status pf_session_set_collector(pf_session *session, pf_collector *collector, pf_error *err) {
    if (collector != NULL && !pf_collector_fits(collector, session->model)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "the collector belongs to another model: open one of the session's");
    }
    if (collector != NULL && session->profiler != NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "the session has a profiler: take that away before it collects");
    }
    session->collector = collector;
    return PF_OK;
}

pf_status pf_session_set_choices(pf_session *session, const pf_choices *choices, pf_error *err) {
    pf_choices taken = {.struct_size = sizeof taken};
    if (choices == NULL) {
        session->has_choices = false;
        return PF_OK;
    }
    if (!pf_params_take(&taken, sizeof taken, choices) || taken.experts == NULL || taken.n_position < 1 ||
        (taken.mode != PF_CHOICES_NOTE && taken.mode != PF_CHOICES_HOLD)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_set_choices: struct_size, a mode, experts and n_position are needed");
    }
    if (session->model->link != NULL) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "choices are noted and held on the processor: open the model with device "
                                                "\"cpu\"");
    }
    session->choices = taken;
    session->has_choices = true;
    return PF_OK;
}

pf_status pf_session_set_profiler(pf_session *session, pf_profiler *profiler, pf_error *err) {
    if (profiler != NULL && !pf_profiler_fits(profiler, session->model)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "the profiler belongs to another model: open one of the session's");
    }
    if (profiler != NULL && session->collector != NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "the session collects: take its collector away before it is timed");
    }
    session->profiler = profiler;
    return PF_OK;
}

pf_status pf_session_check_tokens(const pf_session *session, const int32_t *tokens, int64_t n, pf_error *err) {
    const int32_t n_vocab = session->model->net.config.n_vocab;
    for (int64_t i = 0; i < n; ++i) {
        if (tokens[i] >= 0 && tokens[i] < n_vocab) continue;
        return pf_fail(err, PF_ERR_ARGUMENT, "token %d at index %lld is outside the vocabulary of %d", tokens[i],
                       (long long)i, n_vocab);
    }
    return PF_OK;
}

static void note_dropped(pf_session *session) {
    session->origin.n_foreign = pf_min_i64(session->origin.n_foreign, session->cache.position);
}

pf_status pf_session_rollback(pf_session *session, int64_t n, pf_error *err) {
    pf_cache *cache = &session->cache;
    if (n < 0 || n > cache->position) {
        return pf_fail(err, PF_ERR_ARGUMENT, "cannot drop %lld of %lld tokens", (long long)n,
                       (long long)cache->position);
    }
    PF_TRY(pf_session_enter(session, err));
    session->n_ahead = 0;
    const bool done = pf_cache_rollback(cache, n);
    note_dropped(session);
    PF_TRY(pf_session_leave(session, PF_OK, err));
    if (!done) {
        return pf_fail(err, PF_ERR_REBUILD,
                       "cannot drop %lld tokens, only %lld, or all %lld, or back to a checkpoint: drop all and "
                       "evaluate the rest again",
                       (long long)n, (long long)pf_cache_rollback_limit(cache), (long long)cache->position);
    }
    return PF_OK;
}

pf_status pf_session_checkpoint(pf_session *session, pf_error *err) {
    if (session->cache.checkpoints.capacity == 0) {
        return pf_fail(err, PF_ERR_UNSUPPORTED, "the session was opened without checkpoints: set n_checkpoint");
    }
    PF_TRY(pf_session_enter(session, err));
    pf_cache_checkpoint(&session->cache);
    return pf_session_leave(session, PF_OK, err);
}

pf_status pf_session_align(const pf_session *session, const int32_t *tokens, int64_t n_tokens, int32_t *out,
                           int64_t capacity, int64_t *n_out, pf_error *err) {
    return pf_session_align_answers(session, NULL, 0, tokens, n_tokens, out, capacity, n_out, err);
}

pf_status pf_session_align_answers(const pf_session *session, const int64_t *silent, int64_t n_silent,
                                   const int32_t *tokens, int64_t n_tokens, int32_t *out, int64_t capacity,
                                   int64_t *n_out, pf_error *err) {
    const int64_t position = session->cache.position;
    if (tokens == NULL || n_tokens < 0 || out == NULL || n_out == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_align: tokens, out and n_out are needed");
    }
    if (n_silent < 0 || (silent == NULL && n_silent > 0)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_align_answers: silent is needed for n_silent positions");
    }
    if (capacity - position < n_tokens) {
        return pf_fail(err, PF_ERR_ARGUMENT, "room for %lld tokens, up to %lld are written", (long long)capacity,
                       (long long)(n_tokens + position));
    }
    PF_TRY(pf_session_check_tokens(session, tokens, n_tokens, err));
    if (session->model->tokenizer == NULL) {
        memcpy(out, tokens, (size_t)n_tokens * sizeof *out);
        *n_out = n_tokens;
        return PF_OK;
    }
    const pf_known_tokens known = {session->tokens, position, silent, n_silent};
    return pf_align_tokens(session->model->tokenizer, &known, tokens, n_tokens, out, n_out, err);
}

pf_status pf_session_reusable(const pf_session *session, const int32_t *tokens, int64_t n_tokens, int64_t *n_kept,
                              pf_error *err) {
    const pf_cache *cache = &session->cache;
    if (tokens == NULL || n_tokens < 1 || n_kept == NULL) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_reuse: at least one token and n_kept are needed");
    }
    const int64_t most = pf_min_i64(cache->position, n_tokens - 1);
    int64_t common = 0;
    while (common < most && session->tokens[common] == tokens[common]) ++common;
    *n_kept = pf_cache_nearest(cache, common);
    return PF_OK;
}

pf_status pf_session_reuse(pf_session *session, const int32_t *tokens, int64_t n_tokens, int64_t *n_kept,
                           pf_error *err) {
    pf_cache *cache = &session->cache;
    PF_TRY(pf_session_reusable(session, tokens, n_tokens, n_kept, err));
    const int64_t kept = *n_kept;
    PF_TRY(pf_session_enter(session, err));
    session->n_ahead = 0;
    (void)pf_cache_rollback(cache, cache->position - kept); /* can go there by its definition */
    note_dropped(session);
    return pf_session_leave(session, PF_OK, err);
}

pf_status pf_session_set_note(pf_session *session, const void *data, size_t len, pf_error *err) {
    if (data == NULL && len > 0) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_set_note: data is needed");
    if (len > max_note) {
        return pf_fail(err, PF_ERR_ARGUMENT, "a note of %llu bytes: at most %llu are kept",
                       (unsigned long long)len, (unsigned long long)max_note);
    }
    void *copy = NULL;
    if (len > 0) {
        copy = pf_alloc(len);
        if (copy == NULL) {
            return pf_fail(err, PF_ERR_MEMORY, "out of memory for a note of %llu bytes", (unsigned long long)len);
        }
        memcpy(copy, data, len);
    }
    pf_free(session->note);
    session->note = copy;
    session->note_len = len;
    return PF_OK;
}

const void *pf_session_note(const pf_session *session, size_t *len) {
    *len = session->note_len;
    return session->note;
}
