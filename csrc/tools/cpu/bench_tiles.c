/* The tile kernels beside the products of any number of tokens, one thread, weights in cache (built on request):
 *
 *     cmake --build build --target bench_tiles && build/bench_tiles [ISA]
 *
 * Multiply-adds per second of the best of many short calls, of one and the other in turn, so that what else the machine does
 * matters little. Tokens are packed before. */
#if !defined(_POSIX_C_SOURCE)
#  define _POSIX_C_SOURCE 200809L
#endif

#include "backend/cpu/ops.h"

#include "base/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { COLS = 4096, ROWS = 256, MOST_TOKENS = 64, CALLS = 60 };

static const int64_t counts[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 48, MOST_TOKENS};
enum { COUNTS = sizeof counts / sizeof *counts };

typedef struct tile_bench {
    const pf_cpu_kernels *k;
    pf_weight w;
    uint8_t *weights, *acts, *packed;
    float *y, *scratch;
    int64_t stride, tile_bytes;
} tile_bench;

static double now(void) { return (double)clock() / CLOCKS_PER_SEC; }

static double rate(const tile_bench *b, pf_gemm_fn fn, const pf_gemm *g) {
    enum { AGAIN = 4 }; /* clock() counts microseconds */
    const double start = now();
    for (int i = 0; i < AGAIN; ++i) fn(b->k, g, 0, ROWS);
    const double seconds = now() - start;
    return seconds > 0.0 ? (double)(AGAIN * g->n * ROWS) * COLS / seconds : 0.0;
}

static void bench_type(tile_bench *b, const char *name, pf_dtype type) {
    const int kind = pf_weight_kind(type);
    const pf_gemm_fn fns[2] = {b->k->gemm_q16[kind], b->k->tiles.gemm_q16[kind]};
    double best[2][COUNTS] = {{0.0}};
    uint64_t row_bytes = 0;
    (void)pf_dtype_row_bytes(type, COLS, &row_bytes);
    b->w = (pf_weight){.data = b->weights, .type = type, .cols = COLS, .rows = ROWS, .count = 1,
                       .row_bytes = (int64_t)row_bytes};
    if (!fns[1]) return;
    for (int call = 0; call < CALLS; ++call) {
        for (int c = 0; c < COUNTS; ++c) {
            const int64_t n = counts[c];
            pf_gemm g = {.w = &b->w, .act = b->acts, .act_stride = b->stride, .n = n, .y = b->y, .ldy = ROWS,
                         .scratch = b->scratch, .packed = b->packed};
            for (int64_t t = 0; t < n; t += PF_TILE_TOKENS) {
                b->k->tiles.pack(&g, PF_Q16_PLANES, t, n - t < PF_TILE_TOKENS ? n - t : PF_TILE_TOKENS,
                                 b->packed + t / PF_TILE_TOKENS * b->tile_bytes);
            }
            for (int f = 0; f < 2; ++f) {
                const double got = rate(b, fns[f], &g);
                if (got > best[f][c]) best[f][c] = got;
            }
        }
    }
    for (int f = 0; f < 2; ++f) {
        printf("%-7s %-6s", name, f ? "tiles" : "others");
        for (int c = 0; c < COUNTS; ++c) printf("%8.1f", 1e-9 * best[f][c]);
        printf("\n");
    }
}

int main(int argc, char **argv) {
    enum { WEIGHT_BYTES = ROWS * COLS * 2 };
    const pf_backend *backend;
    pf_error err;
    if (pf_cpu_backend(argc > 1 ? argv[1] : NULL, &backend, &err) != PF_OK) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    tile_bench b = {.k = backend->kernels, .stride = pf_acts_stride(PF_ACTS_Q16, COLS)};
    if (b.k->tiles.from == 0) {
        fprintf(stderr, "%s has no tiles\n", b.k->name);
        return 1;
    }
    b.tile_bytes = b.k->tiles.packed_bytes(PF_Q16_PLANES, COLS);
    b.weights = pf_alloc(WEIGHT_BYTES);
    b.acts = pf_alloc((size_t)(MOST_TOKENS * b.stride));
    b.packed = pf_alloc((size_t)(MOST_TOKENS / PF_TILE_TOKENS * b.tile_bytes));
    b.y = pf_alloc(MOST_TOKENS * ROWS * sizeof *b.y);
    b.scratch = pf_alloc((size_t)b.k->tiles.scratch_bytes(COLS));
    float *x = pf_alloc(COLS * sizeof *x);
    if (!b.weights || !b.acts || !b.packed || !b.y || !b.scratch || !x) {
        fprintf(stderr, "out of memory\n");
        return 1;
    }
    for (int i = 0; i < WEIGHT_BYTES; ++i) b.weights[i] = (uint8_t)(60 + i * 7 % 16); /* scales of moderate size */
    for (int64_t t = 0; t < MOST_TOKENS; ++t) {
        for (int i = 0; i < COLS; ++i) x[i] = (float)((i * 37 + t * 11) % 201 - 100);
        b.k->quantize_q16(x, COLS, 0, COLS, b.acts + t * b.stride);
    }
    printf("%s, Gmac/s\n%-14s", b.k->name, "tokens");
    for (int c = 0; c < COUNTS; ++c) printf("%8lld", (long long)counts[c]);
    printf("\n");
    bench_type(&b, "mxfp4", PF_MXFP4);
    bench_type(&b, "q8_0", PF_Q8_0);
    static const struct {
        const char *name;
        pf_dtype type;
    } supers[] = {{"iq2_xxs", PF_IQ2_XXS}, {"q2_k", PF_Q2_K},   {"q4_k", PF_Q4_K},   {"q5_k", PF_Q5_K},   {"q6_k", PF_Q6_K},
                  {"iq3_xxs", PF_IQ3_XXS}, {"iq2_s", PF_IQ2_S}, {"iq2_xs", PF_IQ2_XS}, {"iq4_xs", PF_IQ4_XS},
                  {"q3_k", PF_Q3_K},       {"iq3_s", PF_IQ3_S}, {"iq1_m", PF_IQ1_M}, {"iq1_s", PF_IQ1_S}};
    for (size_t i = 0; i < sizeof supers / sizeof *supers; ++i) bench_type(&b, supers[i].name, supers[i].type);
    return 0;
}
