/* What stands behind the opaque pf_session. */
#ifndef PF_RUNTIME_SESSION_H
#define PF_RUNTIME_SESSION_H

#include "base/output.h"
#include "kv/cache.h"
#include "runtime/collector.h"
#include "runtime/profiler.h"
#include "runtime/evaluation.h"
#include "runtime/model.h"
#include "step/recording.h"

#include <stdatomic.h>

/* What this session last read or wrote under a name: saving there again must find it. */
typedef struct pf_known_file {
    char *key; /* of its place; NULL: none */
    pf_stamp stamp;
} pf_known_file;

enum { PF_KNOWN_FILES = 16 }; /* the latest ones */

typedef struct pf_session_files {
    pf_known_file known[PF_KNOWN_FILES];
    uint32_t next;       /* to be replaced */
    pf_place_lock *lock; /* of the one that is held; NULL */
    char *held;          /* the key of its place */
} pf_session_files;

/* By what the tokens of the file that was loaded last were computed. */
typedef struct pf_origin {
    char kernels[PF_KERNELS_BYTES]; /* "" before the first one, and for files that do not say */
    int32_t arithmetic;
    int64_t n_foreign; /* tokens at the beginning that were computed by something else than what computes here */
} pf_origin;

struct pf_session {
    pf_model *model;   /* one reference */
    pf_cache cache;
    pf_arenas arenas;
    pf_recorder *recorder; /* NULL: nothing is recorded */
    atomic_int cancel; /* set by any thread, taken by the evaluating one */
    atomic_uint running; /* 0, or within enter and leave the number of the process: its fork generation + 1 */
    int32_t *tokens;   /* [n_ctx], the first cache.position of them valid, then those that wait to be kept */
    int64_t n_waiting; /* rows of a step that wait for pf_session_keep() */
    int64_t n_ahead;   /* rows beyond the position that it left out, which pf_session_advance() may still take */
    void *note;        /* the caller's own bytes */
    size_t note_len;
    pf_session_files files;
    pf_origin origin;
    pf_tap_fn tap;
    void *tap_user;
    pf_collector *collector; /* NULL: none */
    pf_profiler *profiler;   /* NULL: none; never with a collector */
    pf_choices choices;
    bool has_choices;
};

/* given, which may be NULL, checked and completed with the defaults. */
pf_status pf_session_take_params(const pf_session_params *given, const pf_model *model, pf_session_params *out,
                                 pf_error *err);

/* ARGUMENT while rows wait to be kept. */
pf_status pf_session_check_kept(const pf_session *session, pf_error *err);

/* Around every call that reaches the cache's rows: holds the device, if there is one, from enter on, and says in the end
 * whether it failed. In a forked child whose parent was within such a call on another thread, what the session holds is
 * half done: UNSUPPORTED. ARGUMENT while rows wait to be kept. */
pf_status pf_session_enter(pf_session *session, pf_error *err);
pf_status pf_session_leave(pf_session *session, pf_status status, pf_error *err);

/* Gives memory of the device back that holds experts while nobody needs it; false when there is none. With the device
 * held. */
bool pf_session_make_room(const pf_model *model);

pf_status pf_session_check_tokens(const pf_session *session, const int32_t *tokens, int64_t n, pf_error *err);

/* session_file.c: FNV-1a over 8-byte words, then over the remaining bytes, from a sum that begins as 0; pieces must come in
 * the same sizes on both sides. */
uint64_t pf_session_checksum(uint64_t sum, const void *data, uint64_t size);
/* The names of the kernel set and, where one computes layers, of the device's kind; all bytes are
 * written. */
void pf_session_name_kernels(const pf_model *model, char out[PF_KERNELS_BYTES]);
/* Lets go of the file that is held, and forgets the others. */
void pf_session_forget_files(pf_session *session);

/* session_memory.c: finds the scratch that evaluating takes by running the steps dry, and reserves it in new arenas. */
pf_status pf_session_plan_buffers(pf_session *session, pf_error *err);

#endif
