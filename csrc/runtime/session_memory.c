/* How much memory a session takes, known before it takes it. */
#include "runtime/session.h"

#include "base/arith.h"
#include "base/params.h"

/* The longest step at the fullest context and a draft, with operations that reserve their scratch and compute nothing.
 * The arena's peak is exact once the arena is one block, which it is from the second run on. */
static pf_status run_dry(pf_session *session, const int32_t *tokens) {
    const pf_cache *cache = &session->cache;
    pf_exec exec = {.backend = session->model->backend, .pool = session->model->pool, .arena = session->arena,
                    .exact = session->model->precision == PF_PRECISION_EXACT,
                    .int8 = session->model->precision == PF_PRECISION_INT8, .dry = true};
    pf_step step = {.net = &session->model->net, .cache = &session->cache, .ex = &exec, .tokens = tokens,
                    .n = cache->n_chunk, .position = cache->n_ctx - cache->n_chunk};
    pf_arena_reset(session->arena, 0);
    pf_status status = pf_step_prepare(&step);
    if (status == PF_OK) status = pf_forward(&step, 1, NULL);
    pf_arena_reset(session->arena, 0);
    if (status == PF_OK && step.net->weights.mtp.present) status = pf_mtp_draft(&step, 0, NULL);
    pf_arena_reset(session->arena, 0);
    return status;
}

pf_status pf_session_plan_buffers(pf_session *session, pf_error *err) {
    int32_t *tokens = pf_calloc((size_t)session->cache.n_chunk, sizeof *tokens);
    pf_status status = tokens == NULL ? PF_ERR_MEMORY : run_dry(session, tokens);
    if (status == PF_OK) {
        pf_arena_forget_peak(session->arena);
        status = run_dry(session, tokens);
    }
    pf_free(tokens);
    if (status == PF_OK) {
        const size_t peak = pf_arena_peak(session->arena);
        pf_arena_delete(session->arena);
        session->arena = pf_arena_new();
        if (session->arena == NULL || !pf_arena_reserve(session->arena, peak)) status = PF_ERR_MEMORY;
    }
    if (status == PF_ERR_MEMORY) {
        return pf_fail(err, status, "no memory for evaluating %d tokens at once: ask for a smaller chunk or context",
                       session->cache.n_chunk);
    }
    return status == PF_OK ? status : pf_fail(err, status, "internal error while planning memory: please report it");
}

pf_status pf_session_get_memory(const pf_session *session, pf_session_memory *mem, pf_error *err) {
    if (session == NULL) return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_memory: a session is needed");
    const pf_checkpoints *checkpoints = &session->cache.checkpoints;
    const pf_session_memory full = {
        .cache_bytes = session->cache.region_bytes + (uint64_t)session->cache.n_ctx * sizeof(int32_t),
        .buffer_bytes = pf_arena_capacity(session->arena), /* more after steps with the logits of every token */
        .checkpoint_bytes = checkpoints->slot_bytes * (uint64_t)checkpoints->capacity,
    };
    if (!pf_params_give(mem, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_memory: set mem->struct_size first");
    }
    return PF_OK;
}
