/* What stands behind the opaque pf_session. */
#ifndef PF_RUNTIME_SESSION_H
#define PF_RUNTIME_SESSION_H

#include "kv/cache.h"
#include "runtime/model.h"

#include <stdatomic.h>

struct pf_session {
    pf_model *model;   /* one reference */
    pf_cache cache;
    pf_arena *arena;
    atomic_int cancel; /* set by any thread, taken by the evaluating one */
    int32_t *tokens;   /* [n_ctx], the first cache.position of them valid */
    void *note;        /* the caller's own bytes */
    size_t note_len;
    pf_tap_fn tap;
    void *tap_user;
};

/* session_memory.c: finds the scratch that evaluating takes by running the steps dry, and reserves it in the arena. */
pf_status pf_session_plan_buffers(pf_session *session, pf_error *err);

#endif
