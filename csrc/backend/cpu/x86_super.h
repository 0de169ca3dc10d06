/* Super-blocks for the x86 kernel files: as int_weights (x86_blocks.h), for gemm_int_tile.h. A vector has one super-block, or
 * with 16 lanes two, whose 256 bits each are worked on alike: `a` is the first one, `b` the second.
 *
 * The including file defines, where "of both" means of a in the lower 256 bits and of b, if there is room, in the others:
 *     pf_ivec super_load(a, b): 32 bytes of both; super_pairs(a, b, apart): 16 bytes and, `apart` behind, 16 others;
 *     super_bytes, super_words(__m128i a, b): 8 bytes or words to 32-bit lanes; super_set1(uint32_t a, b);
 *     pf_vec super_half(a, b): the half float there; super_only(pf_vec v, int n): the first n lanes, zero in others;
 *     pf_ivec super_each(c0, ..., c7): constants;
 *     rows_of_one, rows_of_two, rows_of_four, rows_in_pairs(a, b, pf_ivec *v): of fields of 32-byte rows vector q of 8 has
 *         bytes 4q to 4q + 3 of the block's row: 0; block / 4; block / 2; or 0, 1, 0, 1, 2, 3, 2, 3;
 *     pf_ivec_and, _or, _sub, _mul, _add_bytes, _right, _left, _right_words, _right_each, _left_each, _replicate (every byte
 *         of a vector by places in its 128 bits), _turned (the 64-bit quarters of 256 bits, 0 2 1 3), _odd_words(a, b),
 *         _even_words(a, b): of every 128 bits of a, then of b; _packed_words(a, b): to unsigned bytes;
 *     super_of_64(uint64_t *v), super_of_32(uint32_t *v): of values in memory; or, with PF_OWN_GRIDS, what is made of them
 *         here: grid_<type>(a, b, pf_ivec *w), the grid's values of a super-block;
 *     pf_ivec with_signs(magnitudes, signs, bits, bias): + bias, negated where signs have one of the bits. */
#ifndef PF_BACKEND_CPU_X86_SUPER_H
#define PF_BACKEND_CPU_X86_SUPER_H

#include "backend/cpu/grid_bytes.h"
#include "backend/cpu/int_blocks.h"
#include "backend/cpu/x86_blocks.h"
#include "format/iq_grids.h"

enum { ONES = 0x01010101 };

static inline uint32_t load32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

PF_INLINE pf_vec super_minus_half(const uint8_t *a, const uint8_t *b) {
    return pf_vec_mul(super_half(a, b), pf_vec_set1(-1.0f));
}
PF_INLINE int_weights super_end(int_weights v, int n) {
    v.scale = super_only(v.scale, n);
    v.half_scale = super_only(v.half_scale, n);
    v.min_scale = super_only(v.min_scale, n);
#if defined(PF_INT_WORDS)
    PF_UNROLL for (int i = 0; i < 8; ++i) {
        v.even[i] = pf_ivec_and(v.w[i], pf_ivec_set1(0x00ff00ff));
        v.odd[i] = pf_ivec_right_words(v.w[i], 8);
    }
#endif
    return v;
}
/* With weights below zero where there is no bias. */
PF_INLINE int_weights super_end_signed(int_weights v, int n) {
#if defined(PF_INT_WORDS)
    (void)n;
    return with_words(v);
#else
    return super_end(v, n);
#endif
}
#define SUPER_BEGIN \
    int_weights v = {.scale = pf_vec_zero(), .half_scale = pf_vec_zero(), .min_scale = pf_vec_zero()}

/* ---- K formats --------------------------------------------------------------------------------------------- */

enum { BIAS_Q2_K = 0, BIAS_Q3_K = 4, BIAS_Q4_K = 0, BIAS_Q5_K = 0, BIAS_Q6_K = 32 };

