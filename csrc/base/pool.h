/* Thread pool: a fixed set of workers that runs one parallel loop at a time.
 *
 * The calling thread takes part, so a pool of one thread has no workers. Ranges are handed out dynamically in
 * pieces of `grain` items; results must not depend on which thread gets which piece. Two callers at once are
 * served one after the other. Workers spin briefly between loops and then sleep, so an idle pool costs nothing. A forked
 * child may use and delete the pool that it inherited: its threads start anew with the first loop there. */
#ifndef PF_BASE_POOL_H
#define PF_BASE_POOL_H

#include <stdbool.h>
#include <stdint.h>

typedef struct pf_pool pf_pool;

/* worker: 0 .. n_threads-1, for indexing scratch memory; no two pieces run with the same worker at once. */
typedef void (*pf_pool_fn)(void *arg, int64_t begin, int64_t end, int worker);

pf_pool *pf_pool_new(int n_threads); /* n_threads >= 1; NULL when threads or memory are refused */
void pf_pool_delete(pf_pool *pool);  /* NULL is allowed */
int pf_pool_threads(const pf_pool *pool);
/* Keeps each worker on a processor of its own, one a core where there are enough, spread evenly over all that this
 * process may use, and so over the memory of several sockets. The calling threads are not the pool's and stay free. To
 * be called before the first loop. False where the system does not do it. */
bool pf_pool_pin(pf_pool *pool);

/* Runs fn over [0, n) in pieces of at most grain items (grain >= 1) and returns when all are done. Must not be
 * called from inside fn. pool may be NULL: then everything runs on the caller as worker 0. */
void pf_pool_run(pf_pool *pool, int64_t n, int64_t grain, pf_pool_fn fn, void *arg);

#endif
