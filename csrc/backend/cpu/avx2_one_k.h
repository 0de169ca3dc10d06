/* The K formats times one token on AVX2 (avx2_one.h). */
#ifndef PF_BACKEND_CPU_AVX2_ONE_K_H
#define PF_BACKEND_CPU_AVX2_ONE_K_H

#include "backend/cpu/avx2_one.h"

/* ---- Rows of four bits: Q4_K, Q5_K, Q6_K -------------------------------------------------------------------------- */

/* Vector 2q + n: quads q of four blocks, which are `first` and with n = 1 `step` further, then their quads q + 4. */
PF_INLINE void pack_rows(const pf_gemm *g, __m256i first, int step, uint8_t *out) {
    const uint8_t *row = pf_gemm_act(g, 0);
    const int64_t cols = g->w->cols, padded = pf_int_padded(cols);
    for (int64_t b = 0; b < cols / BLOCK; b += PF_SUPER_BLOCKS, out += ONE_BYTES) {
        __m256i planes[2][8];
        one_planes(row, padded, b, planes);
        for (int v = 0; v < 8; ++v) {
            const __m256i blocks = _mm256_add_epi32(first, _mm256_set1_epi32(v % 2 * step));
            pf_ivec_store(out + 64 * v, one_two_quads(planes[0], v / 2, blocks));
            pf_ivec_store(out + 64 * v + 32, one_two_quads(planes[1], v / 2, blocks));
        }
    }
}
static void pack_q45_k(const pf_gemm *g, uint8_t *out) { pack_rows(g, super_each(0, 2, 4, 6, 0, 0, 0, 0), 1, out); }
static void pack_q6_k(const pf_gemm *g, uint8_t *out) { pack_rows(g, super_each(0, 4, 1, 5, 0, 0, 0, 0), 2, out); }

/* Sums of 4 pairs stay below 4 * 2 * 31 * 127. */
PF_INLINE void step_q45_k(const uint8_t *at, const uint8_t *codes, const uint8_t *fifth, const uint8_t *acts,
                          const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i bit = _mm256_set1_epi8(16), pairs = super_each(0, 2, 4, 6, 0, 2, 4, 6);
    __m256i rows[4], t[4], w[2][4];
    PF_UNROLL for (int r = 0; r < 4; ++r) rows[r] = load256(codes + 32 * r);
    quads_of_16bytes(rows, t);
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        w[0][q] = pf_ivec_low_nibbles(t[q]);
        w[1][q] = pf_ivec_high_nibbles(t[q]);
        if (!fifth) continue;
        const __m256i all = load256(fifth);
        const __m256i quad = q == 0   ? _mm256_shuffle_epi32(all, 0x00)
                             : q == 1 ? _mm256_shuffle_epi32(all, 0x55)
                             : q == 2 ? _mm256_shuffle_epi32(all, 0xaa)
                                      : _mm256_shuffle_epi32(all, 0xff);
        const __m256i own = _mm256_srlv_epi32(quad, pairs);
        w[0][q] = pf_ivec_or(w[0][q], pf_ivec_and(_mm256_slli_epi32(own, 4), bit));
        w[1][q] = pf_ivec_or(w[1][q], pf_ivec_and(_mm256_slli_epi32(own, 3), bit));
        VEC_HOLD(w[0][q]);
        VEC_HOLD(w[1][q]);
    }
    __m256i i[2];
    PF_UNROLL for (int n = 0; n < 2; ++n) {
        i[n] = one_both(one_sum16(w[n], acts + 64 * n, 128, 4), one_sum16(w[n], acts + 64 * n + 32, 128, 4));
    }
    int_weights v;
    q45_k_scales(at, at, &v);
    const __m256 act = _mm256_loadu_ps(scales);
    const __m256i sums = _mm256_add_epi32(one_load(halves), one_load(halves + PF_INT_BLOCKS));
    *s = one_join(one_order(one_fold(i[0], i[1]), 0, 4, 1, 5, 2, 6, 3, 7), v.scale, act, *s);
    *s = one_join(_mm256_mullo_epi32(sums, v.m[0]), v.min_scale, act, *s);
}
PF_INLINE void step_q4_k(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    step_q45_k(at, at + 16, NULL, acts, scales, halves, s);
}
PF_INLINE void step_q5_k(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    step_q45_k(at, at + 48, at + 16, acts, scales, halves, s);
}