/* The byte pairs of every lane. */
PF_INLINE void super_two_bytes(pf_ivec words, pf_ivec *low, pf_ivec *high) {
    *low = pf_ivec_and(words, pf_ivec_set1(255));
    *high = pf_ivec_right(words, 8);
}

PF_INLINE int_weights decode_q2_k(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec shifts = super_each(0, 2, 4, 6, 0, 2, 4, 6), low = pf_ivec_set1(15);
    const pf_ivec both = super_words(load128(a), load128(b));
    rows_of_two(a + 16, b + 16, v.w);
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        v.w[q] = pf_ivec_and(pf_ivec_right_each(v.w[q], shifts), pf_ivec_set1(3 * ONES));
    }
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        v.c[h] = pf_ivec_and(pf_ivec_right(both, 8 * h), low);
        v.m[h] = pf_ivec_and(pf_ivec_right(both, 8 * h + 4), low);
    }
    v.scale = super_half(a + 80, b + 80);
    v.min_scale = super_minus_half(a + 82, b + 82);
    return super_end(v, n);
}

/* The 16 scales of Q3_K, as bytes, 32 too large. */
PF_INLINE __m128i q3_k_scales(const uint8_t *packed) {
    const uint32_t low = load32(packed), low2 = load32(packed + 4), high = load32(packed + 8);
    const uint32_t nibbles = 15 * ONES, pairs = 3 * ONES;
    return _mm_setr_epi32((int32_t)((low & nibbles) | (high & pairs) << 4),
                          (int32_t)((low2 & nibbles) | (high >> 2 & pairs) << 4),
                          (int32_t)((low >> 4 & nibbles) | (high >> 4 & pairs) << 4),
                          (int32_t)((low2 >> 4 & nibbles) | (high >> 6 & pairs) << 4));
}

PF_INLINE int_weights decode_q3_k(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec shifts = super_each(0, 2, 4, 6, 0, 2, 4, 6), block = super_each(0, 1, 2, 3, 4, 5, 6, 7);
    pf_ivec third[8];
    rows_of_two(a + 32, b + 32, v.w);
    rows_of_one(a, b, third);
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        const pf_ivec bit = pf_ivec_and(pf_ivec_right_each(third[q], block), pf_ivec_set1(ONES));
        const pf_ivec low = pf_ivec_and(pf_ivec_right_each(v.w[q], shifts), pf_ivec_set1(3 * ONES));
        v.w[q] = pf_ivec_or(low, pf_ivec_left(bit, 2));
    }
    super_two_bytes(super_words(q3_k_scales(a + 96), q3_k_scales(b + 96)), &v.c[0], &v.c[1]);
    PF_UNROLL for (int h = 0; h < 2; ++h) v.c[h] = pf_ivec_sub(v.c[h], pf_ivec_set1(32));
    v.scale = super_half(a + 108, b + 108);
    return super_end(v, n);
}

/* The eight scales of Q4_K and Q5_K as bytes, and behind them the minimums. */
PF_INLINE __m128i q4_k_scales(const uint8_t *packed) {
    const uint32_t scales = load32(packed), minimums = load32(packed + 4), rest = load32(packed + 8);
    const uint32_t nibbles = 15 * ONES, pairs = 3 * ONES, six = 63 * ONES;
    return _mm_setr_epi32((int32_t)(scales & six), (int32_t)((rest & nibbles) | (scales >> 6 & pairs) << 4),
                          (int32_t)(minimums & six), (int32_t)((rest >> 4 & nibbles) | (minimums >> 6 & pairs) << 4));
}

PF_INLINE void q45_k_scales(const uint8_t *a, const uint8_t *b, int_weights *v) {
    const __m128i first = q4_k_scales(a + 4), second = q4_k_scales(b + 4);
    v->scale = pf_vec_mul(pf_vec_of_ints(super_bytes(first, second)), super_half(a, b));
    v->m[0] = super_bytes(_mm_srli_si128(first, 8), _mm_srli_si128(second, 8));
    v->min_scale = super_minus_half(a + 2, b + 2);
}

