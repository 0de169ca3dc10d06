/* The IQ formats times one token on AVX2 (avx2_one.h). */
#ifndef PF_BACKEND_CPU_AVX2_ONE_IQ_H
#define PF_BACKEND_CPU_AVX2_ONE_IQ_H

#include "backend/cpu/avx2_one.h"

/* ---- Grids: IQ1, IQ2, IQ3 ---------------------------------------------------------------------------------------- */

/* Vector 2g + i: columns 8g to 8g + 7 of the blocks 2i, 2i + 1, 4 + 2i and 5 + 2i. */
static void pack_iq(const pf_gemm *g, uint8_t *out) {
    const uint8_t *row = pf_gemm_act(g, 0);
    const int64_t cols = g->w->cols, padded = pf_int_padded(cols);
    for (int64_t b = 0; b < cols / BLOCK; b += PF_SUPER_BLOCKS) {
        __m256i planes[2][8];
        one_planes(row, padded, b, planes);
        for (int q = 0; q < 8; q += 2, out += 128) {
            for (int p = 0; p < 2; ++p) {
                pf_ivec_store(out + 32 * p, _mm256_unpacklo_epi32(planes[p][q], planes[p][q + 1]));
                pf_ivec_store(out + 32 * p + 64, _mm256_unpackhi_epi32(planes[p][q], planes[p][q + 1]));
            }
        }
    }
}

PF_INLINE __m128i one_two_of_64(const uint64_t *a, const uint64_t *b) {
    const __m128 low = _mm_castsi128_ps(load64((const uint8_t *)a));
    return _mm_castps_si128(_mm_loadh_pi(low, (const __m64 *)(const void *)b));
}
/* The values of vector 2g + i, from entries of eight, or of four. */
PF_INLINE __m256i one_entries_8(const uint64_t *grid, place_fn place, const uint8_t *in, int g, int i) {
    const uint64_t *const e[4] = {grid + place(in, 8 * i + g), grid + place(in, 8 * i + 4 + g),
                                  grid + place(in, 8 * i + 16 + g), grid + place(in, 8 * i + 20 + g)};
    return _mm256_inserti128_si256(_mm256_castsi128_si256(one_two_of_64(e[0], e[1])), one_two_of_64(e[2], e[3]), 1);
}
PF_INLINE __m256i one_entries_4(const uint32_t *grid, place_fn place, const uint8_t *in, int g, int i) {
    uint32_t e[8];
    PF_UNROLL for (int k = 0; k < 8; ++k) e[k] = grid[place(in, 8 * (k / 4 * 4 + k % 4 / 2 + 2 * i) + 2 * g + k % 2)];
    return super_of_32(e);
}

/* Sums of the vectors i, two lanes a block, to the blocks' own lanes. */
PF_INLINE __m256i one_iq_lanes(__m256i first, __m256i second) {
    return _mm256_add_epi32(pf_ivec_even_lanes(first, second), pf_ivec_odd_lanes(first, second));
}
/* Bytes c of eight blocks, as words to the lanes of vectors i. */
PF_INLINE __m256i one_iq_factor(__m128i c, int i) {
    const int low = (int)(0x80008000u | (unsigned)(2 * i) * 0x10001u), next = 0x10001;
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(c),
                               _mm256_setr_epi32(low, low, low + next, low + next, low + 4 * next, low + 4 * next,
                                                 low + 5 * next, low + 5 * next));
}

/* A half's magnitudes w[2g + i] with signs, four bytes a block, times its activations: the words' sums of both planes. Sums
 * of 2 pairs stay below 2 * 2 * 62 * 127. */
PF_INLINE void one_iq_signed(const __m256i *w, __m256i signs, const uint8_t *acts, int i, int h, __m256i *hi, __m256i *lo) {
    const __m256i bits = _mm256_set1_epi64x((int64_t)0x8040201008040201u);
    PF_UNROLL for (int k = 0; k < 2; ++k) {
        const int g = 2 * h + k, at = (8 * i + g) * ONES, next = at + 4 * ONES;
        const uint8_t *a = acts + 64 * (2 * g + i);
        const __m256i own = pf_ivec_replicate(signs, pf_ivec_table(_mm_setr_epi32(at, at, next, next)));
        const __m256i negative = _mm256_cmpeq_epi8(pf_ivec_and(own, bits), bits);
        const __m256i sign = pf_ivec_or(negative, _mm256_set1_epi8(1));
        const __m256i of_hi = _mm256_maddubs_epi16(w[2 * g + i], _mm256_sign_epi8(load256(a), sign));
        const __m256i of_lo = _mm256_maddubs_epi16(w[2 * g + i], _mm256_sign_epi8(load256(a + 32), sign));
        *hi = k ? _mm256_add_epi16(*hi, of_hi) : of_hi;
        *lo = k ? _mm256_add_epi16(*lo, of_lo) : of_lo;
        VEC_HOLD(*hi);
        VEC_HOLD(*lo);
    }
}

