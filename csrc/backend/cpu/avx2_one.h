/* Products with one token on AVX2, which is what decoding waits for: Q8_0, MXFP4 and super-blocks, the sums of int_acts.h.
 *
 * With one token nothing that is made of a weight is used twice, so the least is made of it. The token's integers are put
 * into an order that suits the type, once a call, in g->scratch, and packed weights stay where a load and a few shuffles
 * leave them. Nor are small weights widened: v = 254 hi + lo is two planes of bytes (as other sets keep it, int_acts.h),
 * whose products with unsigned bytes are added up in 16 bits, a few at a time.
 *
 * A unit of a row is 256 or 512 columns. A type has
 *     pack(g, out): the token's integers in the order that the type takes them; told in quads, the four columns of a block
 *         in a 32-bit lane, vector by vector, of each both planes;
 *     step(at, acts, scales, halves, s): the unit at `at` times its activations, which pack has put to `acts`, joined to the
 *         unit's sums s. scales: of its blocks' activations; halves: the sums of its blocks' first halves, and PF_INT_BLOCKS
 *         further of the second ones. */
#ifndef PF_BACKEND_CPU_AVX2_ONE_H
#define PF_BACKEND_CPU_AVX2_ONE_H

#include "backend/cpu/gemm_int_tile.h"

enum { ONE_BYTES = 512 /* of the activations of 256 columns */ };

/* Keeps gcc from taking words out of vectors one by one, which is slower than reading them again. */
#if defined(__GNUC__) && !defined(__clang__)
#  define MEMORY_HOLD(v) __asm__("" : "+m"(v))
#  define GPR_HOLD(v) __asm__("" : "+r"(v))
#else
#  define MEMORY_HOLD(v) (void)(v)
#  define GPR_HOLD(v) (void)(v)
#endif

typedef void (*one_pack_fn)(const pf_gemm *g, uint8_t *out);
typedef void (*one_step_fn)(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s);
typedef struct one_format {
    one_pack_fn pack;
    one_step_fn step;
    float (*total)(const __m256 *s); /* of a row's sums */
    int64_t bytes;                   /* of a unit */
    int supers;                      /* 1 or 2 times 256 columns are a unit, */
    int64_t act_bytes;               /* whose activations take these */
    float unit;                      /* what the sums are multiplied with at last */
} one_format;

/* ---- Activations ----------------------------------------------------------------------------------------------- */

/* Quad q of the eight blocks from `first` on, as words: columns 0 and 2, and 1 and 3. */
PF_INLINE void one_words(const uint8_t *row, int64_t padded, int64_t first, int q, __m256i *even, __m256i *odd) {
    const uint8_t *at = row + pf_int_place(first) + q * PF_INT_QUADS;
    *even = load256(at);
    *odd = load256(at + padded);
}

/* Words v = 254 hi + lo with |hi|, |lo| <= 127: lo takes their place. */
PF_INLINE __m256i one_split(__m256i *v) {
    const __m256i base = _mm256_set1_epi16(PF_INT_BASE), most = _mm256_set1_epi16(127), least = _mm256_set1_epi16(-127);
    __m256i hi = _mm256_mulhrs_epi16(*v, _mm256_set1_epi16(32768 / PF_INT_BASE));
    const __m256i lo = _mm256_sub_epi16(*v, _mm256_mullo_epi16(hi, base)); /* near enough */
    hi = _mm256_sub_epi16(_mm256_add_epi16(hi, _mm256_cmpgt_epi16(least, lo)), _mm256_cmpgt_epi16(lo, most));
    *v = _mm256_sub_epi16(*v, _mm256_mullo_epi16(hi, base));
    return hi;
}
PF_INLINE __m256i one_bytes(__m256i even, __m256i odd) {
    return _mm256_or_si256(_mm256_and_si256(even, _mm256_set1_epi32(0x00ff00ff)), _mm256_slli_epi16(odd, 8));
}

