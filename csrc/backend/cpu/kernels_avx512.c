/* Kernels for AVX-512 F, BW, DQ, VL and VNNI. */
#include "backend/cpu/kernels.h"

#if defined(__x86_64__) || defined(_M_X64)

#include "backend/cpu/avx512_vectors.h"

/* ---- Tiles (gemm_panel.h) ------------------------------------------------------------------------------------ */

#define PANEL_TOKENS 6
#define PANEL_HOLD(v) (void)(v)
enum { PANEL_FROM = 9, PANEL_SUPER_FROM = PANEL_FROM };

static inline __m512i pf_ivec_add_pairs(__m512i s, __m512i a, __m512i b) { return _mm512_dpwssd_epi32(s, a, b); }

PF_INLINE __m512i rows_16bytes(const uint8_t *const *row, int64_t at) {
    __m512i v = _mm512_inserti32x4(_mm512_setzero_si512(), load128(row[0] + at), 0);
    v = _mm512_inserti32x4(v, load128(row[4] + at), 1);
    v = _mm512_inserti32x4(v, load128(row[8] + at), 2);
    return _mm512_inserti32x4(v, load128(row[12] + at), 3);
}
static inline __m512i pf_ivec_even_words(__m512i v) { return _mm512_maddubs_epi16(_mm512_set1_epi16(1), v); }
static inline __m512i pf_ivec_odd_words(__m512i v) { return _mm512_srai_epi16(v, 8); }

PF_INLINE void panel_pairs(const uint8_t *row, int64_t padded, int64_t group, int quad, int32_t *even, int32_t *odd) {
    const uint8_t *at = row + group * PF_INT_GROUP + quad * PF_INT_QUADS;
    const __m512i base = _mm512_set1_epi16(PF_INT_BASE), high = pf_ivec_load(at), low = pf_ivec_load(at + padded);
    const __m512i even_high = _mm512_mullo_epi16(pf_ivec_even_words(high), base);
    const __m512i odd_high = _mm512_mullo_epi16(pf_ivec_odd_words(high), base);
    pf_ivec_store((uint8_t *)even, _mm512_add_epi16(even_high, pf_ivec_even_words(low)));
    pf_ivec_store((uint8_t *)odd, _mm512_add_epi16(odd_high, pf_ivec_odd_words(low)));
}

#include "backend/cpu/vector_ops.h"
#include "backend/cpu/x86_panels.h"
#include "backend/cpu/x86_quantize.h"

void pf_kernels_avx512_init(pf_cpu_kernels *k) {
    set_vector_entries(k);
    set_panel_entries(k);
    k->q16_words = false;
    k->quantize_q16 = quantize_q16;
    k->quantize_q8 = quantize_q8;
}

#endif