/* The sums i of all blocks. c: scales of the halves, bytes of eight blocks; NULL: 1. */
PF_INLINE __m256i one_iq_sums(const __m256i *w, __m256i signs, const uint8_t *acts, const __m128i *c) {
    __m256i all[2];
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        PF_UNROLL for (int h = 0; h < 2; ++h) {
            __m256i hi, lo;
            one_iq_signed(w, signs, acts, i, h, &hi, &lo);
            const __m256i factor = c ? one_iq_factor(c[h], i) : _mm256_set1_epi16(1);
            const __m256i of_hi = c ? one_times_base(factor)
                                    : _mm256_set1_epi16(PF_INT_BASE);
            const __m256i both = _mm256_add_epi32(_mm256_madd_epi16(hi, of_hi), _mm256_madd_epi16(lo, factor));
            all[i] = h ? _mm256_add_epi32(all[i], both) : both;
        }
    }
    return one_iq_lanes(all[0], all[1]);
}
/* Nibbles of scales of halves, 2 s + 1. */
PF_INLINE void one_iq_nibbles(const uint8_t *at, __m128i *c) {
    const __m128i both = load64(at), low = _mm_set1_epi8(15), one = _mm_set1_epi8(1);
    const __m128i first = _mm_and_si128(both, low), second = _mm_and_si128(_mm_srli_epi16(both, 4), low);
    c[0] = _mm_add_epi8(_mm_add_epi8(first, first), one);
    c[1] = _mm_add_epi8(_mm_add_epi8(second, second), one);
}

#define ONE_VALUES(n, grid, place, in)                                                                        \
    __m256i w[8];                                                                                             \
    PF_UNROLL for (int to = 0; to < 8; ++to) w[to] = one_entries_##n(pf_grids.grid, place, in, to / 2, to % 2)
PF_INLINE uint32_t place_of_nine(const uint8_t *in, int i) { return pf_load_u16(in + 2 * i) & 511u; }
PF_INLINE uint32_t place_of_ten(const uint8_t *in, int i) { /* of IQ2_S */
    const uint32_t high = in[64 + i / 4];
    return in[i] | (high << (8 - 2 * (i % 4)) & 0x300u);
}
PF_INLINE uint32_t place_of_eleven(const uint8_t *in, int i) { /* of IQ1_S */
    const uint32_t high = pf_load_u16(in + 32 + 2 * (i / 4));
    return in[i] | ((i % 4 == 3 ? high >> 1 : high << (8 - 3 * (i % 4))) & 0x700u);
}
/* Places as words, four to a register: shuffles that take words out of vectors have little room left. */
PF_INLINE uint32_t place_of_four(const uint8_t *in, int i) {
    return (uint32_t)(((const uint64_t *)(const void *)in)[i / 4] >> 16 * (i % 4)) & 0xffffu;
}
#define ONE_FOURS(type)                                                                                       \
    grid_places places;                                                                                       \
    uint64_t fours[8];                                                                                        \
    places_##type(at, places.words[0]);                                                                       \
    PF_UNROLL for (int j = 0; j < 2; ++j) {                                                                   \
        const __m128i low = load128(places.words[0] + 32 * j), high = load128(places.words[0] + 32 * j + 16); \
        fours[4 * j] = (uint64_t)_mm_cvtsi128_si64(low);                                                      \
        fours[4 * j + 1] = (uint64_t)_mm_extract_epi64(low, 1);                                               \
        fours[4 * j + 2] = (uint64_t)_mm_cvtsi128_si64(high);                                                 \
        fours[4 * j + 3] = (uint64_t)_mm_extract_epi64(high, 1);                                              \
    }                                                                                                         \
    PF_UNROLL for (int j = 0; j < 8; ++j) GPR_HOLD(fours[j])
#define ONE_PLACES(type)                                                                                      \
    grid_places places;                                                                                       \
    places_##type(at, places.words[0]);                                                                       \
    MEMORY_HOLD(places)

