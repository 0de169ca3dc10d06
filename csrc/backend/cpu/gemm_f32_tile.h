/* Matrix product with float activations, for the vector kernel files. With one token a row's columns go from memory
 * through registers into the sums; with more, a tile of 4 rows is expanded to floats a chunk of columns at a time and
 * meets a batch of tokens, so that a weight is read and expanded once a batch.
 *
 * The including file defines the vector (as for vector_rows.h, and pf_vec_zero, _load, _load_part, _fma, _sum) and
 * TILE_TOKENS, the tokens whose 4 sums each fit in registers. Every (row, token) pair has one vector of partial sums
 * that runs over the columns in order, whatever the tile. */
#ifndef PF_BACKEND_CPU_GEMM_F32_TILE_H
#define PF_BACKEND_CPU_GEMM_F32_TILE_H

#include "backend/cpu/vector_rows.h"

enum { AHEAD = 1024 /* bytes */, TILE_ROWS = 4, TILE_COLS = 256, TILE_BATCH = 24 };

static inline const float *f32_act(const pf_gemm *g, int64_t token) {
    return (const float *)(const void *)pf_gemm_act(g, token);
}

/* ---- One token --------------------------------------------------------------------------------------------- */

/* The columns from `col` on, fewer than 32, with zeros behind them. */
PF_INLINE void f32_row_rest(const row_source *s, const float *x, int64_t col, take_one_fn take_one, pf_vec *sum) {
    float w[BLOCK] = {0};
    const int64_t n = s->w->cols - col;
    for (int64_t i = 0; i < n; ++i) w[i] = take_one(s, col + i);
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        *sum = pf_vec_fma(pf_vec_load(w + i), pf_vec_load_part(x + col + i, n - i), *sum);
    }
}

/* n_row rows, `apart` from each other, at most PF_STREAMS. */
PF_INLINE void f32_gemv(const pf_gemm *g, int64_t row, int64_t n_row, int64_t apart, int64_t token, take_fn take,
                        take_one_fn take_one) {
    const int64_t cols = g->w->cols;
    const float *x = f32_act(g, token);
    row_source s[PF_STREAMS];
    pf_vec sums[PF_STREAMS];
    for (int64_t r = 0; r < PF_STREAMS; ++r) {
        s[r] = row_of(g->w, g->matrix, row + (r < n_row ? r : n_row - 1) * apart);
        sums[r] = pf_vec_zero();
    }
    const int64_t step = BLOCK * g->w->row_bytes / cols;
    int64_t col = 0, at = 0;
    for (; col + BLOCK <= cols; col += BLOCK) {
        const int64_t ahead = at + AHEAD;
        at += step;
        for (int r = 0; r < PF_STREAMS; ++r) {
            pf_vec v[PF_VECS];
            for (int64_t i = 0; i < step; i += 64) pf_prefetch(s[r].in + ahead + i);
            take(&s[r], col, v);
            for (int j = 0; j < PF_VECS; ++j) {
                sums[r] = pf_vec_fma(v[j], pf_vec_load(x + col + j * PF_VEC_LANES), sums[r]);
            }
        }
    }
    for (int64_t r = 0; r < n_row; ++r) {
        if (col < cols) f32_row_rest(&s[r], x, col, take_one, &sums[r]);
        pf_gemm_put(g, token, row + r * apart, pf_vec_sum(sums[r]));
    }
}

/* ---- A batch ----------------------------------------------------------------------------------------------- */

typedef struct f32_tile {
    float w[TILE_ROWS][TILE_COLS]; /* expanded; zero past the last column */
    float sums[TILE_BATCH][TILE_ROWS][PF_VEC_LANES];
} f32_tile;

/* Adds n columns' products of n_token tokens (a constant at every call). */
PF_INLINE void f32_tile_step(f32_tile *tile, const float *const *x, int64_t token, int n_token, int64_t n) {
    pf_vec s[TILE_TOKENS][TILE_ROWS];
    PF_UNROLL for (int t = 0; t < n_token; ++t) {
        PF_UNROLL for (int r = 0; r < TILE_ROWS; ++r) s[t][r] = pf_vec_load(tile->sums[token + t][r]);
    }
    int64_t i = 0;
    for (; i + PF_VEC_LANES <= n; i += PF_VEC_LANES) {
        pf_vec a[TILE_TOKENS];
        PF_UNROLL for (int t = 0; t < n_token; ++t) a[t] = pf_vec_load(x[t] + i);
        PF_UNROLL for (int r = 0; r < TILE_ROWS; ++r) {
            const pf_vec w = pf_vec_load(tile->w[r] + i);
            PF_UNROLL for (int t = 0; t < n_token; ++t) s[t][r] = pf_vec_fma(w, a[t], s[t][r]);
        }
    }
    if (i < n) {
        PF_UNROLL for (int t = 0; t < n_token; ++t) {
            const pf_vec a = pf_vec_load_part(x[t] + i, n - i);
            PF_UNROLL for (int r = 0; r < TILE_ROWS; ++r) s[t][r] = pf_vec_fma(pf_vec_load(tile->w[r] + i), a, s[t][r]);
        }
    }
    PF_UNROLL for (int t = 0; t < n_token; ++t) {
        PF_UNROLL for (int r = 0; r < TILE_ROWS; ++r) pf_vec_store(tile->sums[token + t][r], s[t][r]);
    }
}

