/* The grids of the IQ formats by permutations of bytes (AVX-512 VBMI): codes are looked up 64 at a time in registers, and
 * become values by a further permutation. Of two super-blocks, grid_<type> of x86_super.h. */
#ifndef PF_BACKEND_CPU_AVX512_GRIDS_H
#define PF_BACKEND_CPU_AVX512_GRIDS_H

#include "backend/cpu/grid_bytes.h"

/* 64 bytes of a table of `entries`, a multiple of 256, by eight low bits of their places and a byte with the others. */
PF_INLINE __m512i codes_at(const uint8_t *table, int entries, __m512i low, __m512i high) {
    const __mmask64 upper = _mm512_movepi8_mask(low);
    __m512i v[8];
    PF_UNROLL for (int i = 0; i < entries / 256; ++i) {
        const uint8_t *at = table + 256 * i;
        const __m512i first = _mm512_permutex2var_epi8(pf_ivec_load(at), low, pf_ivec_load(at + 64));
        const __m512i second = _mm512_permutex2var_epi8(pf_ivec_load(at + 128), low, pf_ivec_load(at + 192));
        v[i] = _mm512_mask_mov_epi8(first, upper, second);
    }
    PF_UNROLL for (int bit = 0; 256 << bit < entries; ++bit) {
        const __mmask64 is_odd = _mm512_test_epi8_mask(high, _mm512_set1_epi8((char)(1 << bit)));
        PF_UNROLL for (int i = 0; i < entries >> (9 + bit); ++i) v[i] = _mm512_mask_mov_epi8(v[2 * i], is_odd, v[2 * i + 1]);
    }
    return v[0];
}

/* The same in every 128 bits but for `step` more from one to the next. */
PF_INLINE __m512i lanes_of(__m128i v, __m128i step) {
    const __m256i first = _mm256_inserti128_si256(_mm256_castsi128_si256(v), _mm_add_epi8(v, step), 1);
    const __m128i two = _mm_add_epi8(step, step);
    return super_both(first, _mm256_add_epi8(first, _mm256_inserti128_si256(_mm256_castsi128_si256(two), two, 1)));
}

/* In 128-bit lane g a place for every block of both super-blocks: byte `each` * block + g * `step`, the second super-block's
 * `second` further. */
PF_INLINE __m512i block_places(int each, int step, int second) {
#define AT(block) (char)((each) * (block)), (char)((each) * ((block) + 1))
#define FURTHER(block) (char)((each) * (block) + second), (char)((each) * ((block) + 1) + second)
    const __m128i first = _mm_setr_epi8(AT(0), AT(2), AT(4), AT(6), FURTHER(0), FURTHER(2), FURTHER(4), FURTHER(6));
#undef AT
#undef FURTHER
    return lanes_of(first, _mm_set1_epi8((char)step));
}
PF_INLINE __m512i places_behind(__m512i places, int bytes) { return _mm512_add_epi8(places, _mm512_set1_epi8((char)bytes)); }

/* Bytes 16g to 16g + 15 as the lower bytes of 32-bit lanes, above them those of `upper`. */
PF_INLINE __m512i to_lanes(__m512i v, __m512i upper, int g) {
    const __m512i places = _mm512_add_epi32(_mm512_setr_epi32(0x4000, 0x4101, 0x4202, 0x4303, 0x4404, 0x4505, 0x4606, 0x4707,
                                                              0x4808, 0x4909, 0x4a0a, 0x4b0b, 0x4c0c, 0x4d0d, 0x4e0e, 0x4f0f),
                                            _mm512_set1_epi32(0x1010 * g));
    return _mm512_permutex2var_epi8(v, places, upper);
}

/* Grids of eight values of two bits, of which four lie in a byte. */
PF_INLINE void values_8(const uint8_t *codes, int entries, __m512i low, __m512i high, int32_t values, __m512i *w) {
    const __m512i table = _mm512_set1_epi32(values), bits = _mm512_set1_epi64(0x2624222006040200);
    PF_UNROLL for (int half = 0; half < 2; ++half) {
        const __m512i four = codes_at(codes + half * entries, entries, low, high);
        PF_UNROLL for (int g = 0; g < 4; ++g) {
            const __m512i shifted = _mm512_multishift_epi64_epi8(bits, to_lanes(four, four, g));
            w[2 * g + half] = _mm512_permutexvar_epi8(shifted, table); /* by the two lowest bits, as the table repeats */
        }
    }
}

/* Grids of four values of three bits. low and high: of entries 0 to 3, and of 4 to 7 of every block. */
PF_INLINE void values_4(const uint8_t *codes, int entries, const __m512i *low, const __m512i *high, uint64_t values,
                        __m512i *w) {
    const __m512i table = _mm512_set1_epi64((int64_t)values), bits = _mm512_set1_epi64(0x2926232009060300);
    PF_UNROLL for (int part = 0; part < 2; ++part) {
        const __m512i lower = codes_at(codes, entries, low[part], high[part]);
        const __m512i upper = codes_at(codes + entries, entries, low[part], high[part]);
        PF_UNROLL for (int g = 0; g < 4; ++g) {
            const __m512i shifted = _mm512_multishift_epi64_epi8(bits, to_lanes(lower, upper, g));
            w[4 * part + g] = _mm512_permutexvar_epi8(shifted, table);
        }
    }
}