/* Both planes of the eight blocks from `first` on: planes[p][q] has quad q of a block in every lane. */
PF_INLINE void one_planes(const uint8_t *row, int64_t padded, int64_t first, __m256i (*planes)[8]) {
    for (int q = 0; q < 8; ++q) {
        __m256i even, odd;
        one_words(row, padded, first, q, &even, &odd);
        const __m256i hi_even = one_split(&even), hi_odd = one_split(&odd);
        planes[0][q] = one_bytes(hi_even, hi_odd);
        planes[1][q] = one_bytes(even, odd);
    }
}

/* The lower half: quad q of the blocks that `blocks` has in its lower half; the upper half: quad q + 4 of them. */
PF_INLINE __m256i one_two_quads(const __m256i *plane, int q, __m256i blocks) {
    return _mm256_permute2x128_si256(_mm256_permutevar8x32_epi32(plane[q], blocks),
                                     _mm256_permutevar8x32_epi32(plane[q + 4], blocks), 0x20);
}

/* Words, columns as they come. */
static void pack_words(const pf_gemm *g, uint8_t *out) {
    const uint8_t *row = pf_gemm_act(g, 0);
    const int64_t padded = pf_int_padded(g->w->cols);
    for (int64_t first = 0; first < g->w->cols / BLOCK; first += PF_SUPER_BLOCKS, out += ONE_BYTES) {
        for (int q = 0; q < 8; ++q) {
            __m256i even, odd;
            uint64_t quads[8]; /* of blocks 0, 1, 4, 5, 2, 3, 6, 7 */
            one_words(row, padded, first, q, &even, &odd);
            _mm256_storeu_si256((__m256i *)(void *)quads, _mm256_unpacklo_epi16(even, odd));
            _mm256_storeu_si256((__m256i *)(void *)(quads + 4), _mm256_unpackhi_epi16(even, odd));
            for (int b = 0; b < 8; ++b) memcpy(out + 64 * b + 8 * q, &quads[b / 2 % 2 * 4 + b / 4 * 2 + b % 2], 8);
        }
    }
}

/* ---- Sums ------------------------------------------------------------------------------------------------------ */

/* One multiplication, where gcc takes three other instructions. */
PF_INLINE __m256i one_times_base(__m256i v) {
    __m256i base = _mm256_set1_epi16(PF_INT_BASE);
    VEC_HOLD(base);
    return _mm256_mullo_epi16(v, base);
}
/* Words of sums of both planes, to 32 bits. */
PF_INLINE __m256i one_both(__m256i hi, __m256i lo) {
    return _mm256_add_epi32(_mm256_madd_epi16(hi, _mm256_set1_epi16(PF_INT_BASE)),
                            _mm256_madd_epi16(lo, _mm256_set1_epi16(1)));
}
/* Of n vectors of weights without signs, with a plane at `acts` and every `step` bytes. */
PF_INLINE __m256i one_sum16(const __m256i *w, const uint8_t *acts, int step, int n) {
    __m256i s = _mm256_maddubs_epi16(w[0], load256(acts));
    PF_UNROLL for (int i = 1; i < n; ++i) {
        s = _mm256_add_epi16(s, _mm256_maddubs_epi16(w[i], load256(acts + step * i)));
        VEC_HOLD(s);
    }
    return s;
}
/* The lower halves of a and b plus the upper ones. */
PF_INLINE __m256i one_fold(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}
PF_INLINE __m256i one_order(__m256i v, int a, int b, int c, int d, int e, int f, int g, int h) {
    return _mm256_permutevar8x32_epi32(v, _mm256_setr_epi32(a, b, c, d, e, f, g, h));
}
PF_INLINE __m256i one_merge32(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
}
PF_INLINE __m256i one_merge64(__m256i a, __m256i b) {
    return _mm256_add_epi32(_mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}
/* Lane b: the sum of all of p[b]. */
PF_INLINE __m256i one_tree(const __m256i *p) {
    const __m256i low = one_merge64(one_merge32(p[0], p[1]), one_merge32(p[2], p[3]));
    return one_fold(low, one_merge64(one_merge32(p[4], p[5]), one_merge32(p[6], p[7])));
}
PF_INLINE __m256 one_join(__m256i i, __m256 scale, __m256 act, __m256 s) {
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(i), _mm256_mul_ps(scale, act), s);
}
PF_INLINE __m256i one_load(const int32_t *p) { return load256((const uint8_t *)p); }