PF_INLINE void q45_k_nibbles(const uint8_t *a, const uint8_t *b, pf_ivec *w) {
    const pf_ivec shifts = super_each(0, 4, 0, 4, 0, 4, 0, 4);
    rows_of_four(a, b, w);
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        w[q] = pf_ivec_and(pf_ivec_right_each(w[q], shifts), pf_ivec_set1(15 * ONES));
    }
}

PF_INLINE int_weights decode_q4_k(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    q45_k_nibbles(a + 16, b + 16, v.w);
    q45_k_scales(a, b, &v);
    return super_end(v, n);
}

PF_INLINE int_weights decode_q5_k(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec block = super_each(0, 1, 2, 3, 4, 5, 6, 7);
    pf_ivec fifth[8];
    q45_k_nibbles(a + 48, b + 48, v.w);
    rows_of_one(a + 16, b + 16, fifth);
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        const pf_ivec bit = pf_ivec_and(pf_ivec_right_each(fifth[q], block), pf_ivec_set1(ONES));
        v.w[q] = pf_ivec_or(v.w[q], pf_ivec_left(bit, 4));
    }
    q45_k_scales(a, b, &v);
    return super_end(v, n);
}

PF_INLINE int_weights decode_q6_k(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec low_shifts = super_each(0, 0, 4, 4, 0, 0, 4, 4), shifts = super_each(0, 2, 4, 6, 0, 2, 4, 6);
    const pf_ivec scales = super_words(load128(a + 192), load128(b + 192));
    const pf_vec d = super_half(a + 208, b + 208);
    pf_ivec high[8];
    rows_in_pairs(a, b, v.w);
    rows_of_two(a + 128, b + 128, high);
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        const pf_ivec bits = pf_ivec_and(pf_ivec_right_each(high[q], shifts), pf_ivec_set1(3 * ONES));
        const pf_ivec low = pf_ivec_and(pf_ivec_right_each(v.w[q], low_shifts), pf_ivec_set1(15 * ONES));
        v.w[q] = pf_ivec_or(low, pf_ivec_left(bits, 4));
    }
    v.scale = pf_vec_mul(d, pf_vec_of_ints(pf_ivec_right_signed(pf_ivec_left(scales, 24), 24)));
    v.half_scale = pf_vec_mul(d, pf_vec_of_ints(pf_ivec_right_signed(pf_ivec_left(scales, 16), 24)));
    return super_end(v, n);
}

/* ---- IQ formats -------------------------------------------------------------------------------------------- */

#if defined(PF_INT_WORDS)
enum { BIAS_IQ2 = 0, BIAS_IQ3 = 0, BIAS_IQ4 = 0 };
#else /* the products take unsigned bytes */
enum { BIAS_IQ2 = 43, BIAS_IQ3 = 62, BIAS_IQ4 = 128 };
#endif
enum { BIAS_IQ1 = 16, BIAS_IQ1_S = BIAS_IQ1, BIAS_IQ1_M = BIAS_IQ1, BIAS_IQ2_XXS = BIAS_IQ2, BIAS_IQ2_XS = BIAS_IQ2,
       BIAS_IQ2_S = BIAS_IQ2, BIAS_IQ3_XXS = BIAS_IQ3, BIAS_IQ3_S = BIAS_IQ3, BIAS_IQ4_XS = BIAS_IQ4 };

#if !defined(PF_OWN_GRIDS)

/* The place of entry i in a grid. */
typedef uint32_t (*place_fn)(const uint8_t *in, int i);
PF_INLINE uint32_t place_of_pairs(const uint8_t *in, int i) { return in[8 * (i / 4) + i % 4]; }
PF_INLINE uint32_t place_of_byte(const uint8_t *in, int i) { return in[i]; }
PF_INLINE uint32_t place_of_word(const uint8_t *in, int i) { return pf_load_u16(in + 2 * i); }

/* The 8 values of the 32 entries of a super-block: vector 2g has the columns 0 to 3 of every block's entry g, the next one
 * the others. */
