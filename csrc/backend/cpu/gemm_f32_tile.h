/* Matrix product with float activations, for the vector kernel files. With one token and with a few a row's columns go from
 * memory through registers into the sums; with more, a tile of 4 rows is expanded to floats a chunk of columns at a time
 * and meets a batch of tokens, so that a weight is read and expanded once a batch.
 *
 * The including file defines the vector (as for vector_rows.h, and pf_vec_zero, _load, _load_part, _fma, _sum) and
 * TILE_TOKENS, the tokens whose 4 sums each fit in registers. Every (row, token) pair has one vector of partial sums
 * that runs over the columns in order, whatever the tile. */
#ifndef PF_BACKEND_CPU_GEMM_F32_TILE_H
#define PF_BACKEND_CPU_GEMM_F32_TILE_H

#include "backend/cpu/vector_rows.h"

enum { AHEAD = 1024 /* bytes */, FEW_MOST = 8, FEW_COLS = 256, TILE_ROWS = 4, TILE_COLS = 256, TILE_BATCH = 24 };

static inline const float *f32_act(const pf_gemm *g, int64_t token) {
    return (const float *)(const void *)pf_gemm_act(g, token);
}

/* ---- A few tokens ---------------------------------------------------------------------------------------------- */

/* The columns from `col` on, fewer than 32, with zeros behind them. */
PF_INLINE void f32_row_rest(const row_source *s, const float *x, int64_t col, take_one_fn take_one, pf_vec *sum) {
    float w[BLOCK] = {0};
    const int64_t n = s->w->cols - col;
    for (int64_t i = 0; i < n; ++i) w[i] = take_one(s, col + i);
    for (int64_t i = 0; i < n; i += PF_VEC_LANES) {
        *sum = pf_vec_fma(pf_vec_load(w + i), pf_vec_load_part(x + col + i, n - i), *sum);
    }
}

typedef struct f32_few {
    row_source s[PF_STREAMS];
    const float *x[FEW_MOST];
    pf_vec sums[PF_STREAMS][FEW_MOST];
} f32_few;

/* Columns [col, end) of rows [row, row + n_row), whose sums stay in registers; end - col is a multiple of 32, step the bytes
 * of 32 columns, which are asked for `far` bytes ahead. n_row and n_token are constants. */
PF_INLINE void f32_few_chunk(f32_few *f, int64_t row, int n_row, int n_token, int64_t col, int64_t end, int64_t step,
                             int64_t far, take_fn take) {
    pf_vec sums[PF_STREAMS][FEW_MOST];
    PF_UNROLL for (int r = 0; r < n_row; ++r) {
        PF_UNROLL for (int t = 0; t < n_token; ++t) sums[r][t] = f->sums[row + r][t];
    }
    PF_KEEP_LOOP for (int64_t at = col / BLOCK * step + far; col < end; col += BLOCK, at += step) {
        PF_UNROLL for (int r = 0; r < n_row; ++r) {
            pf_vec v[PF_VECS];
            for (int64_t i = 0; i < step; i += 64) pf_prefetch(f->s[row + r].in + at + i);
            take(&f->s[row + r], col, v);
            PF_UNROLL for (int j = 0; j < PF_VECS; ++j) {
                PF_UNROLL for (int t = 0; t < n_token; ++t) {
                    sums[r][t] = pf_vec_fma(v[j], pf_vec_load(f->x[t] + col + j * PF_VEC_LANES), sums[r][t]);
                }
            }
        }
    }
    PF_UNROLL for (int r = 0; r < n_row; ++r) {
        PF_UNROLL for (int t = 0; t < n_token; ++t) f->sums[row + r][t] = sums[r][t];
    }
}

/* n_row rows, `apart` from each other, at most PF_STREAMS, times n_token tokens, `most` or fewer. at_once, the rows whose sums
 * are in registers together, divides PF_STREAMS; it and `most` are constants. */
