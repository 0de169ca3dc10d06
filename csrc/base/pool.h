/* Thread pool: a fixed set of workers that runs one parallel loop at a time.
 *
 * The calling thread takes part, so a pool of one thread has no workers. Ranges are handed out in pieces, to whoever
 * is free; results must not depend on which thread gets which piece. Two callers at once are
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

/* The same in pieces that become smaller: multiples of `least` items (the last piece may be less), at most `most`, and the
 * less the less is left, so that all end at nearly the same time where some of the processors are slower. */
void pf_pool_share(pf_pool *pool, int64_t n, int64_t least, int64_t most, pf_pool_fn fn, void *arg);

/* How many times `least` the next piece has where so many times are left, and `most` is the most. Half of an even share:
 * who takes the last of the large pieces then still has time for it. */
static inline int64_t pf_pool_piece(int n_threads, int64_t left, int64_t most) {
    const int64_t half = left / (2 * (int64_t)n_threads);
    return half < 1 ? 1 : half > most ? most : half;
}

#endif