PF_INLINE void grid_8(const uint64_t *grid, place_fn place, const uint8_t *a, const uint8_t *b, pf_ivec *w) {
    PF_UNROLL for (int g = 0; g < 4; ++g) {
        pf_ivec entries[2];
        PF_UNROLL for (int i = 0; i < 2; ++i) {
            uint64_t e[PF_VEC_LANES / 2];
            PF_UNROLL for (int k = 0; k < PF_VEC_LANES / 2; ++k) { /* blocks 0 and 1, 4 and 5; 2 and 3, 6 and 7 */
                const int block = k % 4 / 2 * 4 + k % 2 + 2 * i;
                e[k] = grid[place(k < 4 ? a : b, 4 * block + g)];
            }
            entries[i] = super_of_64(e);
        }
        w[2 * g] = pf_ivec_even_lanes(entries[0], entries[1]);
        w[2 * g + 1] = pf_ivec_odd_lanes(entries[0], entries[1]);
    }
}

/* The 4 values of 64 entries. */
PF_INLINE void grid_4(const uint32_t *grid, place_fn place, const uint8_t *a, const uint8_t *b, pf_ivec *w) {
    PF_UNROLL for (int q = 0; q < 8; ++q) {
        uint32_t e[PF_VEC_LANES];
        PF_UNROLL for (int k = 0; k < PF_VEC_LANES; ++k) e[k] = grid[place(k < 8 ? a : b, 8 * (k % 8) + q)];
        w[q] = super_of_32(e);
    }
}

/* Words of places, where codes have bits elsewhere: 16 at a time. */
typedef struct grid_places {
    uint8_t words[2][128];
} grid_places;

PF_INLINE void put_places(uint8_t *to, int i, __m128i low, __m256i high) {
    _mm256_storeu_si256((__m256i *)(void *)(to + 32 * i), _mm256_or_si256(_mm256_cvtepu8_epi16(low), high));
}
/* Byte j of `bytes` to as many words of 16 as `each` says: 2, 4 or 8; from byte `first` on. */
PF_INLINE __m256i spread_bytes(__m128i bytes, int first, int each) {
    const int n = 16 / each, none = 0x8000; /* a byte of zeros above */
#define AT(i) (int16_t)(none | (first + (i) * n / 16))
    const __m256i places = _mm256_setr_epi16(AT(0), AT(1), AT(2), AT(3), AT(4), AT(5), AT(6), AT(7), AT(8), AT(9), AT(10),
                                             AT(11), AT(12), AT(13), AT(14), AT(15));
#undef AT
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(bytes), places);
}
PF_INLINE void places_iq2_xs(const uint8_t *in, uint8_t *to) {
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        put_places(to, i, _mm_setzero_si128(), _mm256_and_si256(load256(in + 2 + 32 * i), _mm256_set1_epi16(511)));
    }
}
PF_INLINE void places_iq2_s(const uint8_t *in, uint8_t *to) {
    const __m256i by = _mm256_set1_epi64x(0x0004001000400100);
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i high = _mm256_mullo_epi16(spread_bytes(load64(in + 66), 4 * i, 4), by);
        put_places(to, i, load128(in + 2 + 16 * i), _mm256_and_si256(high, _mm256_set1_epi16(0x300)));
    }
}
PF_INLINE void places_iq3_s(const uint8_t *in, uint8_t *to) {
    const __m256i by = _mm256_setr_epi16(256, 128, 64, 32, 16, 8, 4, 2, 256, 128, 64, 32, 16, 8, 4, 2);
    PF_UNROLL for (int i = 0; i < 4; ++i) {
        const __m256i high = _mm256_mullo_epi16(spread_bytes(load64(in + 66), 2 * i, 8), by);
        put_places(to, i, load128(in + 2 + 16 * i), _mm256_and_si256(high, _mm256_set1_epi16(0x100)));
    }
}
PF_INLINE void places_iq1_s(const uint8_t *in, uint8_t *to) {
    const __m256i by = _mm256_set1_epi64x(0x0001000400200100);
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m128i four = load64(in + 34 + 8 * i), two = _mm_unpacklo_epi16(four, four);
        const __m256i each = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi32(two, two)),
                                                     _mm_unpackhi_epi32(two, two), 1);
        const __m256i high = _mm256_blend_epi16(_mm256_mullo_epi16(each, by), _mm256_srli_epi16(each, 1), 0x88);
        put_places(to, i, load128(in + 2 + 16 * i), _mm256_and_si256(high, _mm256_set1_epi16(0x700)));
    }
}
PF_INLINE void places_iq1_m(const uint8_t *in, uint8_t *to) {
    PF_UNROLL for (int i = 0; i < 2; ++i) {
        const __m256i high = _mm256_mullo_epi16(spread_bytes(load128(in + 32), 8 * i, 2), _mm256_set1_epi32(0x00100100));
        put_places(to, i, load128(in + 16 * i), _mm256_and_si256(high, _mm256_set1_epi16(0x700)));
    }
}

