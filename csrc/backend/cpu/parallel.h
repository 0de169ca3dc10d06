/* Parallel loops of the CPU operations. */
#ifndef PF_BACKEND_CPU_PARALLEL_H
#define PF_BACKEND_CPU_PARALLEL_H

#include "backend/backend.h"

/* pf_pool_run, unless the run is dry, then PF_ERR_CANCELLED when a cancel has been asked for. Pieces that take long
 * should look at pf_cancelled() themselves and return early: the result of a cancelled operation is thrown away. */
static inline pf_status pf_parallel(pf_exec *ex, int64_t n, int64_t grain, pf_pool_fn fn, void *arg) {
    if (ex->dry) return PF_OK;
    pf_pool_run(ex->pool, n, grain, fn, arg);
    return pf_cancelled(ex) ? PF_ERR_CANCELLED : PF_OK;
}

/* The same by pf_pool_share: for what takes much of a step's time. */
static inline pf_status pf_parallel_shared(pf_exec *ex, int64_t n, int64_t least, int64_t most, pf_pool_fn fn, void *arg) {
    if (ex->dry) return PF_OK;
    pf_pool_share(ex->pool, n, least, most, fn, arg);
    return pf_cancelled(ex) ? PF_ERR_CANCELLED : PF_OK;
}

/* Items a piece, so that every thread gets about four pieces. */
static inline int64_t pf_grain(const pf_exec *ex, int64_t n) {
    int64_t grain = n / (4 * pf_pool_threads(ex->pool));
    return grain < 1 ? 1 : grain;
}

#endif