PF_INLINE void step_iq2_xxs(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i words = pf_ivec_turned(pf_ivec_odd_lanes(load256(at + 2), load256(at + 34)));
    ONE_VALUES(8, iq2_xxs, place_of_pairs, at + 2);
    (void)halves;
    const __m256 scale = super_scales(at, at, 0.125f, super_odd(pf_ivec_right(words, 28)));
    *s = one_join(one_iq_sums(w, super_sevens(words), acts, NULL), scale, _mm256_loadu_ps(scales), *s);
}
PF_INLINE void step_iq2_xs(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i first = pf_ivec_right_words(load256(at + 2), 9), second = pf_ivec_right_words(load256(at + 34), 9);
    const __m256i signs = super_even(pf_ivec_turned(pf_ivec_packed_words(first, second)));
    __m128i c[2];
    ONE_VALUES(8, iq2_xs, place_of_nine, at + 2);
    (void)halves;
    one_iq_nibbles(at + 66, c);
    *s = one_join(one_iq_sums(w, signs, acts, c), super_scales(at, at, 0.125f, pf_ivec_set1(1)), _mm256_loadu_ps(scales), *s);
}
PF_INLINE void step_iq2_s(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    __m128i c[2];
    ONE_VALUES(8, iq2_s, place_of_ten, at + 2);
    (void)halves;
    one_iq_nibbles(at + 74, c);
    *s = one_join(one_iq_sums(w, load256(at + 34), acts, c), super_scales(at, at, 0.125f, pf_ivec_set1(1)),
                  _mm256_loadu_ps(scales), *s);
}
PF_INLINE void step_iq3_xxs(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i words = load256(at + 66);
    ONE_VALUES(4, iq3_xxs, place_of_byte, at + 2);
    (void)halves;
    const __m256 scale = super_scales(at, at, 0.25f, super_odd(pf_ivec_right(words, 28)));
    *s = one_join(one_iq_sums(w, super_sevens(words), acts, NULL), scale, _mm256_loadu_ps(scales), *s);
}
PF_INLINE void step_iq3_s(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    ONE_PLACES(iq3_s);
    ONE_VALUES(4, iq3_s, place_of_word, places.words[0]);
    (void)halves;
    const int_weights v = decode_iq3_s(at, at, PF_SUPER_BLOCKS); /* its scales */
    *s = one_join(one_iq_sums(w, load256(at + 74), acts, NULL), v.scale, _mm256_loadu_ps(scales), *s);
}

/* Sums of 4 pairs stay below 4 * 2 * 25 * 127. Values are in eighths, BIAS_IQ1 too large, and one more or less: `down` has
 * that of group g of a block in the highest bit of its lane, shifted by 4 (3 - g) where it has one for each. */
