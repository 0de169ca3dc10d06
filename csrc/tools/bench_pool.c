/* Micro-benchmark of the thread pool (built on request: cmake --build ... --target bench_pool).
 *
 *     bench_pool [threads]
 *
 * How long a loop of one empty piece a thread takes, so that every thread has to come: right after another loop, when
 * workers still spin, and after pauses that have put them to sleep. Then what an idle pool costs in processor time, and how
 * long a loop takes beside the best that there is where one worker has a third of the others' speed: items sleep, so that
 * other work on the machine hardly matters. */
#if !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "base/cpus.h"
#include "base/pool.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { RUNS = 400 };

static double seconds(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void pause_for(double how_long) {
    const struct timespec t = {0, (long)(how_long * 1e9)};
    nanosleep(&t, NULL);
}

typedef struct meeting {
    atomic_int arrived;
    int n;
} meeting;

/* Leaves when everybody has come. */
static void meet(void *arg, int64_t begin, int64_t end, int worker) {
    meeting *m = arg;
    (void)begin, (void)end, (void)worker;
    atomic_fetch_add(&m->arrived, 1);
    while (atomic_load(&m->arrived) < m->n) {}
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void measure(pf_pool *pool, double pause) {
    static double took[RUNS];
    for (int run = 0; run < RUNS; run++) {
        meeting m = {.n = pf_pool_threads(pool)};
        if (pause > 0) pause_for(pause);
        const double start = seconds(CLOCK_MONOTONIC);
        pf_pool_run(pool, m.n, 1, meet, &m);
        took[run] = seconds(CLOCK_MONOTONIC) - start;
    }
    qsort(took, RUNS, sizeof *took, by_value);
    printf("after %5.2f ms: median %7.2f us, best %7.2f us, 90 of 100 within %7.2f us\n", 1e3 * pause,
           1e6 * took[RUNS / 2], 1e6 * took[0], 1e6 * took[RUNS * 9 / 10]);
}

/* ---- One slow worker --------------------------------------------------------------------------------------- */

enum { SLOWNESS = 3, LOOPS = 20 };

static void sleep_items(void *arg, int64_t begin, int64_t end, int worker) {
    const double each = *(const double *)arg;
    pause_for(each * (double)(end - begin) * (worker == 0 ? SLOWNESS : 1));
}

/* Loops of n rows that take `total` seconds of a fast worker, in even pieces and in shrinking ones. */
static void measure_slow(int n_threads, int64_t n, int64_t least, int64_t most, double total) {
    pf_pool *pool = pf_pool_new(n_threads);
    double each = total / (double)n, took[2] = {0.0, 0.0};
    if (!pool) return;
    for (int i = 0; i < 2 * LOOPS; i++) {
        const double start = seconds(CLOCK_MONOTONIC);
        pf_pool_share(pool, n, i % 2 ? least : most, most, sleep_items, &each);
        took[i % 2] += seconds(CLOCK_MONOTONIC) - start;
    }
    const double ideal = LOOPS * total / (n_threads - 1 + 1.0 / SLOWNESS);
    printf("%d threads, one of them slow, %5lld rows in pieces of %3lld: %.2f times the ideal, shrinking to %lld: %.2f\n",
           n_threads, (long long)n, (long long)most, took[0] / ideal, (long long)least, took[1] / ideal);
    pf_pool_delete(pool);
}

int main(int argc, char **argv) {
    pf_pool *pool = pf_pool_new(argc > 1 ? atoi(argv[1]) : pf_cpu_count());
    if (!pool) return 1;
    printf("%d threads\n", pf_pool_threads(pool));
    const double pauses[] = {0, 0.01e-3, 0.1e-3, 1e-3, 10e-3};
    for (size_t i = 0; i < sizeof pauses / sizeof *pauses; i++) measure(pool, pauses[i]);
    const double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    pause_for(0.9);
    printf("idle for 0.9 s: %.3f ms of processor time, spinning included\n",
           1e3 * (seconds(CLOCK_PROCESS_CPUTIME_ID) - before));
    pf_pool_delete(pool);
    for (int threads = 2; threads <= 16; threads *= 2) {
        for (int64_t rows = 2048; rows <= 32768; rows *= 4) {
            int64_t most = rows / (4 * threads); /* as linear.c has it for few tokens */
            most = most > 512 ? 512 : most < 32 ? 32 : most / 32 * 32;
            measure_slow(threads, rows, 32, most, 0.02 * threads);
        }
    }
    return 0;
}