static void f32_tile_tokens(f32_tile *tile, const float *const *x, int64_t n_token, int64_t n) {
    int64_t t = 0;
    for (; t + TILE_TOKENS <= n_token; t += TILE_TOKENS) f32_tile_step(tile, x + t, t, TILE_TOKENS, n);
    for (; t < n_token; ++t) f32_tile_step(tile, x + t, t, 1, n);
}

/* Rows [row, row + n_row) times tokens [token, token + n_token). */
PF_INLINE void f32_tile_run(f32_tile *tile, const pf_gemm *g, int64_t row, int64_t n_row, int64_t token,
                            int64_t n_token, take_fn take, take_one_fn take_one) {
    const int64_t cols = g->w->cols;
    memset(tile->sums, 0, (size_t)n_token * sizeof tile->sums[0]);
    for (int64_t first = 0; first < cols; first += TILE_COLS) {
        const int64_t n = pf_min_i64(TILE_COLS, cols - first);
        const int64_t padded = pf_ceil_div(n, PF_VEC_LANES) * PF_VEC_LANES;
        for (int64_t r = 0; r < n_row; ++r) {
            const row_source s = row_of(g->w, g->matrix, row + r);
            expand(&s, first, n, tile->w[r], take, take_one);
            for (int64_t i = n; i < padded; ++i) tile->w[r][i] = 0.0f;
        }
        const float *x[TILE_BATCH];
        for (int64_t t = 0; t < n_token; ++t) x[t] = f32_act(g, token + t) + first;
        f32_tile_tokens(tile, x, n_token, n);
    }
    for (int64_t t = 0; t < n_token; ++t) {
        for (int64_t r = 0; r < n_row; ++r) {
            pf_gemm_put(g, token + t, row + r, pf_vec_sum(pf_vec_load(tile->sums[t][r])));
        }
    }
}

PF_INLINE void f32_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, take_fn take, take_one_fn take_one) {
    f32_tile tile;
    memset(tile.w, 0, sizeof tile.w); /* rows that a tile lacks are computed too, and dropped */
    for (int64_t token = 0; token < g->n; token += TILE_BATCH) {
        const int64_t n_token = pf_min_i64(TILE_BATCH, g->n - token);
        if (n_token == 1) {
            const int64_t run = (row_end - row_begin) / PF_STREAMS, rest = row_begin + PF_STREAMS * run;
            for (int64_t row = row_begin; row < row_begin + run; ++row) {
                f32_gemv(g, row, PF_STREAMS, run, token, take, take_one);
            }
            if (rest < row_end) f32_gemv(g, rest, row_end - rest, 1, token, take, take_one);
            continue;
        }
        for (int64_t row = row_begin; row < row_end; row += TILE_ROWS) {
            f32_tile_run(&tile, g, row, pf_min_i64(TILE_ROWS, row_end - row), token, n_token, take, take_one);
        }
    }
}

/* The table entries gemm_<type> and dequant_<type>. */
#define PF_F32_ENTRIES(type)                                                                                     \
    static void gemm_##type(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {     \
        (void)k;                                                                                                 \
        f32_gemm(g, row_begin, row_end, take_##type, take_one_##type);                                           \
    }                                                                                                            \
    static void dequant_##type(const pf_weight *w, int64_t matrix, int64_t row, float *out) {                    \
        const row_source s = row_of(w, matrix, row);                                                             \
        expand(&s, 0, w->cols, out, take_##type, take_one_##type);                                               \
    }

/* The weight types that have vector loops; others go by their decoder (kernels_scalar.c). X(kind, name) */
#define PF_VECTOR_TYPES(X) X(F32, f32) X(F16, f16) X(BF16, bf16) X(Q8_0, q8_0) X(MXFP4, mxfp4) X(FP8, fp8)
#define PF_F32_ENTRY(kind, type) PF_F32_ENTRIES(type)
PF_VECTOR_TYPES(PF_F32_ENTRY)

#endif
