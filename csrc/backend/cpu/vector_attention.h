/* Heads against cache rows, for the vector kernel files: scores, softmax and weighted sums, a tile of heads and rows at
 * a time with the sums in registers. What a (head, row) or (head, column) pair gets does not depend on its tile.
 *
 * The including file defines, beyond what vector_rows.h and gemm_f32_tile.h ask for: pf_vec_sub, pf_vec_max (the second
 * operand where the first is NaN), pf_vec_zero_below(v, x, limit) (v with zeros where x < limit), pf_vec_sum4 (the sums
 * of four vectors), pf_vec_round (to integers, nearest even), pf_ivec_set1, _add, _left, pf_vec_of_bits, and SUM_VECS,
 * the vectors of columns whose sums of SUM_HEADS heads fit in registers. */
#ifndef PF_BACKEND_CPU_VECTOR_ATTENTION_H
#define PF_BACKEND_CPU_VECTOR_ATTENTION_H

#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"

#include <math.h>

enum { DOT_ROWS = 4, DOT_HEADS = TILE_TOKENS, SUM_HEADS = 4 };

/* ---- Scores ------------------------------------------------------------------------------------------------ */

/* n_q heads (a constant at every call) times four rows. */
PF_INLINE void dots_tile(const float *q, int n_q, const float *const *rows, int64_t d, int64_t n_row, float *out,
                         int64_t ld) {
    pf_vec s[DOT_HEADS][DOT_ROWS];
    PF_UNROLL for (int h = 0; h < n_q; ++h) {
        PF_UNROLL for (int r = 0; r < DOT_ROWS; ++r) s[h][r] = pf_vec_zero();
    }
    int64_t c = 0;
    for (; c + PF_VEC_LANES <= d; c += PF_VEC_LANES) {
        pf_vec a[DOT_HEADS];
        PF_UNROLL for (int h = 0; h < n_q; ++h) a[h] = pf_vec_load(q + h * d + c);
        PF_UNROLL for (int r = 0; r < DOT_ROWS; ++r) {
            const pf_vec v = pf_vec_load(rows[r] + c);
            PF_UNROLL for (int h = 0; h < n_q; ++h) s[h][r] = pf_vec_fma(v, a[h], s[h][r]);
        }
    }
    if (c < d) {
        PF_UNROLL for (int h = 0; h < n_q; ++h) {
            const pf_vec a = pf_vec_load_part(q + h * d + c, d - c);
            PF_UNROLL for (int r = 0; r < DOT_ROWS; ++r) {
                s[h][r] = pf_vec_fma(pf_vec_load_part(rows[r] + c, d - c), a, s[h][r]);
            }
        }
    }
    PF_UNROLL for (int h = 0; h < n_q; ++h) {
        float four[DOT_ROWS];
        pf_vec_sum4(s[h], four);
        for (int64_t r = 0; r < n_row; ++r) out[h * ld + r] = four[r];
    }
}

static void row_dots(const float *q, int64_t n_q, const float *rows, int64_t n_row, int64_t d, float *out, int64_t ld) {
    for (int64_t first = 0; first < n_row; first += DOT_ROWS) {
        const int64_t n = pf_min_i64(DOT_ROWS, n_row - first);
        const float *four[DOT_ROWS];
        for (int64_t r = 0; r < DOT_ROWS; ++r) four[r] = rows + (first + (r < n ? r : n - 1)) * d;
        int64_t h = 0;
        for (; h + DOT_HEADS <= n_q; h += DOT_HEADS) {
            dots_tile(q + h * d, DOT_HEADS, four, d, n, out + h * ld + first, ld);
        }
        for (; h < n_q; ++h) dots_tile(q + h * d, 1, four, d, n, out + h * ld + first, ld);
    }
}

/* ---- Softmax ----------------------------------------------------------------------------------------------- */

/* e^x within about 1e-7, NaN for NaN; 0 below -87.3, infinity above 88.3. */
PF_INLINE pf_vec pf_vec_exp(pf_vec x) {
    const float lowest = -87.3f;
    const pf_vec most = pf_vec_set1(-88.8f);
    /* NaN is the second operand throughout, and so stays. */
    const pf_vec negated = pf_vec_sub(pf_vec_zero(), pf_vec_max(pf_vec_set1(lowest), x));
    const pf_vec v = pf_vec_sub(pf_vec_zero(), pf_vec_max(most, negated));
    const pf_ivec n = pf_vec_round(pf_vec_mul(v, pf_vec_set1(1.44269504f)));
    const pf_vec whole = pf_vec_of_ints(n);
    /* ln 2 in two parts, the first with few bits. */
    pf_vec r = pf_vec_fma(whole, pf_vec_set1(-0.693359375f), v);
    r = pf_vec_fma(whole, pf_vec_set1(2.12194440e-4f), r);
    pf_vec p = pf_vec_set1(1.9875691500e-4f);
    p = pf_vec_fma(p, r, pf_vec_set1(1.3981999507e-3f));
    p = pf_vec_fma(p, r, pf_vec_set1(8.3334519073e-3f));
    p = pf_vec_fma(p, r, pf_vec_set1(4.1665795894e-2f));
    p = pf_vec_fma(p, r, pf_vec_set1(1.6666665459e-1f));
    p = pf_vec_fma(p, r, pf_vec_set1(5.0000001201e-1f));
    p = pf_vec_add(pf_vec_fma(pf_vec_mul(r, r), p, r), pf_vec_set1(1.0f));
    p = pf_vec_mul(p, pf_vec_of_bits(pf_ivec_left(pf_ivec_add(n, pf_ivec_set1(127)), 23)));
    return pf_vec_zero_below(p, x, lowest);
}