enum { IQ2_VALUES = 0x002b1908, IQ1_VALUES = 0x00181008 };
#define IQ3_XXS_VALUES UINT64_C(0x3e342c241c140c04)
#define IQ3_S_VALUES UINT64_C(0x0f0d0b0907050301)
#define CODES(grid) pf_grids.grid##_codes[0]

/* The words of 128-bit lane g shifted right by `first` and g times `step`. */
PF_INLINE __m512i shifted_lanes(__m512i v, int step, int first) {
    return _mm512_srlv_epi16(v, lanes_of(_mm_set1_epi16((int16_t)first), _mm_set1_epi16((int16_t)step)));
}

PF_INLINE void grid_iq2_xxs(const uint8_t *a, const uint8_t *b, __m512i *w) {
    const __m512i low = _mm512_permutex2var_epi8(pf_ivec_load(a + 2), block_places(8, 1, 64), pf_ivec_load(b + 2));
    values_8(CODES(iq2_xxs), 256, low, low, IQ2_VALUES, w);
}
PF_INLINE void grid_iq2_xs(const uint8_t *a, const uint8_t *b, __m512i *w) {
    const __m512i places = block_places(8, 2, 64), of_a = pf_ivec_load(a + 2), of_b = pf_ivec_load(b + 2);
    const __m512i low = _mm512_permutex2var_epi8(of_a, places, of_b);
    const __m512i high = _mm512_permutex2var_epi8(of_a, places_behind(places, 1), of_b);
    values_8(CODES(iq2_xs), 512, low, high, IQ2_VALUES, w);
}
PF_INLINE void grid_iq2_s(const uint8_t *a, const uint8_t *b, __m512i *w) {
    const __m512i low = _mm512_permutexvar_epi8(block_places(4, 1, 32), super_load(a + 2, b + 2));
    const __m512i both = _mm512_broadcast_i32x4(_mm_unpacklo_epi64(load64(a + 66), load64(b + 66)));
    values_8(CODES(iq2_s), 1024, low, shifted_lanes(both, 2, 0), IQ2_VALUES, w);
}
PF_INLINE void grid_iq1_s(const uint8_t *a, const uint8_t *b, __m512i *w) {
    const __m512i low = _mm512_permutexvar_epi8(block_places(4, 1, 32), super_load(a + 2, b + 2));
    const __m256i words = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(a + 34)), load128(b + 34), 1);
    __m512i high = _mm512_castsi128_si512(_mm256_cvtepi16_epi8(words));
    high = _mm512_inserti32x4(high, _mm256_cvtepi16_epi8(_mm256_srli_epi16(words, 3)), 1);
    high = _mm512_inserti32x4(high, _mm256_cvtepi16_epi8(_mm256_srli_epi16(words, 6)), 2);
    high = _mm512_inserti32x4(high, _mm256_cvtepi16_epi8(_mm256_srli_epi16(words, 9)), 3);
    values_8(CODES(iq1), 2048, low, high, IQ1_VALUES, w);
}
PF_INLINE void grid_iq1_m(const uint8_t *a, const uint8_t *b, __m512i *w) {
    const __m512i first = block_places(2, 0, 16);
    /* Of a block's two bytes the first has the nibbles of entries 0 and 1. */
    const __m512i places = _mm512_mask_add_epi8(first, 0xffffffff00000000, first, _mm512_set1_epi8(1));
    const __m512i low = _mm512_permutexvar_epi8(block_places(4, 1, 32), super_load(a, b));
    const __m256i nibbles = _mm256_inserti128_si256(_mm256_castsi128_si256(load128(a + 32)), load128(b + 32), 1);
    const __m512i both = _mm512_permutexvar_epi8(places, _mm512_castsi256_si512(nibbles));
    const __m512i high = _mm512_mask_srli_epi16(both, 0xff00ff00u, both, 4);
    values_8(CODES(iq1), 2048, low, high, IQ1_VALUES, w);
}
PF_INLINE void grid_iq3_xxs(const uint8_t *a, const uint8_t *b, __m512i *w) {
    __m512i low[2];
    PF_UNROLL for (int part = 0; part < 2; ++part) {
        const __m512i places = places_behind(block_places(8, 1, 64), 4 * part);
        low[part] = _mm512_permutex2var_epi8(pf_ivec_load(a + 2), places, pf_ivec_load(b + 2));
    }
    values_4(CODES(iq3_xxs), 256, low, low, IQ3_XXS_VALUES, w);
}
PF_INLINE void grid_iq3_s(const uint8_t *a, const uint8_t *b, __m512i *w) {
    const __m512i both = _mm512_broadcast_i32x4(_mm_unpacklo_epi64(load64(a + 66), load64(b + 66)));
    __m512i low[2], high[2];
    PF_UNROLL for (int part = 0; part < 2; ++part) {
        const __m512i places = places_behind(block_places(8, 1, 64), 4 * part);
        low[part] = _mm512_permutex2var_epi8(pf_ivec_load(a + 2), places, pf_ivec_load(b + 2));
        high[part] = shifted_lanes(both, 1, 4 * part);
    }
    values_4(CODES(iq3_s), 512, low, high, IQ3_S_VALUES, w);
}

#endif