#define GRID_DIRECT(type, n, grid, place, at)                                            \
    PF_INLINE void grid_##type(const uint8_t *a, const uint8_t *b, pf_ivec *w) {         \
        grid_##n(pf_grids.grid, place, a + (at), b + (at), w);                           \
    }
#define GRID_PLACES(type, n, grid)                                                       \
    PF_INLINE void grid_##type(const uint8_t *a, const uint8_t *b, pf_ivec *w) {         \
        grid_places places;                                                              \
        places_##type(a, places.words[0]);                                               \
        if ((int)PF_VEC_LANES > (int)PF_SUPER_BLOCKS) places_##type(b, places.words[1]);           \
        grid_##n(pf_grids.grid, place_of_word, places.words[0], places.words[1], w);     \
    }
GRID_DIRECT(iq2_xxs, 8, iq2_xxs, place_of_pairs, 2)
GRID_DIRECT(iq3_xxs, 4, iq3_xxs, place_of_byte, 2)
GRID_PLACES(iq2_xs, 8, iq2_xs)
GRID_PLACES(iq2_s, 8, iq2_s)
GRID_PLACES(iq3_s, 4, iq3_s)
GRID_PLACES(iq1_s, 8, iq1)
GRID_PLACES(iq1_m, 8, iq1)

#endif

/* Bytes of signs, four a block, to the weights. */
PF_INLINE void super_signs(pf_ivec signs, int8_t bias, pf_ivec *w) {
    PF_UNROLL for (int g = 0; g < 4; ++g) {
        const int at = g * ONES;
        const pf_ivec places = pf_ivec_table(_mm_setr_epi32(at, at + 4 * ONES, at + 8 * ONES, at + 12 * ONES));
        const pf_ivec four = pf_ivec_replicate(signs, places);
        w[2 * g] = with_signs(w[2 * g], four, pf_ivec_set1(0x08040201), bias);
        w[2 * g + 1] = with_signs(w[2 * g + 1], four, pf_ivec_set1((int32_t)0x80402010u), bias);
    }
}

/* Bytes whose eighth bit makes the number of ones even; it is zero. */
PF_INLINE pf_ivec super_even(pf_ivec seven) {
    const pf_ivec odd = pf_ivec_table(_mm_setr_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0));
    const pf_ivec folded = pf_ivec_and(pf_ivec_xor(seven, pf_ivec_right_words(seven, 4)), pf_ivec_set1(15 * ONES));
    return pf_ivec_or(seven, pf_ivec_replicate(odd, folded));
}

