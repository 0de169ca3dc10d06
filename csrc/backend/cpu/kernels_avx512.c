/* Kernels for AVX-512 F, BW, DQ, VL and VNNI. */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "backend/cpu/x86_intrinsics.h"

#include "format/floats.h"

/* ---- Vectors ----------------------------------------------------------------------------------------------- */

/* The first n of 16 lanes; all for n >= 16. */
static inline __mmask16 lanes(int64_t n) { return (__mmask16)(n >= 16 ? 0xffffu : (1u << n) - 1u); }

static inline float sum16(__m512 v) {
    const __m256 high = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
    const __m256 v8 = _mm256_add_ps(_mm512_castps512_ps256(v), high);
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v8), _mm256_extractf128_ps(v8, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static float dot(const float *a, const float *b, int64_t n) {
    __m512 s0 = _mm512_setzero_ps(), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        s0 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i), _mm512_loadu_ps(b + i), s0);
        s1 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 16), _mm512_loadu_ps(b + i + 16), s1);
        s2 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 32), _mm512_loadu_ps(b + i + 32), s2);
        s3 = _mm512_fmadd_ps(_mm512_loadu_ps(a + i + 48), _mm512_loadu_ps(b + i + 48), s3);
    }
    for (; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        s0 = _mm512_fmadd_ps(_mm512_maskz_loadu_ps(m, a + i), _mm512_maskz_loadu_ps(m, b + i), s0);
    }
    return sum16(_mm512_add_ps(_mm512_add_ps(s0, s1), _mm512_add_ps(s2, s3)));
}

static void axpy(float *y, float s, const float *x, int64_t n) {
    const __m512 vs = _mm512_set1_ps(s);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        const __m512 sum = _mm512_fmadd_ps(vs, _mm512_maskz_loadu_ps(m, x + i), _mm512_maskz_loadu_ps(m, y + i));
        _mm512_mask_storeu_ps(y + i, m, sum);
    }
}

static void scale(float *y, float s, int64_t n) {
    const __m512 vs = _mm512_set1_ps(s);
    for (int64_t i = 0; i < n; i += 16) {
        const __mmask16 m = lanes(n - i);
        _mm512_mask_storeu_ps(y + i, m, _mm512_mul_ps(vs, _mm512_maskz_loadu_ps(m, y + i)));
    }
}

/* ---- 32 columns of each format to floats --------------------------------------------------------------------- */

typedef __m512 pf_vec;
enum { PF_VEC_LANES = 16, PF_VECS = 2, TILE_TOKENS = 6 };
static inline __m512 pf_vec_zero(void) { return _mm512_setzero_ps(); }
static inline __m512 pf_vec_load(const float *p) { return _mm512_loadu_ps(p); }
static inline __m512 pf_vec_load_part(const float *p, int64_t n) { return _mm512_maskz_loadu_ps(lanes(n), p); }
static inline void pf_vec_store(float *p, __m512 v) { _mm512_storeu_ps(p, v); }
static inline __m512 pf_vec_fma(__m512 a, __m512 b, __m512 c) { return _mm512_fmadd_ps(a, b, c); }
static inline float pf_vec_sum(__m512 v) { return sum16(v); }

static inline __m256i load256(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)(const void *)p); }

PF_INLINE void from_f32(const uint8_t *in, __m512 *v) {
    for (int j = 0; j < 2; ++j) v[j] = _mm512_loadu_ps((const float *)(const void *)(in + 64 * j));
}

PF_INLINE void from_f16(const uint8_t *in, __m512 *v) {
    for (int j = 0; j < 2; ++j) v[j] = _mm512_cvtph_ps(load256(in + 32 * j));
}

PF_INLINE void from_bf16(const uint8_t *in, __m512 *v) {
    for (int j = 0; j < 2; ++j) {
        v[j] = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(in + 32 * j)), 16));
    }
}

/* An e4m3 code moved into a half float reads as the value times 2^-8, except for NaN. */
PF_INLINE void from_e4m3(const uint8_t *in, float scale, __m512 *v) {
    if (e4m3_is_odd(in, scale)) {
        float plain[32];
        for (int i = 0; i < 32; ++i) plain[i] = pf_e4m3_to_f32(in[i]) * scale;
        from_f32((const uint8_t *)plain, v);
        return;
    }
    const __m512 vscale = _mm512_set1_ps(256.0f * scale);
    /* Sign extension leaves the sign in bits 15 and 14, above the magnitude. */
    const __m512i code = _mm512_cvtepi8_epi16(load256(in));
    const __m512i half = _mm512_and_si512(_mm512_slli_epi16(code, 7), _mm512_set1_epi16((int16_t)0xbf80));
    v[0] = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_castsi512_si256(half)), vscale);
    v[1] = _mm512_mul_ps(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1)), vscale);
}

/* int8 times scale. */
PF_INLINE void from_i8(__m128i low, __m128i high, float scale, __m512 *v) {
    const __m512 vscale = _mm512_set1_ps(scale);
    v[0] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low)), vscale);
    v[1] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high)), vscale);
}

