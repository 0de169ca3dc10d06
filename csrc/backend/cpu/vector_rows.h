/* Weight and cache rows to floats, for the vector kernel files.
 *
 * The including file defines pf_vec, PF_VEC_LANES, PF_VECS (vectors in 32 columns), pf_vec_store, and for 32 columns at
 * its own vector width: from_f32, from_f16, from_bf16, from_e4m3, from_q8_0 and from_mxfp4 (one block of the format),
 * and from_idx_fp4 (one group of an index row). */
#ifndef PF_BACKEND_CPU_VECTOR_ROWS_H
#define PF_BACKEND_CPU_VECTOR_ROWS_H

#include "backend/cpu/blocks.h"
#include "backend/cpu/inline.h"
#include "backend/cpu/kernels.h"

#include "base/arith.h"
#include "format/floats.h"

#include <math.h>
#include <string.h>

/* ---- A row of a weight ------------------------------------------------------------------------------------- */

typedef struct row_source {
    const pf_weight *w;
    const uint8_t *in;
    int64_t scale; /* PF_FP8: index of the row's first scale */
} row_source;

static inline row_source row_of(const pf_weight *w, int64_t matrix, int64_t row) {
    return (row_source){w, pf_weight_row(w, matrix, row), pf_weight_scale_index(w, matrix, row)};
}

static inline float fp8_scale(const row_source *s, int64_t col) {
    const int64_t i = s->scale + col / PF_FP8_BLOCK;
    return s->w->scale_f32 ? pf_load_f32(s->w->scale + 4 * i) : pf_e8m0_to_f32(s->w->scale[i]);
}

/* Columns [col, col + 32), col a multiple of 32. */
typedef void (*take_fn)(const row_source *s, int64_t col, pf_vec *v);
/* One column: what is left of a row whose width is no multiple of 32. */
typedef float (*take_one_fn)(const row_source *s, int64_t col);

PF_INLINE void take_f32(const row_source *s, int64_t col, pf_vec *v) { from_f32(s->in + 4 * col, v); }
PF_INLINE float take_one_f32(const row_source *s, int64_t col) { return pf_load_f32(s->in + 4 * col); }

PF_INLINE void take_f16(const row_source *s, int64_t col, pf_vec *v) { from_f16(s->in + 2 * col, v); }
PF_INLINE float take_one_f16(const row_source *s, int64_t col) { return pf_f16_to_f32(pf_load_u16(s->in + 2 * col)); }

PF_INLINE void take_bf16(const row_source *s, int64_t col, pf_vec *v) { from_bf16(s->in + 2 * col, v); }
PF_INLINE float take_one_bf16(const row_source *s, int64_t col) {
    return pf_bf16_to_f32(pf_load_u16(s->in + 2 * col));
}

PF_INLINE void take_fp8(const row_source *s, int64_t col, pf_vec *v) {
    from_e4m3(s->in + col, fp8_scale(s, col), v);
}
PF_INLINE float take_one_fp8(const row_source *s, int64_t col) {
    return pf_e4m3_to_f32(s->in[col]) * fp8_scale(s, col);
}

PF_INLINE void take_q8_0(const row_source *s, int64_t col, pf_vec *v) {
    from_q8_0(s->in + col / BLOCK * Q8_0_BYTES, v);
}

PF_INLINE void take_mxfp4(const row_source *s, int64_t col, pf_vec *v) {
    from_mxfp4(s->in + col / BLOCK * MXFP4_BYTES, v);
}

/* Rows of blocks have whole blocks. */
PF_INLINE float take_one_q8_0(const row_source *s, int64_t col) { return (void)s, (void)col, 0.0f; }
PF_INLINE float take_one_mxfp4(const row_source *s, int64_t col) { return (void)s, (void)col, 0.0f; }

/* Columns [first, first + n), first a multiple of 32. */
PF_INLINE void expand(const row_source *s, int64_t first, int64_t n, float *out, take_fn take, take_one_fn take_one) {
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) {
        pf_vec v[PF_VECS];
        take(s, first + i, v);
        for (int j = 0; j < PF_VECS; ++j) pf_vec_store(out + i + j * PF_VEC_LANES, v[j]);
    }
    for (; i < n; ++i) out[i] = take_one(s, first + i);
}

/* ---- Cache rows -------------------------------------------------------------------------------------------- */

PF_INLINE void store_block(float *out, const pf_vec *v) {
    for (int j = 0; j < PF_VECS; ++j) pf_vec_store(out + j * PF_VEC_LANES, v[j]);
}

static void span_f16(const uint8_t *in, int64_t n, float *out) {
    pf_vec v[PF_VECS];
    int64_t i = 0;
    for (; i + BLOCK <= n; i += BLOCK) from_f16(in + 2 * i, v), store_block(out + i, v);
    for (; i < n; ++i) out[i] = pf_f16_to_f32(pf_load_u16(in + 2 * i));
}

static void load_row_kv_fp8(const uint8_t *row, int64_t width, int64_t rope, float *out) {
    const int64_t plain = width - rope;
    const uint8_t *scales = row + plain, *tail = scales + pf_ceil_div(plain, KV_GROUP);
    pf_vec v[PF_VECS];
    int64_t i = 0;
    for (; i + BLOCK <= plain; i += BLOCK) {
        from_e4m3(row + i, pf_e8m0_to_f32(scales[i / KV_GROUP]), v);
        store_block(out + i, v);
    }
    for (; i < plain; ++i) out[i] = pf_e4m3_to_f32(row[i]) * pf_e8m0_to_f32(scales[i / KV_GROUP]);
    out += plain;
    for (i = 0; i + BLOCK <= rope; i += BLOCK) from_bf16(tail + 2 * i, v), store_block(out + i, v);
    for (; i < rope; ++i) out[i] = pf_bf16_to_f32(pf_load_u16(tail + 2 * i));
}

static void load_row_idx_fp4(const uint8_t *row, int64_t width, float *out) {
    const uint8_t *scales = row + width / 2;
    int64_t i = 0;
    for (; i + IDX_GROUP <= width; i += IDX_GROUP, row += IDX_GROUP / 2) {
        pf_vec v[PF_VECS];
        from_idx_fp4(row, 0.5f * pf_e8m0_to_f32(*scales++), v);
        store_block(out + i, v);
    }
    for (int64_t j = 0; i + j < width; ++j) {
        out[i + j] = pf_e2m1_to_f32(j & 1 ? row[j / 2] >> 4 : row[j / 2] & 15u) * pf_e8m0_to_f32(*scales);
    }
}

static void load_row(const pf_rows *rows, const uint8_t *row, float *out) {
    switch (rows->format) {
    case PF_ROW_F32: memcpy(out, row, (size_t)rows->width * sizeof *out); break;
    case PF_ROW_F16: span_f16(row, rows->width, out); break;
    case PF_ROW_KV_FP8: load_row_kv_fp8(row, rows->width, rows->rope, out); break;
    case PF_ROW_IDX_FP4: load_row_idx_fp4(row, rows->width, out); break;
    }
}

#endif