/* Words of four times seven bits of signs, and a scale: as bytes. */
PF_INLINE pf_ivec super_sevens(pf_ivec words) {
    pf_ivec v = pf_ivec_and(words, pf_ivec_set1(0x7f));
    v = pf_ivec_or(v, pf_ivec_and(pf_ivec_left(words, 1), pf_ivec_set1(0x7f00)));
    v = pf_ivec_or(v, pf_ivec_and(pf_ivec_left(words, 2), pf_ivec_set1(0x7f0000)));
    v = pf_ivec_or(v, pf_ivec_and(pf_ivec_left(words, 3), pf_ivec_set1(0x7f000000)));
    return super_even(v);
}

/* 2 s + 1 */
PF_INLINE pf_ivec super_odd(pf_ivec s) { return pf_ivec_add(pf_ivec_left(s, 1), pf_ivec_set1(1)); }

PF_INLINE pf_vec super_scales(const uint8_t *a, const uint8_t *b, float unit, pf_ivec scales) {
    return pf_vec_mul(pf_vec_mul(super_half(a, b), pf_vec_set1(unit)), pf_vec_of_ints(scales));
}

/* Nibbles of scales of 16 columns, 2 s + 1. */
PF_INLINE void super_nibbles(const uint8_t *a, const uint8_t *b, pf_ivec *c) {
    const pf_ivec both = super_bytes(load64(a), load64(b));
    c[0] = super_odd(pf_ivec_and(both, pf_ivec_set1(15)));
    c[1] = super_odd(pf_ivec_right(both, 4));
}

PF_INLINE int_weights decode_iq2_xxs(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec words = pf_ivec_turned(pf_ivec_odd_lanes(super_load(a + 2, b + 2), super_load(a + 34, b + 34)));
    grid_iq2_xxs(a, b, v.w);
    super_signs(super_sevens(words), BIAS_IQ2, v.w);
    v.scale = super_scales(a, b, 0.125f, super_odd(pf_ivec_right(words, 28)));
    return super_end_signed(v, n);
}

PF_INLINE int_weights decode_iq2_xs(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec first = pf_ivec_right_words(super_load(a + 2, b + 2), 9);
    const pf_ivec second = pf_ivec_right_words(super_load(a + 34, b + 34), 9);
    grid_iq2_xs(a, b, v.w);
    super_signs(super_even(pf_ivec_turned(pf_ivec_packed_words(first, second))), BIAS_IQ2, v.w);
    super_nibbles(a + 66, b + 66, v.c);
    v.scale = super_scales(a, b, 0.125f, pf_ivec_set1(1));
    return super_end_signed(v, n);
}

PF_INLINE int_weights decode_iq2_s(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    grid_iq2_s(a, b, v.w);
    super_signs(super_load(a + 34, b + 34), BIAS_IQ2, v.w);
    super_nibbles(a + 74, b + 74, v.c);
    v.scale = super_scales(a, b, 0.125f, pf_ivec_set1(1));
    return super_end_signed(v, n);
}

PF_INLINE int_weights decode_iq3_xxs(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec words = super_load(a + 66, b + 66);
    grid_iq3_xxs(a, b, v.w);
    super_signs(super_sevens(words), BIAS_IQ3, v.w);
    v.scale = super_scales(a, b, 0.25f, super_odd(pf_ivec_right(words, 28)));
    return super_end_signed(v, n);
}

PF_INLINE int_weights decode_iq3_s(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec shifts = super_each(0, 4, 8, 12, 16, 20, 24, 28);
    grid_iq3_s(a, b, v.w);
    super_signs(super_load(a + 74, b + 74), BIAS_IQ3, v.w);
    const pf_ivec scales = pf_ivec_right_each(super_set1(load32(a + 106), load32(b + 106)), shifts);
    v.scale = super_scales(a, b, 1.0f, super_odd(pf_ivec_and(scales, pf_ivec_set1(15))));
    return super_end_signed(v, n);
}

/* -1 or 1 to every byte, by the highest bits of 32-bit lanes. */
PF_INLINE pf_ivec super_shift(pf_ivec w, pf_ivec down) {
    return pf_ivec_add_bytes(w, pf_ivec_or(pf_ivec_right_signed(down, 31), pf_ivec_set1(ONES)));
}

