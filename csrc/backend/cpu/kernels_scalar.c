/* The reference kernels: plain C, one value at a time, sums in double. Every other set is tested against these. */
#include "backend/cpu/kernels.h"

#include "backend/cpu/blocks.h"
#include "backend/cpu/int_blocks.h"
#include "format/blocks.h"
#include "format/floats.h"

#include <math.h>
#include <string.h>

/* ---- Vectors ----------------------------------------------------------------------------------------------- */

static float dot(const float *a, const float *b, int64_t n) {
    double sum = 0.0;
    for (int64_t i = 0; i < n; ++i) sum += (double)a[i] * (double)b[i];
    return (float)sum;
}

static void axpy(float *y, float s, const float *x, int64_t n) {
    for (int64_t i = 0; i < n; ++i) y[i] += s * x[i];
}

/* ---- Weights to float -------------------------------------------------------------------------------------- */

static void dequant_f32(const pf_weight *w, int64_t matrix, int64_t row, float *out) {
    memcpy(out, pf_weight_row(w, matrix, row), (size_t)w->cols * sizeof *out);
}

static void dequant_f16(const pf_weight *w, int64_t matrix, int64_t row, float *out) {
    const uint8_t *in = pf_weight_row(w, matrix, row);
    for (int64_t i = 0; i < w->cols; ++i) out[i] = pf_f16_to_f32(pf_load_u16(in + 2 * i));
}

static void dequant_bf16(const pf_weight *w, int64_t matrix, int64_t row, float *out) {
    const uint8_t *in = pf_weight_row(w, matrix, row);
    for (int64_t i = 0; i < w->cols; ++i) out[i] = pf_bf16_to_f32(pf_load_u16(in + 2 * i));
}

#define OF_BLOCKS(type, lower)                                                                      \
    static void dequant_##lower(const pf_weight *w, int64_t matrix, int64_t row, float *out) {       \
        pf_decode_##lower(pf_weight_row(w, matrix, row), w->cols / PF_##type##_VALUES, out);         \
    }
PF_BLOCK_TYPES(OF_BLOCKS)
#undef OF_BLOCKS

static void dequant_fp8(const pf_weight *w, int64_t matrix, int64_t row, float *out) {
    const uint8_t *in = pf_weight_row(w, matrix, row);
    const int64_t first = pf_weight_scale_index(w, matrix, row);
    for (int64_t i = 0; i < w->cols; ++i) {
        const int64_t s = first + i / PF_FP8_BLOCK;
        const float d = w->scale_f32 ? pf_load_f32(w->scale + 4 * s) : pf_e8m0_to_f32(w->scale[s]);
        out[i] = d * pf_e4m3_to_f32(in[i]);
    }
}

/* ---- Matrix products --------------------------------------------------------------------------------------- */

/* Any type that has a decoder, with the set's own decoder and dot. */
static void gemm_f32(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    const pf_dequant_fn dequant = k->dequant[pf_weight_kind(g->w->type)];
    for (int64_t row = row_begin; row < row_end; ++row) {
        dequant(g->w, g->matrix, row, g->scratch);
        for (int64_t i = 0; i < g->n; ++i) {
            const float *x = (const float *)(const void *)pf_gemm_act(g, i);
            pf_gemm_put(g, i, row, k->dot(g->scratch, x, g->w->cols));
        }
    }
}

/* Integer weights of block b and their scale, see int_acts.h. */
static float block_q8_0(const uint8_t *row, int64_t b, int32_t *q) {
    const uint8_t *in = row + b * Q8_0_BYTES;
    for (int j = 0; j < BLOCK; ++j) q[j] = (int8_t)in[2 + j];
    return pf_f16_to_f32(pf_load_u16(in));
}

static float block_mxfp4(const uint8_t *row, int64_t b, int32_t *q) {
    const uint8_t *in = row + b * MXFP4_BYTES;
    for (int j = 0; j < BLOCK / 2; ++j) {
        q[j] = pf_e2m1_doubled[in[1 + j] & 15u];
        q[j + BLOCK / 2] = pf_e2m1_doubled[in[1 + j] >> 4];
    }
    return pf_f32_from_bits((uint32_t)in[0] << 23);
}

