/* Weight and cache rows to floats, for the x86 kernel files. The including file defines, at its own vector width,
 * span_f16, span_bf16, span_e4m3 and store_i8x16. */
#ifndef PF_BACKEND_CPU_X86_ROWS_H
#define PF_BACKEND_CPU_X86_ROWS_H

#include "backend/cpu/kernels.h"
#include "backend/cpu/x86_intrinsics.h"

#include "base/arith.h"
#include "format/floats.h"

#include <string.h>

enum { BLOCK = 32, Q8_0_BYTES = 34, MXFP4_BYTES = 17, IDX_GROUP = 32, KV_GROUP = 64 };

static inline __m128i e2m1_table(void) { return _mm_loadu_si128((const __m128i *)(const void *)pf_e2m1_doubled); }

/* ---- Weights to floats: columns [first, first + n) of a row ------------------------------------------------- */

static inline void expand_f32(const pf_weight *w, int64_t matrix, int64_t row, int64_t first, int64_t n, float *out) {
    memcpy(out, pf_weight_row(w, matrix, row) + 4 * first, (size_t)n * sizeof *out);
}

static inline void expand_f16(const pf_weight *w, int64_t matrix, int64_t row, int64_t first, int64_t n, float *out) {
    span_f16(pf_weight_row(w, matrix, row) + 2 * first, n, out);
}

static inline void expand_bf16(const pf_weight *w, int64_t matrix, int64_t row, int64_t first, int64_t n, float *out) {
    span_bf16(pf_weight_row(w, matrix, row) + 2 * first, n, out);
}

static inline void expand_q8_0(const pf_weight *w, int64_t matrix, int64_t row, int64_t first, int64_t n, float *out) {
    const uint8_t *in = pf_weight_row(w, matrix, row) + first / BLOCK * Q8_0_BYTES;
    for (; n > 0; n -= BLOCK, in += Q8_0_BYTES, out += BLOCK) {
        const float scale = pf_f16_to_f32(pf_load_u16(in));
        store_i8x16(out, _mm_loadu_si128((const __m128i *)(const void *)(in + 2)), scale);
        store_i8x16(out + 16, _mm_loadu_si128((const __m128i *)(const void *)(in + 18)), scale);
    }
}

static inline void expand_mxfp4(const pf_weight *w, int64_t matrix, int64_t row, int64_t first, int64_t n, float *out) {
    const uint8_t *in = pf_weight_row(w, matrix, row) + first / BLOCK * MXFP4_BYTES;
    const __m128i table = e2m1_table(), low = _mm_set1_epi8(15);
    for (; n > 0; n -= BLOCK, in += MXFP4_BYTES, out += BLOCK) {
        const float scale = 0.5f * pf_e8m0_to_f32(in[0]);
        const __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)(in + 1));
        store_i8x16(out, _mm_shuffle_epi8(table, _mm_and_si128(codes, low)), scale);
        store_i8x16(out + 16, _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(codes, 4), low)), scale);
    }
}

static inline void expand_fp8(const pf_weight *w, int64_t matrix, int64_t row, int64_t first, int64_t n, float *out) {
    const uint8_t *in = pf_weight_row(w, matrix, row) + first;
    int64_t s = pf_weight_scale_index(w, matrix, row) + first / PF_FP8_BLOCK;
    for (int64_t i = 0; i < n; i += PF_FP8_BLOCK, ++s) {
        const float scale = w->scale_f32 ? pf_load_f32(w->scale + 4 * s) : pf_e8m0_to_f32(w->scale[s]);
        span_e4m3(in + i, n - i < PF_FP8_BLOCK ? n - i : PF_FP8_BLOCK, scale, out + i);
    }
}

/* ---- Cache rows -------------------------------------------------------------------------------------------- */

static void load_row_kv_fp8(const uint8_t *row, int64_t width, int64_t rope, float *out) {
    const int64_t plain = width - rope;
    const uint8_t *scale = row + plain;
    for (int64_t i = 0; i < plain; i += KV_GROUP) {
        span_e4m3(row + i, pf_min_i64(KV_GROUP, plain - i), pf_e8m0_to_f32(*scale++), out + i);
    }
    span_bf16(scale, rope, out + plain);
}

static void load_row_idx_fp4(const uint8_t *row, int64_t width, float *out) {
    const __m128i table = e2m1_table(), low = _mm_set1_epi8(15);
    const uint8_t *scales = row + width / 2;
    int64_t i = 0;
    for (; i + IDX_GROUP <= width; i += IDX_GROUP, row += IDX_GROUP / 2) {
        const float scale = 0.5f * pf_e8m0_to_f32(*scales++);
        const __m128i codes = _mm_loadu_si128((const __m128i *)(const void *)row);
        const __m128i even = _mm_shuffle_epi8(table, _mm_and_si128(codes, low));
        const __m128i odd = _mm_shuffle_epi8(table, _mm_and_si128(_mm_srli_epi16(codes, 4), low));
        store_i8x16(out + i, _mm_unpacklo_epi8(even, odd), scale);
        store_i8x16(out + i + 16, _mm_unpackhi_epi8(even, odd), scale);
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

/* One entry per weight type. */
#define PF_WEIGHT_ENTRIES(prefix)                                                                                          \
    {[PF_W_F32] = prefix##_f32,   [PF_W_F16] = prefix##_f16,     [PF_W_BF16] = prefix##_bf16,                    \
     [PF_W_Q8_0] = prefix##_q8_0, [PF_W_MXFP4] = prefix##_mxfp4, [PF_W_FP8] = prefix##_fp8}


#endif