PF_INLINE int_weights decode_iq1_s(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec words = super_words(load128(a + 34), load128(b + 34));
    grid_iq1_s(a, b, v.w);
    PF_UNROLL for (int q = 0; q < 8; ++q) v.w[q] = super_shift(v.w[q], pf_ivec_left(words, 16));
    v.scale = super_scales(a, b, 0.125f, super_odd(pf_ivec_and(pf_ivec_right(words, 12), pf_ivec_set1(7))));
    return super_end(v, n);
}

PF_INLINE float iq1_m_scale(const uint8_t *words) {
    uint32_t half = 0;
    for (int k = 0; k < 4; ++k) half |= (uint32_t)(pf_load_u16(words + 2 * k) >> 12) << 4 * k;
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128((int32_t)half)));
}

PF_INLINE int_weights decode_iq1_m(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec words = super_words(load128(a + 32), load128(b + 32)), six = super_each(0, 6, 0, 6, 0, 6, 0, 6);
    grid_iq1_m(a, b, v.w);
    PF_UNROLL for (int q = 0; q < 8; ++q) v.w[q] = super_shift(v.w[q], pf_ivec_left(words, (7u - (unsigned)q / 2) * 4));
    const __m128i of_a = load64(a + 48), of_b = load64(b + 48);
    const pf_ivec both = super_words(_mm_unpacklo_epi16(of_a, of_a), _mm_unpacklo_epi16(of_b, of_b));
    const pf_ivec scales = pf_ivec_right_each(both, six);
    PF_UNROLL for (int h = 0; h < 2; ++h) {
        v.c[h] = super_odd(pf_ivec_and(pf_ivec_right(scales, 3 * h), pf_ivec_set1(7)));
    }
    v.scale = pf_vec_mul(super_floats(iq1_m_scale(a + 48), iq1_m_scale(b + 48)), pf_vec_set1(0.125f));
    return super_end(v, n);
}

PF_INLINE int_weights decode_iq4_xs(const uint8_t *a, const uint8_t *b, int n) {
    SUPER_BEGIN;
    const pf_ivec table = pf_ivec_table(_mm_add_epi8(load128((const uint8_t *)pf_iq4_values), _mm_set1_epi8((char)BIAS_IQ4)));
    pf_ivec rows[4], codes[4];
    PF_UNROLL for (int j = 0; j < 4; ++j) rows[j] = super_pairs(a + 8 + 16 * j, b + 8 + 16 * j, 64);
    quads_of_16bytes(rows, codes);
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        v.w[q] = pf_ivec_lookup(table, pf_ivec_low_nibbles(codes[q]));
        v.w[q + 4] = pf_ivec_lookup(table, pf_ivec_high_nibbles(codes[q]));
    }
    const pf_ivec low = pf_ivec_right_each(super_set1(load32(a + 4), load32(b + 4)), super_each(0, 4, 8, 12, 16, 20, 24, 28));
    const pf_ivec high = pf_ivec_right_each(super_set1(pf_load_u16(a + 2), pf_load_u16(b + 2)),
                                            super_each(0, 2, 4, 6, 8, 10, 12, 14));
    const pf_ivec s = pf_ivec_or(pf_ivec_and(low, pf_ivec_set1(15)), pf_ivec_left(pf_ivec_and(high, pf_ivec_set1(3)), 4));
    v.scale = super_scales(a, b, 1.0f, pf_ivec_sub(s, pf_ivec_set1(32)));
    return super_end_signed(v, n);
}

/* The n blocks at a, which are one or two super-blocks. */
#define LOAD_SUPER(type, lower, scaling, has_minimums)                                        \
    PF_INLINE int_weights load_##lower(const uint8_t *a, int n) {                             \
        return decode_##lower(a, n > PF_SUPER_BLOCKS ? a + PF_##type##_BYTES : a, n);         \
    }
PF_SUPER_TYPES(LOAD_SUPER)
#undef LOAD_SUPER

#endif