/* The first two floats, four times. */
PF_INLINE __m256 one_twice(__m128 v) { return _mm256_castpd_ps(_mm256_broadcastsd_pd(_mm_castps_pd(v))); }

/* ---- Q8_0 and MXFP4 -------------------------------------------------------------------------------------------- */

PF_INLINE void step_q8_0(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    __m256i p[8];
    (void)halves;
    PF_UNROLL for (int b = 0; b < 8; ++b) {
        const __m256i first = _mm256_cvtepi8_epi16(load128(at + b * Q8_0_BYTES + 2));
        const __m256i second = _mm256_cvtepi8_epi16(load128(at + b * Q8_0_BYTES + 18));
        p[b] = _mm256_add_epi32(_mm256_madd_epi16(first, load256(acts + 64 * b)),
                                _mm256_madd_epi16(second, load256(acts + 64 * b + 32)));
    }
    *s = one_join(one_tree(p), scales_q8_0(at, 8), _mm256_loadu_ps(scales), *s);
}

/* Vector 2q + n: quad q + 4n of all blocks; and behind both planes where their sums begin. */
enum { ONE_MXFP4_BYTES = ONE_BYTES + 64 };
enum { ONE_MXFP4_MOST = 12 }; /* of |2 w|, and what makes that no less than zero */

static void pack_mxfp4(const pf_gemm *g, uint8_t *out) {
    const uint8_t *row = pf_gemm_act(g, 0);
    const int64_t cols = g->w->cols, padded = pf_int_padded(cols);
    for (int64_t b = 0; b < cols / BLOCK; b += PF_SUPER_BLOCKS, out += ONE_MXFP4_BYTES) {
        __m256i planes[2][8];
        one_planes(row, padded, b, planes);
        for (int plane = 0; plane < 2; ++plane) {
            __m256i sum = _mm256_setzero_si256();
            for (int q = 0; q < 8; ++q) {
                pf_ivec_store(out + 64 * (q % 4 * 2 + q / 4) + 32 * plane, planes[plane][q]);
                sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(_mm256_set1_epi8(1), planes[plane][q]));
            }
            pf_ivec_store(out + ONE_BYTES + 32 * plane, _mm256_mullo_epi16(sum, _mm256_set1_epi16(-ONE_MXFP4_MOST)));
        }
    }
}

/* Sums of 16 columns pass the range of 16 bits on the way and end within it: 16 * 12 * 127. */
PF_INLINE void step_mxfp4(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i table = pf_ivec_table(_mm_add_epi8(e2m1_table(), _mm_set1_epi8(ONE_MXFP4_MOST)));
    __m256i hi = load256(acts + ONE_BYTES), lo = load256(acts + ONE_BYTES + 32), codes[4];
    (void)halves;
    const __m256i exponents = blocks_mxfp4(at, codes);
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        const uint8_t *a = acts + 128 * q;
        const __m256i low = pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[q]));
        const __m256i high = pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[q]));
        hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(low, load256(a)));
        hi = _mm256_add_epi16(hi, _mm256_maddubs_epi16(high, load256(a + 64)));
        lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(low, load256(a + 32)));
        lo = _mm256_add_epi16(lo, _mm256_maddubs_epi16(high, load256(a + 96)));
    }
    *s = one_join(one_both(hi, lo), pf_vec_of_bits(pf_ivec_left(exponents, 7)), _mm256_loadu_ps(scales), *s);
}

/* ---- Rows ------------------------------------------------------------------------------------------------------- */

