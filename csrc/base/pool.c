#if !defined(_WIN32) && !defined(_GNU_SOURCE)
#  define _GNU_SOURCE /* pthread_setaffinity_np, CPU_ALLOC */
#endif

#include "base/pool.h"

#include "base/cpus.h"
#include "base/fork.h"
#include "base/memory.h"
#include "base/mutex.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#if defined(_WIN32)
#  include <process.h>
#else
#  include <signal.h>
#  if defined(__linux__)
#    include <sched.h>
#  endif
#endif

/* ---- Threads of this system -------------------------------------------------------------------------------- */

#define PF_STACK_BYTES ((size_t)2 << 20)

#if defined(_WIN32)

typedef CONDITION_VARIABLE pf_cond;
typedef HANDLE pf_thread;
#  define PF_THREAD_RESULT unsigned __stdcall
#  define PF_THREAD_RETURN 0

static bool pf_cond_init(pf_cond *c) { return InitializeConditionVariable(c), true; }
static void pf_cond_destroy(pf_cond *c) { (void)c; }
static void pf_cond_wait(pf_cond *c, pf_mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static void pf_cond_broadcast(pf_cond *c) { WakeAllConditionVariable(c); }

static bool pf_thread_start(pf_thread *thread, unsigned(__stdcall *fn)(void *), void *arg) {
    uintptr_t handle = _beginthreadex(NULL, (unsigned)PF_STACK_BYTES, fn, arg, 0, NULL);
    *thread = (HANDLE)handle;
    return handle != 0;
}

static void pf_thread_join(pf_thread thread) {
    WaitForSingleObject(thread, INFINITE);
    CloseHandle(thread);
}

static bool pf_thread_pin(pf_thread thread, int cpu) {
    return cpu < (int)(8 * sizeof(DWORD_PTR)) && SetThreadAffinityMask(thread, (DWORD_PTR)1 << cpu) != 0;
}

#else

typedef pthread_cond_t pf_cond;
typedef pthread_t pf_thread;
#  define PF_THREAD_RESULT void *
#  define PF_THREAD_RETURN NULL

static bool pf_cond_init(pf_cond *c) { return pthread_cond_init(c, NULL) == 0; }
static void pf_cond_destroy(pf_cond *c) { pthread_cond_destroy(c); }
static void pf_cond_wait(pf_cond *c, pf_mutex *m) { pthread_cond_wait(c, m); }
static void pf_cond_broadcast(pf_cond *c) { pthread_cond_broadcast(c); }

/* Workers take no signals but those of their own faults, which are deadly while they are blocked: the host program's
 * handlers run on its own threads. */
static void pf_blocked_signals(sigset_t *out) {
    const int faults[] = {SIGBUS, SIGSEGV, SIGFPE, SIGILL, SIGTRAP, SIGSYS};
    sigfillset(out);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(out, faults[i]);
}

static bool pf_thread_start(pf_thread *thread, void *(*fn)(void *), void *arg) {
    pthread_attr_t attr;
    if (pthread_attr_init(&attr) != 0) return false;
    pthread_attr_setstacksize(&attr, PF_STACK_BYTES);
    sigset_t blocked, before;
    pf_blocked_signals(&blocked);
    pthread_sigmask(SIG_SETMASK, &blocked, &before);
    bool started = pthread_create(thread, &attr, fn, arg) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    pthread_attr_destroy(&attr);
    return started;
}

static void pf_thread_join(pf_thread thread) { pthread_join(thread, NULL); }

static bool pf_thread_pin(pf_thread thread, int cpu) {
#  if defined(__linux__)
    const size_t bytes = CPU_ALLOC_SIZE(PF_MAX_CPUS);
    cpu_set_t *set = CPU_ALLOC(PF_MAX_CPUS);
    if (!set) return false;
    CPU_ZERO_S(bytes, set);
    CPU_SET_S((size_t)cpu, bytes, set);
    const bool pinned = pthread_setaffinity_np(thread, bytes, set) == 0;
    CPU_FREE(set);
    return pinned;
#  else
    (void)thread, (void)cpu; /* macOS takes no orders */
    return false;
#  endif
}

#endif

static inline void pf_pause(void) {
#if defined(_WIN32)
    YieldProcessor();
#elif defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* ---- Pool -------------------------------------------------------------------------------------------------- */

/* The gate holds the whole state of a loop in one word, so that joining, closing and leaving are single atomic steps:
 * the low bits count the workers inside, PF_OPEN says that more may enter, and the rest is the loop's number. A loop
 * waits only for workers that entered it, never for one that has not woken up yet. */
#define PF_COUNT_MASK UINT64_C(0xFFFF)
#define PF_OPEN (UINT64_C(1) << 16)
#define PF_LOOP_ONE (UINT64_C(1) << 17)
#define PF_LOOP_OF(gate) ((gate) / PF_LOOP_ONE)

#define PF_MAX_THREADS 4096
#define PF_SPINS 4000 /* pauses, some 50 to 150 microseconds: longer than the gaps within a step of the model */

typedef struct pf_worker {
    pf_pool *pool;
    pf_thread thread;
    int index;
} pf_worker;

struct pf_pool {
    _Alignas(PF_ALIGN) _Atomic uint64_t gate;
    _Alignas(PF_ALIGN) _Atomic int64_t next; /* grain */
    /* The loop, written while the gate is closed and nobody is inside. */
    _Alignas(PF_ALIGN) pf_pool_fn fn;
    void *arg;
    int64_t n;
    int64_t grain, n_grains;
    int64_t most; /* grains of a piece */
    /* Sleeping. Each side first says that it will sleep and then looks at the gate again; the other changes the gate
     * first and then looks for sleepers. All four are sequentially consistent, so one of them sees the other. */
    _Alignas(PF_ALIGN) atomic_int sleepers;
    atomic_int caller_sleeps;
    atomic_bool stop;
    pf_mutex sleep_lock;
    pf_cond wake_workers;
    pf_cond wake_caller;
    pf_mutex run_lock; /* one caller at a time */
    pf_worker *workers;
    int n_threads;
    int n_started;
    int spins;
    bool is_pinned;
    bool is_inherited; /* by a forked child, which has none of the threads: they start with the next loop */
    pf_fork_watch fork;
};

/* The next piece, in grains. False when there is none. */
static bool pf_take_piece(pf_pool *pool, int64_t *begin, int64_t *end) {
    if (pool->most == 1) {
        *begin = atomic_fetch_add_explicit(&pool->next, 1, memory_order_relaxed);
        *end = *begin + 1;
        return *begin < pool->n_grains;
    }
    *begin = atomic_load_explicit(&pool->next, memory_order_relaxed);
    do {
        if (*begin >= pool->n_grains) return false;
        *end = *begin + pf_pool_piece(pool->n_threads, pool->n_grains - *begin, pool->most);
    } while (!atomic_compare_exchange_weak_explicit(&pool->next, begin, *end, memory_order_relaxed, memory_order_relaxed));
    return true;
}

static void pf_pool_work(pf_pool *pool, int worker) {
    int64_t begin, end;
    while (pf_take_piece(pool, &begin, &end)) {
        const int64_t last = end < pool->n_grains ? end * pool->grain : pool->n;
        pool->fn(pool->arg, begin * pool->grain, last, worker);
    }
}

static bool pf_gate_invites(uint64_t gate, uint64_t last_loop) {
    return (gate & PF_OPEN) && PF_LOOP_OF(gate) != last_loop;
}

/* Waits for a loop that this worker has not been in. False when the pool ends. */
static bool pf_worker_wait(pf_pool *pool, uint64_t last_loop) {
    for (int spin = 0; spin < pool->spins; spin++) {
        if (pf_gate_invites(atomic_load(&pool->gate), last_loop)) return true;
        if (atomic_load(&pool->stop)) return false;
        pf_pause();
    }
    pf_mutex_lock(&pool->sleep_lock);
    atomic_fetch_add(&pool->sleepers, 1);
    while (!atomic_load(&pool->stop) && !pf_gate_invites(atomic_load(&pool->gate), last_loop)) {
        pf_cond_wait(&pool->wake_workers, &pool->sleep_lock);
    }
    atomic_fetch_sub(&pool->sleepers, 1);
    pf_mutex_unlock(&pool->sleep_lock);
    return !atomic_load(&pool->stop);
}

static PF_THREAD_RESULT pf_worker_main(void *arg) {
    pf_worker *worker = arg;
    pf_pool *pool = worker->pool;
    uint64_t last_loop = 0;
    while (pf_worker_wait(pool, last_loop)) {
        uint64_t gate = atomic_load(&pool->gate);
        if (!pf_gate_invites(gate, last_loop)) continue;
        if (!atomic_compare_exchange_strong(&pool->gate, &gate, gate + 1)) continue;
        last_loop = PF_LOOP_OF(gate);
        pf_pool_work(pool, worker->index);
        uint64_t left = atomic_fetch_sub(&pool->gate, 1) - 1;
        bool last_out = (left & (PF_OPEN | PF_COUNT_MASK)) == 0;
        if (last_out && atomic_load(&pool->caller_sleeps)) {
            pf_mutex_lock(&pool->sleep_lock);
            pf_cond_broadcast(&pool->wake_caller);
            pf_mutex_unlock(&pool->sleep_lock);
        }
    }
    return PF_THREAD_RETURN;
}

static void pf_gate_open(pf_pool *pool) {
    uint64_t loop = PF_LOOP_OF(atomic_load(&pool->gate)) + 1;
    atomic_store(&pool->gate, loop * PF_LOOP_ONE | PF_OPEN);
    if (atomic_load(&pool->sleepers) > 0) {
        pf_mutex_lock(&pool->sleep_lock);
        pf_cond_broadcast(&pool->wake_workers);
        pf_mutex_unlock(&pool->sleep_lock);
    }
}

/* Lets nobody else in and waits until those inside have left. */
static void pf_gate_close(pf_pool *pool) {
    uint64_t gate = atomic_fetch_and(&pool->gate, ~PF_OPEN);
    for (int spin = 0; (gate & PF_COUNT_MASK) != 0 && spin < pool->spins; spin++) {
        pf_pause();
        gate = atomic_load(&pool->gate);
    }
    if ((gate & PF_COUNT_MASK) == 0) return;
    pf_mutex_lock(&pool->sleep_lock);
    atomic_store(&pool->caller_sleeps, 1);
    while ((atomic_load(&pool->gate) & PF_COUNT_MASK) != 0) pf_cond_wait(&pool->wake_caller, &pool->sleep_lock);
    atomic_store(&pool->caller_sleeps, 0);
    pf_mutex_unlock(&pool->sleep_lock);
}

/* As many as the system gives: what is missing only costs time. */
static void pf_start_workers(pf_pool *pool) {
    for (int i = pool->n_started + 1; i < pool->n_threads; i++) {
        pf_worker *worker = &pool->workers[i];
        worker->pool = pool;
        worker->index = i;
        if (!pf_thread_start(&worker->thread, pf_worker_main, worker)) return;
        pool->n_started++;
    }
}

static bool pf_pin_workers(const pf_pool *pool) {
    int16_t *cpus = pf_alloc(PF_MAX_CPUS * sizeof *cpus);
    if (!cpus) return false;
    int n_cores = 0;
    const int n_cpus = pf_cpu_list(cpus, &n_cores);
    const int n_used = pool->n_threads <= n_cores ? n_cores : n_cpus;
    bool pinned = n_cpus > 0;
    for (int i = 1; pinned && i <= pool->n_started; i++) {
        const int64_t at = pool->n_threads <= n_used ? (int64_t)i * n_used / pool->n_threads : i % n_used;
        pinned = pf_thread_pin(pool->workers[i].thread, cpus[at]);
    }
    pf_free(cpus);
    return pinned;
}

bool pf_pool_pin(pf_pool *pool) {
    pool->is_pinned = pf_pin_workers(pool);
    return pool->is_pinned;
}

/* The threads of an inherited pool, once it is used. */
static void pf_pool_restart(pf_pool *pool) {
    pool->is_inherited = false;
    pf_start_workers(pool);
    if (pool->is_pinned) (void)pf_pin_workers(pool);
}

void pf_pool_share(pf_pool *pool, int64_t n, int64_t least, int64_t most, pf_pool_fn fn, void *arg) {
    if (n <= 0) return;
    if (least < 1) least = 1;
    if (!pool) {
        const int64_t grain = most > least ? most - most % least : least;
        for (int64_t begin = 0; begin < n;) {
            int64_t end = n - begin < grain ? n : begin + grain;
            fn(arg, begin, end, 0);
            begin = end;
        }
        return;
    }
    pf_mutex_lock(&pool->run_lock);
    if (pool->is_inherited) pf_pool_restart(pool);
    pool->fn = fn;
    pool->arg = arg;
    pool->n = n;
    pool->grain = least;
    pool->n_grains = n / least + (n % least != 0);
    pool->most = most > least ? most / least : 1;
    atomic_store_explicit(&pool->next, 0, memory_order_relaxed);
    bool share = pool->n_started > 0 && pool->n_grains > 1;
    if (share) pf_gate_open(pool);
    pf_pool_work(pool, 0);
    if (share) pf_gate_close(pool);
    pf_mutex_unlock(&pool->run_lock);
}

void pf_pool_run(pf_pool *pool, int64_t n, int64_t grain, pf_pool_fn fn, void *arg) {
    pf_pool_share(pool, n, grain, grain, fn, arg);
}

/* On the systems we build for the others cannot fail once the first has not. */
static bool pf_init_locks(pf_pool *pool) {
    return pf_mutex_init(&pool->sleep_lock) && pf_mutex_init(&pool->run_lock) && pf_cond_init(&pool->wake_workers) &&
           pf_cond_init(&pool->wake_caller);
}

/* A loop may have been running, on a thread that does not exist here, and any lock be held. */
static void pf_pool_in_child(void *object) {
    pf_pool *pool = object;
    (void)pf_init_locks(pool);
    atomic_store(&pool->gate, 0);
    atomic_store(&pool->sleepers, 0);
    atomic_store(&pool->caller_sleeps, 0);
    pool->n_started = 0;
    pool->is_inherited = true;
}

pf_pool *pf_pool_new(int n_threads) {
    if (n_threads < 1 || n_threads > PF_MAX_THREADS) return NULL;
    pf_pool *pool = pf_calloc(1, sizeof *pool);
    if (!pool) return NULL;
    pool->workers = pf_calloc((size_t)n_threads, sizeof *pool->workers);
    if (!pool->workers || !pf_init_locks(pool)) {
        pf_free(pool->workers);
        pf_free(pool);
        return NULL;
    }
    pool->n_threads = n_threads;
    pool->spins = n_threads <= pf_logical_cpus() ? PF_SPINS : 0; /* helps only where every worker can run at once */
    pf_start_workers(pool);
    pf_fork_watch_begin(&pool->fork, pf_pool_in_child, pool);
    if (pool->n_started < n_threads - 1) {
        pf_pool_delete(pool);
        return NULL;
    }
    return pool;
}

void pf_pool_delete(pf_pool *pool) {
    if (!pool) return;
    pf_fork_watch_end(&pool->fork);
    pf_mutex_lock(&pool->sleep_lock);
    atomic_store(&pool->stop, true);
    pf_cond_broadcast(&pool->wake_workers);
    pf_mutex_unlock(&pool->sleep_lock);
    for (int i = 1; i <= pool->n_started; i++) pf_thread_join(pool->workers[i].thread);
    pf_cond_destroy(&pool->wake_caller);
    pf_cond_destroy(&pool->wake_workers);
    pf_mutex_destroy(&pool->run_lock);
    pf_mutex_destroy(&pool->sleep_lock);
    pf_free(pool->workers);
    pf_free(pool);
}

int pf_pool_threads(const pf_pool *pool) { return pool ? pool->n_threads : 1; }
