/* Micro-benchmarks of the operations, at the sizes of V4-Flash (built on request):
 *
 *     cmake --build build --target bench_kernels && build/bench_kernels [OP [ISA [THREADS]]]
 *
 * OP: the beginning of the names to run; "" for all. Every line: median time of a call, bytes per second of what the
 * call must read and write, with the share of the read bandwidth that a plain sum reaches with as many threads, and
 * multiply-adds per second, with the share of what the processor does with registers alone (float FMA; integer products
 * may pass it). What is used once, weights and cache rows, is larger than the caches or as large as in a real call; a
 * call's time includes its parallel loop. One thread: processor time, which other programs disturb less. */
#if !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "tools/cpu/bench.h"

#include "base/cpus.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#if defined(__x86_64__)
#  include <immintrin.h>
#elif defined(__aarch64__)
#  include <arm_neon.h>
#endif

static const size_t DATA_BYTES = (size_t)256 << 20;

/* ---- Measuring --------------------------------------------------------------------------------------------- */

static bool cpu_time;

static double now(void) {
    if (cpu_time) return (double)clock() / CLOCKS_PER_SEC;
    struct timespec t;
    timespec_get(&t, TIME_UTC);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median over at least 5 calls and about 0.3 s. */
static double median_time(bench *b, bench_op op, void *args) {
    enum { MOST = 2000 };
    static double times[MOST];
    int n = 0;
    op(b, args);
    for (double total = 0.0; n < MOST && (n < 5 || total < 0.3); ++n) {
        const double start = now();
        op(b, args);
        total += times[n] = now() - start;
    }
    qsort(times, (size_t)n, sizeof *times, by_value);
    return times[n / 2];
}

void bench_measure(bench *b, const char *name, const char *what, bench_op op, void *args, double bytes, double macs) {
    if (strncmp(name, b->wanted, strlen(b->wanted)) != 0) return;
    const double t = median_time(b, op, args);
    printf("%-13s %-30s %10.1f us %7.2f GB/s %4.0f%%", name, what, 1e6 * t, 1e-9 * bytes / t,
           100.0 * bytes / t / b->read_rate);
    if (macs > 0.0) printf(" %8.2f Gmac/s %4.0f%%", 1e-9 * macs / t, 100.0 * macs / t / b->fma_rate);
    printf("\n");
}

/* ---- Rooflines --------------------------------------------------------------------------------------------- */

enum { PIECE = 1 << 16, IN_FLIGHT = 4, FMA_LOOPS = 20000, FMA_VECTORS = 12 };

typedef struct roof_job {
    const uint8_t *data;
    const char *isa;
    uint64_t sums[256];
    float floats[256];
    int lanes;
} roof_job;

/* Several places of a piece at once, which keeps more reads in flight than one. */
static uint64_t read_plain(const uint8_t *data, int64_t n_piece) {
    const int64_t part = PIECE / IN_FLIGHT;
    uint64_t s[8] = {0}, all = 0;
    for (const uint8_t *piece = data; piece < data + n_piece * PIECE; piece += PIECE) {
        for (int64_t at = 0; at < part; at += 64) {
            for (int stream = 0; stream < IN_FLIGHT; ++stream) {
                uint64_t v[8];
                memcpy(v, piece + stream * part + at, sizeof v);
                for (int i = 0; i < 8; ++i) s[i] += v[i];
            }
        }
    }
    for (int i = 0; i < 8; ++i) all += s[i];
    return all;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) static uint64_t read_avx2(const uint8_t *data, int64_t n_piece) {
    const int64_t part = PIECE / IN_FLIGHT;
    __m256i even = _mm256_setzero_si256(), odd = even;
    for (const uint8_t *piece = data; piece < data + n_piece * PIECE; piece += PIECE) {
        for (int64_t at = 0; at < part; at += 64) {
            for (int stream = 0; stream < IN_FLIGHT; ++stream) {
                const __m256i *line = (const __m256i *)(const void *)(piece + stream * part + at);
                even = _mm256_add_epi64(even, _mm256_loadu_si256(line));
                odd = _mm256_add_epi64(odd, _mm256_loadu_si256(line + 1));
            }
        }
    }
    uint64_t s[4];
    _mm256_storeu_si256((__m256i *)(void *)s, _mm256_add_epi64(even, odd));
    return s[0] + s[1] + s[2] + s[3];
}
#endif

static void read_piece(void *arg, int64_t begin, int64_t end, int worker) {
    roof_job *job = arg;
    const uint8_t *data = job->data + begin * PIECE;
#if defined(__x86_64__)
    if (strcmp(job->isa, "scalar") != 0) {
        job->sums[worker & 255] += read_avx2(data, end - begin);
        return;
    }
#endif
    job->sums[worker & 255] += read_plain(data, end - begin);
}

#define FMA_LOOP(type, set1, fma)                                                        \
    type v[FMA_VECTORS];                                                                 \
    for (int i = 0; i < FMA_VECTORS; ++i) v[i] = set1((float)i);                         \
    for (int loop = 0; loop < FMA_LOOPS; ++loop) {                                       \
        _Pragma("GCC unroll 12") for (int i = 0; i < FMA_VECTORS; ++i) v[i] = fma(v[i]); \
    }

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static float fma_avx2(void) {
    const __m256 a = _mm256_set1_ps(0.999f), b = _mm256_set1_ps(0.1f);
#  define STEP(v) _mm256_fmadd_ps(v, a, b)
    FMA_LOOP(__m256, _mm256_set1_ps, STEP)
    for (int i = 1; i < FMA_VECTORS; ++i) v[0] = _mm256_add_ps(v[0], v[i]);
    return _mm256_cvtss_f32(v[0]);
#  undef STEP
}
__attribute__((target("avx512f"))) static float fma_avx512(void) {
    const __m512 a = _mm512_set1_ps(0.999f), b = _mm512_set1_ps(0.1f);
#  define STEP(v) _mm512_fmadd_ps(v, a, b)
    FMA_LOOP(__m512, _mm512_set1_ps, STEP)
    for (int i = 1; i < FMA_VECTORS; ++i) v[0] = _mm512_add_ps(v[0], v[i]);
    return _mm512_cvtss_f32(v[0]);
#  undef STEP
}
#elif defined(__aarch64__)
static float fma_neon(void) {
    const float32x4_t a = vdupq_n_f32(0.999f), b = vdupq_n_f32(0.1f);
#  define STEP(v) vfmaq_f32(b, v, a)
    FMA_LOOP(float32x4_t, vdupq_n_f32, STEP)
    for (int i = 1; i < FMA_VECTORS; ++i) v[0] = vaddq_f32(v[0], v[i]);
    return vgetq_lane_f32(v[0], 0);
#  undef STEP
}
#endif
static float fma_scalar(void) {
    const volatile float a = 0.999f, b = 0.1f;
    const float c = a, d = b;
#define STEP(v) ((v)*c + d)
#define SAME(v) (v)
    FMA_LOOP(float, SAME, STEP)
    for (int i = 1; i < FMA_VECTORS; ++i) v[0] += v[i];
    return v[0];
}

static void fma_piece(void *arg, int64_t begin, int64_t end, int worker) {
    roof_job *job = arg;
    float sum = 0.0f;
    for (int64_t i = begin; i < end; ++i) {
#if defined(__x86_64__)
        if (strcmp(job->isa, "avx512") == 0 || strcmp(job->isa, "amx") == 0) sum += fma_avx512();
        else if (strncmp(job->isa, "avx", 3) == 0) sum += fma_avx2();
        else sum += fma_scalar();
#elif defined(__aarch64__)
        sum += strcmp(job->isa, "scalar") != 0 ? fma_neon() : fma_scalar();
#else
        sum += fma_scalar();
#endif
    }
    job->floats[worker & 255] += sum;
}

static void read_op(bench *b, void *job) {
    pf_pool_run(b->ex.pool, (int64_t)(DATA_BYTES / PIECE), 16, read_piece, job);
}
static void fma_op(bench *b, void *job) { pf_pool_run(b->ex.pool, 16, 1, fma_piece, job); }

static void measure_roofs(bench *b) {
    static roof_job job;
    job.data = b->data;
    job.isa = b->ex.backend->name;
    const bool zmm = strcmp(job.isa, "avx512") == 0 || strcmp(job.isa, "amx") == 0;
    job.lanes = zmm ? 16 : job.isa[0] == 'a' ? 8 : job.isa[0] == 'n' ? 4 : 1;
    b->read_rate = (double)DATA_BYTES / median_time(b, read_op, &job);
    b->fma_rate = 16.0 * FMA_LOOPS * FMA_VECTORS * job.lanes / median_time(b, fma_op, &job);
}

/* ---- Matrix products --------------------------------------------------------------------------------------- */

typedef struct variant {
    const char *name;
    pf_dtype type;
    pf_acts_form acts;
} variant;

static const variant variants[] = {
    {"mxfp4_q16", PF_MXFP4, PF_ACTS_Q16}, {"mxfp4_q8", PF_MXFP4, PF_ACTS_Q8},
    {"q8_0_q16", PF_Q8_0, PF_ACTS_Q16},   {"q8_0_q8", PF_Q8_0, PF_ACTS_Q8},
    {"iq2_xxs_q16", PF_IQ2_XXS, PF_ACTS_Q16}, {"iq2_xs_q16", PF_IQ2_XS, PF_ACTS_Q16},
    {"iq2_s_q16", PF_IQ2_S, PF_ACTS_Q16},     {"q2_k_q16", PF_Q2_K, PF_ACTS_Q16},
    {"iq3_xxs_q16", PF_IQ3_XXS, PF_ACTS_Q16}, {"iq3_s_q16", PF_IQ3_S, PF_ACTS_Q16},
    {"q3_k_q16", PF_Q3_K, PF_ACTS_Q16},       {"iq4_xs_q16", PF_IQ4_XS, PF_ACTS_Q16},
    {"q4_k_q16", PF_Q4_K, PF_ACTS_Q16},       {"q5_k_q16", PF_Q5_K, PF_ACTS_Q16},
    {"q6_k_q16", PF_Q6_K, PF_ACTS_Q16},       {"iq1_s_q16", PF_IQ1_S, PF_ACTS_Q16},
    {"iq1_m_q16", PF_IQ1_M, PF_ACTS_Q16},
    {"mxfp4_f32", PF_MXFP4, PF_ACTS_F32}, {"q8_0_f32", PF_Q8_0, PF_ACTS_F32},
    {"fp8_f32", PF_FP8, PF_ACTS_F32},       {"bf16_f32", PF_BF16, PF_ACTS_F32},
    {"f16_f32", PF_F16, PF_ACTS_F32},       {"f32_f32", PF_F32, PF_ACTS_F32},
};

static pf_weight make_weight(const bench *b, const variant *v, int64_t rows, int64_t cols, int64_t count) {
    uint64_t row_bytes = 0;
    (void)pf_dtype_row_bytes(v->type, (uint64_t)cols, &row_bytes);
    return (pf_weight){.data = b->data, .scale = b->scale, .type = v->type, .cols = cols, .rows = rows, .count = count,
                       .row_bytes = (int64_t)row_bytes, .scale_cols = cols / 128,
                       .scale_rows = (rows + 127) / 128};
}

typedef struct linear_args {
    pf_weight w;
    int64_t n;
} linear_args;

static void linear_op(bench *b, void *args) {
    const linear_args *a = args;
    pf_cpu_linear(&b->ex, &a->w, b->x, a->w.cols, a->n, b->y, a->w.rows);
}

static void take_acts(bench *b, pf_acts_form form) {
    b->ex.exact = form == PF_ACTS_F32;
    b->ex.int8 = form == PF_ACTS_Q8;
}

static void bench_linear(bench *b) {
    for (size_t i = 0; i < sizeof variants / sizeof *variants; ++i) {
        const variant *v = &variants[i];
        linear_args a = {make_weight(b, v, 1, D, 1), 1};
        take_acts(b, v->acts);
        a.w.rows = (int64_t)(DATA_BYTES / 2) / a.w.row_bytes / 128 * 128;
        a.w.scale_rows = a.w.rows / 128;
        for (a.n = 1; a.n <= 8; a.n *= 2) {
            char what[40];
            snprintf(what, sizeof what, "%d token%s, weights from memory", (int)a.n, a.n > 1 ? "s" : "");
            bench_measure(b, v->name, what, linear_op, &a, (double)(a.w.rows * a.w.row_bytes), (double)(a.w.rows * D * a.n));
        }
        a.w.rows = 1024; /* fits the outer caches: what counts is arithmetic */
        for (a.n = 8; a.n <= MAX_TOKENS; a.n *= 8) {
            bench_measure(b, v->name, a.n == 8 ? "8 tokens, 1024 rows" : "64 tokens, 1024 rows", linear_op, &a,
                    (double)(a.w.rows * a.w.row_bytes), (double)(a.w.rows * D * a.n));
        }
    }
    take_acts(b, PF_ACTS_Q16);
}

typedef struct expert_case {
    pf_weight gate, up, down; /* they overlap, but no expert's own do */
    pf_experts_args args;
    int32_t chosen[MAX_TOKENS * USED];
    float weight[MAX_TOKENS * USED];
} expert_case;

static void experts_op(bench *b, void *args) { pf_cpu_experts(&b->ex, &((expert_case *)args)->args); }

static void bench_experts(bench *b) {
    static expert_case c;
    c.gate = make_weight(b, &variants[0], FF, D, EXPERTS);
    /* Scales that keep what follows from being denormal, which is slow. */
    for (size_t i = 0; i < DATA_BYTES; i += PF_MXFP4_BYTES) b->data[i] = 120;
    c.up = c.gate;
    c.up.data += 15 * FF * c.gate.row_bytes;
    c.down = make_weight(b, &variants[0], D, FF, EXPERTS);
    c.down.data += 25 * FF * c.gate.row_bytes;
    for (int i = 0; i < MAX_TOKENS * USED; ++i) {
        c.chosen[i] = i / USED % 4 * 7 + i % USED; /* 24 of them in use */
        c.weight[i] = 0.2f;
    }
    c.args = (pf_experts_args){.gate = &c.gate, .up = &c.up, .down = &c.down, .x = b->x, .chosen = c.chosen,
                               .weight = c.weight, .n_token = 1, .n_used = USED, .expert_end = EXPERTS, .limit = 7.0f,
                               .out = b->y};
    const double weights = 3.0 * FF * D, bytes = weights / PF_MXFP4_VALUES * PF_MXFP4_BYTES;
    for (int q8 = 0; q8 < 2; ++q8) {
        const char *name = q8 ? "experts_q8" : "experts";
        take_acts(b, q8 ? PF_ACTS_Q8 : PF_ACTS_Q16);
        c.args.n_token = 1;
        bench_measure(b, name, "1 token, 6 of MXFP4", experts_op, &c, USED * bytes, USED * weights);
        c.args.n_token = MAX_TOKENS;
        bench_measure(b, name, "64 tokens, 24 in use, MXFP4", experts_op, &c, 24 * bytes,
                      USED * MAX_TOKENS * weights);
    }
}

int main(int argc, char **argv) {
    bench b = {.wanted = argc > 1 ? argv[1] : ""};
    setvbuf(stdout, NULL, _IOLBF, 0);
    pf_error err;
    const int threads = argc > 3 ? atoi(argv[3]) : pf_cpu_count();
    cpu_time = threads == 1;
    if (threads < 1 || threads > 256) {
        fprintf(stderr, "threads: 1 to 256\n");
        return 1;
    }
    if (pf_cpu_backend(argc > 2 && argv[2][0] ? argv[2] : NULL, &b.ex.backend, &err) != PF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    b.ex.pool = pf_pool_new(threads);
    b.ex.arena = pf_arena_new();
    b.data = pf_alloc(DATA_BYTES);
    b.scale = pf_alloc(DATA_BYTES / 64);
    float **const buffers[] = {&b.x, &b.y, &b.z};
    for (int i = 0; i < 3; ++i) *buffers[i] = pf_alloc(BENCH_FLOATS * sizeof(float));
    if (!b.ex.pool || !b.ex.arena || !b.data || !b.scale || !b.x || !b.y || !b.z) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    uint64_t seed = 1;
    for (size_t i = 0; i < DATA_BYTES; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        b.data[i] = (uint8_t)(60 + (seed >> 60));
    }
    memset(b.scale, 120, DATA_BYTES / 64);
    for (size_t i = 0; i < BENCH_FLOATS; ++i) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        b.x[i] = b.z[i] = (float)(int32_t)(seed >> 32) * 0x1p-31f;
        b.y[i] = 0.0f;
    }
    measure_roofs(&b);
    printf("%s, %d threads: reads %.1f GB/s, %.1f Gmac/s in registers\n", b.ex.backend->name, threads,
           1e-9 * b.read_rate, 1e-9 * b.fma_rate);
    bench_linear(&b);
    bench_ops(&b);
    bench_experts(&b); /* changes the data */
    return 0;
}
