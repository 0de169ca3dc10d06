/* Micro-benchmark of the matrix kernels (built on request: cmake --build ... --target bench_kernels).
 *
 *     bench_kernels [ISA [threads [MiB of weights]]]
 *
 * n = 1 streams a weight matrix larger than the caches: GB/s of weights, and the share of the read bandwidth that a
 * plain sum over as much memory reaches with as many threads. Larger n: billions of multiplications and additions a
 * second, one thread pool, best of several runs. */
#if !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "backend/cpu/ops.h"
#include "base/cpus.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { COLS = 4096 };

static bool cpu_time; /* one thread: processor time, which other programs disturb less */

static double now(void) {
    if (cpu_time) return (double)clock() / CLOCKS_PER_SEC;
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct read_job {
    const uint8_t *data;
    uint64_t sums[256];
} read_job;

enum { PIECE = 1 << 16, STREAMS = 4 };

/* Several places of a piece at once, which keeps more reads in flight than one. */
static void read_piece(void *arg, int64_t begin, int64_t end, int worker) {
    read_job *job = arg;
    const int64_t part = PIECE / STREAMS;
    uint64_t s[8] = {0};
    for (int64_t piece = begin; piece < end; ++piece) {
        for (int64_t at = piece * PIECE; at < piece * PIECE + part; at += 64) {
            for (int stream = 0; stream < STREAMS; ++stream) {
                uint64_t v[8];
                memcpy(v, job->data + stream * part + at, sizeof v);
                for (int i = 0; i < 8; ++i) s[i] += v[i];
            }
        }
    }
    for (int i = 0; i < 8; ++i) job->sums[worker & 255] += s[i];
}

static double read_bandwidth(pf_pool *pool, const uint8_t *data, size_t bytes) {
    static read_job job;
    double best = 0;
    job.data = data;
    for (int run = 0; run < 5; ++run) {
        const double start = now();
        pf_pool_run(pool, (int64_t)(bytes / PIECE), 16, read_piece, &job);
        const double rate = (double)bytes / (now() - start) * 1e-9;
        best = rate > best ? rate : best;
    }
    return best;
}

typedef struct variant {
    const char *name;
    pf_dtype type;
    int64_t block, block_bytes;
    bool exact;
} variant;

static const variant variants[] = {
    {"MXFP4 x q16", PF_MXFP4, 32, 17, false}, {"Q8_0 x q16", PF_Q8_0, 32, 34, false},
    {"MXFP4 x f32", PF_MXFP4, 32, 17, true}, {"Q8_0 x f32", PF_Q8_0, 32, 34, true},
    {"FP8 x f32", PF_FP8, 1, 1, true},       {"BF16 x f32", PF_BF16, 1, 2, true},
    {"F32 x f32", PF_F32, 1, 4, true},
};

static double best_time(pf_exec *ex, const pf_weight *w, const float *x, int64_t n, float *y) {
    double best = 1e30;
    for (int run = 0; run < 4; ++run) {
        const double start = now();
        pf_cpu_linear(ex, w, x, COLS, n, y, w->rows);
        const double t = now() - start;
        best = t < best ? t : best;
        pf_arena_reset(ex->arena, 0);
    }
    return best;
}

int main(int argc, char **argv) {
    pf_error err;
    const pf_backend *backend;
    const int threads = argc > 2 ? atoi(argv[2]) : pf_cpu_count();
    const size_t bytes = (size_t)(argc > 3 ? atoi(argv[3]) : 256) << 20;
    cpu_time = threads == 1;
    if (pf_cpu_backend(argc > 1 ? argv[1] : NULL, &backend, &err) != PF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    uint8_t *data = pf_alloc(bytes), *scale = pf_alloc(bytes / 64);
    float *x = pf_alloc(512 * COLS * sizeof *x), *y = pf_alloc(512 * (bytes / 2048) * sizeof *y);
    pf_exec ex = {.backend = backend, .pool = pf_pool_new(threads), .arena = pf_arena_new()};
    if (!data || !scale || !x || !y || !ex.pool || !ex.arena) return 1;
    uint64_t seed = 1;
    for (size_t i = 0; i < bytes; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        data[i] = (uint8_t)(60 + (seed >> 60)); /* small positive numbers in every format */
    }
    memset(scale, 120, bytes / 64);
    for (int i = 0; i < 512 * COLS; ++i) x[i] = (float)(i % 17) - 8.0f;

    const double bandwidth = read_bandwidth(ex.pool, data, bytes);
    printf("%s, %d threads, %zu MiB; plain read %.1f GB/s\n", ((const pf_cpu_kernels *)backend->kernels)->name,
           threads, bytes >> 20, bandwidth);
    printf("%-12s %8s %8s %8s %8s %8s %8s %8s\n", "", "GB/s", "of read", "n=1", "n=4", "n=8", "n=64", "n=512 (Gop/s)");
    for (size_t v = 0; v < sizeof variants / sizeof *variants; ++v) {
        const int64_t row_bytes = COLS / variants[v].block * variants[v].block_bytes;
        pf_weight w = {.data = data, .scale = scale, .type = variants[v].type, .cols = COLS, .count = 1,
                       .row_bytes = row_bytes, .scale_cols = COLS / 128};
        w.rows = (int64_t)bytes / row_bytes / 128 * 128;
        w.scale_rows = w.rows / 128;
        ex.exact = variants[v].exact;
        const double rate = (double)(w.rows * row_bytes) / best_time(&ex, &w, x, 1, y) * 1e-9;
        printf("%-12s %8.2f %7.0f%%", variants[v].name, rate, 100 * rate / bandwidth);
        w.rows = 1024; /* fits the outer caches: what counts now is arithmetic */
        for (int64_t n = 1; n <= 512; n = n == 1 ? 4 : n == 8 ? 64 : n < 8 ? 8 : n * 8) {
            printf(" %8.1f", 2e-9 * (double)(w.rows * COLS * n) / best_time(&ex, &w, x, n, y));
        }
        printf("\n");
    }
    return 0;
}