PF_INLINE void step_q6_k(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const __m256i bits = _mm256_set1_epi8(48), two = super_each(0, 0, 2, 2, 0, 0, 2, 2);
    const __m256i first = load256(at + 128), second = load256(at + 160); /* the upper bits of blocks 0 to 3, 4 to 7 */
    const __m256i low = _mm256_unpacklo_epi32(first, second), high = _mm256_unpackhi_epi32(first, second);
    __m256i rows[4], t[4], w[2][4], i[2];
    PF_UNROLL for (int r = 0; r < 4; ++r) rows[r] = load256(at + r % 2 * 64 + r / 2 * 32);
    quads_of_16bytes(rows, t);
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        const __m256i pair = q < 2 ? low : high;
        const __m256i both = q % 2 ? _mm256_unpackhi_epi64(pair, pair) : _mm256_unpacklo_epi64(pair, pair);
        const __m256i upper = _mm256_srlv_epi32(both, two);
        w[0][q] = pf_ivec_or(pf_ivec_low_nibbles(t[q]), pf_ivec_and(_mm256_slli_epi32(upper, 4), bits));
        w[1][q] = pf_ivec_or(pf_ivec_high_nibbles(t[q]), pf_ivec_and(upper, bits));
        VEC_HOLD(w[0][q]);
        VEC_HOLD(w[1][q]);
    }
    PF_UNROLL for (int n = 0; n < 2; ++n) { /* sums of 2 pairs stay below 2 * 2 * 63 * 127 */
        const uint8_t *a = acts + 64 * n, *b = a + 256;
        i[n] = _mm256_add_epi32(one_both(one_sum16(w[n], a, 128, 2), one_sum16(w[n], a + 32, 128, 2)),
                                one_both(one_sum16(w[n] + 2, b, 128, 2), one_sum16(w[n] + 2, b + 32, 128, 2)));
    }
    const __m256i of_first = one_order(_mm256_permute2x128_si256(i[0], i[1], 0x20), 0, 2, 4, 6, 1, 3, 5, 7);
    const __m256i of_second = one_order(_mm256_permute2x128_si256(i[0], i[1], 0x31), 0, 2, 4, 6, 1, 3, 5, 7);
    const int_weights v = decode_q6_k(at, at, PF_SUPER_BLOCKS); /* its scales */
    const __m256 act = _mm256_loadu_ps(scales);
    *s = one_join(_mm256_sub_epi32(of_first, _mm256_slli_epi32(one_load(halves), 5)), v.scale, act, *s);
    *s = one_join(_mm256_sub_epi32(of_second, _mm256_slli_epi32(one_load(halves + PF_INT_BLOCKS), 5)), v.half_scale, act, *s);
}

/* ---- Rows of two bits: Q2_K, Q3_K --------------------------------------------------------------------------------- */

/* Two super-blocks i have four rows r of two bits: block 8i + 4r + k has the bits k of row r. Vector 4q + k: quads q of the
 * blocks k, 8 + k, 4 + k and 12 + k, then their quads q + 4. And so are sums: of k 0 and 1, and of k 2 and 3. */
enum { ONE_PAIR_BYTES = 2 * ONE_BYTES + 3 * 64 /* and scales and both halves' sums in that order */ };

static void pack_q23_k(const pf_gemm *g, uint8_t *out) {
    const uint8_t *row = pf_gemm_act(g, 0);
    const int64_t cols = g->w->cols, padded = pf_int_padded(cols);
    const float *scales = pf_int_scales(row, PF_Q16_PLANES, cols);
    for (int64_t b = 0; b < cols / BLOCK; b += PF_INT_BLOCKS, out += ONE_PAIR_BYTES) {
        __m256i first[2][8], second[2][8];
        one_planes(row, padded, b, first);
        one_planes(row, padded, b + PF_SUPER_BLOCKS, second);
        for (int v = 0; v < 32; ++v) {
            const int plane = v % 2, k = v / 2 % 4, q = v / 8;
            const __m256i blocks = super_each(k, k + 4, 0, 0, 0, 0, 0, 0);
            pf_ivec_store(out + 32 * v, _mm256_unpacklo_epi32(one_two_quads(first[plane], q, blocks),
                                                              one_two_quads(second[plane], q, blocks)));
        }
        const uint8_t *sums = row + pf_int_halves_at(cols) + 4 * pf_int_half_place(b);
        const uint8_t *const from[3] = {(const uint8_t *)(scales + b), sums, sums + 4 * PF_INT_BLOCKS};
        for (int i = 0; i < 6; ++i) {
            const int k = i % 2 * 2;
            const __m256i blocks = super_each(k, k + 4, 0, 0, k + 1, k + 5, 0, 0);
            pf_ivec_store(out + 2 * ONE_BYTES + 32 * i,
                          _mm256_unpacklo_epi32(_mm256_permutevar8x32_epi32(load256(from[i / 2]), blocks),
                                                _mm256_permutevar8x32_epi32(load256(from[i / 2] + 32), blocks)));
        }
    }
}