typedef float (*block_fn)(const uint8_t *row, int64_t b, int32_t *q);

static inline int32_t int_act(const uint8_t *act, int planes, bool words, int64_t cols, int64_t at) {
    return words ? pf_int_get_word(act, cols, at) : pf_int_get(act, planes, cols, at);
}

static float int_total(const float *s) {
    float t[4];
    for (int l = 0; l < 4; ++l) t[l] = (s[l] + s[8 + l]) + (s[4 + l] + s[12 + l]);
    return (t[0] + t[2]) + (t[1] + t[3]);
}

/* words: how the set keeps q16. */
static inline float int_dot(const uint8_t *row, const uint8_t *act, int planes, bool words, int64_t cols,
                            block_fn block) {
    const float *scales = pf_int_scales(act, planes, cols);
    float s[PF_INT_SUMS] = {0.0f};
    for (int64_t b = 0; b < cols / BLOCK; ++b) {
        int32_t q[BLOCK], i = 0;
        const float d = block(row, b, q) * scales[b];
        for (int64_t j = 0, at = b * BLOCK; j < BLOCK; ++j, ++at) {
            i += q[j] * int_act(act, planes, words, cols, at);
        }
        s[b % PF_INT_SUMS] = fmaf((float)i, d, s[b % PF_INT_SUMS]);
    }
    return int_total(s);
}

static inline void gemm_int(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end, int planes,
                            block_fn block, float unit) {
    const bool words = planes == PF_Q16_PLANES && k->q16_words;
    for (int64_t row = row_begin; row < row_end; ++row) {
        const uint8_t *w = pf_weight_row(g->w, g->matrix, row);
        for (int64_t i = 0; i < g->n; ++i) {
            pf_gemm_put(g, i, row, int_dot(w, pf_gemm_act(g, i), planes, words, g->w->cols, block) * unit);
        }
    }
}

static void gemm_q16_q8_0(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    gemm_int(k, g, row_begin, row_end, PF_Q16_PLANES, block_q8_0, 1.0f);
}
static void gemm_q16_mxfp4(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    gemm_int(k, g, row_begin, row_end, PF_Q16_PLANES, block_mxfp4, PF_INT_MXFP4_UNIT);
}
static void gemm_q8_q8_0(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    gemm_int(k, g, row_begin, row_end, PF_Q8_PLANES, block_q8_0, 1.0f);
}
static void gemm_q8_mxfp4(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    gemm_int(k, g, row_begin, row_end, PF_Q8_PLANES, block_mxfp4, PF_INT_MXFP4_UNIT);
}

/* ---- Products of super-blocks ------------------------------------------------------------------------------ */

static void add_super_block(const pf_int_block *block, const int64_t *i, const int64_t *sums, float d_act, bool is_halves,
                            bool has_minimums, float *s) {
    if (is_halves) {
        for (int h = 0; h < 2; ++h) *s = fmaf((float)i[h], block->d[h] * d_act, *s);
    } else {
        *s = fmaf((float)(block->c[0] * i[0] + block->c[1] * i[1]), block->d[0] * d_act, *s);
    }
    if (has_minimums) *s = fmaf((float)(block->m[0] * sums[0] + block->m[1] * sums[1]), -block->dmin * d_act, *s);
}

static void gemm_super(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end,
                       pf_int_block_fn decode, bool is_halves, bool has_minimums) {
    const int64_t cols = g->w->cols;
    for (int64_t row = row_begin; row < row_end; ++row) {
        for (int64_t t = 0; t < g->n; ++t) {
            const uint8_t *act = pf_gemm_act(g, t);
            float s[PF_INT_SUMS] = {0.0f};
            for (int64_t b = 0; b < cols / BLOCK; ++b) {
                pf_int_block block;
                int64_t i[2] = {0, 0}, sums[2] = {0, 0};
                decode(pf_weight_row(g->w, g->matrix, row), b, &block);
                for (int64_t j = 0; j < BLOCK; ++j) {
                    const int32_t v = int_act(act, PF_Q16_PLANES, k->q16_words, cols, b * BLOCK + j);
                    i[j / 16] += (int64_t)block.w[j] * v;
                    sums[j / 16] += v;
                }
                add_super_block(&block, i, sums, pf_int_scales(act, PF_Q16_PLANES, cols)[b], is_halves, has_minimums,
                                &s[b % PF_INT_SUMS]);
            }
            pf_gemm_put(g, t, row, int_total(s));
        }
    }
}

