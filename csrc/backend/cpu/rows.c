/* Cache rows and the roundings of the indexer: encoders as the published reference rounds (spec: one power-of-two
 * scale per group, round to nearest even), and the Hadamard transform. */
#include "backend/cpu/ops.h"
#include "backend/cpu/parallel.h"

#include "base/arith.h"
#include "format/floats.h"

#include <math.h>
#include <string.h>

enum { KV_GROUP = 64, IDX_GROUP = 32 };

int64_t pf_row_bytes(pf_row_format format, int64_t width, int64_t rope) {
    switch (format) {
    case PF_ROW_F32: return width * 4;
    case PF_ROW_F16: return width * 2;
    case PF_ROW_KV_FP8: return (width - rope) + pf_ceil_div(width - rope, KV_GROUP) + rope * 2;
    case PF_ROW_IDX_FP4: return width / 2 + pf_ceil_div(width, IDX_GROUP);
    }
    return 0;
}

pf_weight pf_weight_rows(const pf_weight *w, int64_t first, int64_t n) {
    pf_weight slice = *w;
    slice.data += first * w->row_bytes;
    slice.rows = n;
    slice.row0 += first;
    slice.count = 1;
    return slice;
}

/* Largest magnitude of n values, at least floor. */
static float max_abs(const float *x, int64_t n, float floor) {
    int32_t amax = (int32_t)pf_f32_bits(floor); /* without a sign, bits compare as the values do */
    for (int64_t i = 0; i < n; ++i) {
        const int32_t magnitude = (int32_t)(pf_f32_bits(x[i]) & 0x7fffffffu);
        amax = magnitude > amax ? magnitude : amax;
    }
    return pf_f32_from_bits((uint32_t)amax);
}

/* k = ceil(log2(amax / largest)) for a normal amax; largest = mantissa * 2^exponent with 1 <= mantissa < 2. */
static int32_t scale_exponent(float amax, uint32_t mantissa_bits, int32_t exponent) {
    const uint32_t bits = pf_f32_bits(amax);
    const int32_t k = (int32_t)(bits >> 23) - 127 - exponent;
    return (bits & 0x7fffffu) > mantissa_bits ? k + 1 : k;
}

static int32_t fp8_exponent(const float *x, int64_t n) {
    return scale_exponent(max_abs(x, n, 1e-4f), 0x600000u, 8); /* 448 = 1.75 * 2^8 */
}

static int32_t fp4_exponent(const float *x, int64_t n) {
    return scale_exponent(max_abs(x, n, 0x1.8p-124f), 0x400000u, 2); /* 6 = 1.5 * 2^2 */
}

static inline float power_of_two(int32_t k) { return pf_e8m0_to_f32((uint8_t)(k + 127)); }

static void encode_bf16(const float *x, int64_t n, uint8_t *out) {
    for (int64_t i = 0; i < n; ++i) {
        const uint16_t bits = pf_f32_to_bf16(x[i]);
        memcpy(out + 2 * i, &bits, sizeof bits);
    }
}

static void encode_f16(const float *x, int64_t n, uint8_t *out) {
    for (int64_t i = 0; i < n; ++i) {
        /* Saturating, so that a row never turns infinite; a NaN stays one. */
        const float v = x[i] > 65504.0f ? 65504.0f : x[i] < -65504.0f ? -65504.0f : x[i];
        const uint16_t bits = pf_f32_to_f16(v);
        memcpy(out + 2 * i, &bits, sizeof bits);
    }
}

static void encode_kv_fp8(const float *x, int64_t width, int64_t rope, uint8_t *out) {
    const int64_t plain = width - rope;
    uint8_t *scales = out + plain;
    for (int64_t first = 0; first < plain; first += KV_GROUP) {
        const int64_t n = pf_min_i64(KV_GROUP, plain - first);
        const int32_t k = fp8_exponent(x + first, n);
        const float inverse = power_of_two(-k);
        for (int64_t i = first; i < first + n; ++i) out[i] = pf_f32_to_e4m3(x[i] * inverse);
        *scales++ = (uint8_t)(k + 127);
    }
    encode_bf16(x + plain, rope, scales);
}

static void encode_idx_fp4(const float *x, int64_t width, uint8_t *out) {
    uint8_t *scales = out + width / 2;
    for (int64_t first = 0; first < width; first += IDX_GROUP) {
        const int64_t n = pf_min_i64(IDX_GROUP, width - first);
        const int32_t k = fp4_exponent(x + first, n);
        const float inverse = power_of_two(-k);
        for (int64_t i = first; i < first + n; i += 2) {
            out[i / 2] = (uint8_t)(pf_f32_to_e2m1(x[i] * inverse) | pf_f32_to_e2m1(x[i + 1] * inverse) << 4);
        }
        *scales++ = (uint8_t)(k + 127);
    }
}

typedef struct rows_job {
    const pf_rows *rows;
    int64_t first, n;
    float *x;
    const float *in;
    float norm;
} rows_job;

static void store_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const rows_job *job = arg;
    const pf_rows *rows = job->rows;
    (void)worker;
    for (int64_t r = begin; r < end; ++r) {
        const float *x = job->in + r * rows->width;
        uint8_t *out = pf_row_at(rows, job->first + r);
        switch (rows->format) {
        case PF_ROW_F32: memcpy(out, x, (size_t)rows->width * sizeof *x); break;
        case PF_ROW_F16: encode_f16(x, rows->width, out); break;
        case PF_ROW_KV_FP8: encode_kv_fp8(x, rows->width, rows->rope, out); break;
        case PF_ROW_IDX_FP4: encode_idx_fp4(x, rows->width, out); break;
        }
    }
}