static float total_q23_k(const __m256 *s) {
    const __m256 t = _mm256_hadd_ps(s[0], s[1]), u = _mm256_hadd_ps(t, t); /* t[0], t[2], ..., and t[1], t[3] */
    const __m128 low = _mm256_castps256_ps128(u), high = _mm256_extractf128_ps(u, 1);
    return _mm_cvtss_f32(_mm_add_ss(_mm_add_ss(low, _mm_movehdup_ps(low)), _mm_add_ss(high, _mm_movehdup_ps(high))));
}

/* A byte for every half of a block, of the super-blocks a and b: out[j] has in every lane, which are those of the sums, both
 * halves of block k = 2j of the lane's row and both of k = 2j + 1; twice. */
PF_INLINE void one_pairs_of_scales(__m128i a, __m128i b, __m256i *out) {
    const __m128i low = _mm_unpacklo_epi32(a, b), high = _mm_unpackhi_epi32(a, b);
    out[0] = _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(low, high));
    out[1] = _mm256_broadcastsi128_si256(_mm_unpackhi_epi64(low, high));
}
/* Byte `a` of every dword of the lower half, byte b of the upper half, to words twice, or to dwords. */
PF_INLINE __m256i one_spread(__m256i v, int a, int b, bool twice) {
    const int zeros = (int)(twice ? 0x80008000u : 0x80808000u), each = twice ? 0x00010001 : 1;
    const int in_a = zeros + a * each, in_b = zeros + b * each;
    return _mm256_shuffle_epi8(v, _mm256_setr_epi32(in_a, in_a + 4 * each, in_a + 8 * each, in_a + 12 * each, in_b,
                                                    in_b + 4 * each, in_b + 8 * each, in_b + 12 * each));
}

/* The sums i of int_acts.h, of the words' sums of every k, with the scales c of their halves (words, twice). */
PF_INLINE void one_q23_k(const __m256i *hi, const __m256i *lo, const __m256i *c, __m256i *i) {
    __m256i both[4];
    PF_UNROLL for (int k = 0; k < 4; ++k) {
        const __m256i of_hi = one_times_base(c[k]);
        both[k] = _mm256_add_epi32(_mm256_madd_epi16(hi[k], of_hi), _mm256_madd_epi16(lo[k], c[k]));
    }
    i[0] = one_fold(both[0], both[1]);
    i[1] = one_fold(both[2], both[3]);
}

PF_INLINE void step_q2_k(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const uint8_t *b = at + PF_Q2_K_BYTES;
    const __m256i rows[4] = {load256(at + 16), load256(b + 16), load256(at + 48), load256(b + 48)};
    __m256i t[4], hi[4], lo[4], parts[2], c[4], i[2];
    (void)scales, (void)halves;
    quads_of_16bytes(rows, t);
    PF_UNROLL for (int k = 0; k < 4; ++k) { /* sums of 4 pairs stay below 4 * 2 * 3 * 127 */
        __m256i w[4];
        PF_UNROLL for (int q = 0; q < 4; ++q) w[q] = pf_ivec_and(_mm256_srli_epi16(t[q], 2 * k), _mm256_set1_epi8(3));
        hi[k] = one_sum16(w, acts + 64 * k, 256, 4);
        lo[k] = one_sum16(w, acts + 64 * k + 32, 256, 4);
    }
    one_pairs_of_scales(load128(at), load128(b), parts);
    PF_UNROLL for (int k = 0; k < 4; ++k) c[k] = one_spread(pf_ivec_low_nibbles(parts[k / 2]), k % 2 * 2, k % 2 * 2 + 1, true);
    one_q23_k(hi, lo, c, i);
    const __m128 d = _mm_cvtph_ps(_mm_setr_epi32((int32_t)load32(at + 80), (int32_t)load32(b + 80), 0, 0));
    const __m256 scale = one_twice(_mm_shuffle_ps(d, d, 0x88));
    const __m256 min_scale = _mm256_xor_ps(one_twice(_mm_shuffle_ps(d, d, 0xdd)), _mm256_set1_ps(-0.0f));
    PF_UNROLL for (int j = 0; j < 2; ++j) {
        const uint8_t *at_j = acts + 2 * ONE_BYTES + 32 * j;
        const __m256i m = pf_ivec_high_nibbles(parts[j]);
        const __m256i less = _mm256_add_epi32(_mm256_mullo_epi32(load256(at_j + 64), one_spread(m, 0, 2, false)),
                                              _mm256_mullo_epi32(load256(at_j + 128), one_spread(m, 1, 3, false)));
        const __m256 act = _mm256_castsi256_ps(load256(at_j));
        s[j] = one_join(less, min_scale, act, one_join(i[j], scale, act, s[j]));
    }
}

