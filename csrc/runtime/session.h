/* What stands behind the opaque pf_session. */
#ifndef PF_RUNTIME_SESSION_H
#define PF_RUNTIME_SESSION_H

#include "kv/cache.h"
#include "model/recording.h"
#include "runtime/evaluation.h"
#include "runtime/model.h"

#include <stdatomic.h>

struct pf_session {
    pf_model *model;   /* one reference */
    pf_cache cache;
    pf_arenas arenas;
    pf_recorder *recorder; /* NULL: nothing is recorded */
    atomic_int cancel; /* set by any thread, taken by the evaluating one */
    atomic_uint running; /* 0, or within enter and leave the number of the process: its fork generation + 1 */
    int32_t *tokens;   /* [n_ctx], the first cache.position of them valid */
    void *note;        /* the caller's own bytes */
    size_t note_len;
    pf_tap_fn tap;
    void *tap_user;
};

/* given, which may be NULL, checked and completed with the defaults. */
pf_status pf_session_take_params(const pf_session_params *given, const pf_model *model, pf_session_params *out,
                                 pf_error *err);

/* Around every call that reaches the cache's rows: holds the device, if there is one, from enter on, and says in the end
 * whether it failed. In a forked child whose parent was within such a call on another thread, what the session holds is
 * half done: UNSUPPORTED. */
pf_status pf_session_enter(pf_session *session, pf_error *err);
pf_status pf_session_leave(pf_session *session, pf_status status, pf_error *err);

/* session_memory.c: finds the scratch that evaluating takes by running the steps dry, and reserves it in new arenas. */
pf_status pf_session_plan_buffers(pf_session *session, pf_error *err);

#endif