/* n_row rows (at most PF_STREAMS), `step` apart, asked for `far` bytes ahead. */
PF_INLINE void one_rows(const pf_gemm *g, const uint8_t *acts, int64_t row, int64_t n_row, int64_t step, int64_t far,
                        one_format f) {
    const int64_t cols = g->w->cols, units = cols / (f.supers * 256), each = 2 / f.supers; /* units of 512 columns */
    const uint8_t *act = pf_gemm_act(g, 0), *rows[PF_STREAMS];
    const float *scales = pf_int_scales(act, PF_Q16_PLANES, cols);
    const int32_t *halves = (const int32_t *)(const void *)(act + pf_int_halves_at(cols));
    __m256 sums[PF_STREAMS][PARTS];
    for (int64_t r = 0; r < n_row; ++r) {
        rows[r] = pf_weight_row(g->w, g->matrix, row + r * step);
        for (int part = 0; part < PARTS; ++part) sums[r][part] = _mm256_setzero_ps();
    }
    for (int64_t unit = 0; unit < units; unit += each) {
        const int64_t n = pf_min_i64(each, units - unit);
        PF_KEEP_LOOP for (int64_t r = 0; r < n_row; ++r) {
            const uint8_t *at = rows[r] + unit * f.bytes;
            for (int64_t j = 0; j + 16 <= each * f.bytes; j += 64) pf_prefetch(at + far + j);
            PF_KEEP_LOOP for (int64_t i = 0; i < n; ++i) {
                const int64_t block = i * PF_SUPER_BLOCKS, group = unit / each;
                f.step(at + i * f.bytes, acts + (unit + i) * f.act_bytes, scales + group * PF_INT_BLOCKS + block,
                       halves + group * (2 * PF_INT_BLOCKS) + block, sums[r] + i);
            }
        }
    }
    for (int64_t r = 0; r < n_row; ++r) pf_gemm_put(g, 0, row + r * step, f.total(sums[r]) * f.unit);
}

/* As int_runs(). */
PF_INLINE void one_gemm(int64_t streams, const pf_gemm *g, int64_t row_begin, int64_t row_end, one_format f) {
    const int64_t run = (row_end - row_begin) / streams, rest = row_begin + streams * run;
    const int64_t far = streams < PF_STREAMS ? PF_FAR_AHEAD : READ_AHEAD;
    uint8_t *acts = (uint8_t *)g->scratch;
    f.pack(g, acts);
    for (int64_t i = 0; i < run + (rest < row_end); ++i) {
        const bool in_run = i < run;
        one_rows(g, acts, in_run ? row_begin + i : rest, in_run ? streams : row_end - rest, in_run ? run : 1, far, f);
    }
}

/* gemm_q16 of a type: other numbers of tokens, and columns that are no units, go the other way. */
#define ONE_GEMM(lower, pack_fn, total_fn, n_super, unit_bytes, n_act_bytes, factor)                                        \
    static void one_q16_##lower(const pf_cpu_kernels *k, const pf_gemm *g, int64_t row_begin, int64_t row_end) {           \
        if (g->n == 1 && g->w->cols % ((n_super) * 256) == 0) {                                                            \
            one_gemm(k->streams, g, row_begin, row_end, (one_format){pack_fn, step_##lower, total_fn, unit_bytes, n_super, \
                                                         n_act_bytes, factor});                                            \
            return;                                                                                                        \
        }                                                                                                                  \
        gemm_q16_##lower(k, g, row_begin, row_end);                                                                        \
    }
#define ONE_SUPER(type, lower, pack_fn) ONE_GEMM(lower, pack_fn, int_total, 1, PF_##type##_BYTES, ONE_BYTES, 1.0f)
ONE_GEMM(q8_0, pack_words, int_total, 1, 8 * Q8_0_BYTES, ONE_BYTES, 1.0f)
ONE_GEMM(mxfp4, pack_mxfp4, int_total, 1, 8 * MXFP4_BYTES, ONE_MXFP4_BYTES, PF_INT_MXFP4_UNIT)

#endif