#include "backend/cpu/gemm_f32_tile.h"
#include "backend/cpu/x86_rows.h"

PF_F32_ENTRIES(f32)
PF_F32_ENTRIES(f16)
PF_F32_ENTRIES(bf16)
PF_F32_ENTRIES(q8_0)
PF_F32_ENTRIES(mxfp4)
PF_F32_ENTRIES(fp8)

/* ---- Integer products -------------------------------------------------------------------------------------- */

/* Sixteen rows at a time, one 32-bit lane each, as in the AVX2 kernels: a block's weights are transposed so that a
 * vector holds four columns of every row. VNNI multiplies unsigned by signed bytes, so the weights carry an offset
 * that the block's sum of activations takes out again. */
enum { INT_ROWS = 16, INT_BATCH = 16 };

/* 16 bytes of each row from `at` on, transposed to four vectors with rows 0..15 in their lanes. */
static inline void load_transposed(const uint8_t *const *rows, int64_t at, __m512i *out) {
    __m512i v[4];
    for (int j = 0; j < 4; ++j) {
        v[j] = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)(const void *)(rows[j] + at)));
        v[j] = _mm512_inserti32x4(v[j], _mm_loadu_si128((const __m128i *)(const void *)(rows[j + 4] + at)), 1);
        v[j] = _mm512_inserti32x4(v[j], _mm_loadu_si128((const __m128i *)(const void *)(rows[j + 8] + at)), 2);
        v[j] = _mm512_inserti32x4(v[j], _mm_loadu_si128((const __m128i *)(const void *)(rows[j + 12] + at)), 3);
    }
    const __m512i t0 = _mm512_unpacklo_epi32(v[0], v[1]), t1 = _mm512_unpackhi_epi32(v[0], v[1]);
    const __m512i t2 = _mm512_unpacklo_epi32(v[2], v[3]), t3 = _mm512_unpackhi_epi32(v[2], v[3]);
    out[0] = _mm512_unpacklo_epi64(t0, t2);
    out[1] = _mm512_unpackhi_epi64(t0, t2);
    out[2] = _mm512_unpacklo_epi64(t1, t3);
    out[3] = _mm512_unpackhi_epi64(t1, t3);
}

typedef struct int_block {
    __m512i w[8]; /* unsigned: weight + offset */
    __m512 scale;
} int_block;

typedef int_block (*load_fn)(const uint8_t *const *rows, int64_t b);

PF_INLINE int_block load_q8_0(const uint8_t *const *rows, int64_t b) {
    const int64_t at = b * Q8_0_BYTES;
    int_block block;
    load_transposed(rows, at + 2, block.w);
    load_transposed(rows, at + 18, block.w + 4);
    for (int i = 0; i < 8; ++i) block.w[i] = _mm512_xor_si512(block.w[i], _mm512_set1_epi8(-128));
#define D(r) (int16_t) pf_load_u16(rows[r] + at)
    block.scale = _mm512_cvtph_ps(_mm256_setr_epi16(D(0), D(1), D(2), D(3), D(4), D(5), D(6), D(7), D(8), D(9), D(10),
                                                    D(11), D(12), D(13), D(14), D(15)));
#undef D
    return block;
}

/* 2^(e - 128). */
static inline __m512 half_e8m0(__m512i e) {
    const __m512i denormal = _mm512_set1_epi32(0x00400000);
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(e, _mm512_set1_epi32(255));
    const __m512i bits = _mm512_max_epi32(_mm512_slli_epi32(e, 23), denormal);
    return _mm512_mul_ps(_mm512_castsi512_ps(_mm512_mask_or_epi32(bits, nan, bits, denormal)), _mm512_set1_ps(0.5f));
}

PF_INLINE int_block load_mxfp4(const uint8_t *const *rows, int64_t b) {
    const int64_t at = b * MXFP4_BYTES;
    const __m512i table = _mm512_broadcast_i32x4(_mm_add_epi8(e2m1_table(), _mm_set1_epi8(12)));
    const __m512i low = _mm512_set1_epi8(15);
    int_block block;
    __m512i codes[4];
    load_transposed(rows, at + 1, codes);
    for (int i = 0; i < 4; ++i) {
        block.w[i] = _mm512_shuffle_epi8(table, _mm512_and_si512(codes[i], low));
        block.w[i + 4] = _mm512_shuffle_epi8(table, _mm512_and_si512(_mm512_srli_epi16(codes[i], 4), low));
    }
#define E(r) (char)rows[r][at]
    block.scale = half_e8m0(_mm512_cvtepu8_epi32(_mm_setr_epi8(E(0), E(1), E(2), E(3), E(4), E(5), E(6), E(7), E(8),
                                                               E(9), E(10), E(11), E(12), E(13), E(14), E(15))));
#undef E
    return block;
}

static inline __m512i broadcast4(const uint8_t *act) {
    int32_t four;
    memcpy(&four, act, sizeof four);
    return _mm512_set1_epi32(four);
}

