/* How much memory a session takes, known before it takes it. */
#include "runtime/session.h"

#include "base/params.h"

pf_status pf_session_plan_buffers(pf_session *session, pf_error *err) {
    pf_link *link = session->model->link;
    uint64_t host = 0, device = 0;
    pf_status status = pf_measure_scratch(session->model, &session->cache, &host, &device);
    if (status == PF_OK) {
        session->arenas.host = pf_arena_new();
        if (session->arenas.host == NULL || !pf_arena_reserve(session->arenas.host, (size_t)host)) {
            status = PF_ERR_MEMORY;
        }
    }
    if (status == PF_OK && link != NULL) {
        session->arenas.device = pf_link_arena(link);
        if (session->arenas.device == NULL || !pf_arena_reserve(session->arenas.device, (size_t)device)) {
            return pf_fail(err, PF_ERR_MEMORY,
                           "no memory on the device for evaluating %d tokens at once (%.1f MiB): ask for a smaller "
                           "chunk, or for fewer layers there",
                           session->cache.n_chunk, (double)device / 1048576.0);
        }
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
        .buffer_bytes = pf_arena_capacity(session->arenas.host), /* more after steps with the logits of every token */
        .checkpoint_bytes = checkpoints->slot_bytes * (uint64_t)checkpoints->capacity,
        .device_cache_bytes = session->cache.device_bytes,
        .device_buffer_bytes = session->arenas.device != NULL ? pf_arena_capacity(session->arenas.device) : 0,
        .draft_cache_bytes = pf_cache_draft_region(&session->cache),
    };
    if (!pf_params_give(mem, &full, sizeof full)) {
        return pf_fail(err, PF_ERR_ARGUMENT, "pf_session_get_memory: set mem->struct_size first");
    }
    return PF_OK;
}