#define GEMM_SUPER(type, lower, scaling, has_minimums)                                                              \
    static void gemm_q16_##lower(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {   \
        gemm_super(k, g, row_begin, row_end, pf_int_block_##lower, (scaling) == PF_SCALES_OF_HALVES, has_minimums); \
    }
PF_SUPER_TYPES(GEMM_SUPER)
#undef GEMM_SUPER

/* ---- Quantised activations --------------------------------------------------------------------------------- */

/* To nearest even, for |v| < 2^22: adding 1.5 * 2^23 leaves the integer in the low mantissa bits. */
static inline int32_t round_to_int(float v) { return (int32_t)(pf_f32_bits(v + 0x1.8p23f) - 0x4b400000u); }

/* The integers of a block, and its scale. */
static float quantize_block(const float *x, float most, int32_t *q) {
    /* Magnitudes compare as their bits do, and a NaN then wins wherever it stands. */
    uint32_t amax = 0;
    for (int j = 0; j < BLOCK; ++j) {
        const uint32_t magnitude = pf_f32_bits(x[j]) & 0x7fffffffu;
        amax = magnitude > amax ? magnitude : amax;
    }
    const float d = pf_f32_from_bits(amax) / most;
    for (int j = 0; j < BLOCK; ++j) {
        float v = d != 0.0f ? x[j] / d : 0.0f;
        v = v > -most ? v : -most; /* also a NaN; its block's scale is NaN or infinite */
        q[j] = round_to_int(v < most ? v : most);
    }
    return d;
}

static void put_plane(uint8_t *row, int planes, int64_t n, int64_t block, int plane, const int32_t *v) {
    int8_t bytes[BLOCK];
    int16_t sums[2] = {0, 0};
    for (int j = 0; j < BLOCK; ++j) {
        bytes[j] = (int8_t)v[j];
        sums[j % 4 / 2] = (int16_t)(sums[j % 4 / 2] - PF_INT_BIAS * v[j]);
    }
    pf_int_put(row, planes, n, block, plane, bytes, sums);
}

static void quantize_q16(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    const float per_base = 1.0f / (float)PF_INT_BASE;
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        int32_t q[BLOCK], hi[BLOCK], sums[2] = {0, 0};
        pf_int_put_scale(row, PF_Q16_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q16_MAX, q));
        for (int j = 0; j < BLOCK; ++j) sums[j / 16] += q[j];
        pf_int_put_halves(row, n, b, sums[0], sums[1]);
        for (int j = 0; j < BLOCK; ++j) {
            hi[j] = round_to_int((float)q[j] * per_base);
            q[j] -= PF_INT_BASE * hi[j];
        }
        put_plane(row, PF_Q16_PLANES, n, b, 0, hi);
        put_plane(row, PF_Q16_PLANES, n, b, 1, q);
    }
    if (end == n) pf_int_pad(row, PF_Q16_PLANES, n);
}

static void quantize_q8(const float *x, int64_t n, int64_t begin, int64_t end, uint8_t *row) {
    for (int64_t b = begin / BLOCK; b < end / BLOCK; ++b) {
        int32_t q[BLOCK];
        pf_int_put_scale(row, PF_Q8_PLANES, n, b, quantize_block(x + b * BLOCK, (float)PF_Q8_MAX, q));
        put_plane(row, PF_Q8_PLANES, n, b, 0, q);
    }
    if (end == n) pf_int_pad(row, PF_Q8_PLANES, n);
}

/* ---- Cache rows -------------------------------------------------------------------------------------------- */