PF_INLINE void step_q3_k(const uint8_t *at, const uint8_t *acts, const float *scales, const int32_t *halves, __m256 *s) {
    const uint8_t *b = at + PF_Q3_K_BYTES;
    const __m256i rows[4] = {load256(at + 32), load256(b + 32), load256(at + 64), load256(b + 64)};
    const __m256i third_low = _mm256_unpacklo_epi32(load256(at), load256(b));
    const __m256i third_high = _mm256_unpackhi_epi32(load256(at), load256(b));
    const __m256i four = super_each(0, 0, 4, 4, 0, 0, 4, 4), bit = _mm256_set1_epi8(4);
    __m256i t[4], third[4], hi[4], lo[4], parts[2], c[4], i[2];
    (void)scales, (void)halves;
    quads_of_16bytes(rows, t);
    PF_UNROLL for (int q = 0; q < 4; ++q) {
        const __m256i pair = q < 2 ? third_low : third_high;
        third[q] = _mm256_srlv_epi32(q % 2 ? _mm256_unpackhi_epi64(pair, pair) : _mm256_unpacklo_epi64(pair, pair), four);
    }
    PF_UNROLL for (int k = 0; k < 4; ++k) { /* sums of 4 pairs stay below 4 * 2 * 7 * 127 */
        __m256i w[4];
        PF_UNROLL for (int q = 0; q < 4; ++q) {
            const __m256i own = k == 0   ? _mm256_slli_epi16(third[q], 2)
                                : k == 1 ? _mm256_slli_epi16(third[q], 1)
                                : k == 2 ? third[q]
                                         : _mm256_srli_epi16(third[q], 1);
            w[q] = pf_ivec_or(pf_ivec_and(_mm256_srli_epi16(t[q], 2 * k), _mm256_set1_epi8(3)), pf_ivec_and(own, bit));
        }
        PF_UNROLL for (int q = 0; q < 4; ++q) VEC_HOLD(w[q]);
        hi[k] = one_sum16(w, acts + 64 * k, 256, 4);
        lo[k] = one_sum16(w, acts + 64 * k + 32, 256, 4);
    }
    one_pairs_of_scales(q3_k_scales(at + 96), q3_k_scales(b + 96), parts);
    PF_UNROLL for (int k = 0; k < 4; ++k) {
        c[k] = _mm256_sub_epi16(one_spread(parts[k / 2], k % 2 * 2, k % 2 * 2 + 1, true), _mm256_set1_epi16(32));
    }
    one_q23_k(hi, lo, c, i);
    const __m128 d = _mm_cvtph_ps(_mm_setr_epi32(pf_load_u16(at + 108), pf_load_u16(b + 108), 0, 0));
    const __m256 scale = one_twice(_mm_shuffle_ps(d, d, 0x88));
    PF_UNROLL for (int j = 0; j < 2; ++j) {
        const uint8_t *at_j = acts + 2 * ONE_BYTES + 32 * j;
        const __m256i first = _mm256_sub_epi32(one_spread(parts[j], 0, 2, false), _mm256_set1_epi32(32));
        const __m256i second = _mm256_sub_epi32(one_spread(parts[j], 1, 3, false), _mm256_set1_epi32(32));
        const __m256i more = _mm256_add_epi32(_mm256_mullo_epi32(load256(at_j + 64), first),
                                              _mm256_mullo_epi32(load256(at_j + 128), second));
        i[j] = _mm256_sub_epi32(i[j], _mm256_slli_epi32(more, 2)); /* the weights are 4 too large */
        s[j] = one_join(i[j], scale, _mm256_castsi256_ps(load256(at_j)), s[j]);
    }
}

ONE_SUPER(Q4_K, q4_k, pack_q45_k)
ONE_SUPER(Q5_K, q5_k, pack_q45_k)
ONE_SUPER(Q6_K, q6_k, pack_q6_k)
#define ONE_PAIR(type, lower, pack_fn) ONE_GEMM(lower, pack_fn, total_q23_k, 2, 2 * PF_##type##_BYTES, ONE_PAIR_BYTES, 1.0f)
ONE_PAIR(Q2_K, q2_k, pack_q23_k)
ONE_PAIR(Q3_K, q3_k, pack_q23_k)

#endif