pf_status pf_cpu_store_rows(pf_exec *ex, const pf_rows *rows, int64_t first, int64_t n, const float *x) {
    rows_job job = {.rows = rows, .first = first, .in = x};
    return pf_parallel(ex, n, pf_max_i64(8, pf_grain(ex, n)), store_piece, &job);
}

/* pf_e2m1_to_f32(pf_f32_to_e2m1(v)) without branches: added to a number as large as has e2m1's step at this magnitude,
 * v is rounded to that step. */
static inline float round_e2m1(float v) {
    const float magnitude = pf_f32_from_bits(pf_f32_bits(v) & 0x7fffffffu);
    const float a = magnitude < 6.0f ? magnitude : 6.0f; /* also a NaN */
    const int32_t exponent = (int32_t)(pf_f32_bits(a) & 0x7f800000u), least = 127 << 23;
    const int32_t large_bits = (exponent > least ? exponent : least) + (22 << 23) + (1 << 22);
    const float large = pf_f32_from_bits((uint32_t)large_bits);
    return pf_f32_from_bits(pf_f32_bits((a + large) - large) | (pf_f32_bits(v) & 0x80000000u));
}

void pf_cpu_fp4_query(const float *q, int64_t width, uint8_t *head) {
    float *scales = pf_fp4_query_scales(head, width);
    int32_t *sums = pf_fp4_query_sums(head, width);
    for (int64_t g = 0; g < width / IDX_GROUP; ++g, q += IDX_GROUP) {
        const int32_t k = fp4_exponent(q, IDX_GROUP);
        const float doubled = 2.0f * power_of_two(-k), most = (float)PF_FP4_LARGEST;
        int32_t codes[IDX_GROUP], sum = 0;
        for (int i = 0; i < IDX_GROUP; ++i) {
            float v = q[i] * doubled;
            v = v < most ? v : most; /* also a NaN */
            codes[i] = (int32_t)(v > -most ? v : -most);
            sum += codes[i];
        }
        for (int i = 0; i < IDX_GROUP; ++i) head[g * IDX_GROUP + pf_fp4_place(i)] = (uint8_t)codes[i];
        scales[g] = power_of_two(k);
        sums[g] = sum;
    }
}

bool pf_cpu_fp4_level_query(const uint8_t *head, int64_t width, uint8_t *codes, float *scale) {
    const float *scales = pf_fp4_query_scales(head, width);
    const int64_t groups = width / IDX_GROUP;
    int32_t least = 255, most = 0;
    for (int64_t g = 0; g < groups; ++g) {
        const int32_t exponent = (int32_t)(pf_f32_bits(scales[g]) >> 23);
        least = exponent < least ? exponent : least;
        most = exponent > most ? exponent : most;
    }
    if (!pf_fp4_levels(least, most)) return false;
    for (int64_t i = 0; i < width; ++i) {
        const int32_t shift = (int32_t)(pf_f32_bits(scales[i / IDX_GROUP]) >> 23) - least;
        codes[i] = (uint8_t)((int8_t)head[i] * (1 << shift));
    }
    *scale = pf_f32_from_bits((uint32_t)least << 23);
    return true;
}

static void round_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const rows_job *job = arg;
    (void)worker;
    for (int64_t r = begin; r < end; ++r) {
        for (int64_t first = 0; first < job->n; first += IDX_GROUP) {
            float *x = job->x + r * job->n + first;
            const int64_t n = pf_min_i64(IDX_GROUP, job->n - first);
            const int32_t k = fp4_exponent(x, n);
            const float inverse = power_of_two(-k), scale = power_of_two(k);
            for (int64_t i = 0; i < n; ++i) x[i] = round_e2m1(x[i] * inverse) * scale;
        }
    }
}

pf_status pf_cpu_round_fp4(pf_exec *ex, float *x, int64_t n_row, int64_t n) {
    rows_job job = {.x = x, .n = n};
    return pf_parallel(ex, n_row, pf_max_i64(16, pf_grain(ex, n_row)), round_piece, &job);
}

static void hadamard_piece(void *arg, int64_t begin, int64_t end, int worker) {
    const rows_job *job = arg;
    (void)worker;
    for (int64_t r = begin; r < end; ++r) {
        float *x = job->x + r * job->n;
        for (int64_t half = 1; half < job->n; half *= 2) {
            for (int64_t first = 0; first < job->n; first += 2 * half) {
                float *a = x + first, *b = a + half;
                for (int64_t i = 0; i < half; ++i) {
                    const float sum = a[i] + b[i], difference = a[i] - b[i];
                    a[i] = sum;
                    b[i] = difference;
                }
            }
        }
        for (int64_t i = 0; i < job->n; ++i) x[i] *= job->norm;
    }
}

pf_status pf_cpu_hadamard(pf_exec *ex, float *x, int64_t n_row, int64_t n) {
    rows_job job = {.x = x, .n = n, .norm = 1.0f / sqrtf((float)n)};
    return pf_parallel(ex, n_row, pf_max_i64(16, pf_grain(ex, n_row)), hadamard_piece, &job);
}