static float softmax_part(float *s, int64_t n, float scale, float *top, float *sum) {
    float lanes[PF_VEC_LANES], most = *top;
    const int64_t padded = pf_ceil_div(n, PF_VEC_LANES) * PF_VEC_LANES;
    pf_vec vmost = pf_vec_set1(most), vsum = pf_vec_zero();
    for (int64_t i = n; i < padded; ++i) s[i] = -INFINITY;
    for (int64_t i = 0; i < padded; i += PF_VEC_LANES) {
        const pf_vec v = pf_vec_mul(pf_vec_load(s + i), pf_vec_set1(scale));
        vmost = pf_vec_max(v, vmost);
        pf_vec_store(s + i, v);
    }
    pf_vec_store(lanes, vmost);
    for (int i = 0; i < PF_VEC_LANES; ++i) most = lanes[i] > most ? lanes[i] : most;
    const float shrink = most > *top ? expf(*top - most) : 1.0f; /* 0 at the first part, where top is -inf */
    for (int64_t i = 0; i < padded; i += PF_VEC_LANES) {
        const pf_vec e = pf_vec_exp(pf_vec_sub(pf_vec_load(s + i), pf_vec_set1(most)));
        vsum = pf_vec_add(vsum, e);
        pf_vec_store(s + i, e);
    }
    *top = most;
    *sum = *sum * shrink + pf_vec_sum(vsum);
    return shrink;
}

/* ---- Weighted sums ----------------------------------------------------------------------------------------- */

/* n_q heads and n_vec vectors of columns (constants at every call). */
PF_INLINE void sums_tile(const float *p, int64_t ld, const float *shrink, int n_q, const float *rows, int64_t n_row,
                         int64_t d, int n_vec, float *acc) {
    pf_vec s[SUM_HEADS][SUM_VECS];
    PF_UNROLL for (int h = 0; h < n_q; ++h) {
        PF_UNROLL for (int j = 0; j < n_vec; ++j) {
            s[h][j] = pf_vec_mul(pf_vec_load(acc + h * d + j * PF_VEC_LANES), pf_vec_set1(shrink[h]));
        }
    }
    for (int64_t i = 0; i < n_row; ++i) {
        pf_vec v[SUM_VECS];
        PF_UNROLL for (int j = 0; j < n_vec; ++j) v[j] = pf_vec_load(rows + i * d + j * PF_VEC_LANES);
        PF_UNROLL for (int h = 0; h < n_q; ++h) {
            const pf_vec w = pf_vec_set1(p[h * ld + i]);
            PF_UNROLL for (int j = 0; j < n_vec; ++j) s[h][j] = pf_vec_fma(w, v[j], s[h][j]);
        }
    }
    PF_UNROLL for (int h = 0; h < n_q; ++h) {
        PF_UNROLL for (int j = 0; j < n_vec; ++j) pf_vec_store(acc + h * d + j * PF_VEC_LANES, s[h][j]);
    }
}

/* Columns outside, so that those of all rows stay in L1 while the heads pass. */
static void row_sums(const float *p, int64_t ld, const float *shrink, int64_t n_q, const float *rows, int64_t n_row,
                     int64_t d, float *acc) {
    int64_t c = 0;
    for (; c + SUM_VECS * PF_VEC_LANES <= d; c += SUM_VECS * PF_VEC_LANES) {
        int64_t h = 0;
        for (; h + SUM_HEADS <= n_q; h += SUM_HEADS) {
            sums_tile(p + h * ld, ld, shrink + h, SUM_HEADS, rows + c, n_row, d, SUM_VECS, acc + h * d + c);
        }
        for (; h < n_q; ++h) sums_tile(p + h * ld, ld, shrink + h, 1, rows + c, n_row, d, SUM_VECS, acc + h * d + c);
    }
    for (; c < d; ++c) {
        for (int64_t h = 0; h < n_q; ++h) {
            float s = acc[h * d + c] * shrink[h];
            for (int64_t i = 0; i < n_row; ++i) s += p[h * ld + i] * rows[i * d + c];
            acc[h * d + c] = s;
        }
    }
}

/* ---- Indexer ----------------------------------------------------------------------------------------------- */

static void weigh_heads(const float *s, int64_t ld, int64_t n_row, const float *w, int64_t n_head, float scale,
                        float *out) {
    for (int64_t i = 0; i < n_row; i += PF_VEC_LANES) {
        pf_vec sum = pf_vec_zero();
        for (int64_t h = 0; h < n_head; ++h) {
            /* a NaN counts as nothing */
            const pf_vec v = pf_vec_max(pf_vec_load(s + h * ld + i), pf_vec_zero());
            sum = pf_vec_add(sum, pf_vec_mul(pf_vec_set1(w[h]), v));
        }
        sum = pf_vec_mul(sum, pf_vec_set1(scale));
        if (i + PF_VEC_LANES <= n_row) pf_vec_store(out + i, sum);
        else pf_vec_store_part(out + i, sum, n_row - i);
    }
}

#endif
