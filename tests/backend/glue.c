/* The CPU backend for Python: flat functions over one kernel set, named per call. For the numpy comparisons. */
#include "backend/cpu/ops.h"

#include <stdlib.h>

#define GLUE __attribute__((visibility("default")))

static pf_exec open_exec(const char *isa) {
    pf_exec ex = {.exact = true};
    if (pf_cpu_backend(isa, &ex.backend, NULL) != PF_OK) abort();
    ex.pool = pf_pool_new(1);
    ex.arena = pf_arena_new();
    if (!ex.pool || !ex.arena) abort();
    return ex;
}

static void close_exec(pf_exec *ex) {
    pf_pool_delete(ex->pool);
    pf_arena_delete(ex->arena);
}

GLUE int glue_usable(const char *isa) {
    const pf_backend *backend;
    return pf_cpu_backend(isa, &backend, NULL) == PF_OK;
}

/* Rows [0, rows) of a whole matrix; scale may be NULL. */
GLUE void glue_dequant(const char *isa, int type, const uint8_t *data, int64_t row_bytes, const uint8_t *scale,
                       int scale_f32, int64_t row0, int64_t rows, int64_t cols, float *out) {
    pf_exec ex = open_exec(isa);
    const pf_weight w = {
        .data = data, .scale = scale, .type = (pf_dtype)type, .scale_f32 = scale_f32 != 0, .cols = cols, .rows = rows,
        .count = 1, .row_bytes = row_bytes, .row0 = row0, .scale_cols = (cols + 127) / 128,
        .scale_rows = (row0 + rows + 127) / 128,
    };
    for (int64_t r = 0; r < rows; ++r) {
        pf_cpu_kernels_of(&ex)->dequant[pf_weight_kind(w.type)](&w, 0, r, out + r * cols);
    }
    close_exec(&ex);
}

GLUE int64_t glue_row_bytes(int format, int64_t width, int64_t rope) {
    return pf_row_bytes((pf_row_format)format, width, rope);
}

static pf_rows make_rows(int format, int32_t width, int32_t rope, int64_t n, uint8_t *data) {
    return (pf_rows){data, (pf_row_format)format, width, rope, glue_row_bytes(format, width, rope), n};
}

GLUE void glue_store_rows(const char *isa, int format, int32_t width, int32_t rope, int64_t n, const float *x,
                          uint8_t *data) {
    pf_exec ex = open_exec(isa);
    const pf_rows rows = make_rows(format, width, rope, n, data);
    ex.backend->store_rows(&ex, &rows, 0, n, x);
    close_exec(&ex);
}

GLUE void glue_load_rows(const char *isa, int format, int32_t width, int32_t rope, int64_t n, uint8_t *data,
                         float *out) {
    pf_exec ex = open_exec(isa);
    const pf_rows rows = make_rows(format, width, rope, n, data);
    for (int64_t i = 0; i < n; ++i) pf_cpu_kernels_of(&ex)->load_row(&rows, pf_row_at(&rows, i), out + i * width);
    close_exec(&ex);
}

GLUE void glue_round_fp4(const char *isa, float *x, int64_t rows, int64_t n) {
    pf_exec ex = open_exec(isa);
    ex.backend->round_fp4(&ex, x, rows, n);
    close_exec(&ex);
}

GLUE void glue_hadamard(const char *isa, float *x, int64_t rows, int64_t n) {
    pf_exec ex = open_exec(isa);
    ex.backend->hadamard(&ex, x, rows, n);
    close_exec(&ex);
}

/* values [n], scales [n / 32] */
GLUE void glue_quantize_q16(const char *isa, const float *x, int64_t n, int32_t *values, float *scales) {
    pf_exec ex = open_exec(isa);
    void *row = pf_alloc((size_t)pf_int_row_bytes(PF_Q16_PLANES, n));
    if (!row) abort();
    pf_cpu_kernels_of(&ex)->quantize_q16(x, n, 0, n, row);
    const bool words = pf_cpu_kernels_of(&ex)->q16_words;
    for (int64_t i = 0; i < n; ++i) values[i] = words ? pf_int_get_word(row, n, i) : pf_int_get(row, PF_Q16_PLANES, n, i);
    for (int64_t b = 0; b < n / 32; ++b) scales[b] = pf_int_scales(row, PF_Q16_PLANES, n)[b];
    pf_free(row);
    close_exec(&ex);
}