static void load_row(const pf_rows *rows, const uint8_t *row, float *out) {
    const int64_t width = rows->width, plain = width - rows->rope;
    switch (rows->format) {
    case PF_ROW_F32: memcpy(out, row, (size_t)width * sizeof *out); break;
    case PF_ROW_F16:
        for (int64_t i = 0; i < width; ++i) out[i] = pf_f16_to_f32(pf_load_u16(row + 2 * i));
        break;
    case PF_ROW_KV_FP8: {
        const uint8_t *scales = row + plain, *rope = scales + (plain + KV_GROUP - 1) / KV_GROUP;
        for (int64_t i = 0; i < plain; ++i) out[i] = pf_e4m3_to_f32(row[i]) * pf_e8m0_to_f32(scales[i / KV_GROUP]);
        for (int64_t i = plain; i < width; ++i) out[i] = pf_bf16_to_f32(pf_load_u16(rope + 2 * (i - plain)));
        break;
    }
    case PF_ROW_IDX_FP4: {
        const uint8_t *scales = row + width / 2;
        for (int64_t i = 0; i < width; ++i) {
            const uint32_t code = i & 1 ? row[i / 2] >> 4 : row[i / 2] & 15u;
            out[i] = pf_e2m1_to_f32(code) * pf_e8m0_to_f32(scales[i / IDX_GROUP]);
        }
        break;
    }
    }
}

/* ---- Heads against rows ------------------------------------------------------------------------------------ */

static void row_dots(const float *q, int64_t n_q, const float *rows, int64_t n_row, int64_t d, float *out, int64_t ld) {
    for (int64_t h = 0; h < n_q; ++h) {
        for (int64_t i = 0; i < n_row; ++i) out[h * ld + i] = dot(q + h * d, rows + i * d, d);
    }
}

static float softmax_part(float *s, int64_t n, float scale, float *top, float *sum) {
    float most = *top, shrink = 1.0f;
    for (int64_t i = 0; i < n; ++i) {
        s[i] *= scale;
        most = fmaxf(most, s[i]);
    }
    if (most > *top) shrink = expf(*top - most); /* 0 at the first part, where top is -inf */
    *sum *= shrink;
    *top = most;
    for (int64_t i = 0; i < n; ++i) *sum += s[i] = expf(s[i] - most);
    return shrink;
}

static void row_sums(const float *p, int64_t ld, const float *shrink, int64_t n_q, const float *rows, int64_t n_row,
                     int64_t d, float *acc) {
    for (int64_t h = 0; h < n_q; ++h) {
        for (int64_t c = 0; c < d; ++c) {
            float sum = acc[h * d + c] * shrink[h];
            for (int64_t i = 0; i < n_row; ++i) sum += p[h * ld + i] * rows[i * d + c];
            acc[h * d + c] = sum;
        }
    }
}

static void fp4_tile(const uint8_t *const *row, int64_t n_row, int64_t width, uint8_t *tile) {
    for (int64_t r = 0; r < PF_FP4_ROWS; ++r) {
        const uint8_t *from = row[r < n_row ? r : n_row - 1];
        for (int64_t i = 0; i < width; ++i) {
            const int64_t place = pf_fp4_place(i);
            const int8_t code = pf_e2m1_doubled[i & 1 ? from[i / 2] >> 4 : from[i / 2] & 15u];
            tile[(place / 4 * PF_FP4_ROWS + r) * 4 + place % 4] = (uint8_t)code;
        }
        for (int64_t g = 0; g < width / PF_FP4_GROUP; ++g) {
            pf_fp4_row_scales(tile, width)[g * PF_FP4_ROWS + r] = 0.25f * pf_e8m0_to_f32(from[width / 2 + g]);
        }
    }
}

static void fp4_dots(const uint8_t *q, int64_t n_q, const uint8_t *tile, int64_t width, float *out, int64_t ld) {
    for (int64_t h = 0; h < n_q; ++h, q += pf_fp4_query_bytes(width)) {
        for (int64_t r = 0; r < PF_FP4_ROWS; ++r) {
            float s = 0.0f;
            for (int64_t g = 0; g < width / PF_FP4_GROUP; ++g) {
                int32_t sum = 0;
                for (int64_t i = g * PF_FP4_GROUP; i < (g + 1) * PF_FP4_GROUP; ++i) {
                    sum += (int8_t)q[i] * (int8_t)tile[(i / 4 * PF_FP4_ROWS + r) * 4 + i % 4];
                }
                const float row_scale = pf_fp4_row_scales(tile, width)[g * PF_FP4_ROWS + r];
                s = fmaf((float)sum, pf_fp4_query_scales(q, width)[g] * row_scale, s);
            }
            out[h * ld + r] = s;
        }
    }
}