PF_INLINE void f32_few_rows(const pf_gemm *g, int64_t row, int64_t n_row, int at_once, int64_t apart, int64_t token,
                            int64_t n_token, int most, int64_t far, take_fn take, take_one_fn take_one) {
    const int64_t cols = g->w->cols, whole = cols / BLOCK * BLOCK, step = BLOCK * g->w->row_bytes / cols;
    f32_few f;
    for (int64_t t = 0; t < most; ++t) f.x[t] = f32_act(g, token + pf_min_i64(t, n_token - 1));
    for (int64_t r = 0; r < pf_ceil_div(n_row, at_once) * at_once; ++r) {
        f.s[r] = row_of(g->w, g->matrix, row + pf_min_i64(r, n_row - 1) * apart);
        for (int64_t t = 0; t < most; ++t) f.sums[r][t] = pf_vec_zero();
    }
    for (int64_t col = 0; col < whole; col += FEW_COLS) {
        PF_KEEP_LOOP for (int64_t r = 0; r < n_row; r += at_once) {
            f32_few_chunk(&f, r, at_once, most, col, pf_min_i64(whole, col + FEW_COLS), step, far, take);
        }
    }
    for (int64_t r = 0; r < n_row; ++r) {
        for (int64_t t = 0; t < n_token; ++t) {
            if (whole < cols) f32_row_rest(&f.s[r], f.x[t], whole, take_one, &f.sums[r][t]);
            pf_gemm_put(g, token + t, row + r * apart, pf_vec_sum(f.sums[r][t]));
        }
    }
}

/* As int_runs(); tokens [token, token + n_token). */
PF_INLINE void f32_few_runs(int64_t streams, const pf_gemm *g, int64_t row_begin, int64_t row_end, int64_t token,
                            int64_t n_token, int at_once, int most, take_fn take, take_one_fn take_one) {
    const int64_t run = (row_end - row_begin) / streams, rest = row_begin + streams * run;
    const int64_t far = streams < PF_STREAMS ? PF_FAR_AHEAD : AHEAD;
    for (int64_t i = 0; i < run + (rest < row_end); ++i) {
        const bool in_run = i < run;
        f32_few_rows(g, in_run ? row_begin + i : rest, in_run ? streams : row_end - rest, at_once, in_run ? run : 1, token,
                     n_token, most, far, take, take_one);
    }
}

/* Enough sums side by side, and not more than there are registers. With more than two tokens the activations are read anew for
 * every few rows, and more rows at a time leave them in the first cache. */
PF_INLINE void f32_few_tokens(int64_t streams, const pf_gemm *g, int64_t row_begin, int64_t row_end, int64_t token,
                              int64_t n_token, take_fn take, take_one_fn take_one) {
#define FEW(n, at_once, most) f32_few_runs(n, g, row_begin, row_end, token, n_token, at_once, most, take, take_one)
    if (n_token == 1 && streams == PF_STREAMS) FEW(PF_STREAMS, PF_STREAMS, 1);
    else if (n_token == 1) FEW(streams, 2, 1);
    else if (n_token == 2) FEW(streams, 2, 2);
    else if (n_token <= 4) FEW(PF_STREAMS, 2, 4);
    else if (n_token <= 6) FEW(PF_STREAMS, 1, 6);
    else FEW(PF_STREAMS, 1, FEW_MOST);
#undef FEW
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

PF_INLINE void f32_gemm(int64_t streams, const pf_gemm *g, int64_t row_begin, int64_t row_end, take_fn take,
                        take_one_fn take_one) {
    f32_tile tile;
    memset(tile.w, 0, sizeof tile.w); /* rows that a tile lacks are computed too, and dropped */
    for (int64_t token = 0; token < g->n; token += TILE_BATCH) {
        const int64_t n_token = pf_min_i64(TILE_BATCH, g->n - token);
        if (n_token <= FEW_MOST) {
            f32_few_tokens(streams, g, row_begin, row_end, token, n_token, take, take_one);
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
        f32_gemm(k->streams, g, row_begin, row_end, take_##type, take_one_##type);                               \
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