PF_INLINE void step_iq1_s(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i down = pf_ivec_left(super_words(load128(at + 34), load128(at + 34)), 16);
    const __m256i shift = pf_ivec_or(pf_ivec_right_signed(down, 31), pf_ivec_set1(ONES));
    __m256i all[2];
    ONE_VALUES(8, iq1, place_of_eleven, at + 2);
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i own = i ? _mm256_unpackhi_epi32(shift, shift) : _mm256_unpacklo_epi32(shift, shift);
        __m256i of_i[4];
        PF_UNROLL for (int g = 0; g < 4; ++g) of_i[g] = pf_ivec_add_bytes(w[2 * g + i], own);
        all[i] = one_both(one_sum16(of_i, acts + 64 * i, 128, 4), one_sum16(of_i, acts + 64 * i + 32, 128, 4));
    }
    const int_weights v = decode_iq1_s(at, at, PF_SUPER_BLOCKS); /* its scales */
    const __m256i sums = _mm256_add_epi32(one_load(halves), one_load(halves + PF_INT_BLOCKS));
    *s = one_join(_mm256_sub_epi32(one_iq_lanes(all[0], all[1]), _mm256_slli_epi32(sums, 4)), v.scale,
                  _mm256_loadu_ps(scales), *s);
}
PF_INLINE void step_iq1_m(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i words = super_words(load128(at + 32), load128(at + 32));
    const int_weights v = decode_iq1_m(at, at, PF_SUPER_BLOCKS); /* its scales */
    __m256i all[2];
    ONE_FOURS(iq1_m);
    ONE_VALUES(8, iq1, place_of_four, (const uint8_t *)fours);
    PF_UNROLL for (int g = 0; g < 4; ++g) {
        const __m256i down = pf_ivec_right_signed(pf_ivec_left(words, (7u - (unsigned)g) * 4), 31);
        const __m256i shift = pf_ivec_or(down, pf_ivec_set1(ONES));
        w[2 * g] = pf_ivec_add_bytes(w[2 * g], _mm256_unpacklo_epi32(shift, shift));
        w[2 * g + 1] = pf_ivec_add_bytes(w[2 * g + 1], _mm256_unpackhi_epi32(shift, shift));
    }
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        PF_UNROLL for (int h = 0; h < 2; ++h) {
            const __m256i of_i[2] = {w[4 * h + i], w[4 * h + 2 + i]};
            const uint8_t *a = acts + 256 * h + 64 * i;
            const __m256i c = i ? _mm256_unpackhi_epi32(v.c[h], v.c[h]) : _mm256_unpacklo_epi32(v.c[h], v.c[h]);
            const __m256i factor = pf_ivec_or(c, pf_ivec_left(c, 16));
            const __m256i of_hi = _mm256_madd_epi16(one_sum16(of_i, a, 128, 2),
                                                    one_times_base(factor));
            const __m256i both = _mm256_add_epi32(of_hi, _mm256_madd_epi16(one_sum16(of_i, a + 32, 128, 2), factor));
            all[i] = h ? _mm256_add_epi32(all[i], both) : both;
        }
    }
    const __m256i more = _mm256_add_epi32(_mm256_mullo_epi32(one_load(halves), v.c[0]),
                                          _mm256_mullo_epi32(one_load(halves + PF_INT_BLOCKS), v.c[1]));
    *s = one_join(_mm256_sub_epi32(one_iq_lanes(all[0], all[1]), _mm256_slli_epi32(more, 4)), v.scale,
                  _mm256_loadu_ps(scales), *s);
}

/* ---- Values as large as bytes: IQ4_XS, times words ------------------------------------------------------------------- */

/* Of every quad of all blocks columns 0 and 2, then 1 and 3. */
static void pack_iq4(const pf_gemm *g, uint8_t *out) {
    const uint8_t *row = pf_gemm_act(g, 0);
    const int64_t padded = pf_int_padded(g->w->cols);
    for (int64_t first = 0; first < g->w->cols / BLOCK; first += PF_SUPER_BLOCKS) {
        for (int q = 0; q < 8; ++q, out += 64) {
            __m256i even, odd;
            one_words(row, padded, first, q, &even, &odd);
            pf_ivec_store(out, even);
            pf_ivec_store(out + 32, odd);
        }
    }
}

PF_INLINE __m256i one_quad_of_words(__m256i w, const uint8_t *acts) {
    return _mm256_add_epi32(_mm256_madd_epi16(pf_ivec_right_byte(pf_ivec_left_byte(w)), load256(acts)),
                            _mm256_madd_epi16(pf_ivec_right_byte(w), load256(acts + 32)));
}
PF_INLINE void step_iq4_xs(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i table = pf_ivec_table(load128((const uint8_t *)pf_iq4_values));
    __m256i rows[4], codes[4], i = _mm256_setzero_si256();
    (void)halves;
    PF_UNROLL for (int j = 0; j < 4; ++j) rows[j] = super_pairs(at + 8 + 16 * j, at, 64);
    quads_of_16bytes(rows, codes);
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        const __m256i low = pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[q]));
        const __m256i high = pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[q]));
        i = _mm256_add_epi32(i, _mm256_add_epi32(one_quad_of_words(low, acts + 64 * q),
                                                 one_quad_of_words(high, acts + 64 * q + 256)));
    }
    const int_weights v = decode_iq4_xs(at, at, PF_SUPER_BLOCKS); /* its scales */
    *s = one_join(i, v.scale, _mm256_loadu_ps(scales), *s);
}

ONE_SUPER(IQ2_XXS, iq2_xxs, pack_iq)
ONE_SUPER(IQ2_XS, iq2_xs, pack_iq)
ONE_SUPER(IQ2_S, iq2_s, pack_iq)
ONE_SUPER(IQ3_XXS, iq3_xxs, pack_iq)
ONE_SUPER(IQ3_S, iq3_s, pack_iq)
ONE_SUPER(IQ1_S, iq1_s, pack_iq)
ONE_SUPER(IQ1_M, iq1_m, pack_iq)
ONE_SUPER(IQ4_XS, iq4_xs, pack_iq4)

#endif