/* PF_Q16_BASE (w . hi) + (w . lo) + bias. */
static inline __m512i dot_block(const int_block *block, const uint8_t *hi, const uint8_t *lo, int32_t bias) {
    __m512i s_hi = _mm512_setzero_si512(), s_lo = _mm512_set1_epi32(bias);
    for (int i = 0; i < 8; ++i) {
        s_hi = _mm512_dpbusd_epi32(s_hi, block->w[i], broadcast4(hi + 4 * i));
        s_lo = _mm512_dpbusd_epi32(s_lo, block->w[i], broadcast4(lo + 4 * i));
    }
    const __m512i scaled = _mm512_sub_epi32(_mm512_slli_epi32(s_hi, 8), _mm512_slli_epi32(s_hi, 1));
    return _mm512_add_epi32(scaled, s_lo);
}

/* One token waits for memory: with every block its share of the next tile, which lies behind this one, is asked for. */
PF_INLINE void prefetch_next(const uint8_t *tile, int64_t row_bytes, int64_t b, int64_t block_bytes) {
    const uint8_t *at = tile + INT_ROWS * (row_bytes + b * block_bytes);
    for (int64_t i = 0; i < INT_ROWS * block_bytes; i += 64) _mm_prefetch((const char *)(at + i), _MM_HINT_T0);
}

/* Rows [row, row + n_row), n_row <= 16, times tokens [token, token + n_token). */
PF_INLINE void q16_tile(const pf_gemm *g, int64_t row, int64_t n_row, int64_t token, int64_t n_token, load_fn load,
                       int32_t offset, int64_t block_bytes) {
    const int64_t cols = g->w->cols;
    const uint8_t *rows[INT_ROWS], *act[INT_BATCH];
    __m512 sums[INT_BATCH];
    for (int64_t r = 0; r < INT_ROWS; ++r) {
        rows[r] = pf_weight_row(g->w, g->matrix, row + (r < n_row ? r : n_row - 1));
    }
    for (int64_t t = 0; t < n_token; ++t) {
        act[t] = pf_gemm_act(g, token + t);
        sums[t] = _mm512_setzero_ps();
    }
    for (int64_t b = 0; b < cols / BLOCK; ++b) {
        if (n_token == 1) prefetch_next(rows[0], g->w->row_bytes, b, block_bytes);
        const int_block block = load(rows, b);
        for (int64_t t = 0; t < n_token; ++t) {
            const __m512 d = _mm512_mul_ps(block.scale, _mm512_set1_ps(pf_q16_scales(act[t], cols)[b]));
            const uint8_t *hi = act[t] + b * BLOCK;
            const __m512i i = dot_block(&block, hi, hi + cols, -offset * pf_q16_sums(act[t], cols)[b]);
            sums[t] = _mm512_add_ps(sums[t], _mm512_mul_ps(d, _mm512_cvtepi32_ps(i)));
        }
    }
    for (int64_t t = 0; t < n_token; ++t) {
        float v[INT_ROWS];
        _mm512_storeu_ps(v, sums[t]);
        for (int64_t r = 0; r < n_row; ++r) pf_gemm_put(g, token + t, row + r, v[r]);
    }
}

PF_INLINE void q16_gemm(const pf_gemm *g, int64_t row_begin, int64_t row_end, load_fn load, int32_t offset,
                       int64_t block_bytes) {
    for (int64_t token = 0; token < g->n; token += INT_BATCH) {
        const int64_t n_token = pf_min_i64(INT_BATCH, g->n - token);
        for (int64_t row = row_begin; row < row_end; row += INT_ROWS) {
            const int64_t n_row = pf_min_i64(INT_ROWS, row_end - row);
            if (n_token == 1) {
                q16_tile(g, row, n_row, token, 1, load, offset, block_bytes); /* the sum stays in a register */
            } else {
                q16_tile(g, row, n_row, token, n_token, load, offset, block_bytes);
            }
        }
    }
}

static void gemm_q16_q8_0(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    (void)k;
    q16_gemm(g, row_begin, row_end, load_q8_0, 128, Q8_0_BYTES);
}

static void gemm_q16_mxfp4(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {
    (void)k;
    q16_gemm(g, row_begin, row_end, load_mxfp4, 12, MXFP4_BYTES);
}

/* ---- Table ------------------------------------------------------------------------------------------------- */

/* quantize_q16 stays AVX2's. */
void pf_kernels_avx512_init(pf_cpu_kernels *k) {
    *k = (pf_cpu_kernels){
        .name = "avx512",
        .dot = dot,
        .axpy = axpy,
        .scale = scale,
        .dequant = PF_WEIGHT_ENTRIES(dequant),
        .gemm_f32 = PF_WEIGHT_ENTRIES(gemm),
        .gemm_q16 = {[PF_W_Q8_0] = gemm_q16_q8_0, [PF_W_MXFP4] = gemm_q16_mxfp4},
        .quantize_q16 = k->quantize_q16,
        .load_row = load_row,
    };
}

#endif