static void weigh_heads(const float *s, int64_t ld, int64_t n_row, const float *w, int64_t n_head, float scale,
                        float *out) {
    for (int64_t i = 0; i < n_row; ++i) {
        float sum = 0.0f;
        for (int64_t h = 0; h < n_head; ++h) sum += w[h] * (s[h * ld + i] > 0.0f ? s[h * ld + i] : 0.0f);
        out[i] = sum * scale;
    }
}

/* ---- A token's vectors ------------------------------------------------------------------------------------- */

static void swiglu(const float *gate, const float *up, int64_t n, float limit, float gain, float *h) {
    for (int64_t i = 0; i < n; ++i) {
        /* Written so that a NaN stays one. */
        const float g = gate[i] > limit ? limit : gate[i];
        const float u = up[i] > limit ? limit : up[i] < -limit ? -limit : up[i];
        h[i] = g / (1.0f + expf(-g)) * u * gain;
    }
}

static void norm(const float *x, float scale, const float *gain, int64_t n, float *y) {
    for (int64_t i = 0; i < n; ++i) y[i] = gain ? x[i] * scale * gain[i] : x[i] * scale;
}

static void pool_add(const float *g, const float *a, const float *top, int64_t n, float *sum, float *out) {
    for (int64_t i = 0; i < n; ++i) {
        const float e = expf(g[i] - top[i]);
        sum[i] += e;
        out[i] += e * a[i];
    }
}

static void mix(const float *const *in, int n_in, const float *w, int n_out, float *const *out, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        float v[PF_MIX_MAX];
        for (int j = 0; j < n_in; ++j) v[j] = in[j][i];
        for (int o = 0; o < n_out; ++o) {
            float sum = w[o * n_in] * v[0];
            for (int j = 1; j < n_in; ++j) sum += w[o * n_in + j] * v[j];
            out[o][i] = sum;
        }
    }
}

static int64_t collect(const float *s, int64_t n, float limit, int32_t *index) {
    int64_t have = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (!(s[i] < limit)) index[have++] = (int32_t)i;
    }
    return have;
}

void pf_kernels_scalar_init(pf_cpu_kernels *k) {
    *k = (pf_cpu_kernels){
        .dot = dot,
        .axpy = axpy,
#define OF_BLOCKS(type, lower) [PF_W_##type] = dequant_##lower,
        .dequant = {[PF_W_F32] = dequant_f32, [PF_W_F16] = dequant_f16, [PF_W_BF16] = dequant_bf16,
                    [PF_W_FP8] = dequant_fp8, PF_BLOCK_TYPES(OF_BLOCKS)},
#undef OF_BLOCKS
#define OF_SUPER(type, lower, scaling, has_minimums) [PF_W_##type] = gemm_q16_##lower,
        .gemm_q16 = {[PF_W_Q8_0] = gemm_q16_q8_0, [PF_W_MXFP4] = gemm_q16_mxfp4, PF_SUPER_TYPES(OF_SUPER)},
#undef OF_SUPER
        .gemm_q8 = {[PF_W_Q8_0] = gemm_q8_q8_0, [PF_W_MXFP4] = gemm_q8_mxfp4},
        .quantize_q16 = quantize_q16,
        .quantize_q8 = quantize_q8,
        .load_row = load_row,
        .row_dots = row_dots,
        .softmax_part = softmax_part,
        .row_sums = row_sums,
        .fp4_tile = fp4_tile,
        .fp4_dots = fp4_dots,
        .weigh_heads = weigh_heads,
        .swiglu = swiglu,
        .norm = norm,
        .pool_add = pool_add,
        .mix = mix,
        .collect = collect,
    };
    for (int kind = 0; kind < PF_W_COUNT; ++kind) k->gemm_f32[kind] = gemm_f32;
}
